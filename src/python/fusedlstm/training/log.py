"""The training log: one JSON object per line, no wall-clock times, so that equal runs give equal files."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO


class TrainingLog:
    """Append-only JSON-lines file that can be put back to an earlier position.

    Every line has ``event``: ``start``, ``step`` (epoch, step, loss in nats per token, gradient_norm, lr),
    ``epoch`` (epoch, step, train_loss, validation_loss, lr) or ``end``. Numbers are written with all their
    digits: reading a line back gives the same float.

    Parameters
    ----------
    path : path-like
        File to write. An older one is overwritten, unless ``position`` is given.
    position : tuple of int, optional
        ``(bytes, crc32)`` from ``position()`` of an earlier process: the file is cut to that many bytes
        and continued.

    Raises
    ------
    ValueError
        The file's first bytes are not those that the checkpoint speaks of; the file is left alone.
    OSError
        The file cannot be written; the message names it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = TrainingLog(f"{folder}/log.jsonl")
    ...     log.write("step", step=1, loss=0.1 + 0.2)
    ...     position = log.position()
    ...     log.close()
    ...     read_log(f"{folder}/log.jsonl")
    [{'event': 'step', 'step': 1, 'loss': 0.30000000000000004}]
    """

    def __init__(self, path: str | os.PathLike[str], *, position: tuple[int, int] | None = None) -> None:
        self.path = Path(path)
        self._size, self._crc = position or (0, 0)
        self._file: BinaryIO
        if position is None:
            self._file = open(self.path, "wb", buffering=0)
            return
        with open(self.path, "rb") as old:
            kept = old.read(self._size)
        if len(kept) != self._size or zlib.crc32(kept) != self._crc:
            raise ValueError(
                f"log {self.path} does not begin with the {self._size} bytes written before the checkpoint; "
                "give the log of the interrupted run, or another --log name together with a new checkpoint"
            )
        self._file = open(self.path, "r+b", buffering=0)
        self._file.truncate(self._size)
        self._file.seek(self._size)

    def write(self, event: str, **values: Any) -> None:
        """Append one line."""
        line = json.dumps({"event": event, **values}).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):  # an almost full disk takes a part first and refuses the rest
                self._file.write(line[written:])
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} while writing the log", str(self.path)) from error
        self._size += len(line)
        self._crc = zlib.crc32(line, self._crc)

    def position(self) -> tuple[int, int]:
        """Bytes so far, safely on disk, and their CRC-32."""
        if self.path.is_file():  # a pipe or a device has no disk behind it
            os.fsync(self._file.fileno())
        return self._size, self._crc

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a training log.

    Parameters
    ----------
    path : path-like
        A file written by `TrainingLog`.

    Returns
    -------
    list of dict
        One per line. A last line without its end (the writer was killed) is left out.

    Raises
    ------
    ValueError
        A line that is not a JSON object with an ``event``.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError as error:  # includes bytes that are not UTF-8
            raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(event, dict) or "event" not in event:
            raise ValueError(f"{path}: line {number} is not a line of a training log")
        events.append(event)
    return events
