"""Reading text files, with errors that say which file and where."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

Source = str | PathLike[str]


def read_bytes(path: Source) -> bytes:
    """Content of a file that must not be empty.

    Parameters
    ----------
    path : path-like
        A file.

    Returns
    -------
    bytes
        At least one.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is empty.

    Examples
    --------
    >>> import fusedlstm.data as data
    >>> len(data.read_bytes(data.__file__)) > 100
    True
    """
    content = Path(path).read_bytes()
    if not content:
        raise ValueError(f"{path}: the file is empty")
    return content


def read_text(path: Source) -> str:
    """Content of a UTF-8 file that must not be empty; line ends are kept, a byte order mark is dropped.

    Parameters
    ----------
    path : path-like
        A file.

    Returns
    -------
    str
        At least one character.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is empty or not UTF-8; the message has the offset of the first wrong byte.

    Examples
    --------
    >>> import fusedlstm.data as data
    >>> data.read_text(data.__file__).splitlines()[0][:19]
    '\"\"\"Text to tokens t'
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} ({error.reason}); "
            "convert the file, or use the byte vocabulary, which takes any bytes"
        ) from None
    text = text.removeprefix("\ufeff")
    if not text:
        raise ValueError(f"{path}: the file is empty")
    return text


def read_corpus(paths: Sequence[Source], kind: str) -> str | bytes:
    """Files one after another, as what the vocabulary kind is made from.

    Parameters
    ----------
    paths : sequence of path-like
        At least one file.
    kind : str
        ``"byte"`` gives bytes; ``"char"`` and ``"word"`` give text.

    Returns
    -------
    str or bytes

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If there is no file, or one is empty or not UTF-8.

    Examples
    --------
    >>> import fusedlstm.data as data
    >>> type(data.read_corpus([data.__file__, data.__file__], "byte"))
    <class 'bytes'>
    """
    if isinstance(paths, (str, bytes, PathLike)):
        raise TypeError(f"paths must be a sequence of paths, got {paths!r}")
    if not paths:
        raise ValueError("paths must have at least one file, got none")
    if kind == "byte":
        return b"".join(read_bytes(path) for path in paths)
    return "".join(read_text(path) for path in paths)
