"""Train a model from a configuration file: `train_net.py --help`."""

import sys

from instseg.cli.train import main

if __name__ == "__main__":  # workers that are spawned import this file too
    sys.exit(main())
