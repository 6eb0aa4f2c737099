"""One input to a sequence whose every output is the next input.

N batch, T time, K input tokens, X size of an input vector, O outputs, V vocabulary size, I inputs of the
LSTM, H hidden units, L layers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.data import Vocabulary
from fusedlstm.generation import BatchTextStream, Sampling, TextPieces, TextStream
from fusedlstm.generation._loop import iterate
from fusedlstm.generation.stream import cut, first_row
from fusedlstm.io import FormatError, ModelSchema, Option, load_model, save_model
from fusedlstm.io.model_file import lstm_shapes
from fusedlstm.nn import LSTM, Embedding, Linear, Module, derive_seed
from fusedlstm.nn._checks import (
    Init,
    float_array,
    integer,
    length_array,
    rate,
    require_finite,
    seed_number,
    token_array,
    uniform_limit,
)
from fusedlstm.nn.module import lay_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fusedlstm.generation.sampling import SamplingKeywords
    from fusedlstm.training import History, TeacherSchedule

Float = NDArray[Any]
Tokens = NDArray[np.int32]

# places of random numbers under one seed
_EMBEDDING, _LSTM, _OUTPUT, _INITIAL, _START = range(5)


@dataclass(frozen=True)
class _Sizes:
    """What follows from the options: which parts there are, and how large they are."""

    values: bool  # real-valued outputs, else tokens
    outputs: int  # O or V
    inputs: int  # I
    vector: int  # X, 0 for a token
    tokens: int  # K, 0 for a vector
    mapped: bool  # the input sets the initial state
    started: bool  # a learned first input

    @classmethod
    def of(cls, config: Mapping[str, Any], vocabulary_size: int | None) -> _Sizes:
        """Sizes of a model, or a ``ValueError`` about options that do not go together."""
        output_size, num_tokens = config["output_size"], config["num_tokens"] or vocabulary_size
        if (output_size is None) == (num_tokens is None):
            raise ValueError("OneToMany: either output_size or vocabulary must be given")
        if num_tokens is None and config["embedding_size"] is not None:
            raise ValueError("OneToMany: embedding_size is for a vocabulary, not for values")
        outputs: int = output_size or num_tokens or 0
        vector, tokens = config["input_size"], config["input_tokens"]
        mapped = config["condition"] == "initial_state"
        if not mapped and not (vector is None and tokens is None and config["start"] is None):
            raise ValueError(
                "OneToMany: input_size, input_tokens and start are for condition='initial_state': "
                "a first step is of the kind of an output"
            )
        if vector is not None and tokens is not None:
            raise ValueError("OneToMany: only one of input_size and input_tokens can be given")
        if vector is None and tokens is None:  # of the kind of an output
            vector, tokens = output_size, num_tokens
        return cls(
            values=num_tokens is None,
            outputs=outputs,
            inputs=outputs if num_tokens is None else int(config["embedding_size"] or config["hidden_size"]),
            vector=vector or 0,
            tokens=tokens or 0,
            mapped=mapped,
            started=config["start"] == "token",
        )


def _shapes(config: Mapping[str, Any], vocabulary_size: int | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of a model file."""
    if config["num_tokens"] is not None and vocabulary_size is not None:
        raise FormatError("config: num_tokens is for a model without a vocabulary")
    try:
        sizes = _Sizes.of(config, vocabulary_size)
    except ValueError as error:
        raise FormatError(f"config: {error}") from None
    H, L = config["hidden_size"], config["num_layers"]
    if sizes.started:
        yield "start", (sizes.inputs,)
    if not sizes.values:
        yield "embedding.weight", (sizes.outputs, sizes.inputs)
    if sizes.mapped and sizes.tokens:
        yield "initial.weight", (sizes.tokens, 2 * L * H)
    elif sizes.mapped:
        yield "initial.weight", (2 * L * H, sizes.vector)
        yield "initial.bias", (2 * L * H,)
    yield "output.weight", (sizes.outputs, H)
    yield "output.bias", (sizes.outputs,)
    yield from lstm_shapes("lstm", sizes.inputs, H, L)


_SIZE = Option(int, minimum=1)
_OPTIONAL_SIZE = Option(int, minimum=1, nullable=True)

