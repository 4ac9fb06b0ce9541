"""Object detection and instance segmentation: one data format, one trainer, one evaluator."""

__version__ = "0.1.0"
