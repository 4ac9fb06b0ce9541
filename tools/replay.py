"""Repeat a training step whose loss or gradient was not finite: `replay.py --help`."""

import sys

from instseg.cli.replay import main

sys.exit(main())
