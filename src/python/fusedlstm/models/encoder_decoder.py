"""The parts of a sequence-to-sequence model.

N batch, S source steps, T target steps, P valid target steps of all sequences, E embedding size, H hidden
units, L layers, D directions of the encoder, M memory size, A output size, V vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.nn import (
    LSTM,
    AttentionDecoder,
    AttentionDecoderTape,
    Embedding,
    Linear,
    LSTMTape,
    Module,
    ScheduledSampling,
    derive_seed,
)
from fusedlstm.nn._checks import Init, integer, rate, token_array
from fusedlstm.nn.linear import LinearTape
from fusedlstm.nn.module import Tape

Float = NDArray[Any]
Int = NDArray[np.int32]
State = tuple[Float, Float]

BRIDGES = ("pass", "linear", "tanh")

# places of random numbers under one seed
_EMBEDDING, _LSTM, _OUTPUT = 0, 1, 2
_EMBEDDING_MASK, _OUTPUT_MASK = 0, 1


@dataclass
class _Embedded:
    """What the rows of a table were multiplied with, for the way back."""

    ids: Int
    rate: float
    seed: int


class EncoderTape(Tape):
    """What `Encoder.forward` keeps for `Encoder.backward`."""

    def __init__(self, layer: Encoder, lstm: LSTMTape, masked: _Embedded | None) -> None:
        super().__init__(layer)
        self.lstm = lstm
        self.masked = masked


class Encoder(Module):
    r"""Reads a source: embedding and a stack of LSTM layers in one or two directions.

    .. code-block:: text

        e_s = dropout(embedding[token_s])            (E,)
        m_s = LSTM(e_1 .. e_S)_s                     (D H,)     the memory that attention reads

    Shapes: ids (N, S), memory (N, S, D*H), final states ``h`` and ``c`` (L*D, N, H).

    Parameters
    ----------
    vocabulary_size : int
        V.
    embedding_size, hidden_size, num_layers : int
        E, H and L.
    bidirectional : bool
        Adds a second direction, from the last token to the first.
    dropout : float
        Rate between layers, in [0, 1).
    embedding_dropout : float
        Rate on the embedding's output.
    dtype, compute_dtype, init
        As in `fusedlstm.nn.LSTM`.
    seed : int
        Of the initial values.

    Raises
    ------
    ValueError, TypeError
        If an option is out of its range or of a wrong kind.

    Examples
    --------
    >>> from fusedlstm.models import Encoder
    >>> encoder = Encoder(10, 4, 6, bidirectional=True)
    >>> memory, (h, c) = encoder([[3, 4, 2], [5, 2, 0]], [3, 2])
    >>> memory.shape, h.shape
    ((2, 3, 12), (2, 2, 6))
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        init: Init = "torch",
        seed: int = 0,
    ) -> None:
        self.embedding_dropout = rate(embedding_dropout, "embedding_dropout")
        self.embedding = Embedding(
            vocabulary_size, embedding_size, dtype=dtype, init=init, seed=derive_seed(seed, _EMBEDDING)
        )
        self.lstm = LSTM(
            embedding_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            return_state=True,
            dtype=dtype,
            compute_dtype=compute_dtype,
            init=init,
            seed=derive_seed(seed, _LSTM),
        )
        super().__init__(dtype, children={"embedding": self.embedding, "lstm": self.lstm})

    @property
    def memory_size(self) -> int:
        """D*H, features of each step of the memory."""
        return self.lstm.num_directions * self.lstm.hidden_size

    def __call__(self, ids: Any, lengths: Any) -> tuple[Float, State]:
        """Memory and final states, without dropout.

        Parameters
        ----------
        ids : array_like of int
            (N, S), anything past a sequence's length.
        lengths : array_like of int
            (N,), valid steps of each.

        Raises
        ------
        ValueError, TypeError
            As a call of `fusedlstm.nn.LSTM`.
        """
        memory, state = self.lstm(ids, lengths=lengths, embedding=self.embedding)
        return memory, state

    def forward(self, ids: Any, lengths: Any, *, seed: int) -> tuple[tuple[Float, State], EncoderTape]:
        """Memory and final states for training, and the tape for `backward`; ``seed`` is of the masks."""
        x = token_array(ids, self.embedding.num_embeddings, "Encoder", "ids")
        lstm_seed = seed if self.lstm.takes_seed else None
        if self.embedding_dropout:
            masked = _Embedded(x, self.embedding_dropout, derive_seed(seed, 0))
            vectors = embed(self.embedding, masked)
            output, tape = self.lstm.forward(vectors, lengths=lengths, seed=lstm_seed)
            return output, EncoderTape(self, tape, masked)
        output, tape = self.lstm.forward(x, lengths=lengths, embedding=self.embedding, seed=lstm_seed)
        return output, EncoderTape(self, tape, None)

    def backward(self, tape: EncoderTape, d_memory: Float | None, d_state: State) -> None:
        """Add the gradients of all parameters.

        Parameters
        ----------
        tape : EncoderTape
            From `forward`; it is used up.
        d_memory : ndarray, optional
            (N, S, D*H).
        d_state : (dh, dc)
            Each (L*D, N, H).
        """
        tape.check(self)
        dx = self.lstm.backward(tape.lstm, d_memory, d_state)
        if tape.masked is not None and dx is not None:
            embed_backward(self.embedding, tape.masked, dx)
        tape.take(self)


