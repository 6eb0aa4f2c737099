"""The parts of a sequence-to-sequence model.

N batch, S source steps, T target steps, P valid target steps of all sequences, E embedding size, H hidden
units, L layers, D directions of the encoder, V vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.nn import LSTM, Embedding, Linear, LSTMTape, Module, derive_seed
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
        tape.consumed = True


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
        tape.check(self)
        tape.consumed = True
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
    """What `Decoder.forward` keeps for `Decoder.backward`."""

    def __init__(
        self, layer: Decoder, lstm: LSTMTape, masked: _Embedded | None, valid: NDArray[np.bool_], seed: int
    ) -> None:
        super().__init__(layer)
        self.lstm = lstm
        self.masked = masked
        self.valid = valid
        self.seed = seed


class Decoder(Module):
    r"""Writes a target, one token after the other, from an initial state.

    .. code-block:: text

        e_t = dropout(embedding[y_{t-1}])                    (E,)      y_0 = <bos>
        h_t = LSTM(e_t, h_{t-1}, c_{t-1})                    (H,)
        p(y_t | y_<t, x) = softmax(W dropout(h_t) + b)       (V,)

    Parameters
    ----------
    vocabulary_size : int
        V.
    embedding_size, hidden_size, num_layers : int
        E, H and L.
    dropout : float
        Rate between layers, in [0, 1).
    embedding_dropout, output_dropout : float
        Rates on the embedding's output and before the output layer.
    embedding : Embedding, optional
        Another module's table to read, instead of an own one.
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
    >>> import numpy as np
    >>> from fusedlstm.models import Decoder
    >>> decoder = Decoder(10, 4, 6)
    >>> state = np.zeros((1, 2, 6), np.float32)
    >>> rows, tape = decoder.forward([[1, 3, 4], [1, 5, 0]], [3, 2], (state, state), seed=0)
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
        self.lstm = children["lstm"] = LSTM(
            embedding_size,
            hidden_size,
            num_layers,
            dropout=dropout,
            return_state=True,
            dtype=dtype,
            compute_dtype=compute_dtype,
            init=init,
            seed=derive_seed(seed, _LSTM),
        )
        self.output = children["output"] = Linear(
            hidden_size, vocabulary_size, dtype=dtype, init=init, seed=derive_seed(seed, _OUTPUT)
        )
        super().__init__(dtype, children=children)

    def __call__(self, inputs: Any, lengths: Any, state: State) -> Float:
        """What the output layer reads at every valid step, without dropout.

        Parameters
        ----------
        inputs : array_like of int
            (N, T), ``<bos>`` first.
        lengths : array_like of int
            (N,), valid steps of each.
        state : (h, c)
            Initial states, each (L, N, H).

        Returns
        -------
        ndarray
            (P, H), sequence after sequence.

        Raises
        ------
        ValueError, TypeError
            As a call of `fusedlstm.nn.LSTM`.
        """
        y, _ = self.lstm(inputs, state=state, lengths=lengths, embedding=self.embedding)
        rows: Float = y[_valid(lengths, y.shape[1])]
        return rows

    def forward(self, inputs: Any, lengths: Any, state: State, *, seed: int) -> tuple[Float, DecoderTape]:
        """What a call returns, with dropout, and the tape for `backward`; ``seed`` is of the masks."""
        x = token_array(inputs, self.vocabulary_size, "Decoder", "inputs")
        lstm_seed = seed if self.lstm.takes_seed else None
        masked = None
        if self.embedding_dropout:
            masked = _Embedded(x, self.embedding_dropout, derive_seed(seed, 0))
            (y, _), tape = self.lstm.forward(
                embed(self.embedding, masked), state=state, lengths=lengths, seed=lstm_seed
            )
        else:
            (y, _), tape = self.lstm.forward(
                x, state=state, lengths=lengths, embedding=self.embedding, seed=lstm_seed
            )
        valid = _valid(lengths, x.shape[1])
        rows = y[valid]
        mask_seed = derive_seed(seed, 0)
        if self.output_dropout:
            rows = _core.dropout(rows, self.output_dropout, mask_seed, _OUTPUT_MASK)
        return rows, DecoderTape(self, tape, masked, valid, mask_seed)

    def backward(self, tape: DecoderTape, d_rows: Float) -> State:
        """Add the gradients of all parameters but the output layer's; those of the initial states.

        Parameters
        ----------
        tape : DecoderTape
            From `forward`; it is used up.
        d_rows : ndarray
            (P, H), of what `forward` returned.
        """
        tape.check(self)
        if self.output_dropout:
            d_rows = _core.dropout(d_rows, self.output_dropout, tape.seed, _OUTPUT_MASK)
        dy = np.zeros((*tape.valid.shape, self.lstm.hidden_size), self.dtype)
        dy[tape.valid] = d_rows
        dx = self.lstm.backward(tape.lstm, dy)
        if tape.masked is not None and dx is not None:
            embed_backward(self.embedding, tape.masked, dx)
        tape.consumed = True
        assert tape.lstm.dh0 is not None and tape.lstm.dc0 is not None  # backward sets them
        return tape.lstm.dh0, tape.lstm.dc0


def _valid(lengths: Any, steps: int) -> NDArray[np.bool_]:
    """(N, T): which steps are within the lengths."""
    return np.arange(steps)[None, :] < np.asarray(lengths)[:, None]
