"""Links in a folder that is not trusted: a file is copied only if it lies in that folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lpjax.checkpoint.error import CheckpointError

_DIGEST = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # git's SHA-1 or SHA-256, the names of the hub cache's blobs


class LinkError(CheckpointError):
    """A file of a checkpoint is a link that leads out of its folder."""


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a file of `folder` that is a link to a file elsewhere: a copy would publish /etc/passwd as vocab.txt, say.

    In the Hugging Face Hub's cache, files are links from snapshots/REVISION to blobs/DIGEST, and these are fine. So
    are links from one file of the folder to another, and a folder that is a link itself.

    Raises:
        LinkError: naming the file and where it leads.
    """
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(root):
        return
    blobs = root.parent.parent / "blobs"
    is_blob = root.parent.name == "snapshots" and real.parent == Path(os.path.realpath(blobs))
    if is_blob and _DIGEST.fullmatch(real.name):
        return
    raise LinkError(
        f"{path} is a link that leads out of its checkpoint, to {real}, and is not copied; put the file itself there"
    )


def copy_inside(path: Path, target: Path, folder: Path) -> None:
    """Copy a file of `folder` to `target`, unless `check_inside` refuses it."""
    check_inside(path, folder)
    shutil.copyfile(path, target)


def files_inside(part: Path, folder: Path) -> Iterator[Path]:
    """All files in `part`, a subfolder of `folder`, recursively.

    Raises:
        LinkError: a subfolder is a link that leads out of `folder`, or to a folder that holds it.
    """
    check_inside(part, folder)
    real = Path(os.path.realpath(part))
    if part.is_symlink() and Path(os.path.realpath(part.parent)).is_relative_to(real):
        raise LinkError(f"{part} is a link to a folder that holds it, and is not copied; remove it")
    for path in part.iterdir():
        if path.is_dir():
            yield from files_inside(path, folder)
        elif path.is_file():
            yield path