SCHEMA = ModelSchema(
    "one_to_many",
    {
        "output_size": _OPTIONAL_SIZE,
        "num_tokens": _OPTIONAL_SIZE,
        "condition": Option(str, choices=("initial_state", "first_step")),
        "input_size": _OPTIONAL_SIZE,
        "input_tokens": _OPTIONAL_SIZE,
        "start": Option(str, choices=("token", "zero"), nullable=True),
        "embedding_size": _OPTIONAL_SIZE,
        "hidden_size": _SIZE,
        "num_layers": _SIZE,
        "dropout": Option(float, minimum=0.0, below=1.0),
        "dtype": Option(str, choices=("float32", "float64")),
    },
    _shapes,
    vocabulary=None,
)


@dataclass
class _Beginning:
    """What an input becomes before the loop, and how its gradient goes back."""

    ids: Tokens | None  # first step: rows of the embedding
    first: Float  # (N, I)
    h0: Float | None  # (L, N, H)
    c0: Float | None
    tape: Any  # of the map


class OneToMany(Module):
    r"""One input (a token, a number or a vector) to a sequence whose every output is the next input.

    .. code-block:: text

        condition="initial_state":  [a_h a_c] = map(input)    h_0 = tanh(a_h)    c_0 = a_c    x_1 = start
        condition="first_step":     h_0 = c_0 = 0             x_1 = input

        h_t = LSTM(x_t)             (H,)
        z_t = W h_t + b             (O,) values, or (V,) logits of the token at t

        feedback     x_{t+1}
        "teacher"    the target of step t
        "output"     z_t                               values
        "token"      embedding[argmax z_t], or of a token drawn from softmax(z_t / temperature)
        "soft"       softmax(z_t / temperature) embedding

    The gradient runs back through "output" and "soft" feedback. The loop over LSTM and output layer is one
    native call, forward and backward; so is generation.

    Parameters
    ----------
    output_size : int, optional
        O: outputs are real values, the loss is the mean squared error. Either this or `vocabulary`.
    vocabulary : Vocabulary or int, optional
        Outputs are tokens, the loss is cross-entropy in nats: of a text's vocabulary, or ids 0..V-1 for an
        int. Inputs and targets of a model with a `Vocabulary` may be text.
    condition : str
        What the input sets: "initial_state" by a learned linear map of it (a table for a token), or
        "first_step": the input is of the kind of an output, and fed like one.
    input_size : int, optional
        X: the input is a vector, with 1 a number. For "initial_state".
    input_tokens : int, optional
        K: the input is a token id 0..K-1. For "initial_state". Without both, it is of the kind of an output.
    start : str, optional
        First input of the LSTM with "initial_state": "token", a learned vector, or "zero" (default).
    embedding_size : int, optional
        I for tokens; `hidden_size` by default.
    hidden_size : int
        H, units of every layer.
    num_layers : int
        L.
    dropout : float
        Rate between layers, in [0, 1).
    dtype : str
        "float32" or "float64".
    init : str or tuple
        "torch": PyTorch's defaults of each layer; ("uniform", a): every parameter from U(-a, a).
    seed : int
        Of the initial values.

    Raises
    ------
    ValueError, TypeError
        An option out of its range or of a wrong kind, or options that do not go together.

    Notes
    -----
    A step costs about ``2 (4 H (I + H) + 8 H^2 (L - 1) + H O)`` FLOPs per sequence, three times that in
    training, and "soft" 2 I V more. Kept in training, per step and sequence: about ``24 H L + 4 (2 I + H) +
    4 O`` bytes in float32, "soft" 4 V more.

    References
    ----------
    Williams and Zipser, A learning algorithm for continually running fully recurrent neural networks, 1989
    (teacher forcing).
    Bengio, Vinyals, Jaitly and Shazeer, Scheduled sampling for sequence prediction with recurrent neural
    networks, 2015.

    Examples
    --------
    A number n to n, 2 n, 3 n; the gradient goes through the outputs that are fed back.

    >>> import numpy as np
    >>> from fusedlstm import OneToMany
    >>> n = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
    >>> model = OneToMany(output_size=1, input_size=1, hidden_size=16)
    >>> multiples = (n * np.array([1, 2, 3], np.float32))[..., None]
    >>> history = model.fit(n, multiples, feedback="output", epochs=150, lr=0.02, progress=False)
    >>> bool(abs(model.generate([0.35], 3).ravel() - [0.35, 0.7, 1.05]).max() < 0.05)
    True
    """

    def __init__(
        self,
        *,
        output_size: int | None = None,
        vocabulary: Vocabulary | int | None = None,
        condition: str = "initial_state",
        input_size: int | None = None,
        input_tokens: int | None = None,
        start: str | None = None,
        embedding_size: int | None = None,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        dtype: str = "float32",
        init: Init = "torch",
        seed: int = 0,
    ) -> None:
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else None
        if condition not in ("initial_state", "first_step"):
            raise ValueError(
                f"OneToMany: condition must be 'initial_state' or 'first_step', got {condition!r}"
            )
        if start not in (None, "token", "zero"):
            raise ValueError(f"OneToMany: start must be 'token' or 'zero', got {start!r}")

        def size(value: int | None, name: str) -> int | None:
            return None if value is None else integer(value, name, 1)

        self._config: dict[str, Any] = {
            "output_size": size(output_size, "output_size"),
            "num_tokens": None if isinstance(vocabulary, Vocabulary) else size(vocabulary, "vocabulary"),
            "condition": condition,
            "input_size": size(input_size, "input_size"),
            "input_tokens": size(input_tokens, "input_tokens"),
            "start": start,
            "embedding_size": size(embedding_size, "embedding_size"),
            "hidden_size": integer(hidden_size, "hidden_size", 1),
            "num_layers": integer(num_layers, "num_layers", 1),
            "dropout": rate(dropout, "dropout"),
        }
        text_size = None if self.vocabulary is None else len(self.vocabulary)
        self._sizes = sizes = _Sizes.of(self._config, text_size)
        H, L = hidden_size, num_layers

        def seeds(place: int) -> dict[str, Any]:
            return {"dtype": dtype, "init": init, "seed": derive_seed(seed_number(seed), place)}

        self.lstm = LSTM(sizes.inputs, H, L, dropout=dropout, **seeds(_LSTM))
        self.output = Linear(H, sizes.outputs, **seeds(_OUTPUT))
        children: dict[str, Module] = {}
        self.embedding: Embedding | None = None
        if not sizes.values:
            self.embedding = Embedding(sizes.outputs, sizes.inputs, **seeds(_EMBEDDING))
            children["embedding"] = self.embedding
        self.initial: Linear | Embedding | None = None
        if sizes.mapped:
            kind, of = (Embedding, sizes.tokens) if sizes.tokens else (Linear, sizes.vector)
            self.initial = kind(of, 2 * L * H, **seeds(_INITIAL))
            children["initial"] = self.initial
        children |= {"output": self.output, "lstm": self.lstm}
        self._decoder: _core.OneToManyDecoder | None = None
        super().__init__(
            dtype, lay_out([("start", (sizes.inputs,))] if sizes.started else []), children=children
        )
        if sizes.started:
            limit = uniform_limit(init, H**-0.5, "OneToMany")
            generator = np.random.default_rng(derive_seed(seed, _START))
            self._view(self._parameters, "start")[...] = generator.uniform(-limit, limit, sizes.inputs)
        self.mark_updated()

    def _drop_packed(self) -> None:
        self._decoder = None

    def config(self) -> dict[str, Any]:
        """Sizes and options, as plain JSON values; ``num_tokens`` is a `vocabulary` that is an int."""
        return {**self._config, "dtype": self.dtype}

    # inputs and targets ---------------------------------------------------------------------------------

    def _inputs(self, x: Any, who: str) -> tuple[NDArray[Any], bool]:
        """Inputs as ids (N,) or vectors (N, X), and whether there was one without a batch."""
        sizes = self._sizes
        if sizes.tokens:
            if self.vocabulary is not None and self._config["input_tokens"] is None:
                single = isinstance(x, str | bytes)
                if single or (isinstance(x, list | tuple) and all(isinstance(s, str | bytes) for s in x)):
                    x = [self._token(text, who) for text in ([x] if single else x)]
                    return np.array(x, np.int32), single
            ids = token_array(x, sizes.tokens, who, "x")
            if ids.ndim > 1:
                raise ValueError(f"{who}: x must be a token id or ids (N,), got {ids.shape}")
            return ids.reshape(-1), ids.ndim == 0
        vectors = float_array(x, self.dtype, who, "x")
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != sizes.vector:
            raise ValueError(f"{who}: x must be (N, X) or (X,) with X={sizes.vector}, got {vectors.shape}")
        require_finite(vectors, who, "x")
        return np.atleast_2d(vectors), vectors.ndim == 1

    def _token(self, text: str | bytes, who: str, name: str = "x") -> int:
        assert self.vocabulary is not None  # asked only where there is text
        ids = self.vocabulary.encode(text)
        if len(ids) != 1:
            raise ValueError(
                f"{who}: {name} must be one {self.vocabulary.kind}, got {text!r} ({len(ids)} tokens)"
            )
        return int(ids[0])

    def _targets(self, targets: Any, lengths: Any, N: int, who: str) -> tuple[NDArray[Any], Tokens | None]:
        """Targets (N, T) or (N, T, O), and lengths (N,) where they differ; a list may be ragged."""
        sizes = self._sizes
        if isinstance(targets, list | tuple):
            if lengths is not None:
                raise ValueError(f"{who}: lengths are those of a list of targets: give only one")
            rows = [self._sequence(sequence, who) for sequence in targets]
            lengths = [len(row) for row in rows]
            T = max(lengths, default=0)
            shape = (len(rows), T, sizes.outputs) if sizes.values else (len(rows), T)
            array = np.zeros(shape, self.dtype if sizes.values else np.int64)  # ids are checked below
            for row, sequence in zip(array, rows, strict=True):
                row[: len(sequence)] = sequence
            if all(length == T for length in lengths):
                lengths = None
        elif sizes.values:
            array = float_array(targets, self.dtype, who, "targets")
        else:
            array = _integers(targets, who)
        wanted = f"(N={N}, T, O={sizes.outputs})" if sizes.values else f"(N={N}, T)"
        if (
            array.ndim != (3 if sizes.values else 2)
            or len(array) != N
            or (sizes.values and array.shape[-1] != sizes.outputs)
        ):
            raise ValueError(f"{who}: targets must be {wanted}, got {array.shape}")
        counts = None if lengths is None else length_array(lengths, N, array.shape[1], who)
        if sizes.values:
            require_finite(array, who, "targets", counts)
        else:
            array = token_array(_within(array, counts), sizes.outputs, who, "targets")
        return array, counts

    def _sequence(self, sequence: Any, who: str) -> NDArray[Any]:
        if isinstance(sequence, str | bytes):
            if self.vocabulary is None:
                raise TypeError(f"{who}: targets can be text only for a model with a Vocabulary")
            return self.vocabulary.encode(sequence)
        if not self._sizes.values:
            row = _integers(sequence, who)
            if row.ndim != 1:
                raise ValueError(f"{who}: each of targets must be (T,), got {row.shape}")
            return row
        row = float_array(sequence, self.dtype, who, "targets")
        if row.ndim != 2 or row.shape[1] != self._sizes.outputs:
            raise ValueError(f"{who}: each of targets must be (T, O={self._sizes.outputs}), got {row.shape}")
        return row

    def _begin(self, x: NDArray[Any]) -> _Beginning:
        """First input and initial states of inputs as `_inputs` gives them."""
        sizes, N = self._sizes, len(x)
        L, H = self.lstm.num_layers, self.lstm.hidden_size
        if self.initial is None:
            if self.embedding is None:
                return _Beginning(None, x, None, None, None)
            return _Beginning(x, _core.embedding_forward(self.embedding.weight, x), None, None, None)
        a, tape = self.initial.forward(x)
        a_h, a_c = np.ascontiguousarray(a.reshape(N, 2, L, H).transpose(1, 2, 0, 3))
        first = np.zeros((N, sizes.inputs), self.dtype)
        if sizes.started:
            first[...] = self._view(self._parameters, "start")
        return _Beginning(None, first, _core.tanh(a_h.reshape(-1)).reshape(a_h.shape), a_c, tape)

    def _begin_backward(self, begin: _Beginning, d_first: Float, dh0: Float, dc0: Float) -> None:
        if self._sizes.started:
            self._view(self._gradients, "start")[...] += d_first.sum(axis=0)
        if begin.ids is not None and self.embedding is not None:
            _core.embedding_backward(begin.ids, d_first, self.embedding.d_weight)
        if self.initial is None or begin.h0 is None:
            return
        da = np.stack([dh0 * (1 - begin.h0 * begin.h0), dc0])  # h_0 = tanh(a_h)
        da = np.ascontiguousarray(da.transpose(2, 0, 1, 3)).reshape(len(d_first), -1)
        if isinstance(self.initial, Linear):
            self.initial.backward(begin.tape, da, need_dx=False)
        else:
            self.initial.backward(begin.tape, da)

    # training -------------------------------------------------------------------------------------------

    def _feedback(self, feedback: str, who: str) -> None:
        kinds = ("teacher", "output") if self._sizes.values else ("teacher", "token", "soft")
        if feedback not in kinds:
            raise ValueError(
                f"{who}: feedback of {'values' if self._sizes.values else 'tokens'} must be "
                f"{', '.join(map(repr, kinds[:-1]))} or {kinds[-1]!r}, got {feedback!r}"
            )

    def _loop(
        self,
        begin: _Beginning,
        targets: NDArray[Any],
        lengths: Tokens | None,
        feedback: str,
        teacher_probability: float,
        **options: Any,
    ) -> tuple[float, Float | None, Float | None, Float | None, Float | None]:
        if feedback == "teacher":
            feedback, teacher_probability = "output" if self._sizes.values else "token", 1.0
        return _core.one_to_many(
            self.lstm.packed,
            self.output.packed,
            begin.first,
            targets,
            begin.h0,
            begin.c0,
            lengths,
            embedding=None if self.embedding is None else self.embedding.weight,
            feedback=feedback,
            teacher_probability=teacher_probability,
            **options,
        )

    def _count(self, targets: NDArray[Any], lengths: Tokens | None) -> int:
        """Predictions in a batch."""
        steps = targets.shape[0] * targets.shape[1] if lengths is None else int(lengths.sum())
        return steps * (self._sizes.outputs if self._sizes.values else 1)

    def training_step(
        self,
        x: Any,
        targets: Any,
        lengths: Any = None,
        *,
        feedback: str = "teacher",
        teacher_probability: float = 0.0,
        temperature: float = 1.0,
        sample: bool = False,
        seed: int = 0,
    ) -> tuple[float, int]:
        """Forward and backward of one batch; gradients of the mean loss are added to `gradients`.

        Parameters
        ----------
        x, targets, lengths, feedback, temperature, sample
            As for `fit`.
        teacher_probability : float
            With it, drawn for every sequence and step, the next input is the target instead.
        seed : int
            Of dropout masks and draws.

        Returns
        -------
        loss : float
            Mean over all steps within the lengths: nats per token, or squared error per value.
        count : int
            Number of tokens or values.

        Raises
        ------
        ValueError, TypeError
            As `fit`.
        """
        who = "OneToMany.training_step"
        self._feedback(feedback, who)
        inputs, _ = self._inputs(x, who)
        array, counts = self._targets(targets, lengths, len(inputs), who)
        begin = self._begin(inputs)
        loss, _, d_first, dh0, dc0 = self._loop(
            begin,
            array,
            counts,
            feedback,
            teacher_probability,
            temperature=temperature,
            sample=sample,
            dropout=self.lstm.dropout,
            seed=seed,
            gradients=self.lstm.gradients,
            d_weight=self.output.d_weight,
            d_bias=self.output.d_bias,
            d_embedding=None if self.embedding is None else self.embedding.d_weight,
        )
        assert d_first is not None and dh0 is not None and dc0 is not None  # gradients were asked for
        self._begin_backward(begin, d_first, dh0, dc0)
        return loss, self._count(array, counts)

    def fit(
        self,
        x: Any,
        targets: Any,
        *,
        lengths: Any = None,
        validation: tuple[Any, ...] | None = None,
        feedback: str = "teacher",
        teacher: TeacherSchedule | float = 0.0,
        temperature: float = 1.0,
        sample: bool = False,
        batch_size: int = 32,
        **options: Any,
    ) -> History:
        """Train on inputs and the sequences that should follow.

        Parameters
        ----------
        x : array_like
            Token ids (N,) or vectors (N, X), or with a `Vocabulary` a list of tokens as text.
        targets : array_like
            Token ids (N, T) or values (N, T, O); or a list of N sequences of any lengths, which with a
            `Vocabulary` may be text.
        lengths : array_like of int, optional
            (N,), valid steps of each row of an array, 0..T.
        validation : (x, targets) or (x, targets, lengths), optional
            Data to measure the loss on after every epoch, with this feedback and no teacher unless it is
            "teacher".
        feedback : str
            What the next input is, see above: "teacher", "output", "token" or "soft".
        teacher : TeacherSchedule or float
            Scheduled sampling, with another feedback than "teacher": the probability, by sequence and step,
            that the next input is the target after all; `LinearDecay`, `ExponentialDecay` and
            `InverseSigmoidDecay` of `fusedlstm.training` let it fall.
        temperature : float
            Logits are divided by it before the softmax of "soft", or that a token is drawn from; > 0.
        sample : bool
            "token" draws the token instead of taking the most probable one.
        batch_size : int
            Sequences of a step; their order is another one in every epoch.
        **options
            Those of `fusedlstm.training.train`: epochs, optimiser, lr, schedule, clip, early_stopping, seed,
            log, checkpoint, resume, progress, and so on.

        Returns
        -------
        History
            Losses per epoch: nats per token, or mean squared errors.

        Raises
        ------
        ValueError, TypeError
            An option, input or target out of its range or of a wrong kind or shape.
        OSError, FloatingPointError, KeyboardInterrupt
            As `fusedlstm.training.train`.
        """
        from fusedlstm.training import train

        task = _Examples(
            self,
            (x, targets, lengths),
            validation,
            feedback=feedback,
            teacher=teacher,
            temperature=temperature,
            sample=sample,
            batch_size=batch_size,
        )
        return train(task, **options)

    def evaluate(
        self,
        x: Any,
        targets: Any,
        lengths: Any = None,
        *,
        feedback: str = "teacher",
        temperature: float = 1.0,
        batch_size: int = 256,
    ) -> float:
        """Mean loss over all steps within the lengths, without dropout.

        Parameters
        ----------
        x, targets, lengths, feedback, temperature
            As for `fit`; "token" takes the most probable one.
        batch_size : int
            Sequences of a native call; it does not change what is fed.

        Returns
        -------
        float
            Nats per token, or mean squared error.

        Raises
        ------
        ValueError, TypeError
            As `fit`; also if there is no step at all.
        """
        who = "OneToMany.evaluate"
        self._feedback(feedback, who)
        inputs, _ = self._inputs(x, who)
        array, counts = self._targets(targets, lengths, len(inputs), who)
        total = self._count(array, counts)
        if not total:
            raise ValueError(f"{who}: targets must have at least one step, got {array.shape}")
        loss = 0.0
        for begin in range(0, len(inputs), integer(batch_size, "batch_size", 1)):
            rows = slice(begin, begin + batch_size)
            part = array[rows], None if counts is None else counts[rows]
            mean, *_ = self._loop(self._begin(inputs[rows]), *part, feedback, 0.0, temperature=temperature)
            loss += mean * self._count(*part)
        return loss / total

    # generation -----------------------------------------------------------------------------------------

    def generate(
        self,
        x: Any,
        steps: int,
        *,
        stop: int | str | Sequence[int | str] | None = None,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> Any:
        """The sequence that follows an input, or those of a batch of inputs.

        Parameters
        ----------
        x : array_like
            As for `fit`, or one input without N: a token id, a vector (X,), or text.
        steps : int
            Values to generate, or the most tokens.
        stop : int, str or sequence of them, optional
            Tokens after any of which a sequence ends. For longer strings there is ``stop_strings``.
        processor, token_mask : callable, optional
            For tokens, as in `LanguageModel.sample`; an input that is a token is the first of those so far.
        **options
            For tokens, how each is chosen: ``temperature``, ``top_k``, ``greedy``, ``seed`` and so on, see
            `fusedlstm.generation.Sampling`. Row b of a batch gets what it would get alone with seed
            ``seed + b``.

        Returns
        -------
        ndarray, str or list
            Values (N, T, O). Tokens: for every input an int32 array of ids, or text with a `Vocabulary`.
            Without N for a single input.

        Raises
        ------
        ValueError, TypeError
            An input or option out of its range or of a wrong kind; options of tokens given for values.
        """
        who = "OneToMany.generate"
        inputs, single = self._inputs(x, who)
        steps = integer(steps, "steps", 0)
        begin = self._begin(inputs)
        if self.embedding is None:
            named = {"stop": stop, "processor": processor, "token_mask": token_mask}
            given = [*(name for name, value in named.items() if value is not None), *options]
            if given:
                raise ValueError(
                    f"{who}: {', '.join(given)} cannot be given: it is for tokens, and this model has values"
                )
            y, _, _ = _core.one_to_many_generate(
                self.lstm.packed, self.output.packed, begin.first, steps, begin.h0, begin.c0
            )
            return y[0] if single else y
        made = self._write(
            self._tokens_decoder(),
            begin,
            self._sampling(steps, stop, options, who),
            processor=processor,
            token_mask=token_mask,
        )
        rows: list[Any] = [row[:length] for row, length in zip(made.tokens, made.lengths, strict=True)]
        if self.vocabulary is not None:
            pairs = zip(rows, made.behind.tolist(), strict=True)
            rows = [cut(self.vocabulary.decode(row), behind) for row, behind in pairs]
        return rows[0] if single else rows

    def stream(
        self,
        x: Any,
        steps: int,
        *,
        stop: int | str | Sequence[int | str] | None = None,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> Generator[int, None, None] | TextStream:
        """Iterate over the tokens that follow one input, as they come; all of them are what `generate` gives.

        Parameters
        ----------
        x
            One input, as for `generate`; the model has tokens.
        steps, stop, processor, token_mask, **options
            As for `generate`. A processor is called in the loop's own thread.

        Returns
        -------
        iterator of int, or of str with a `Vocabulary`
            Ids, or pieces of text. Its ``close`` stops the native loop.

        Raises
        ------
        ValueError, TypeError
            As `generate`, at the call; also for a batch of inputs, or a model of values.

        Examples
        --------
        >>> from fusedlstm import OneToMany
        >>> from fusedlstm.data import Vocabulary
        >>> model = OneToMany(vocabulary=Vocabulary.from_text("abc"), hidden_size=8)
        >>> "".join(model.stream("a", 5, seed=1)) == model.generate("a", 5, seed=1)
        True
        """
        who = "OneToMany.stream"
        inputs, single = self._inputs(x, who)
        if self.embedding is None or not single:
            raise ValueError(f"{who}: x must be one input of a model with tokens, got {x!r}")
        sampling = self._sampling(integer(steps, "steps", 0), stop, options, who)
        begin, decoder = self._begin(inputs), self._tokens_decoder()

        def run(put: Callable[[tuple[Tokens, Tokens]], None]) -> None:
            self._write(
                decoder,
                begin,
                sampling,
                on_tokens=lambda tokens, ended: put((tokens, ended)),
                processor=processor,
                token_mask=token_mask,
            )

        written = iterate(run)
        if self.vocabulary is None:
            return first_row(written)
        return TextStream(BatchTextStream(written, TextPieces([self.vocabulary.decoder()])))

    def _sampling(self, steps: int, stop: Any, options: Mapping[str, Any], who: str) -> Sampling:
        stops = [] if stop is None else [stop] if isinstance(stop, int | str) else stop
        ends = [*options.get("stop_tokens", ()), *(self._stop_token(token, who) for token in stops)]
        return Sampling(**{**options, "max_new_tokens": steps, "stop_tokens": ends})

    def _tokens_decoder(self) -> _core.OneToManyDecoder:
        """The native loop of tokens for the present parameters."""
        assert self.embedding is not None  # only models of tokens come here
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = _core.OneToManyDecoder(
                self.lstm.packed, self.embedding.weight, self.output.packed
            )
        return decoder

    def _write(
        self,
        decoder: _core.OneToManyDecoder,
        begin: _Beginning,
        sampling: Sampling,
        *,
        on_tokens: Callable[[Tokens, Tokens], object] | None = None,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
    ) -> _core.Generation:
        return decoder.generate(
            begin.first,
            sampling.core(None if self.vocabulary is None else self.vocabulary.texts),
            seeds=sampling.seeds(len(begin.first)),
            h0=begin.h0,
            c0=begin.c0,
            inputs=begin.ids,
            on_tokens=on_tokens,
            processor=processor,
            token_mask=token_mask,
        )

    def _stop_token(self, stop: int | str, who: str) -> int:
        if not isinstance(stop, str):
            return integer(stop, "stop", 0, self._sizes.outputs - 1)
        if self.vocabulary is None:
            raise TypeError(f"{who}: stop can be text only for a model with a Vocabulary")
        return self._token(stop, who, "stop")

    # files ----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters, configuration and vocabulary to one safetensors file, atomically.

        Raises
        ------
        OSError
            Disk full, no permission: names the path; a file that was there is untouched.
        """
        save_model(path, self.named_parameters(), self.config(), self.vocabulary, schema=SCHEMA)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OneToMany:
        """Read a model that `save` wrote.

        Raises
        ------
        FormatError
            Truncated, damaged, foreign or inconsistent file.
        OSError
            The file cannot be read.
        """
        file = load_model(path, SCHEMA)
        vocabulary = file.config.pop("num_tokens")
        if isinstance(file.vocabulary, Vocabulary):
            vocabulary = file.vocabulary
        model = cls(vocabulary=vocabulary, **file.config)
        model.load_state_dict(file.tensors)
        return model


def _integers(value: Any, who: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{who}: targets must be a rectangular array of ints: {error}") from None
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{who}: targets must be ints, got {array.dtype}")
    return array if array.size else array.astype(np.int32)


def _within(ids: NDArray[Any], lengths: Tokens | None) -> NDArray[Any]:
    """Ids with 0 past the lengths, where anything may stand."""
    if lengths is None:
        return ids
    return np.where(np.arange(ids.shape[1]) < lengths[:, None], ids, 0)


def _digest(*arrays: NDArray[Any] | None) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"none" if array is None else repr((array.dtype.name, array.shape)).encode())
        digest.update(b"" if array is None else array.tobytes())
    return digest.hexdigest()


class _Examples:
    """Inputs and the sequences that follow, as a task."""

    def __init__(
        self,
        model: OneToMany,
        data: tuple[Any, Any, Any],
        validation: tuple[Any, ...] | None,
        *,
        feedback: str,
        teacher: TeacherSchedule | float,
        temperature: float,
        sample: bool,
        batch_size: int,
    ) -> None:
        model._feedback(feedback, "fit")
        self.model, self.feedback, self.temperature, self.sample = model, feedback, temperature, sample
        self.x, _ = model._inputs(data[0], "fit")
        self.array, self.lengths = model._targets(data[1], data[2], len(self.x), "fit")
        if self.lengths is not None:  # nothing is learned from an empty sequence
            kept = self.lengths > 0
            self.x, self.array, self.lengths = self.x[kept], self.array[kept], self.lengths[kept]
        self.targets = model._count(self.array, self.lengths)
        if not self.targets:
            raise ValueError(f"fit: targets must have at least one step, got {self.array.shape}")
        if isinstance(teacher, int | float) and not 0 <= teacher <= 1:
            raise ValueError(f"fit: teacher must be in [0, 1] or a schedule, got {teacher!r}")
        if feedback == "teacher" and teacher != 0.0:
            raise ValueError("fit: teacher is for another feedback than 'teacher'")
        self.teacher = teacher
        self.batch_size = integer(batch_size, "batch_size", 1)
        self.unit = "value" if model.embedding is None else "token"
        if model.vocabulary is not None:
            self.unit = model.vocabulary.kind
        self.held_out = None
        if validation is not None:
            if len(validation) not in (2, 3):
                raise ValueError(
                    "fit: validation must be (x, targets) or (x, targets, lengths), "
                    f"got {len(validation)} parts"
                )
            held_x, _ = model._inputs(validation[0], "fit: validation")
            held_lengths = validation[2] if len(validation) == 3 else None
            held = model._targets(validation[1], held_lengths, len(held_x), "fit: validation")
            if not model._count(*held):
                raise ValueError("fit: validation must have at least one step")
            self.held_out = held_x, *held
        self.validates = self.held_out is not None
        self.fingerprint = {
            "model": model.config(),
            "data": _digest(self.x, self.array, self.lengths),
            "validation": None if self.held_out is None else _digest(*self.held_out),
            "feedback": feedback,
            "teacher": teacher if isinstance(teacher, int | float) else teacher.config(),
            "temperature": temperature,
            "sample": sample,
            "batch_size": batch_size,
        }

    def batches(self, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.default_rng(derive_seed(seed, epoch)).permutation(len(self.x))
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def initial_carry(self) -> dict[str, Float]:
        return {}

    def training_step(
        self, batch: NDArray[np.int64], carry: dict[str, Float], *, seed: int, step: int
    ) -> tuple[float, int, dict[str, Float]]:
        lengths = None if self.lengths is None else self.lengths[batch]
        teacher = self.teacher if isinstance(self.teacher, int | float) else self.teacher.probability(step)
        loss, count = self.model.training_step(
            self.x[batch],
            self.array[batch],
            lengths,
            feedback=self.feedback,
            teacher_probability=teacher,
            temperature=self.temperature,
            sample=self.sample,
            seed=seed,
        )
        return loss * count, count, carry

    def validation_loss(self) -> float | None:
        if self.held_out is None:
            return None
        return self.model.evaluate(*self.held_out, feedback=self.feedback, temperature=self.temperature)
