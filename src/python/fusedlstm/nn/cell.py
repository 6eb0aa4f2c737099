"""One step of an LSTM, for loops of one's own and for looking at what a step costs.

Letters: N batch, I inputs, H hidden units.
"""

from typing import Any

import numpy as np

from fusedlstm import _core
from fusedlstm.nn._checks import (
    Float,
    Init,
    State,
    dtype_name,
    float_array,
    integer,
    require_finite,
    seed_number,
    shaped,
    uniform_limit,
)
from fusedlstm.nn.module import Module, Tape


class LSTMCellTape(Tape):
    """What one `LSTMCell.forward` keeps.

    Attributes
    ----------
    gates : ndarray
        (N, 4, H), gates i, f, g, o after activation.
    """

    def __init__(
        self, layer: "LSTMCell", packed: _core.PackedLSTM, x: Float, state: State, c_next: Float, gates: Float
    ) -> None:
        super().__init__(layer)
        self.packed = packed
        self.gates = gates
        self._x = x
        self._state = state
        self._c_next = c_next


class LSTMCell(Module):
    """One step of an LSTM: the same numbers, bit for bit, as a step of `LSTM`.

    Shapes: ``x`` (N, I), ``h`` and ``c`` (N, H). Parameters are named as in PyTorch's ``LSTMCell``:
    ``weight_ih`` (4H, I), ``weight_hh`` (4H, H), ``bias_ih``, ``bias_hh`` (4H,).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    bias : bool
        Whether there are the two bias vectors.
    dtype, init, forget_bias, seed
        As for `LSTM`.

    Raises
    ------
    ValueError, TypeError
        As for `LSTM`.

    Notes
    -----
    A step costs 8*N*H*(I + H) FLOPs and reads every weight. A loop over steps in Python is slower than
    `LSTM`, which keeps the loop in one native call.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> cell = nn.LSTMCell(3, 5)
    >>> h, c = cell(np.zeros((4, 3), np.float32))
    >>> h, c = cell(np.zeros((4, 3), np.float32), (h, c))
    >>> h.shape, c.shape
    ((4, 5), (4, 5))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        dtype: str = "float32",
        init: Init = "torch",
        forget_bias: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.input_size = integer(input_size, "input_size", 1)
        self.hidden_size = integer(hidden_size, "hidden_size", 1)
        self.bias = bool(bias)
        self.dtype = dtype_name(dtype)
        limit = uniform_limit(init, self.hidden_size**-0.5, "LSTMCell")
        if forget_bias and not bias:
            raise ValueError(f"LSTMCell: forget_bias needs bias=True, got forget_bias={forget_bias}")
        generator = np.random.default_rng(seed_number(seed))
        self._packed: _core.PackedLSTM | None = None
        native = self._shape()
        table = [
            (name.removesuffix("_l0"), shape, offset) for name, shape, offset in native.parameter_table()
        ]
        super().__init__(self.dtype, table, size=native.num_parameters)
        for name, view in self.named_parameters().items():
            view[...] = generator.uniform(-limit, limit, view.shape)
            if name == "bias_ih":
                view[self.hidden_size : 2 * self.hidden_size] += forget_bias

    def _shape(self) -> _core.LSTM:
        return _core.LSTM(self.input_size, self.hidden_size, 1, False, self.bias, self.dtype)

    @property
    def packed(self) -> _core.PackedLSTM:
        """The weights laid out for the kernels; packed again if the parameters were marked as updated."""
        packed = self._packed
        if packed is None:
            packed = self._packed = self._shape().pack(self._parameters)
        return packed

    def _drop_packed(self) -> None:
        self._packed = None

    def __call__(self, x: Any, state: tuple[Any, Any] | None = None) -> State:
        """Next state ``(h, c)`` for ``x`` (N, I) and ``state`` (h, c), zeros by default.

        Raises
        ------
        ValueError
            If a shape or dtype is wrong or `x` has NaN or infinities.
        TypeError
            If an argument is of the wrong kind.
        """
        array, (h, c) = self._arguments(x, state)
        h_next, c_next, _ = _core.lstm_cell_forward(self.packed, array, h, c)
        return h_next, c_next

    def forward(self, x: Any, state: tuple[Any, Any] | None = None) -> tuple[State, LSTMCellTape]:
        """Next state, and the tape for `backward`; arguments and errors are those of a call."""
        array, (h, c) = self._arguments(x, state)
        packed = self.packed
        h_next, c_next, gates = _core.lstm_cell_forward(packed, array, h, c)
        return (h_next, c_next), LSTMCellTape(self, packed, array, (h, c), c_next, gates)

    def backward(self, tape: LSTMCellTape, dh: Any, dc: Any = None) -> tuple[Float, Float, Float]:
        """Gradients ``(dx, dh, dc)`` of input and state for those of the next state; adds to `gradients`.

        Parameters
        ----------
        tape : LSTMCellTape
            From `forward`; it is used up.
        dh : array_like
            (N, H).
        dc : array_like, optional
            (N, H); zero by default.

        Raises
        ------
        ValueError
            If a shape or dtype is wrong.
        RuntimeError
            If the tape was already used.
        """
        tape.check(self)
        h, c = tape._state
        who = "LSTMCell.backward"
        d_h = shaped(float_array(dh, self.dtype, who, "dh"), h.shape, "(N, H)", who, "dh")
        d_c = (
            None
            if dc is None
            else shaped(float_array(dc, self.dtype, who, "dc"), c.shape, "(N, H)", who, "dc")
        )
        tape.take(self)
        return _core.lstm_cell_backward(
            tape.packed, tape._x, h, c, tape._c_next, tape.gates, d_h, d_c, gradients=self._gradients
        )

    def _arguments(self, x: Any, state: Any) -> tuple[Float, State]:
        who = "LSTMCell"
        array = float_array(x, self.dtype, who, "x")
        if array.ndim != 2 or array.shape[1] != self.input_size:
            raise ValueError(f"{who}: x must be (N, I={self.input_size}), got {array.shape}")
        require_finite(array, who, "x")
        shape = (array.shape[0], self.hidden_size)
        if state is None:
            return array, (np.zeros(shape, self.dtype), np.zeros(shape, self.dtype))
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{who}: state must be a pair (h, c), got {type(state).__name__}")
        h = shaped(float_array(state[0], self.dtype, who, "h"), shape, "(N, H)", who, "h")
        c = shaped(float_array(state[1], self.dtype, who, "c"), shape, "(N, H)", who, "c")
        return array, (h, c)

    def _describe(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")