def embed(embedding: Embedding, call: _Embedded) -> Float:
    """Vectors (N, T, E) of ids (N, T) with dropout."""
    rows = _core.embedding_forward(embedding.weight, call.ids.reshape(-1))
    rows = _core.dropout(rows, call.rate, call.seed, _EMBEDDING_MASK)
    return rows.reshape(*call.ids.shape, embedding.embedding_dim)


def embed_backward(embedding: Embedding, call: _Embedded, dx: Float) -> None:
    """Add the gradient of `embed`."""
    rows = _core.dropout(dx.reshape(call.ids.size, -1), call.rate, call.seed, _EMBEDDING_MASK)
    _core.embedding_backward(call.ids.reshape(-1), rows, embedding.d_weight)


class BridgeTape(Tape):
    """What `Bridge.forward` keeps for `Bridge.backward`."""

    def __init__(self, layer: Bridge, linear: list[LinearTape], h: Float) -> None:
        super().__init__(layer)
        self.linear = linear
        self.h = h


class Bridge(Module):
    r"""From the encoder's final states to the decoder's initial ones, layer by layer.

    .. code-block:: text

        pass      h_l = h_l                             c_l = c_l
        linear    h_l = W_l [h_l>; h_l<] + b_l          c_l = U_l [c_l>; c_l<] + d_l
        tanh      h_l = tanh(W_l [h_l>; h_l<] + b_l)    c_l as linear: a cell state has no bound

    Shapes: encoder's states (L*D, N, H_e), decoder's (L, N, H_d).

    Parameters
    ----------
    kind : str
        "pass", "linear" or "tanh"; "pass" needs D = 1 and H_e = H_d.
    encoder_size, decoder_size : int
        H_e and H_d.
    num_layers : int
        L.
    bidirectional : bool
        Whether the encoder has two directions, whose states are concatenated.
    dtype, init
        As in `fusedlstm.nn.Linear`.
    seed : int
        Of the initial values.

    Raises
    ------
    ValueError
        If the kind is unknown, or "pass" with sizes that differ.

    References
    ----------
    Bahdanau, Cho and Bengio: Neural machine translation by jointly learning to align and translate, 2015
    (tanh of a linear map).

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm.models import Bridge
    >>> state = np.zeros((2, 5, 4), np.float32)
    >>> h, c = Bridge("tanh", 4, 6, bidirectional=True)((state, state))
    >>> h.shape
    (1, 5, 6)
    """

    def __init__(
        self,
        kind: str,
        encoder_size: int,
        decoder_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dtype: str = "float32",
        init: Init = "torch",
        seed: int = 0,
    ) -> None:
        if kind not in BRIDGES:
            raise ValueError(f"Bridge: kind must be one of {', '.join(BRIDGES)}, got {kind!r}")
        self.kind = kind
        self.num_layers = integer(num_layers, "num_layers", 1)
        self.directions = 2 if bidirectional else 1
        width = self.directions * encoder_size
        if kind == "pass":
            if width != decoder_size:
                raise ValueError(
                    "Bridge: 'pass' needs an encoder of one direction and of the decoder's size "
                    f"{decoder_size}, got {self.directions} of {encoder_size}"
                )
            super().__init__(dtype)
            return
        self.maps = {
            f"{state}_l{layer}": Linear(
                width, decoder_size, dtype=dtype, init=init, seed=derive_seed(seed, number, layer)
            )
            for layer in range(self.num_layers)
            for number, state in enumerate(("h", "c"))
        }
        super().__init__(dtype, children=self.maps)

    def __call__(self, state: State) -> State:
        """Initial states (L, N, H_d) of the decoder, from the encoder's final ones (L*D, N, H_e)."""
        return self.forward(state)[0]

    def forward(self, state: State) -> tuple[State, BridgeTape]:
        """What a call returns, and the tape for `backward`."""
        if self.kind == "pass":
            return state, BridgeTape(self, [], state[0])
        outputs: dict[str, list[Float]] = {"h": [], "c": []}
        tapes = []
        for name, part in zip(("h", "c"), state, strict=True):
            for layer, joined in enumerate(self._join(part)):
                output, tape = self.maps[f"{name}_l{layer}"].forward(joined)
                outputs[name].append(output)
                tapes.append(tape)
        h, c = np.stack(outputs["h"]), np.stack(outputs["c"])
        if self.kind == "tanh":
            h = _core.tanh(h.reshape(-1)).reshape(h.shape)
        return (h, c), BridgeTape(self, tapes, h)

    def backward(self, tape: BridgeTape, d_state: State) -> State:
        """Add the gradients of the maps; those of the encoder's final states."""
        tape.take(self)
        if self.kind == "pass":
            return d_state
        dh, dc = d_state
        if self.kind == "tanh":
            dh = dh * (1 - tape.h * tape.h)
        L = self.num_layers
        gradients = []
        for number, (name, part) in enumerate((("h", dh), ("c", dc))):
            rows = []
            for layer in range(L):
                linear = self.maps[f"{name}_l{layer}"]
                dx = linear.backward(tape.linear[number * L + layer], np.ascontiguousarray(part[layer]))
                assert dx is not None  # it was asked for
                rows.append(dx)
            gradients.append(self._split(np.stack(rows)))
        return gradients[0], gradients[1]

    def _join(self, state: Float) -> Float:
        """(L*D, N, H) as (L, N, D*H)."""
        _, N, H = state.shape
        D = self.directions
        return np.ascontiguousarray(
            state.reshape(self.num_layers, D, N, H).transpose(0, 2, 1, 3).reshape(self.num_layers, N, D * H)
        )

    def _split(self, joined: Float) -> Float:
        """(L, N, D*H) as (L*D, N, H)."""
        L, N, width = joined.shape
        D = self.directions
        return np.ascontiguousarray(
            joined.reshape(L, N, D, width // D).transpose(0, 2, 1, 3).reshape(L * D, N, width // D)
        )

    def _describe(self) -> str:
        return repr(self.kind)


class DecoderTape(Tape):
    """What `Decoder.forward` keeps for `Decoder.backward`.

    Attributes
    ----------
    valid : bool (N, T)
        Steps within the lengths.
    weights : ndarray or None
        (N, T, S), attention over the source at every step.
    """

    def __init__(
        self,
        layer: Decoder,
        steps: LSTMTape | AttentionDecoderTape,
        ids: Int,
        valid: NDArray[np.bool_],
        seed: int,
    ) -> None:
        super().__init__(layer)
        self.steps = steps
        self.ids = ids
        self.valid = valid
        self.seed = seed

    @property
    def weights(self) -> Float | None:
        """Attention over the source at every step, (N, T, S)."""
        return self.steps.weights if isinstance(self.steps, AttentionDecoderTape) else None


class Decoder(Module):
    r"""Writes a target, one token after the other, from an initial state and a memory of the source.

    .. code-block:: text

        e_t = dropout(embedding[y_{t-1}])                           (E,)      y_0 = <bos>
        a_t = AttentionDecoder(e_t, a_{t-1}, h_{t-1}, c_{t-1}, m)   (A,)      without attention a_t = h_t
        p(y_t | y_<t, x) = softmax(W dropout(a_t) + b)              (V,)

    Parameters
    ----------
    vocabulary_size : int
        V.
    embedding_size, hidden_size, num_layers : int
        E, H and L.
    memory_size : int, optional
        M, features of the memory; needed for attention.
    attention : str, optional
        "dot", "general", "concat" or "bahdanau", see `fusedlstm.nn.AttentionDecoder`; None: without.
    attention_size, input_feeding, coverage
        As in `fusedlstm.nn.AttentionDecoder`.
    dropout : float
        Rate between layers, in [0, 1).
    embedding_dropout, output_dropout : float
        Rates on the embedding's output and before the output layer.
    embedding : Embedding, optional
        Another module's table to read, instead of an own one.
    dtype, init
        As in `fusedlstm.nn.LSTM`.
    compute_dtype : str, optional
        Of the products of the LSTM and of the output layer: "bfloat16", or for inference only "int8".
        Attention stays float32. May be set later.
    seed : int
        Of the initial values.

    Raises
    ------
    ValueError, TypeError
        If an option is out of its range or of a wrong kind.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm.models import Decoder
    >>> decoder = Decoder(10, 4, 6)
    >>> state = np.zeros((1, 2, 6), np.float32)
    >>> rows, tape = decoder.forward([[1, 3, 4], [1, 5, 0]], [3, 2], state=(state, state), seed=0)
    >>> rows.shape
    (5, 6)
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        memory_size: int | None = None,
        attention: str | None = None,
        attention_size: int | None = None,
        input_feeding: bool | None = None,
        coverage: bool = False,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        embedding: Embedding | None = None,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        init: Init = "torch",
        seed: int = 0,
    ) -> None:
        self.embedding_dropout = rate(embedding_dropout, "embedding_dropout")
        self.output_dropout = rate(output_dropout, "output_dropout")
        self.vocabulary_size = integer(vocabulary_size, "vocabulary_size", 1)
        children: dict[str, Module] = {}
        if embedding is None:
            embedding = children["embedding"] = Embedding(
                vocabulary_size, embedding_size, dtype=dtype, init=init, seed=derive_seed(seed, _EMBEDDING)
            )
        elif (embedding.num_embeddings, embedding.embedding_dim) != (vocabulary_size, embedding_size):
            raise ValueError(
                f"Decoder: embedding must be ({vocabulary_size}, {embedding_size}), "
                f"got ({embedding.num_embeddings}, {embedding.embedding_dim})"
            )
        self.embedding = embedding
        self.layers = children["layers"] = AttentionDecoder(
            embedding_size,
            hidden_size,
            0 if attention is None or memory_size is None else memory_size,
            num_layers,
            attention=attention,
            attention_size=attention_size,
            input_feeding=input_feeding,
            coverage=coverage,
            dropout=dropout,
            dtype=dtype,
            init=init,
            seed=derive_seed(seed, _LSTM),
        )
        self.output = children["output"] = Linear(
            self.layers.output_size,
            vocabulary_size,
            dtype=dtype,
            init=init,
            seed=derive_seed(seed, _OUTPUT),
        )
        self._native: tuple[_core.PackedLSTM, _core.PackedLinear, _core.AttentionDecoder] | None = None
        super().__init__(dtype, children=children)
        self.compute_dtype = compute_dtype

    def _drop_packed(self) -> None:
        self._native = None

    @property
    def compute_dtype(self) -> str | None:
        """``"bfloat16"``, ``"int8"`` or None: what LSTM and output layer multiply is rounded to it first."""
        return self.layers.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, compute_dtype: str | None) -> None:
        self.layers.compute_dtype = self.output.compute_dtype = compute_dtype

    @property
    def native(self) -> _core.AttentionDecoder:
        """The native loops that write targets, for the present parameters."""
        lstm, output = self.layers.lstm.packed, self.output.packed  # others once they compute in another type
        if self._native is None or self._native[0] is not lstm or self._native[1] is not output:
            self._native = lstm, output, self.layers.decoder(self.embedding, self.output)
        return self._native[2]

    def __call__(
        self,
        inputs: Any,
        lengths: Any,
        *,
        state: State,
        memory: Float | None = None,
        memory_lengths: Any = None,
    ) -> Float:
        """What the output layer reads at every valid step, without dropout.

        Parameters
        ----------
        inputs : array_like of int
            (N, T), ``<bos>`` first.
        lengths : array_like of int
            (N,), valid steps of each.
        state : (h, c)
            Initial states, each (L, N, H).
        memory : ndarray, optional
            (N, S, M), for attention.
        memory_lengths : array_like of int, optional
            (N,), valid steps of the memory, at least 1.

        Returns
        -------
        ndarray
            (P, A), sequence after sequence.

        Raises
        ------
        ValueError, TypeError
            As a call of `fusedlstm.nn.AttentionDecoder`.
        """
        if self.compute_dtype == "int8":  # by the steps of generation
            ids = token_array(inputs, self.vocabulary_size, "Decoder", "inputs")
            source, source_lengths = self.layers._memory(memory, memory_lengths, len(ids))
            h0, c0 = state
            y, _ = self.native.outputs(ids, source, source_lengths, h0=h0, c0=c0)
        elif self.layers.attention is None:
            y = self.layers.lstm(inputs, state=state, lengths=lengths, embedding=self.embedding)
        else:
            y = self.layers(
                self.embedding(inputs),
                memory,
                memory_lengths=memory_lengths,
                lengths=lengths,
                state=state,
            )
        rows: Float = y[_valid(lengths, y.shape[1])]
        return rows

    def forward(
        self,
        inputs: Any,
        lengths: Any,
        *,
        state: State,
        memory: Float | None = None,
        memory_lengths: Any = None,
        seed: int,
        teacher_probability: float = 1.0,
        sample: bool = False,
    ) -> tuple[Float, DecoderTape]:
        """What a call returns, with dropout, and the tape for `backward`.

        Parameters
        ----------
        inputs, lengths, state, memory, memory_lengths
            As for a call.
        seed : int
            Of the masks and of scheduled sampling.
        teacher_probability : float
            With which a step is fed its input instead of the decoder's own last token, for every sequence
            and step alone. No gradient flows through the choice of a token.
        sample : bool
            Whether own tokens are drawn from the softmax instead of being its largest.

        References
        ----------
        Bengio, Vinyals, Jaitly and Shazeer: Scheduled sampling for sequence prediction with recurrent neural
        networks, 2015.
        """
        x = token_array(inputs, self.vocabulary_size, "Decoder", "inputs")
        valid = _valid(lengths, x.shape[1])
        mask_seed = derive_seed(seed, 0)
        y: Float
        tape: LSTMTape | AttentionDecoderTape
        if self.layers.attention is None and teacher_probability == 1.0 and not self.embedding_dropout:
            y, tape = self.layers.lstm.forward(
                x,
                state=state,
                lengths=lengths,
                embedding=self.embedding,
                seed=seed if self.layers.lstm.takes_seed else None,
            )
        else:
            scheduled = None
            if teacher_probability < 1.0:
                own = np.full(x.shape[1], 1.0 - teacher_probability)
                scheduled = ScheduledSampling(self.embedding, self.output, own, sample=sample)
            y, tape = self.layers.forward(
                self._vectors(x, mask_seed),
                memory,
                memory_lengths=memory_lengths,
                lengths=lengths,
                state=state,
                seed=seed,
                scheduled=scheduled,
            )
        rows = y[valid]
        if self.output_dropout:
            rows = _core.dropout(rows, self.output_dropout, mask_seed, _OUTPUT_MASK)
        return rows, DecoderTape(self, tape, x, valid, mask_seed)

    def backward(self, tape: DecoderTape, d_rows: Float) -> tuple[Float | None, State]:
        """Add the gradients of all parameters but the output layer's.

        Parameters
        ----------
        tape : DecoderTape
            From `forward`; it is used up.
        d_rows : ndarray
            (P, A), of what `forward` returned.

        Returns
        -------
        d_memory : ndarray or None
            (N, S, M); None without attention.
        d_state : (dh, dc)
            Of the initial states, each (L, N, H).
        """
        tape.take(self)
        if self.output_dropout:
            d_rows = _core.dropout(d_rows, self.output_dropout, tape.seed, _OUTPUT_MASK)
        dy = np.zeros((*tape.valid.shape, self.layers.output_size), self.dtype)
        dy[tape.valid] = d_rows
        if isinstance(tape.steps, LSTMTape):
            self.layers.lstm.backward(tape.steps, dy)
            assert tape.steps.dh0 is not None and tape.steps.dc0 is not None  # backward sets them
            return None, (tape.steps.dh0, tape.steps.dc0)
        own = tape.steps.tokens
        dx, d_memory, d_state = self.layers.backward(tape.steps, dy)
        self._vectors_backward(tape.ids, own, dx, tape.seed)
        return d_memory, d_state

    def _vectors(self, ids: Int, seed: int) -> Float:
        """Vectors (N, T, E) of ids (N, T), with dropout."""
        vectors = self.embedding(ids)
        if not self.embedding_dropout:
            return vectors
        rows = vectors.reshape(ids.size, -1)
        return _core.dropout(rows, self.embedding_dropout, seed, _EMBEDDING_MASK).reshape(vectors.shape)

    def _vectors_backward(self, ids: Int, own: Int | None, dx: Float, seed: int) -> None:
        """Add the gradient ``dx`` of `_vectors`, where own tokens, fed without dropout, took the place."""
        d_rows = dx.reshape(ids.size, -1)
        if self.embedding_dropout:
            d_rows = _core.dropout(d_rows, self.embedding_dropout, seed, _EMBEDDING_MASK)
        if own is not None:
            fed = own.reshape(-1) >= 0
            d_rows = np.where(fed[:, None], dx.reshape(ids.size, -1), d_rows)
            ids = np.where(own >= 0, own, ids).astype(np.int32)
        _core.embedding_backward(ids.reshape(-1), np.ascontiguousarray(d_rows), self.embedding.d_weight)


def _valid(lengths: Any, steps: int) -> NDArray[np.bool_]:
    """(N, T): which steps are within the lengths."""
    return np.arange(steps)[None, :] < np.asarray(lengths)[:, None]
