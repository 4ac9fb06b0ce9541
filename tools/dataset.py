"""Convert annotations to COCO JSON, or check a COCO JSON file: `dataset.py --help`."""

import sys

from instseg.cli.dataset import main

if __name__ == "__main__":  # workers that are spawned import this file too
    sys.exit(main())
