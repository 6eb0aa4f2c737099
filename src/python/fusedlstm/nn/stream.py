"""Step-by-step inference with states that live on between calls.

Letters: I inputs, H hidden units, L layers, T time; rows are the streams that are stepped together.
"""

from typing import Any

from fusedlstm import _core
from fusedlstm.nn._checks import Float, State, float_array


class Stream(_core.Stream):
    """An LSTM that is fed one step at a time: ``y = stream.step(x)``.

    .. code-block:: text

        h_t, c_t = LSTM(x_t, h_{t-1}, c_{t-1})      y_t = h_t of the last layer

    A stream holds up to ``capacity`` rows of states, each a sequence of its own, and steps all of them at
    once. All memory is taken when it is made: ``step`` allocates nothing. `nn.LSTM.stream` makes one.

    **step(x)** takes the next step of every row. ``x`` is (rows, I), or (I,) if there is one row: a
    C-contiguous array of the stream's dtype, nothing else. The result is (rows, H) or (H,), a view of the
    stream's own memory *that the next step overwrites*: ``stream.step(x).copy()`` keeps it.

    Row j belongs to ``ids[j]``. Rows lie in the order in which they joined; when one leaves, those after it
    move up. Ids stay valid for as long as their row is there and are never used again.

    Parameters
    ----------
    packed : _core.PackedLSTM
        Weights of an LSTM with one direction. A snapshot: later changes of the parameters are not seen.
    capacity : int
        Most rows at a time, 1 to 2**20. A new stream has none; one made by `nn.LSTM.stream` has one.

    Attributes
    ----------
    ids : tuple of int
        Ids of the rows, in the order of the rows.
    capacity, input_size, hidden_size, num_layers : int
        Sizes.
    dtype : str
        ``"float32"`` or ``"float64"``.
    capsule : PyCapsule
        ``"fusedlstm.stream.v1"``: a C struct with a function pointer that steps this stream without Python,
        declared in ``fusedlstm/stream.h`` under `fusedlstm.get_include`. It keeps the stream alive.

    Raises
    ------
    ValueError
        If the LSTM is bidirectional (its reverse direction begins at the end of the sequence), a size or
        dtype is not as wanted, an id is unknown, or all rows are in use.
    TypeError
        If something is not an array, or a state is not a pair.
    RuntimeError
        If the stream is in use by another thread: calls on one stream do not wait for each other.

    Notes
    -----
    The outputs are those of ``lstm(x)`` over the whole sequence, bit for bit, whatever other rows there are.
    A step costs 8*rows*H*(I + H) FLOPs per layer on the calling thread. Values are not checked: a NaN in
    ``x`` stays in the state until `reset` or `restore`.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> lstm = nn.LSTM(3, 5)
    >>> stream = lstm.stream()
    >>> x = np.ones((4, 3), np.float32)
    >>> steps = [stream.step(x_t).copy() for x_t in x]
    >>> bool((np.stack(steps) == lstm(x)).all())
    True
    """

    __slots__ = ()

    def run(self, block: Any) -> Float:
        """Take all steps of a block in one call.

        Other Python threads run meanwhile if it is long. After Ctrl-C the states are those of some step
        between the first and the last.

        Parameters
        ----------
        block : array_like (rows, T, I) or, with one row, (T, I)
            Inputs.

        Returns
        -------
        ndarray (rows, T, H) or (T, H)
            Outputs, in memory of their own.

        Raises
        ------
        ValueError
            If shape or dtype is not as wanted.
        RuntimeError
            If the stream is in use by another thread.

        Examples
        --------
        >>> import numpy as np
        >>> from fusedlstm import nn
        >>> nn.LSTM(3, 5).stream().run(np.zeros((7, 3), np.float32)).shape
        (7, 5)
        """
        return super().run(float_array(block, self.dtype, "Stream.run", "block"))

    def join(self, state: Any = None) -> int:
        """Add a row, the last one.

        Parameters
        ----------
        state : tuple of array_like, optional
            ``(h, c)``, each (L, H), as `save` gives; zeros without.

        Returns
        -------
        int
            Its id.

        Raises
        ------
        ValueError
            If all ``capacity`` rows are in use, or a shape or dtype is not as wanted.

        Examples
        --------
        >>> import numpy as np
        >>> from fusedlstm import nn
        >>> stream = nn.LSTM(3, 5).stream(capacity=3)
        >>> stream.join(), stream.join(), stream.ids
        (1, 2, (0, 1, 2))
        >>> stream.leave(0)
        >>> stream.ids, stream.step(np.zeros((2, 3), np.float32)).shape
        ((1, 2), (2, 5))
        """
        return super().join(self._pair(state, "Stream.join"))

    def leave(self, id: int) -> None:
        """Remove a row; those after it move up by one, and their states stay as they are.

        Parameters
        ----------
        id : int
            Its id, which is not used again.

        Raises
        ------
        ValueError
            If there is no such row.
        """
        super().leave(id)

    def reset(self, id: int | None = None) -> None:
        """Set the state of one row, or of all rows, to zero.

        Parameters
        ----------
        id : int, optional
            The row; all without.

        Raises
        ------
        ValueError
            If there is no such row.
        """
        super().reset(id)

    def save(self, id: int | None = None) -> State:
        """Copy the state of a row. It is two plain arrays, so it can be pickled or stored as any others.

        Parameters
        ----------
        id : int, optional
            The row; may be left out if there is only one.

        Returns
        -------
        tuple of ndarray
            ``(h, c)``, each (L, H).

        Raises
        ------
        ValueError
            If there is no such row.

        Examples
        --------
        >>> import numpy as np
        >>> from fusedlstm import nn
        >>> stream = nn.LSTM(3, 5).stream()
        >>> before = stream.save()
        >>> first = stream.step(np.ones(3, np.float32)).copy()
        >>> stream.restore(before)
        >>> bool((stream.step(np.ones(3, np.float32)) == first).all())
        True
        """
        return super().save(id)

    def restore(self, state: Any, id: int | None = None) -> None:
        """Put a row into a saved state.

        Parameters
        ----------
        state : tuple of array_like
            ``(h, c)``, each (L, H); None for zeros.
        id : int, optional
            The row; may be left out if there is only one.

        Raises
        ------
        ValueError
            If there is no such row, or a shape or dtype is not as wanted.
        """
        super().restore(self._pair(state, "Stream.restore"), id)

    def fork(self, id: int) -> int:
        """Add a row in the same state as another one, from where both go on independently.

        Parameters
        ----------
        id : int
            The row to copy.

        Returns
        -------
        int
            Id of the new, last row.

        Raises
        ------
        ValueError
            If there is no such row, or all ``capacity`` rows are in use.

        Examples
        --------
        >>> from fusedlstm import nn
        >>> stream = nn.LSTM(3, 5).stream(capacity=2)
        >>> stream.fork(0), stream.ids
        (1, (0, 1))
        """
        return super().fork(id)

    def _pair(self, state: Any, who: str) -> State | None:
        if state is None:
            return None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{who}: state must be a pair (h, c), got {type(state).__name__}")
        h, c = state
        return float_array(h, self.dtype, who, "h"), float_array(c, self.dtype, who, "c")

    def __repr__(self) -> str:
        return (
            f"Stream({self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"dtype={self.dtype!r}, capacity={self.capacity}, rows={len(self.ids)})"
        )
