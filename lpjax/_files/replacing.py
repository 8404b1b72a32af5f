"""Files and folders that are written whole or not at all.

A new OUT is made in a folder beside it, `.OUT.<hex>.new` (its workshop), and replaces OUT in one step. The workshop is
locked while its process lives; the kernel releases the lock however the process ends. So the next run on the same OUT
can distinguish the workshop of a killed run, which it removes, from that of a run that is still writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: leftovers of dead runs cannot be recognised there, and stay
    fcntl = None

_LOCK, _NEW, _OLD, _TRASH = "lock", "new", "old", "trash"
_TRIES = 5
_own: dict[Path, Path] = {}  # targets that `claimed` holds in this process -> their workshops

_AT_FDCWD = -100
_RENAME_EXCHANGE = _RENAME_SWAP = 2  # of Linux's renameat2 and macOS's renamex_np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; at the end, the file written there replaces `path`. If interrupted, the old one stays.

    If `path` is a link, its target is replaced.

    Raises:
        FileExistsError: `path` is a folder, a device or a pipe.
        OSError: it cannot be written.
    """
    check_regular(path)
    target = path.resolve()
    with _workshop(target) as (folder, _):
        staging = folder / _NEW
        yield staging
        _sync(staging)
        staging.replace(target)
        _sync_folder(target.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all, and make its parent folders.

    Characters that UTF-8 cannot encode, such as half of a surrogate pair, become question marks.

    Raises:
        FileExistsError, OSError: as `replacing`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as staging:
        staging.write_bytes(text.encode("utf-8", "replace"))


@contextmanager
def replacing_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` at the end. If interrupted, the old one stays.

    If the system can exchange the two in one step, there is a whole `target` at every moment. Otherwise a run that is
    killed between two renames leaves none, and `put_back` restores the old one.

    Args:
        target: resolved path, as from `Path.resolve`.
        overwrite: whether to replace a folder that is not empty.

    Raises:
        OSError: it cannot be written, or `target` is a folder that is not empty and may not be replaced.
    """
    with _workshop(target) as (folder, _):
        staging = folder / _NEW
        staging.mkdir()
        yield staging
        for path in (*staging.rglob("*"), staging):
            _sync_folder(path) if path.is_dir() else _sync(path)
        _swap_in(staging, target, overwrite)
        _sync_folder(target.parent)


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Reserve `target` for this process, for a run that writes it repeatedly.

    Raises:
        FileExistsError: another running process writes it.
        OSError: its folder cannot be written to.
    """
    target = target.resolve()
    if target in _own:
        yield
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _workshop(target) as (folder, locked):
        if locked and any(_is_locked(other) for other in _workshops(target) if other != folder):
            raise FileExistsError(f"another run is writing {target}; wait for its end, or choose another OUT")
        _own[target] = folder
        try:
            yield
        finally:
            del _own[target]


def put_back(target: Path) -> None:
    """Restore `target` if a run died between renaming the old one away and the new one into place."""
    target = Path(os.path.realpath(target))
    if target.exists():
        return
    for folder in _workshops(target):
        old = folder if folder.suffix == ".old" else folder / _OLD
        if old.is_dir():
            with _taken(folder) as taken, contextlib.suppress(OSError):  # another command may be faster
                if taken:
                    old.rename(target)
                    if old == folder:
                        (target / _LOCK).unlink()


def check_regular(path: Path) -> None:
    """Refuse to replace anything but a regular file: a file that is renamed to /dev/null would replace the device.

    Raises:
        FileExistsError: `path` is a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file; choose another name")


def check_parent(target: Path) -> None:
    """Refuse, before any work, a target whose folder cannot be written to or made.

    Raises:
        NotADirectoryError, PermissionError: it cannot; names the folder.
    """
    parent = _nearest(target)
    if not parent.is_dir():
        raise NotADirectoryError(f"{target} cannot be made: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{target} cannot be made: {parent} may not be written to; choose another folder")


def overlap(first: Path, second: Path) -> bool:
    """Whether two folders are the same or one lies in the other.

    For folders that exist, the file system compares them, so links and case-insensitive names count.
    """

    def within(path: Path, folder: Path) -> bool:
        return any(_same(parent, folder) for parent in (path, *path.parents))

    first, second = first.resolve(), second.resolve()
    return within(first, second) or within(second, first)


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return first == second


def check_space(target: Path, size: int) -> None:
    """Refuse, before any work, a target beside which there is less than `size` bytes of free space.

    Raises:
        OSError: there is less; names both sizes.
    """
    parent = _nearest(target)
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OSError(
            f"{parent} has {free / 1e6:.1f} MB of free space, and this run needs {size / 1e6:.1f} MB there for what "
            "it writes; free some, or choose another OUT"
        )


def _nearest(target: Path) -> Path:
    """The nearest parent of `target` that exists."""
    return next((parent for parent in target.parents if os.path.lexists(parent)), target.parent)


@contextmanager
def _workshop(target: Path) -> Iterator[tuple[Path, bool]]:
    """Yield a new folder beside `target`, and whether it is locked. It is removed at the end; leftovers, before."""
    _clear(target)
    folder, lock = None, None
    try:
        for attempt in range(1, _TRIES + 1):
            folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
            folder.mkdir(mode=0o700)
            lock = _locked(folder)
            if lock is not None or fcntl is None or attempt == _TRIES:
                break
            # Another run took the lock to clear the folder away, or this file system has no locks.
            shutil.rmtree(folder, ignore_errors=True)
        assert folder is not None
        yield folder, lock is not None
    finally:
        if folder is not None:
            _remove_workshop(folder, target)
        if lock is not None:
            os.close(lock)


def _clear(target: Path) -> None:
    """Remove leftovers of dead runs beside `target`; if the only copy of `target` is among them, restore it first."""
    put_back(target)
    for folder in _workshops(target):
        with _taken(folder) as taken:
            if taken:
                _remove_workshop(folder, target)


def _workshops(target: Path) -> list[Path]:
    """Workshops of runs that write or wrote `target`, also of earlier versions of lpjax."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]+\.(new|old)")
    try:
        with os.scandir(target.parent) as entries:
            return [target.parent / entry.name for entry in entries if name.fullmatch(entry.name) and _is_mine(entry)]
    except (OSError, ValueError):  # no such folder, or a name that no file can have
        return []


def _is_mine(entry: os.DirEntry[str]) -> bool:
    try:
        mine = not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    except FileNotFoundError:  # gone by now
        return False
    return mine and not entry.is_symlink()


def _locked(folder: Path) -> int | None:
    """Lock a folder; returns the descriptor, or None if another process holds the lock or there are no locks here."""
    if fcntl is None:
        return None
    path = folder / _LOCK if folder.is_dir() else folder
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if path != folder else 0)
    try:
        # A file, not the folder itself: NFS locks only what is open for writing.
        lock = os.open(path, flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):  # else another run removed it in the meantime
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


@contextmanager
def _taken(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder inside; yields whether that worked."""
    lock = _locked(folder)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _is_locked(folder: Path) -> bool:
    with _taken(folder) as taken:
        return not taken and folder.exists()


def _remove_workshop(folder: Path, target: Path) -> None:
    """Remove a workshop, unless it holds the only whole copy of the old `target`."""
    try:
        _remove(folder, target)
    except BaseException:
        # Interrupted by a signal: finish. A second signal ends the process.
        _remove(folder, target)
        raise


def _remove(folder: Path, target: Path) -> None:
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    if (folder / _OLD).is_dir():
        if not os.path.lexists(target):
            return
        # Renamed first, so that a half removed folder is not mistaken for a whole one.
        (folder / _OLD).replace(folder / f"{_TRASH}{secrets.token_hex(4)}")
    shutil.rmtree(folder, ignore_errors=True)


def _swap_in(staging: Path, target: Path, overwrite: bool) -> None:
    """Replace `target` by `staging`; the old folder moves into the workshop."""
    if not (overwrite and target.exists()):
        # If a folder appeared at `target` in the meantime, rename replaces it if it is empty, and fails otherwise.
        staging.rename(target)
        return
    if _exchange(staging, target):
        return
    old = staging.with_name(_OLD)
    try:
        target.rename(old)
        staging.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def _exchange(path: Path, other: Path) -> bool:
    """Exchange two folders in one step; False if the system or the file system cannot."""
    sys.audit("os.rename", str(path), str(other), -1, -1)
    first, second = os.fsencode(path), os.fsencode(other)
    try:
        system = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return system.renamex_np(first, second, _RENAME_SWAP) == 0
        return system.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) == 0
    except (AttributeError, OSError, TypeError):  # an old C library; Windows
        return False


def _sync(path: Path) -> None:
    """Write a file's bytes to the disk before it is renamed: a power cut must not leave an empty file."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    if os.name != "nt":
        with contextlib.suppress(OSError):  # not every file system syncs folders
            _sync(path)
