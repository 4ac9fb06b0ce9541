"""COCO scores of a trained model, or of a result file of any system: `eval_coco.py --help`."""

import sys

from instseg.cli.evaluate import main

if __name__ == "__main__":  # workers that are spawned import this file too
    sys.exit(main())
