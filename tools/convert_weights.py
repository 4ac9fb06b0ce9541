"""Torchvision's detection checkpoints to weights of instseg: `convert_weights.py --help`."""

import sys

from instseg.cli.convert_weights import main

if __name__ == "__main__":  # workers that are spawned import this file too
    sys.exit(main())
