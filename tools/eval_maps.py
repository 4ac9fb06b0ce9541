"""Scores of class maps, membranes, nuclei and pictures: `eval_maps.py --help`."""

import sys

from instseg.cli.eval_maps import main

if __name__ == "__main__":  # workers that are spawned import this file too
    sys.exit(main())
