"""Stacked, optionally bidirectional LSTM over whole sequences, and its single step.

Letters: N batch, T time, I inputs, H hidden units, L layers, D directions (1 or 2).
"""

from typing import Any, NamedTuple, NoReturn

import numpy as np

from fusedlstm import _core
from fusedlstm.nn._checks import (
    Float,
    Init,
    Int,
    State,
    compute_name,
    dtype_name,
    float_array,
    integer,
    length_array,
    rate,
    require_finite,
    seed_number,
    shaped,
    token_array,
    uniform_limit,
)
from fusedlstm.nn.embedding import Embedding
from fusedlstm.nn.module import Layer, Tape
from fusedlstm.nn.stream import Stream


class LSTMTape(Tape):
    """What `LSTM.forward` keeps for `LSTM.backward`; activations can be looked at for free.

    Attributes
    ----------
    state : tuple of ndarray
        Final states ``(h_n, c_n)``, each (L*D, N, H), whether or not the layer returns them.
    dh0, dc0 : ndarray or None
        Gradients of the initial states, (L*D, N, H); set by `LSTM.backward`.
    native : _core.LSTMTape
        The core's tape.
    packed : _core.PackedLSTM
        The weights of the forward, which backward uses even if the parameters have changed since.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> lstm = nn.LSTM(3, 5)
    >>> y, tape = lstm.forward(np.zeros((2, 4, 3), np.float32), lengths=[4, 2])
    >>> tape.gates(0).shape, tape.state[0].shape
    ((6, 4, 5), (1, 2, 5))
    """

    def __init__(
        self,
        layer: "LSTM",
        packed: _core.PackedLSTM,
        native: _core.LSTMTape,
        call: "_Call",
        state: State,
    ) -> None:
        super().__init__(layer)
        self.packed = packed
        self.native = native
        self.state = state
        self.dh0: Float | None = None
        self.dc0: Float | None = None
        self._call = call

    @property
    def nbytes(self) -> int:
        """Memory that the tape holds, in bytes."""
        return self.native.nbytes

    @property
    def row_of(self) -> tuple[Int, Int]:
        """Sequence and step, each (P,), of every row of `gates`, `c` and `h` for the forward direction."""
        return self.native.row_of

    def gates(self, layer: int, direction: int = 0) -> Float:
        """View (P, 4, H) of gates i, f, g, o after activation, of the P valid steps; before backward only.

        Raises
        ------
        RuntimeError
            If the tape is not a full one.
        """
        return self.native.gates(layer, direction)

    def c(self, layer: int, direction: int = 0) -> Float:
        """View (P, H) of the cell states of the P valid steps; of a full tape only, as `gates`."""
        return self.native.c(layer, direction)

    def h(self, layer: int, direction: int = 0) -> Float:
        """View (P, H) of the hidden states of the P valid steps."""
        return self.native.h(layer, direction)


class _Call(NamedTuple):
    """Arguments of one call in the form the core takes."""

    x: Float | Int
    h0: Float | None
    c0: Float | None
    lengths: Int | None
    embedding: Embedding | None
    unbatched: bool

    @property
    def table(self) -> Float | None:
        return None if self.embedding is None else self.embedding.weight

    def refuse_x(self) -> NoReturn:
        """After the core has met NaN or an infinity in `x`: say where."""
        try:
            require_finite(self.x, "LSTM", "x", self.lengths)
        except ValueError as error:
            raise error from None
        raise RuntimeError("LSTM: x has changed during the call") from None

    def state(self, h: Float, c: Float) -> State:
        """States as the caller counts them: without N for a single sequence."""
        return (h[:, 0], c[:, 0]) if self.unbatched else (h, c)


