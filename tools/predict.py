"""Draw and save what a trained model sees in images: `predict.py --help`."""

import sys

from instseg.cli.predict import main

sys.exit(main())
