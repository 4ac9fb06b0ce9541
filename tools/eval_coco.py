"""COCO scores of a trained model, or of a result file of any system: `eval_coco.py --help`."""

import sys

from instseg.cli.evaluate import main

sys.exit(main())
