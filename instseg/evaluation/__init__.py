"""Scores: arrays and annotation files in, figures out. Knows no model."""
