"""Train a model from a configuration file: `train_net.py --help`."""

import sys

from instseg.cli.train import main

sys.exit(main())
