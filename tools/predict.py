"""Draw and save what a trained model sees in images: `predict.py --help`."""

import sys

from instseg.cli.predict import main

if __name__ == "__main__":  # workers that are spawned import this file too
    sys.exit(main())
