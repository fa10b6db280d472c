"""Directories and files that appear under their final name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tritpress.errors import InputError

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "it is read-only",
}


_PIECE = 1 << 26


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into one sentence that names the path."""
    try:
        yield
    except OSError as error:
        reason = _DISK.get(error.errno or 0, error.strerror or str(error))
        hint = "; free some space and start again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise InputError(f"cannot write {path}: {reason}{hint}") from error


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def claim(file: int, size: int, between: Callable[[], None] = lambda: None) -> None:
    """Make an open file `size` bytes long and take the disk space now: a full disk is met here (OSError), not
    in the middle. Where the system or its file system cannot, the file is as long but has holes. `between` is
    called after every 64 MB: some file systems have each block of them written.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            for start in range(0, size, _PIECE):
                os.posix_fallocate(file, start, min(_PIECE, size - start))
                between()
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(file, max(size, os.fstat(file).st_size))


def write_file(path: Path, data: bytes) -> None:
    """Write and flush a small file (inside a directory that is not final yet)."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Write `text` under a temporary name, flush it to the disk and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def new_directory(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `final` to write into; renamed to `final` at the end, removed on any error.

    Folders above it that had to be made are removed as well on an error, when nothing else is in them.
    An existing `final` that is not empty is refused without `overwrite`, with it replaced only after
    everything new is on disk. What was there before a process was killed in between comes back first.
    """
    with disk_errors(final):
        clear_stale(final)
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        raise InputError(f"{final} is there already and is not a directory")
    if not overwrite and final.exists() and any(final.iterdir()):
        raise InputError(f"{final} is not empty; choose another place or allow overwriting")
    temporary = final.parent / f".{final.name}.writing-{os.getpid()}"
    made = [parent for parent in final.parents if not parent.exists()]
    try:
        with disk_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            sync_folder(temporary)
            if final.exists():
                old = final.parent / f".{final.name}.old-{os.getpid()}"
                os.rename(final, old)
                try:
                    os.rename(temporary, final)
                except BaseException:
                    os.rename(old, final)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(temporary, final)
            sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # the first that is not empty keeps those above it
            for parent in made:
                parent.rmdir()
        raise


def clear_stale(final: Path) -> None:
    """Remove what a killed process left beside `final`; a live one's files stay. Where one was killed between
    taking the old directory away and putting the new one there the old one is put back."""
    for kind in ("old", "writing"):
        start = f".{final.name}.{kind}-"
        for path in final.parent.glob(f"{glob.escape(start)}*"):
            pid = path.name.removeprefix(start)
            if pid.isdigit() and (int(pid) == os.getpid() or not _is_alive(int(pid))):
                if kind == "old" and not os.path.lexists(final):
                    os.rename(path, final)
                else:
                    shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's
        return True
    return True
