"""The one exception for what is wrong in a checkpoint's files."""


class CheckpointError(ValueError):
    """A checkpoint's file is missing, damaged, or not what lpjax can use; the message names file and key."""