class LSTM(Layer):
    r"""Long short-term memory over whole sequences, any number of layers, one or two directions.

    .. code-block:: text

        [i f g o] = x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh
        i, f, o   = sigmoid(i, f, o)      g = tanh(g)
        c_t       = f * c_{t-1} + i * g   h_t = o * tanh(c_t)

    Shapes: ``x`` (N, T, I) or (T, I); ``y`` (N, T, D*H); each state (L*D, N, H), layer by layer,
    forward before reverse. For ``x`` (T, I) every shape is without N. Names, shapes and gate order of the
    parameters are PyTorch's: ``weight_ih_l0`` (4H, I), ``weight_hh_l0`` (4H, H), ``bias_ih_l0`` and
    ``bias_hh_l0`` (4H,), ``..._reverse`` for the second direction.

    Parameters
    ----------
    input_size : int
        I, features of each step.
    hidden_size : int
        H, units of each layer and direction.
    num_layers : int
        L; each further layer reads the outputs of the one below.
    bias : bool
        Whether there are the two bias vectors.
    bidirectional : bool
        Adds a second direction, from the last valid step to the first; outputs are concatenated.
    dropout : float
        Rate, in [0, 1), of dropping outputs of every layer but the last, in `forward` only.
    return_sequences : bool
        Output at every step, or only the last one: at the last valid step, and for the reverse direction at
        the first. It is the element of the sequence itself, bit for bit.
    return_state : bool
        Return ``(y, (h_n, c_n))`` instead of ``y``.
    dtype : str
        ``"float32"`` or ``"float64"``.
    compute_dtype : str, optional
        ``"bfloat16"`` for a float32 layer: x, h, the weights and the gates' derivatives are rounded to
        bfloat16 where they are multiplied; sums, cell states, parameters and gradients stay float32. Made for
        processors with AMX or AVX512-BF16. ``"int8"``, for calls only and not for `forward`: weights in 127
        steps with a scale per gate and unit, inputs with one per row, hidden states in steps of 1/127, which
        must be in [-1, 1]. The errors are in docs/numerics.md. Default: `dtype`. May be set later.
    init : str or tuple
        ``"torch"``: every parameter from U(-1/sqrt(H), 1/sqrt(H)); ``("uniform", a)``: from U(-a, a).
    forget_bias : float
        Added to the forget gate's part of ``bias_ih``, and not of ``bias_hh``: the gate sees their sum.
    tape : str
        What `forward` keeps for `backward`, in float32 for each of the N*T*H and layer: ``"full"`` 24 bytes;
        ``"half"`` 16, gates in 16 bits (gradients differ by some 1e-5 of their norm); ``"lean"`` about 4,
        gates are computed again (a third more FLOPs, the bits of ``"full"``). May be set later.
    seed : int
        Of the initial values. Give layers of one shape different seeds, or they start equal.

    Raises
    ------
    ValueError
        If a size, rate, dtype, compute_dtype, init or tape is out of range.
    TypeError
        If a size is not an int.

    Notes
    -----
    A call costs 8*N*T*H*(I + H) FLOPs for one layer and direction, a training step three times that. Steps
    past a sequence's length cost nothing. A layer keeps no state between calls: pass ``state`` on to
    continue a sequence; the bits are those of one call.

    References
    ----------
    Hochreiter, Schmidhuber: Long short-term memory, 1997.
    Gers, Schmidhuber, Cummins: Learning to forget, 2000.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> lstm = nn.LSTM(3, 5, num_layers=2, return_state=True)
    >>> x = np.zeros((4, 7, 3), np.float32)
    >>> y, (h, c) = lstm(x)
    >>> y.shape, h.shape, c.shape
    ((4, 7, 5), (2, 4, 5), (2, 4, 5))
    >>> (y, _), tape = lstm.forward(x, lengths=[7, 3, 0, 1])
    >>> lstm.backward(tape, np.ones_like(y)).shape
    (4, 7, 3)
    """

    takes_lengths = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        return_sequences: bool = True,
        return_state: bool = False,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        init: Init = "torch",
        forget_bias: float = 0.0,
        tape: str = "full",
        seed: int = 0,
    ) -> None:
        self.tape = tape
        self.input_size = integer(input_size, "input_size", 1)
        self.hidden_size = integer(hidden_size, "hidden_size", 1)
        self.num_layers = integer(num_layers, "num_layers", 1)
        self.bias = bool(bias)
        self.bidirectional = bool(bidirectional)
        self.dropout = rate(dropout, "dropout")
        self.return_sequences = bool(return_sequences)
        self.return_state = bool(return_state)
        limit = uniform_limit(init, self.hidden_size**-0.5, "LSTM")
        if forget_bias and not bias:
            raise ValueError(f"LSTM: forget_bias needs bias=True, got forget_bias={forget_bias}")
        generator = np.random.default_rng(seed_number(seed))
        self.dtype = dtype_name(dtype)
        self._native: _core.LSTM | None = None
        self._packed: _core.PackedLSTM | None = None
        self.compute_dtype = compute_dtype
        native = self._shape()
        super().__init__(self.dtype, native.parameter_table(), size=native.num_parameters)
        for name, view in self.named_parameters().items():
            view[...] = generator.uniform(-limit, limit, view.shape)
            if name.startswith("bias_ih"):
                view[self.hidden_size : 2 * self.hidden_size] += forget_bias

    def _shape(self) -> _core.LSTM:
        native = vars(self).get("_native")
        if native is None:
            native = _core.LSTM(
                self.input_size, self.hidden_size, self.num_layers, self.bidirectional, self.bias, self.dtype
            )
            self._native = native
        return native

    @property
    def tape(self) -> str:
        """``"full"``, ``"half"`` or ``"lean"``: what `forward` keeps."""
        return self._tape

    @tape.setter
    def tape(self, tape: str) -> None:
        if tape not in ("full", "half", "lean"):
            raise ValueError(f"LSTM: tape must be 'full', 'half' or 'lean', got {tape!r}")
        self._tape = tape

    @property
    def compute_dtype(self) -> str | None:
        """``"bfloat16"``, ``"int8"`` or None: what is multiplied is rounded to it first."""
        return self._compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, compute_dtype: str | None) -> None:
        self._compute_dtype = compute_name(compute_dtype, self.dtype, "LSTM")
        self._packed = None

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def takes_seed(self) -> bool:
        """Whether `forward` needs ``seed=``: with dropout between two or more layers."""
        return self.dropout > 0.0 and self.num_layers > 1

    @property
    def packed(self) -> _core.PackedLSTM:
        """The weights laid out for the kernels; packed again if the parameters were marked as updated."""
        packed = self._packed
        if packed is None:
            packed = self._packed = self._shape().pack(
                self._parameters, backward=self.compute_dtype != "int8", compute_dtype=self.compute_dtype
            )
        return packed

    def _drop_packed(self) -> None:
        self._packed = None

    def __call__(
        self,
        x: Any,
        *,
        state: tuple[Any, Any] | None = None,
        lengths: Any = None,
        embedding: Embedding | None = None,
    ) -> Any:
        """Outputs without a tape.

        Parameters
        ----------
        x : array_like
            (N, T, I) or (T, I); with `embedding`, int token ids (N, T) or (T,).
        state : (h0, c0), optional
            Initial states, each (L*D, N, H); zeros by default.
        lengths : array_like of int, optional
            (N,), valid steps of each sequence, 0..T in any order. Outputs past them are 0, final states those
            of the last valid step, or the initial ones for length 0.
        embedding : Embedding, optional
            Table (V, I) from which the rows of `x` are read, without an (N, T, I) array being made.

        Returns
        -------
        ndarray or (ndarray, (ndarray, ndarray))
            ``y`` (N, T, D*H), or (N, D*H) without `return_sequences`; with `return_state`,
            ``(y, (h_n, c_n))``.

        Raises
        ------
        ValueError
            If a shape or dtype is wrong, a length or token is out of range, or `x` has NaN or infinities
            among its valid steps.
        TypeError
            If an argument is of the wrong kind.
        """
        call = self._arguments(x, state, lengths, embedding)
        try:
            y, h_n, c_n = _core.lstm_forward(
                self.packed, call.x, call.h0, call.c0, call.lengths, call.table, True
            )
        except FloatingPointError:
            call.refuse_x()
        return self._output(call, y, h_n, c_n)

    def forward(
        self,
        x: Any,
        *,
        state: tuple[Any, Any] | None = None,
        lengths: Any = None,
        embedding: Embedding | None = None,
        seed: int | None = None,
    ) -> tuple[Any, LSTMTape]:
        """Outputs for training, and the tape for `backward`.

        Parameters
        ----------
        x, state, lengths, embedding
            As for a call.
        seed : int, optional
            Of the dropout masks, needed only if there are any. Give every step its own.

        Returns
        -------
        output : ndarray or (ndarray, (ndarray, ndarray))
            What a call returns.
        tape : LSTMTape
            For one `backward`.

        Raises
        ------
        ValueError
            As for a call; if dropout needs a seed that is not given; if `compute_dtype` is ``"int8"``.
        """
        if self.compute_dtype == "int8":
            raise ValueError("LSTM.forward: compute_dtype 'int8' is for inference: it has no backward")
        drops = self.takes_seed
        if drops and seed is None:
            raise ValueError(f"LSTM.forward: dropout {self.dropout} needs seed=, another one at every step")
        number = 0 if seed is None else seed_number(seed)
        call = self._arguments(x, state, lengths, embedding)
        packed = self.packed
        try:
            y, h_n, c_n, native = _core.lstm_forward_tape(
                packed,
                call.x,
                call.h0,
                call.c0,
                call.lengths,
                call.table,
                self.dropout if drops else 0.0,
                number,
                self._tape,
                True,
            )
        except FloatingPointError:
            call.refuse_x()
        tape = LSTMTape(self, packed, native, call, call.state(h_n, c_n))
        return self._output(call, y, h_n, c_n), tape

    def backward(
        self,
        tape: LSTMTape,
        d_output: Any,
        d_state: tuple[Any, Any] | None = None,
        *,
        need_dx: bool = True,
    ) -> Float | None:
        """Gradients of everything that went into the `forward` that made `tape`.

        Gradients of the parameters are added to `gradients`, those of the token table to the embedding's, and
        those of the initial states are left in ``tape.dh0`` and ``tape.dc0``.

        Parameters
        ----------
        tape : LSTMTape
            From `forward`; it is used up.
        d_output : array_like or None
            Gradient of ``y``, in its shape. None counts as zero.
        d_state : (dh_n, dc_n), optional
            Gradients of the final states, each (L*D, N, H) or None.
        need_dx : bool
            Whether the gradient of `x` is wanted; without it the lowest layer costs a third less.

        Returns
        -------
        ndarray or None
            ``dx`` in the shape of `x`; None for tokens or without `need_dx`.

        Raises
        ------
        ValueError
            If a shape or dtype is wrong, or nothing is given.
        RuntimeError
            If the tape was already used.
        """
        tape.check(self)
        if d_output is None and d_state is None:
            raise ValueError("LSTM.backward: d_output or d_state must be given, got None for both")
        call = tape._call
        batch, steps = call.x.shape[:2]
        width = self.num_directions * self.hidden_size
        dh_n, dc_n = self._state_arrays(d_state, batch, call.unbatched, "LSTM.backward", ("dh_n", "dc_n"))
        dy = None
        if d_output is not None:
            shape: tuple[int, ...] = (steps, width) if self.return_sequences else (width,)
            letters = "(T, D*H)" if self.return_sequences else "(D*H,)"
            if not call.unbatched:
                shape = (batch, *shape)
                letters = "(N, T, D*H)" if self.return_sequences else "(N, D*H)"
            given = float_array(d_output, self.dtype, "LSTM.backward", "d_output")
            shaped(given, shape, letters, "LSTM.backward", "d_output")
            if self.return_sequences:
                dy = given.reshape(batch, steps, width)
            else:
                dh_n = self._add_last(dh_n, given.reshape(batch, width))
        embedding = call.embedding
        dx, dh0, dc0 = _core.lstm_backward(
            tape.packed,
            tape.native,
            dy,
            dh_n,
            dc_n,
            self._gradients,
            None if embedding is None else embedding.d_weight,
            need_dx and embedding is None,
        )
        tape.take(self)
        tape.dh0, tape.dc0 = call.state(dh0, dc0)
        if dx is None:
            return None
        return dx[0] if call.unbatched else dx

    def stream(self, capacity: int = 1, state: Any = None) -> Stream:
        """Make a stream that is fed one step at a time, with one row, id 0.

        Parameters
        ----------
        capacity : int
            Most rows that it can hold at a time, at least 1; all memory is taken now.
        state : tuple of array_like, optional
            Initial ``(h, c)`` of the row, each (L, H); zeros without.

        Returns
        -------
        Stream
            With a snapshot of the weights as they are now.

        Raises
        ------
        ValueError
            If the LSTM is bidirectional or computes in a lower precision than its own, or capacity or state
            is not as wanted.
        TypeError
            If capacity is not an int, or state not a pair.

        Notes
        -----
        A new stream costs the packing of the weights, unless the layer has packed them already, and
        3*L*capacity*H numbers of memory. See `Stream` for what it can do.

        Examples
        --------
        >>> import numpy as np
        >>> from fusedlstm import nn
        >>> stream = nn.LSTM(3, 5, num_layers=2).stream()
        >>> stream.step(np.zeros(3, np.float32)).shape
        (5,)
        """
        if self.bidirectional:
            raise ValueError(
                "LSTM.stream: needs one direction, got bidirectional=True: the reverse one starts at the end"
            )
        if self.compute_dtype is not None:
            raise ValueError(
                f"LSTM.stream: computes in {self.dtype}, got compute_dtype={self.compute_dtype!r}"
            )
        stream = Stream(self.packed, integer(capacity, "capacity", 1, 2**20))
        stream.join(state)
        return stream

    def _add_last(self, dh_n: Float | None, d_last: Float) -> Float:
        """Add the gradient of the last outputs (N, D*H), final states of the last layer, to ``dh_n``."""
        batch = d_last.shape[0]
        directions, hidden = self.num_directions, self.hidden_size
        shape = (self.num_layers * directions, batch, hidden)
        total = np.zeros(shape, self.dtype) if dh_n is None else dh_n.copy()
        total[-directions:] += d_last.reshape(batch, directions, hidden).transpose(1, 0, 2)
        return total

    def _arguments(self, x: Any, state: Any, lengths: Any, embedding: Embedding | None) -> _Call:
        array: Float | Int
        if embedding is None:
            array = float_array(x, self.dtype, "LSTM", "x")
            if array.ndim not in (2, 3) or array.shape[-1] != self.input_size:
                raise ValueError(
                    f"LSTM: x must be (N, T, I) or (T, I) with I = {self.input_size}, got {array.shape}"
                )
            unbatched = array.ndim == 2
        else:
            if embedding.embedding_dim != self.input_size or embedding.dtype != self.dtype:
                raise ValueError(
                    f"LSTM: embedding must have embedding_dim {self.input_size} and dtype {self.dtype}, "
                    f"got {embedding.embedding_dim} and {embedding.dtype}"
                )
            array = token_array(x, embedding.num_embeddings, "LSTM", "x")
            if array.ndim not in (1, 2):
                raise ValueError(f"LSTM: x must be token ids (N, T) or (T,), got {array.shape}")
            unbatched = array.ndim == 1
        if unbatched:
            if lengths is not None:
                raise ValueError("LSTM: lengths need x of (N, T, ...): cut a single sequence instead")
            array = array[None]
        batch, steps = array.shape[:2]
        valid = None if lengths is None else length_array(lengths, batch, steps, "LSTM")
        h0, c0 = self._state_arrays(state, batch, unbatched, "LSTM", ("h0", "c0"))
        for name, part in (("h0", h0), ("c0", c0)):
            if part is not None:
                require_finite(part, "LSTM", name)
        return _Call(array, h0, c0, valid, embedding, unbatched)

    def _state_arrays(
        self, state: Any, batch: int, unbatched: bool, who: str, names: tuple[str, str]
    ) -> tuple[Float | None, Float | None]:
        if state is None:
            return None, None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(
                f"{who}: state must be a pair ({names[0]}, {names[1]}), got {type(state).__name__}"
            )
        rows = self.num_layers * self.num_directions
        shape: tuple[int, ...] = (rows, self.hidden_size) if unbatched else (rows, batch, self.hidden_size)
        letters = "(L*D, H)" if unbatched else "(L*D, N, H)"
        parts: list[Float | None] = []
        for name, part in zip(names, state, strict=True):
            if part is None:
                parts.append(None)
                continue
            array = shaped(float_array(part, self.dtype, who, name), shape, letters, who, name)
            parts.append(array.reshape(rows, batch, self.hidden_size))
        return parts[0], parts[1]

    def _output(self, call: _Call, y: Float, h_n: Float, c_n: Float) -> Any:
        output = y
        if not self.return_sequences:
            # The final hidden states of the last layer are its last outputs, also in reverse.
            directions, batch = self.num_directions, h_n.shape[1]
            output = np.ascontiguousarray(h_n[-directions:].transpose(1, 0, 2)).reshape(batch, -1)
        if call.unbatched:
            output = output[0]
        return (output, call.state(h_n, c_n)) if self.return_state else output

    def _describe(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        for name in ("bidirectional", "dropout", "return_state"):
            if getattr(self, name):
                text += f", {name}={getattr(self, name)}"
        for name in ("bias", "return_sequences"):
            if not getattr(self, name):
                text += f", {name}=False"
        return text
