"""Metadata lives in pyproject.toml; this file is where the optional compiled extension is declared."""

from setuptools import setup

setup()
