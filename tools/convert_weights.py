"""Torchvision's detection checkpoints to weights of instseg: `convert_weights.py --help`."""

import sys

from instseg.cli.convert_weights import main

sys.exit(main())
