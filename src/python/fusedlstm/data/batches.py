"""Streams of tokens cut into batches for truncated backpropagation through time.

Letters: N lanes (the batch), T steps of a window.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int32]


def _tokens(tokens: Any, who: str) -> Int:
    array = np.asarray(tokens)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{who}: tokens must be ints, got {array.dtype.name}")
    if array.ndim != 1:
        raise ValueError(f"{who}: tokens must be 1-D, got shape {array.shape}")
    limit = np.iinfo(np.int32).max
    if array.size and (array.min() < 0 or array.max() > limit):
        raise ValueError(f"{who}: tokens must be between 0 and {limit}, got {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=np.int32)


def split_tokens(tokens: Any, validation: float = 0.1) -> tuple[Int, Int]:
    """The first part of a stream for training and the rest for validation.

    Parameters
    ----------
    tokens : array_like of int
        (number of tokens,).
    validation : float
        Fraction of the tokens for validation, above 0 and below 1.

    Returns
    -------
    train, validation : ndarray of int32
        The first ``int(n * (1 - validation))`` tokens, and the others.

    Raises
    ------
    ValueError
        If the fraction is out of range or leaves one part empty.
    TypeError
        If the tokens are not ints.

    Examples
    --------
    >>> from fusedlstm.data import split_tokens
    >>> train, validation = split_tokens(range(20), 0.1)
    >>> len(train), validation
    (18, array([18, 19], dtype=int32))
    """
    array = _tokens(tokens, "split_tokens")
    if not 0.0 < validation < 1.0:
        raise ValueError(f"split_tokens: validation must be above 0 and below 1, got {validation}")
    cut = int(len(array) * (1.0 - validation))
    if cut == 0 or cut == len(array):
        raise ValueError(
            f"split_tokens: {len(array)} tokens with validation={validation} leave {cut} for training and "
            f"{len(array) - cut} for validation"
        )
    return array[:cut], array[cut:]


class BatchStream:
    """One long stream of tokens as N contiguous lanes, read in windows of T steps.

    Lane n holds the targets ``tokens[n*L + 1 : (n + 1)*L + 1]`` with ``L = (len(tokens) - 1) // N``; inputs
    are the tokens just before them. State carried from window i to window i + 1 is right in every lane.

    Shapes: each batch is ``(x, y)``, both (N, t) with t = T, or less in the last window.

    Parameters
    ----------
    tokens : array_like of int
        (number of tokens,).
    batch_size : int
        N.
    window : int
        T.

    Attributes
    ----------
    batch_size, window : int
        As given.
    lane_length : int
        L, targets of each lane.
    num_targets : int
        N*L, targets of one pass. At most N - 1 tokens at the end have no place.

    Raises
    ------
    ValueError
        If a size is below 1 or the lanes are shorter than one window.
    TypeError
        If the tokens are not ints.

    Examples
    --------
    >>> from fusedlstm.data import BatchStream
    >>> stream = BatchStream(range(11), batch_size=2, window=3)
    >>> len(stream), stream.lane_length
    (2, 5)
    >>> for x, y in stream:
    ...     print(x.tolist(), y.tolist())
    [[0, 1, 2], [5, 6, 7]] [[1, 2, 3], [6, 7, 8]]
    [[3, 4], [8, 9]] [[4, 5], [9, 10]]
    """

    def __init__(self, tokens: Any, batch_size: int, window: int) -> None:
        for name, value in (("batch_size", batch_size), ("window", window)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"BatchStream: {name} must be an int of at least 1, got {value!r}")
        array = _tokens(tokens, "BatchStream")
        self.batch_size = int(batch_size)
        self.window = int(window)
        self.lane_length = max(len(array) - 1, 0) // self.batch_size
        if self.lane_length < self.window:
            raise ValueError(
                f"BatchStream: {len(array)} tokens are too few for {batch_size} lanes of {window} steps: "
                f"at least {self.batch_size * self.window + 1} are needed; lower batch_size or window"
            )
        used = self.num_targets
        self._x = array[:used].reshape(self.batch_size, self.lane_length)
        self._y = array[1 : used + 1].reshape(self.batch_size, self.lane_length)

    @property
    def num_targets(self) -> int:
        """Targets of one pass, N*L."""
        return self.batch_size * self.lane_length

    def __len__(self) -> int:
        return -(-self.lane_length // self.window)

    def __getitem__(self, index: int) -> tuple[Int, Int]:
        """Window `index` as contiguous arrays ``(x, y)``; an ``IndexError`` outside 0..len-1."""
        if not 0 <= index < len(self):
            raise IndexError(f"BatchStream: window must be between 0 and {len(self) - 1}, got {index}")
        steps = slice(index * self.window, (index + 1) * self.window)
        return np.ascontiguousarray(self._x[:, steps]), np.ascontiguousarray(self._y[:, steps])

    def __iter__(self) -> Iterator[tuple[Int, Int]]:
        for index in range(len(self)):
            yield self[index]

    def __repr__(self) -> str:
        return f"BatchStream({self.batch_size} lanes of {self.lane_length}, windows of {self.window})"
