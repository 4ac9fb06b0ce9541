"""What the engine raises; each message names the file, key or record and says how to mend it."""


class EngineError(Exception):
    """Base of the engine's errors: show the message, no traceback is needed."""


class CheckpointError(EngineError):
    """A checkpoint or weights file cannot be written, read or used."""


class UnreadableFileError(CheckpointError):
    """The file is cut short, damaged, or of another format: nothing in it can be trusted."""


class RunExistsError(EngineError):
    """The run folder already holds a training's checkpoint and no resume was asked for."""


class NonFiniteLossError(EngineError):
    """A loss or the gradient became NaN or infinite; the weights are those before this step."""
