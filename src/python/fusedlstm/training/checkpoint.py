"""Checkpoints: all that a training run needs to go on as if it had never stopped, in one file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fusedlstm.io import FormatError, parse_json, read_tensors, write_tensors

FORMAT = "fusedlstm-checkpoint"
VERSION = "1"


@dataclass
class Checkpoint:
    """State of a training run after a completed step.

    Attributes
    ----------
    tensors : dict of ndarray
        Parameters, optimiser state, carried LSTM state, best parameters.
    fingerprint : dict
        What must be equal in the process that resumes: model, data, options. Plain JSON values.
    counters : dict
        Step, epoch, position in the epoch, sums, history, schedule. Plain JSON values.
    log_position : tuple of int, optional
        Bytes and CRC-32 of the log at this step.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Checkpoint({}, {"batch_size": 32}, {"step": 7}).save(f"{folder}/run.checkpoint")
    ...     Checkpoint.load(f"{folder}/run.checkpoint").counters
    {'step': 7}
    """

    tensors: dict[str, NDArray[Any]]
    fingerprint: dict[str, Any]
    counters: dict[str, Any]
    log_position: tuple[int, int] | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` atomically: a reader finds the old file or the new one, never a part.

        Raises
        ------
        OSError
            Disk full, no permission: names the path; the file that was there is untouched.
        """
        body = {
            "fingerprint": self.fingerprint,
            "counters": self.counters,
            "log_position": self.log_position,
        }
        write_tensors(
            path,
            self.tensors,
            {"format": FORMAT, "version": VERSION, "body": json.dumps(body, allow_nan=False)},
        )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Checkpoint:
        """Read and check a checkpoint.

        Raises
        ------
        FormatError
            Not a checkpoint of this version, truncated or damaged.
        OSError
            The file cannot be read.
        """
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise FormatError(f"{path}: not a checkpoint of fusedlstm: format is {metadata.get('format')!r}")
        if metadata.get("version") != VERSION:
            raise FormatError(f"{path}: version must be {VERSION!r}, got {metadata.get('version')!r}")
        body = parse_json(metadata.get("body", ""), f"{path}: body")
        try:
            position = body["log_position"]
            return Checkpoint(
                tensors,
                dict(body["fingerprint"]),
                dict(body["counters"]),
                None if position is None else (int(position[0]), int(position[1])),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FormatError(f"{path}: the description in the checkpoint is incomplete: {error!r}") from None


def require_same_run(path: str | os.PathLike[str], saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse to resume a run that is not the same.

    Raises
    ------
    ValueError
        Names every entry of the fingerprints that differs, with both values.
    """
    current = json.loads(json.dumps(current))  # tuples and lists alike, as in the file
    different = [
        f"{name} was {saved.get(name)!r}, now {current.get(name)!r}"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name)
    ]
    if different:
        raise ValueError(
            f"checkpoint {os.fspath(path)} belongs to another run: {'; '.join(different)}. "
            "Resume with the options it was started with, or start anew with another checkpoint name"
        )
