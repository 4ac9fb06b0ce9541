"""Repeat a training step whose loss or gradient was not finite: `replay.py --help`."""

import sys

from instseg.cli.replay import main

if __name__ == "__main__":  # workers that are spawned import this file too
    sys.exit(main())
