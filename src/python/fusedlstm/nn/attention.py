"""Decoder with attention over the memory of a source: all target steps in one native call.

Letters: N batch, T target steps, S source steps, E inputs, M memory size, H hidden units, L layers, A size of
keys and queries, O outputs, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedlstm import _core
from fusedlstm.nn._checks import (
    Float,
    Init,
    Int,
    State,
    derive_seed,
    float_array,
    integer,
    length_array,
    rate,
    require_finite,
    seed_number,
    shaped,
    uniform_limit,
)
from fusedlstm.nn.embedding import Embedding
from fusedlstm.nn.linear import Linear
from fusedlstm.nn.lstm import LSTM
from fusedlstm.nn.module import Module, Tape, lay_out

ATTENTIONS = ("dot", "general", "concat", "bahdanau")


@dataclass(frozen=True)
class ScheduledSampling:
    """Own tokens in place of the given ones, each with a probability.

    At step t >= 1 of sequence n, with probability ``probability[n, t]``, the decoder is fed the embedding of
    its own token of step t - 1 instead of ``x[n, t]``. No gradient goes through the choice.

    Parameters
    ----------
    embedding : Embedding
        Table (V, E) of the tokens.
    output : Linear
        Logits (V) of the decoder's outputs (O).
    probability : array_like
        (T,) or (N, T), in [0, 1].
    sample : bool
        Draw the token from the softmax of the logits; otherwise the largest logit counts.

    References
    ----------
    Bengio, Vinyals, Jaitly, Shazeer: Scheduled sampling for sequence prediction with recurrent neural
    networks, 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> table, output = nn.Embedding(10, 4), nn.Linear(6, 10)
    >>> decoder = nn.AttentionDecoder(4, 6, 5)
    >>> y, tape = decoder.forward(
    ...     table([[1, 2, 3]]),
    ...     np.ones((1, 2, 5), np.float32),
    ...     seed=1,
    ...     scheduled=nn.ScheduledSampling(table, output, np.ones(3)),
    ... )
    >>> tape.tokens[0] >= 0
    array([False,  True,  True])
    """

    embedding: Embedding
    output: Linear
    probability: Any
    sample: bool = False


class AttentionDecoderTape(Tape):
    """What `AttentionDecoder.forward` keeps for `AttentionDecoder.backward`.

    Attributes
    ----------
    state : tuple of ndarray
        Final states ``(h_n, c_n)``, each (L, N, H).
    tokens : ndarray or None
        With scheduled sampling, (N, T): the own token fed at a step, or -1 where ``x`` was.
    native : _core.AttentionTape
        The core's tape.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> decoder = nn.AttentionDecoder(3, 4, 5)
    >>> x, memory = np.zeros((2, 6, 3), np.float32), np.zeros((2, 7, 5), np.float32)
    >>> _, tape = decoder.forward(x, memory, memory_lengths=[7, 2])
    >>> tape.weights[1, 0]
    array([0.5, 0.5, 0. , 0. , 0. , 0. , 0. ], dtype=float32)
    """

    def __init__(
        self,
        layer: "AttentionDecoder",
        native: _core.AttentionTape,
        memory: Float | None,
        state: State,
        tokens: Int | None,
    ) -> None:
        super().__init__(layer)
        self.native = native
        self.memory = memory
        self.state = state
        self.tokens = tokens

    @property
    def weights(self) -> Float | None:
        """Attention weights (N, T, S), 0 past the lengths; None without attention."""
        return self.native.weights

    @property
    def nbytes(self) -> int:
        """Memory that the tape holds, in bytes."""
        return self.native.nbytes


class AttentionDecoder(Module):
    r"""LSTM decoder whose every step attends to a source: h of the last layer asks, its memory answers.

    .. code-block:: text

        dot, general, concat (Luong)              bahdanau
        x_t = [e_t ; a_{t-1}]                     c_t = attention(h_{t-1})
        h_t = LSTM(x_t)                           x_t = [e_t ; c_t]
        c_t = attention(h_t)                      h_t = LSTM(x_t)
        a_t = tanh(W_c [c_t ; h_t])               a_t = tanh(W_c [c_t ; h_t])

        attention(q) = sum_s w_s m_s              w = softmax over s < length of score_s
        dot      score_s = q . m_s                general  score_s = q . W_m m_s
        concat, bahdanau                          score_s = v . tanh(W_m m_s + W_q q + cov_s w_cov)

    ``e_t`` is ``x[:, t]``, ``m_s`` is ``memory[:, s]`` and ``a_t`` the output; a_0 is 0. Without input
    feeding x_t = e_t. The coverage cov_s is the sum of the weights that s had in all earlier steps; without
    ``coverage`` the term is not there. Without attention a_t = h_t.

    Shapes: ``x`` (N, T, E), ``memory`` (N, S, M), outputs (N, T, O), each state (L, N, H); parameters
    ``weight_c`` (O, M + H), ``weight_memory`` (A, M), ``weight_query`` (A, H), ``v`` and ``weight_coverage``
    (A,) as far as the kind has them, and those of ``lstm``.

    Parameters
    ----------
    input_size : int
        E, length of an embedding.
    hidden_size : int
        H.
    memory_size : int
        M; 0 without attention. It is H for ``"dot"``.
    num_layers : int
        L.
    attention : str or None
        ``"dot"``, ``"general"``, ``"concat"``, ``"bahdanau"``, or None.
    attention_size : int, optional
        A of ``"concat"`` and ``"bahdanau"``; H by default.
    output_size : int, optional
        O; H by default, and without attention.
    input_feeding : bool, optional
        Whether ``a_{t-1}`` is an input; by default yes for ``"dot"``, ``"general"`` and ``"concat"``. The
        others have none: ``"bahdanau"`` feeds the context itself.
    coverage : bool
        Of ``"concat"`` and ``"bahdanau"``.
    dropout : float
        Rate of dropping outputs of every LSTM layer but the last, in `forward` only.
    dtype : str
        ``"float32"`` or ``"float64"``.
    compute_dtype : str, optional
        ``"bfloat16"`` for a float32 decoder: operands of the LSTM's products are rounded to it, as in `LSTM`.
        ``"int8"``, for generation only: see `decoder`. Attention stays float32. May be set later.
    init : str or tuple
        ``"torch"``: U(-1/sqrt(n), 1/sqrt(n)) with n = H in the LSTM, else the length that a weight is
        multiplied with; ``("uniform", a)``: U(-a, a).
    forget_bias : float
        As for `LSTM`.
    seed : int
        Of the initial values.

    Raises
    ------
    ValueError, TypeError
        If a size, rate, dtype, kind or option is not as described.

    Notes
    -----
    Per target step 2*(M + H)*O FLOPs beside the LSTM's, and 2*S_n*(A + M) for a source of length S_n; keys
    once 2*S_n*M*A. Padding costs nothing. Results do not depend on the other sequences of a batch.

    References
    ----------
    Luong, Pham, Manning: Effective approaches to attention-based neural machine translation, 2015.
    Bahdanau, Cho, Bengio: Neural machine translation by jointly learning to align and translate, 2015.
    See, Liu, Manning: Get to the point: summarization with pointer-generator networks, 2017 (coverage).

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> decoder = nn.AttentionDecoder(3, 4, 5, attention="bahdanau", coverage=True)
    >>> x, memory = np.zeros((2, 6, 3), np.float32), np.ones((2, 7, 5), np.float32)
    >>> y, tape = decoder.forward(x, memory, memory_lengths=[7, 2], lengths=[6, 4])
    >>> dx, d_memory, (dh0, dc0) = decoder.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, d_memory.shape, dh0.shape
    ((2, 6, 4), (2, 6, 3), (2, 7, 5), (1, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        num_layers: int = 1,
        *,
        attention: str | None = "general",
        attention_size: int | None = None,
        output_size: int | None = None,
        input_feeding: bool | None = None,
        coverage: bool = False,
        dropout: float = 0.0,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        init: Init = "torch",
        forget_bias: float = 0.0,
        seed: int = 0,
    ) -> None:
        who = "AttentionDecoder"
        if attention is not None and attention not in ATTENTIONS:
            raise ValueError(f"{who}: attention must be one of {ATTENTIONS} or None, got {attention!r}")
        luong = attention in ("dot", "general", "concat")
        additive = attention in ("concat", "bahdanau")
        self.attention = attention
        self.input_size = integer(input_size, "input_size", 1)
        self.hidden_size = integer(hidden_size, "hidden_size", 1)
        self.num_layers = integer(num_layers, "num_layers", 1)
        self.memory_size = integer(
            memory_size, "memory_size", 1 if attention else 0, None if attention else 0
        )
        if attention == "dot" and self.memory_size != self.hidden_size:
            raise ValueError(
                f"{who}: memory_size must be hidden_size with attention 'dot', got {memory_size} and "
                f"{hidden_size}"
            )
        if attention_size is not None and not additive:
            raise ValueError(f"{who}: attention_size is of 'concat' and 'bahdanau', got {attention!r}")
        if output_size is not None and attention is None and output_size != hidden_size:
            raise ValueError(f"{who}: output_size is hidden_size without attention, got {output_size}")
        if input_feeding and not luong:
            raise ValueError(f"{who}: input_feeding is of {ATTENTIONS[:3]}, got attention {attention!r}")
        if coverage and not additive:
            raise ValueError(f"{who}: coverage is of 'concat' and 'bahdanau', got attention {attention!r}")
        self.attention_size = self.hidden_size
        if attention_size is not None:
            self.attention_size = integer(attention_size, "attention_size", 1)
        self.output_size = self.hidden_size
        if output_size is not None:
            self.output_size = integer(output_size, "output_size", 1)
        self.input_feeding = luong if input_feeding is None else bool(input_feeding)
        self.coverage = bool(coverage)
        self.dropout = rate(dropout, "dropout")
        seed = seed_number(seed)
        fed = self.output_size if self.input_feeding else self.memory_size if attention == "bahdanau" else 0
        self.lstm = LSTM(
            self.input_size + fed,
            self.hidden_size,
            self.num_layers,
            dtype=dtype,
            init=init,
            forget_bias=forget_bias,
            seed=derive_seed(seed, 0),
        )
        self.compute_dtype = compute_dtype
        shapes: list[tuple[str, tuple[int, ...]]] = []
        if attention is not None:
            shapes.append(("weight_c", (self.output_size, self.memory_size + self.hidden_size)))
        if attention not in (None, "dot"):
            shapes.append(("weight_memory", (self.attention_size, self.memory_size)))
        if additive:
            shapes.append(("weight_query", (self.attention_size, self.hidden_size)))
            shapes.append(("v", (self.attention_size,)))
        if self.coverage:
            shapes.append(("weight_coverage", (self.attention_size,)))
        self._packed: _core.PackedAttention | None = None
        super().__init__(dtype, lay_out(shapes), children={"lstm": self.lstm})
        generator = np.random.default_rng(derive_seed(seed, 1))
        for name, shape in shapes:
            limit = uniform_limit(init, shape[-1] ** -0.5, who)
            self._view(self._parameters, name)[...] = generator.uniform(-limit, limit, shape)

    @property
    def compute_dtype(self) -> str | None:
        """``"bfloat16"``, ``"int8"`` or None: the LSTM's operands are rounded to it first."""
        return self.lstm.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, compute_dtype: str | None) -> None:
        self.lstm.compute_dtype = compute_dtype

    @property
    def packed(self) -> _core.PackedAttention:
        """The weights laid out for the kernels; packed again if the parameters were marked as updated."""
        packed = self._packed
        if packed is None:
            packed = self._packed = _core.PackedAttention(
                self.attention or "none",
                self.memory_size,
                self.hidden_size,
                dtype=self.dtype,
                **self._weights(self._parameters),
            )
        return packed

    def _drop_packed(self) -> None:
        self._packed = None

    def _weights(self, buffer: Float) -> dict[str, Float | None]:
        """Views of the weights beside the LSTM's by the core's names."""
        names = {
            "weight_c": "output",
            "weight_memory": "key",
            "weight_query": "query",
            "v": "v",
            "weight_coverage": "coverage",
        }
        views: dict[str, Float | None] = dict.fromkeys(names.values())
        for name, view in self._views(buffer):
            if name in names:
                views[names[name]] = view
        return views

    def __call__(
        self,
        x: Any,
        memory: Any,
        *,
        memory_lengths: Any = None,
        lengths: Any = None,
        state: tuple[Any, Any] | None = None,
    ) -> Float:
        """Outputs (N, T, O) without dropout and without a tape; arguments and errors as for `forward`."""
        return self._run(x, memory, memory_lengths, lengths, state, 0.0, 0, None)[0]

    def forward(
        self,
        x: Any,
        memory: Any,
        *,
        memory_lengths: Any = None,
        lengths: Any = None,
        state: tuple[Any, Any] | None = None,
        seed: int | None = None,
        scheduled: ScheduledSampling | None = None,
    ) -> tuple[Float, AttentionDecoderTape]:
        """Outputs for training, and the tape for `backward`.

        Parameters
        ----------
        x : array_like
            (N, T, E): embeddings of the tokens fed.
        memory : array_like or None
            (N, S, M), not to be written to before `backward`; None without attention.
        memory_lengths : array_like of int, optional
            (N,), valid positions of each source, 1..S.
        lengths : array_like of int, optional
            (N,), valid steps of each target, 0..T in any order; outputs past them are 0.
        state : (h0, c0), optional
            Initial states, each (L, N, H); zeros by default.
        seed : int, optional
            Of the dropout masks and of scheduled sampling, needed only with one of them. Give every step its
            own.
        scheduled : ScheduledSampling, optional
            Own tokens at some steps; ``tape.tokens`` says which.

        Returns
        -------
        y : ndarray
            (N, T, O).
        tape : AttentionDecoderTape
            For one `backward`.

        Raises
        ------
        ValueError
            If a shape or dtype is wrong, a length or probability is out of range, `x` or `memory` has NaN or
            infinities among its valid steps, or a seed is missing.
        TypeError
            If an argument is of the wrong kind.
        """
        dropout = self.dropout if self.num_layers > 1 else 0.0
        if seed is None and (dropout > 0 or scheduled is not None):
            raise ValueError(
                "AttentionDecoder.forward: dropout and scheduled sampling need seed=, a new one at every step"
            )
        number = 0 if seed is None else seed_number(seed)
        y, h_n, c_n, tokens, native, source = self._run(
            x, memory, memory_lengths, lengths, state, dropout, number, scheduled
        )
        return y, AttentionDecoderTape(self, native, source, (h_n, c_n), tokens)

    def backward(
        self,
        tape: AttentionDecoderTape,
        dy: Any,
        *,
        d_state: tuple[Any, Any] | None = None,
    ) -> tuple[Float, Float | None, State]:
        """Gradients of everything that went into the `forward` that made `tape`.

        Gradients of the parameters are added to `gradients`.

        Parameters
        ----------
        tape : AttentionDecoderTape
            Of this layer, not used before.
        dy : array_like
            (N, T, O): gradient of the outputs; those past a length are not read.
        d_state : (dh_n, dc_n), optional
            Gradients of the final states, each (L, N, H) or None.

        Returns
        -------
        dx : ndarray
            (N, T, E): of the rows that were fed, 0 past a length. With scheduled sampling those of
            ``tape.tokens`` where they are not -1.
        d_memory : ndarray or None
            (N, S, M), 0 on padding.
        (dh0, dc0) : tuple of ndarray
            Each (L, N, H).

        Raises
        ------
        ValueError
            If the tape is of another layer or a shape or dtype is wrong.
        RuntimeError
            If the tape was used before.
        """
        who = "AttentionDecoder.backward"
        tape.check(self)
        h_n, _ = tape.state
        dh_n, dc_n = self._state(d_state, h_n.shape[1], who, ("dh_n", "dc_n"))
        gradient = float_array(dy, self.dtype, who, "dy")
        dx, d_memory, dh0, dc0 = _core.attention_decoder_backward(
            tape.native,
            tape.memory,
            gradient,
            dh_n,
            dc_n,
            self.lstm.gradients,
            **self._weights(self._gradients),
        )
        tape.take(self)
        return dx, d_memory, (dh0, dc0)

    def decoder(self, embedding: Embedding, output: Linear) -> _core.AttentionDecoder:
        """The weights as they are now, prepared for generation: immutable.

        Parameters
        ----------
        embedding : Embedding
            Table (V, E) of the tokens that are fed.
        output : Linear
            Logits (V) of the outputs (O).

        Returns
        -------
        _core.AttentionDecoder
            Holds all weights and the table embedding * W_ih^T, (V, 4H).

        Raises
        ------
        ValueError
            If a size or dtype does not fit.

        Notes
        -----
        LSTM and output layer multiply in their `compute_dtype`; attention, with its output W_c, is float32.
        With ``"int8"`` an embedding and what is fed back beside it have a scale each.
        """
        self._check_vocabulary(embedding, output)
        return _core.AttentionDecoder(
            self.lstm.packed, self.packed, embedding.weight, output.packed, self.input_feeding
        )

    def _state(
        self, state: Any, batch: int, who: str, names: tuple[str, str]
    ) -> tuple[Float | None, Float | None]:
        if state is None:
            return None, None
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(
                f"{who}: state must be a pair ({names[0]}, {names[1]}), got {type(state).__name__}"
            )
        shape = (self.num_layers, batch, self.hidden_size)
        first, second = (
            None
            if part is None
            else shaped(float_array(part, self.dtype, who, name), shape, "(L, N, H)", who, name)
            for name, part in zip(names, state, strict=True)
        )
        return first, second

    def _run(
        self,
        x: Any,
        memory: Any,
        memory_lengths: Any,
        lengths: Any,
        state: Any,
        dropout: float,
        seed: int,
        scheduled: ScheduledSampling | None,
    ) -> tuple[Float, Float, Float, Int | None, _core.AttentionTape, Float | None]:
        who = "AttentionDecoder"
        if self.compute_dtype == "int8":
            raise ValueError(f"{who}: compute_dtype 'int8' is for generation: see `decoder`")
        inputs = float_array(x, self.dtype, who, "x")
        if inputs.ndim != 3 or inputs.shape[2] != self.input_size:
            raise ValueError(f"{who}: x must be (N, T, E) with E = {self.input_size}, got {inputs.shape}")
        batch, steps = inputs.shape[:2]
        valid = None if lengths is None else length_array(lengths, batch, steps, who)
        require_finite(inputs, who, "x", valid)
        source, source_lengths = self._memory(memory, memory_lengths, batch)
        h0, c0 = self._state(state, batch, who, ("h0", "c0"))
        for name, part in (("h0", h0), ("c0", c0)):
            if part is not None:
                require_finite(part, who, name)
        own: dict[str, Any] = {}
        if scheduled is not None:
            if not isinstance(scheduled, ScheduledSampling):
                raise TypeError(
                    f"{who}: scheduled must be a ScheduledSampling, got {type(scheduled).__name__}"
                )
            own = self._scheduled(scheduled, batch, steps)
        y, h_n, c_n, tokens, native = _core.attention_decoder_forward(
            self.lstm.packed,
            self.packed,
            inputs,
            source,
            source_lengths,
            lengths=valid,
            h0=h0,
            c0=c0,
            input_feeding=self.input_feeding,
            dropout=dropout,
            seed=seed,
            **own,
        )
        return y, h_n, c_n, tokens, native, source

    def _memory(self, memory: Any, memory_lengths: Any, batch: int) -> tuple[Float | None, Int | None]:
        who = "AttentionDecoder"
        if self.attention is None:
            if memory is not None or memory_lengths is not None:
                raise ValueError(f"{who}: memory and memory_lengths must be None without attention")
            return None, None
        source = float_array(memory, self.dtype, who, "memory")
        if source.ndim != 3 or source.shape[0] != batch or source.shape[2] != self.memory_size:
            raise ValueError(
                f"{who}: memory must be (N, S, M) with N = {batch}, M = {self.memory_size}, "
                f"got {source.shape}"
            )
        longest = source.shape[1]
        if memory_lengths is None:
            source_lengths = np.full(batch, longest, np.int32)
        else:
            source_lengths = length_array(memory_lengths, batch, longest, f"{who}, memory_lengths")
        if (source_lengths == 0).any():
            raise ValueError(
                f"{who}: every source must have at least one position, got length 0 at "
                f"{int(np.argmin(source_lengths))}"
            )
        require_finite(source, who, "memory", source_lengths)
        return source, source_lengths

    def _check_vocabulary(self, embedding: Embedding, output: Linear) -> None:
        who = "AttentionDecoder"
        if (embedding.embedding_dim, embedding.dtype) != (self.input_size, self.dtype):
            raise ValueError(
                f"{who}: embedding must have embedding_dim {self.input_size} and dtype {self.dtype}, got "
                f"{embedding.embedding_dim} and {embedding.dtype}"
            )
        wanted = (self.output_size, embedding.num_embeddings, self.dtype)
        if (output.in_features, output.out_features, output.dtype) != wanted:
            raise ValueError(
                f"{who}: output must map {wanted[0]} to {wanted[1]} in {wanted[2]}, got "
                f"{output.in_features} to {output.out_features} in {output.dtype}"
            )

    def _scheduled(self, scheduled: ScheduledSampling, batch: int, steps: int) -> dict[str, Any]:
        who = "AttentionDecoder"
        embedding, output = scheduled.embedding, scheduled.output
        self._check_vocabulary(embedding, output)
        probability = np.asarray(scheduled.probability, np.float64)
        if probability.shape not in ((steps,), (batch, steps)):
            raise ValueError(
                f"{who}: probability must be (T,) = ({steps},) or (N, T) = ({batch}, {steps}), got "
                f"{probability.shape}"
            )
        if not ((probability >= 0) & (probability <= 1)).all():
            raise ValueError(f"{who}: probability must lie in [0, 1]")
        return {
            "embedding": embedding.weight,
            "output": output.packed,
            "probability": np.ascontiguousarray(np.broadcast_to(probability, (batch, steps))),
            "sample": bool(scheduled.sample),
        }

    def _describe(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, {self.memory_size}, num_layers={self.num_layers}"
        text += f", attention={self.attention!r}"
        if self.attention_size != self.hidden_size:
            text += f", attention_size={self.attention_size}"
        if self.output_size != self.hidden_size:
            text += f", output_size={self.output_size}"
        for name in ("input_feeding", "coverage", "dropout"):
            if getattr(self, name):
                text += f", {name}={getattr(self, name)}"
        return text
