"""Named arrays and texts in a safetensors file, with a checksum: what was written, or a FormatError."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from fusedlstm.io.atomic import atomic_write

Array = NDArray[Any]

CHECKSUM = "checksum"
# safetensors name -> NumPy type: what parameters, optimiser states and positions need, and no more
DTYPES = {"F32": "float32", "F64": "float64", "I32": "int32", "I64": "int64", "U64": "uint64", "U8": "uint8"}


class FormatError(ValueError):
    """A file is not what it should be: foreign, truncated, corrupted or inconsistent."""


def parse_json(text: str, what: str) -> Any:
    """Value of a JSON text from a file, without what JSON does not have.

    Parameters
    ----------
    text : str
        From anywhere.
    what : str
        How errors call it.

    Raises
    ------
    FormatError
        If it is not JSON, has a key twice, NaN or an infinity, or is nested too deeply.

    Examples
    --------
    >>> from fusedlstm.io import parse_json
    >>> parse_json('{"hidden_size": 8}', "config")
    {'hidden_size': 8}
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise FormatError(f"{what}: a key is given twice")
        return values

    def constant(name: str) -> Any:
        raise FormatError(f"{what}: {name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: not JSON: {error}") from None


def _checksum(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> str:
    """SHA-256 over everything the file says, independent of the order in which it says it."""
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    for key in sorted(metadata):
        if key != CHECKSUM:
            add(key.encode("utf-8"))
            add(metadata[key].encode("utf-8"))
    for name in sorted(tensors):
        array = tensors[name]
        add(name.encode("utf-8"))
        add(f"{array.dtype.name}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_tensors(
    path: str | PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Write named arrays and named texts to a safetensors file, atomically.

    Parameters
    ----------
    path : path-like
        The file; see `atomic_write`.
    tensors : mapping of str to ndarray
        float32, float64, int32, int64, uint64 or uint8, any shape; strided ones are copied.
    metadata : mapping of str to str
        Any texts; the key ``"checksum"`` is this function's own.

    Raises
    ------
    ValueError
        If a dtype is not one of those, or a text cannot be stored.
    OSError
        If the disk does not take the file. The old file is then as it was.

    Notes
    -----
    The file is made in memory first: twice the size of the arrays is needed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from fusedlstm.io import read_tensors, write_tensors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "some.safetensors"
    ...     write_tensors(path, {"a": np.arange(3, dtype=np.int32)}, {"format": "mine"})
    ...     tensors, metadata = read_tensors(path)
    >>> tensors["a"], metadata
    (array([0, 1, 2], dtype=int32), {'format': 'mine'})
    """
    arrays: dict[str, Array] = {}
    for name, value in tensors.items():
        # safetensors writes the buffer of a strided array as it lies, so it must not get one.
        array = np.asarray(value, order="C")
        if array.dtype.name not in DTYPES.values():
            raise ValueError(
                f"{name}: dtype must be one of {', '.join(DTYPES.values())}, got {array.dtype.name}"
            )
        arrays[name] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    texts = dict(metadata)
    if CHECKSUM in texts:
        raise ValueError(f"metadata must not have the key {CHECKSUM!r}")
    for key, text in texts.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError(f"metadata must be texts, got {key!r}: {type(text).__name__}")
    texts[CHECKSUM] = _checksum(arrays, texts)
    content: bytes = safetensors.numpy.save(arrays, texts)

    def write(file: BinaryIO) -> None:
        file.write(content)

    atomic_write(path, write)


class TensorFile:
    """An open safetensors file of which nothing but the header has been read.

    Attributes
    ----------
    metadata : dict of str to str
        The texts, without the checksum; not verified before `read`.
    specs : dict of str to (str, tuple of int)
        NumPy dtype and shape of each tensor. The file is large enough to hold them all.
    """

    def __init__(self, path: str, handle: Any) -> None:
        self._path = path
        self._handle = handle
        texts = dict(handle.metadata() or {})
        self._checksum = texts.pop(CHECKSUM, None)
        self.metadata: dict[str, str] = texts
        if self._checksum is None:
            raise FormatError(f"{path}: not a file of fusedlstm: it has no checksum")
        self.specs: dict[str, tuple[str, tuple[int, ...]]] = {}
        names: list[str] = handle.keys()  # the handle itself cannot be iterated
        for name in names:
            part = handle.get_slice(name)
            code = part.get_dtype()
            if code not in DTYPES:
                raise FormatError(f"{path}: {name} has dtype {code}, which is none of {', '.join(DTYPES)}")
            self.specs[name] = (DTYPES[code], tuple(part.get_shape()))

    def read(self) -> dict[str, Array]:
        """All tensors, after their checksum; a ``FormatError`` if it differs."""
        try:
            tensors = {name: np.asarray(self._handle.get_tensor(name)) for name in self.specs}
        except (ValueError, OverflowError) as error:  # shapes without elements that NumPy cannot hold
            raise FormatError(f"{self._path}: {error}") from None
        if _checksum(tensors, self.metadata) != self._checksum:
            raise FormatError(f"{self._path}: the file is corrupted: its checksum differs")
        return tensors


@contextmanager
def open_tensors(path: str | PathLike[str]) -> Iterator[TensorFile]:
    """Open a safetensors file and check its header; see `read_tensors` for the errors."""
    name = os.fspath(path)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        raise FormatError(f"{name}: not a file")
    with Path(path).open("rb") as file:
        head = file.read(8)
    # safetensors checks this too, but says so in the terms of its own source.
    if len(head) < 8 or int.from_bytes(head, "little") > status.st_size - 8:
        raise FormatError(f"{name}: not a safetensors file, or truncated: {status.st_size} bytes")
    try:
        with safetensors.safe_open(name, framework="np") as handle:
            yield TensorFile(name, handle)
    except safetensors.SafetensorError as error:
        raise FormatError(f"{name}: not a safetensors file, or truncated: {error}") from None


def read_tensors(path: str | PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read what `write_tensors` wrote.

    Parameters
    ----------
    path : path-like
        A file.

    Returns
    -------
    tensors : dict of str to ndarray
    metadata : dict of str to str

    Raises
    ------
    FormatError
        If the file is not a safetensors file, truncated, or differs in any bit from what was written.
    OSError
        If it cannot be read.

    Notes
    -----
    Memory is taken only for tensors that the file is long enough to hold.
    """
    with open_tensors(path) as file:
        return file.read(), file.metadata
