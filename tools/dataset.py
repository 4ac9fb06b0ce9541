"""Convert annotations to COCO JSON, or check a COCO JSON file: `dataset.py --help`."""

import sys

from instseg.cli.dataset import main

sys.exit(main())
