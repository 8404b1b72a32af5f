"""The exception for faults in a checkpoint's files."""

_LONGEST = 1 << 14


class CheckpointError(ValueError):
    """A checkpoint's file is missing, damaged, or not what lpjax can use; the message names file and key.

    Names in the message come from files: what does not print is escaped, and the message ends after 16384
    characters, so that a hostile file can neither drive a terminal nor fill it.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(message: str) -> str:
    """`message`, escaped and shortened as in a `CheckpointError`."""
    kept = message[:_LONGEST]
    if not kept.isprintable():
        kept = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in kept)
    more = len(message) - _LONGEST
    return f"{kept} … and {more} more characters" if more > 0 else kept
