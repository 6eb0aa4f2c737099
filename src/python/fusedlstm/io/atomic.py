"""Replacing a file as a whole or not at all."""

import os
import stat
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import BinaryIO


def atomic_write(path: str | PathLike[str], writer: Callable[[BinaryIO], object]) -> None:
    """Replace a file by what `writer` writes: at every moment it is the old one or the new one, complete.

    The new content goes to a temporary file in the same folder, is forced to the disk, and takes the name of
    the old one. If anything fails, the temporary file is removed and the old one is as it was.

    Parameters
    ----------
    path : path-like
        The file; a symbolic link stays one, and the file it points to is replaced. Permissions are kept.
    writer : callable
        Called once with a binary file that is open for writing.

    Raises
    ------
    OSError
        If the folder or the disk does not take the file; the message names `path`.
    BaseException
        What `writer` raises.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fusedlstm.io import atomic_write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "numbers"
    ...     atomic_write(path, lambda file: file.write(b"1 2 3"))
    ...     path.read_bytes()
    b'1 2 3'
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".fusedlstm-{os.urandom(8).hex()}.tmp"
    try:
        _write(temporary, target, writer)
        os.replace(temporary, target)
    except BaseException as error:  # also Ctrl-C: nothing may be left behind
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, f"cannot write: {error.strerror}", os.fspath(path)) from error
        raise
    _sync_folder(target.parent)


def _write(temporary: Path, target: Path, writer: Callable[[BinaryIO], object]) -> None:
    if target.is_dir():
        raise IsADirectoryError(21, "Is a directory", os.fspath(target))
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with open(descriptor, "wb") as file:
        if target.exists():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        writer(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk; Windows cannot open folders and does so by itself."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
