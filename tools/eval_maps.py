"""Scores of class maps, membranes, nuclei and pictures: `eval_maps.py --help`."""

import sys

from instseg.cli.eval_maps import main

sys.exit(main())
