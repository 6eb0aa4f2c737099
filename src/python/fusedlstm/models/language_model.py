"""LSTM language model over characters, bytes or words.

N batch, T time, E embedding size, H hidden units, L layers, V vocabulary size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.data import Vocabulary, split_tokens
from fusedlstm.generation import (
    BatchTextStream,
    BeamSearch,
    GeneratedText,
    Hypothesis,
    Sampling,
    Session,
    TextPieces,
    TextStream,
    prefix_steps,
    token_steps,
)
from fusedlstm.generation.session import Beginning, NewText
from fusedlstm.generation.stream import cut
from fusedlstm.io import FormatError, ModelSchema, Option, load_model, save_model
from fusedlstm.io.model_file import lstm_shapes
from fusedlstm.nn import LSTM, Embedding, Module, derive_seed
from fusedlstm.nn._checks import Init, integer, rate, token_array, uniform_limit
from fusedlstm.nn.module import lay_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fusedlstm.data import TextDecoder
    from fusedlstm.generation.beam import BeamKeywords
    from fusedlstm.generation.sampling import SamplingKeywords
    from fusedlstm.training import History

Float = NDArray[Any]
Tokens = NDArray[np.int32]


def _shapes(config: Mapping[str, Any], vocabulary_size: int | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of a model file."""
    V = vocabulary_size or 0
    E, H = config["embedding_size"], config["hidden_size"]
    if config["tie_weights"]:
        if E != H:
            raise FormatError(f"config: tie_weights needs embedding_size = hidden_size, got {E} and {H}")
    else:
        yield "output.weight", (V, H)
    yield "output.bias", (V,)
    yield "embedding.weight", (V, E)
    yield from lstm_shapes("lstm", E, H, config["num_layers"])


_RATE = Option(float, minimum=0.0, below=1.0)

SCHEMA = ModelSchema(
    "language_model",
    {
        "embedding_size": Option(int, minimum=1),
        "hidden_size": Option(int, minimum=1),
        "num_layers": Option(int, minimum=1),
        "dropout": _RATE,
        "embedding_dropout": _RATE,
        "output_dropout": _RATE,
        "tie_weights": Option(bool),
        "dtype": Option(str, choices=("float32", "float64")),
        "compute_dtype": Option(str, choices=("bfloat16",), nullable=True, optional=True),
    },
    _shapes,
)

# places of random numbers under one seed
_EMBEDDING, _LSTM, _OUTPUT = 0, 1, 2
_EMBEDDING_MASK, _OUTPUT_MASK = 0, 1


class LanguageModel(Module):
    r"""Next-token model: embedding, stacked LSTM, softmax over the vocabulary.

    .. code-block:: text

        e_t = dropout(embedding[token_t])                        (E,)
        h_t = LSTM(e_t, h_{t-1}, c_{t-1})                        (H,)
        p(token_{t+1} | token_1..t) = softmax(W dropout(h_t) + b)    (V,)

    Parameters
    ----------
    vocabulary : Vocabulary
        Between text and token ids; V is its size.
    embedding_size : int, optional
        E; ``hidden_size`` by default.
    hidden_size : int
        H, units of every layer.
    num_layers : int
        L.
    dropout : float
        Rate between layers, in [0, 1), as in PyTorch.
    embedding_dropout : float
        Rate on the embedding's output.
    output_dropout : float, optional
        Rate on the last layer's output; ``dropout`` by default.
    tie_weights : bool
        One matrix for embedding and output layer; needs E = H.
    dtype : str
        "float32" or "float64".
    compute_dtype : str, optional
        Of the products of the LSTM and of the output layer, as in `fusedlstm.nn.LSTM`: "bfloat16" or None. It
        is saved with the model.
    init : str or tuple
        "torch": PyTorch's defaults of each layer (a tied matrix as an output layer); ("uniform", a): every
        parameter from U(-a, a).
    seed : int
        Of the initial values.

    Raises
    ------
    ValueError, TypeError
        An option out of its range or of a wrong kind.

    Notes
    -----
    A token costs about ``2 (4 H (E + H) + 8 H^2 (L - 1) + H V)`` FLOPs to predict and three times that to
    train. Parameters: ``V E`` embedding, ``V (H + 1)`` output (``V`` if tied), and the LSTM's.

    References
    ----------
    Zaremba, Sutskever and Vinyals, Recurrent neural network regularization, 2014.
    Press and Wolf, Using the output embedding to improve language models, 2017 (tied weights).

    Examples
    --------
    >>> from fusedlstm.data import Vocabulary
    >>> from fusedlstm import LanguageModel
    >>> text = "the quick brown fox jumps over the lazy dog. " * 20
    >>> model = LanguageModel(Vocabulary.from_text(text, "char"), hidden_size=32, num_layers=1)
    >>> history = model.fit(text, epochs=10, batch_size=4, window=16, lr=0.02, progress=False)
    >>> len(history.epochs), model.evaluate(text) < 0.5
    (10, True)
    >>> model.generate("the quick ", max_new_tokens=9, greedy=True)
    'brown fox'
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        embedding_size: int | None = None,
        hidden_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        output_dropout: float | None = None,
        tie_weights: bool = False,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        init: Init = "torch",
        seed: int = 0,
    ) -> None:
        if not isinstance(vocabulary, Vocabulary):
            raise TypeError(
                f"LanguageModel: vocabulary must be a Vocabulary, got {type(vocabulary).__name__}"
            )
        if compute_dtype == "int8":
            raise ValueError("LanguageModel: compute_dtype 'int8' is for models that are trained: use load")
        hidden_size = integer(hidden_size, "hidden_size", 1)
        embedding_size = (
            hidden_size if embedding_size is None else integer(embedding_size, "embedding_size", 1)
        )
        self.vocabulary = vocabulary
        self.dropout = rate(dropout, "dropout")
        self.embedding_dropout = rate(embedding_dropout, "embedding_dropout")
        self.output_dropout = rate(dropout if output_dropout is None else output_dropout, "output_dropout")
        self.tie_weights = bool(tie_weights)
        if tie_weights and embedding_size != hidden_size:
            raise ValueError(
                "LanguageModel: tie_weights needs embedding_size = hidden_size, "
                f"got {embedding_size} and {hidden_size}"
            )
        size = len(vocabulary)
        limit = uniform_limit(init, hidden_size**-0.5, "LanguageModel")
        self.embedding = Embedding(
            size,
            embedding_size,
            dtype=dtype,
            # a normal table as output layer would start with logits of size sqrt(H)
            init=("uniform", limit) if tie_weights else init,
            seed=derive_seed(seed, _EMBEDDING),
        )
        self.lstm = LSTM(
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
        self._packed_output: _core.PackedLinear | None = None
        self._decoder: tuple[_core.PackedLSTM, _core.LanguageModelDecoder] | None = None
        shapes: list[tuple[str, tuple[int, ...]]] = [("output.bias", (size,))]
        if not tie_weights:
            shapes.insert(0, ("output.weight", (size, hidden_size)))
        super().__init__(dtype, lay_out(shapes), children={"embedding": self.embedding, "lstm": self.lstm})
        generator = np.random.default_rng(derive_seed(seed, _OUTPUT))
        for name, view in self.named_parameters().items():
            if name.startswith("output."):
                view[...] = generator.uniform(-limit, limit, view.shape)
        self.mark_updated()

    # what the parameters are packed into ----------------------------------------------------------------

    def _drop_packed(self) -> None:
        self._packed_output = None
        self._decoder = None

    @property
    def _output_weight(self) -> Float:
        return self.embedding.weight if self.tie_weights else self._view(self._parameters, "output.weight")

    @property
    def _output(self) -> _core.PackedLinear:
        packed, compute = self._packed_output, self.lstm.compute_dtype
        if packed is None or packed.compute_dtype != (compute or self.dtype):
            bias = self._view(self._parameters, "output.bias")
            packed = _core.linear_pack(self._output_weight, bias, compute_dtype=compute)
            self._packed_output = packed
        return packed

    def config(self) -> dict[str, Any]:
        """Sizes and options, as plain JSON values: arguments of the constructor."""
        return {
            "embedding_size": self.embedding.embedding_dim,
            "hidden_size": self.lstm.hidden_size,
            "num_layers": self.lstm.num_layers,
            "dropout": self.dropout,
            "embedding_dropout": self.embedding_dropout,
            "output_dropout": self.output_dropout,
            "tie_weights": self.tie_weights,
            "dtype": self.dtype,
            "compute_dtype": None if self.lstm.compute_dtype == "int8" else self.lstm.compute_dtype,
        }

    # training -------------------------------------------------------------------------------------------

    def zero_state(self, batch_size: int) -> tuple[Float, Float]:
        """State ``(h, c)`` of zeros, each (L, N, H)."""
        shape = (self.lstm.num_layers, batch_size, self.lstm.hidden_size)
        return np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)

    def training_step(
        self, inputs: Tokens, targets: Tokens, state: tuple[Float, Float], *, scale: float, seed: int
    ) -> tuple[float, int, tuple[Float, Float]]:
        """Forward and backward through one window; gradients are added to `gradients`.

        Parameters
        ----------
        inputs, targets : int32 (N, T)
            Token ids, and the ids that follow them.
        state : (h, c)
            Each (L, N, H), from the window before; no gradient flows into it.
        scale : float
            Factor on every gradient: ``1 / (N T)`` for the mean loss per token.
        seed : int
            Of this step's dropout masks.

        Returns
        -------
        loss : float
            Sum over the N·T predictions, in nats (not scaled).
        count : int
            Number of predictions.
        state : (h, c)
            After the window.
        """
        lstm, embedding, rows = self.lstm, self.embedding, inputs.size
        masked = self.embedding_dropout > 0
        mask_seed = derive_seed(seed, 0)
        if masked:
            vectors = _core.embedding_forward(embedding.weight, inputs.reshape(-1))
            vectors = _core.dropout(vectors, self.embedding_dropout, mask_seed, _EMBEDDING_MASK)
            (y, carry), tape = lstm.forward(
                vectors.reshape(*inputs.shape, lstm.input_size), state=state, seed=seed
            )
        else:
            (y, carry), tape = lstm.forward(inputs, state=state, embedding=embedding, seed=seed)
        h = y.reshape(rows, lstm.hidden_size)
        if self.output_dropout:
            h = _core.dropout(h, self.output_dropout, mask_seed, _OUTPUT_MASK)
        d_weight = embedding.d_weight if self.tie_weights else self._view(self._gradients, "output.weight")
        total, count, dh = _core.linear_cross_entropy(
            self._output,
            h,
            targets.reshape(-1),
            scale=scale,
            d_weight=d_weight,
            d_bias=self._view(self._gradients, "output.bias"),
            need_dx=True,
        )
        assert dh is not None  # it was asked for
        if self.output_dropout:
            dh = _core.dropout(dh, self.output_dropout, mask_seed, _OUTPUT_MASK)
        dx = lstm.backward(tape, dh.reshape(y.shape))
        if masked and dx is not None:
            dx = _core.dropout(
                dx.reshape(rows, lstm.input_size), self.embedding_dropout, mask_seed, _EMBEDDING_MASK
            )
            _core.embedding_backward(inputs.reshape(-1), dx, embedding.d_weight)
        return total, count, carry

    def fit(
        self,
        text: str | Tokens,
        *,
        validation: float | str | Tokens | None = None,
        **options: Any,
    ) -> History:
        """Train on text or token ids.

        Parameters
        ----------
        text : str or int32 (R,)
            Training text, or its token ids.
        validation : float, str or int32 array, optional
            Text or tokens to measure the loss on after every epoch; a number in (0, 1) sets that part of
            ``text`` aside, from its end.
        **options
            Those of `fusedlstm.training.fit`: epochs, batch_size, window, optimiser, lr, schedule, clip,
            early_stopping, log, checkpoint, resume, progress, and so on.

        Returns
        -------
        History
            Losses per epoch.

        Raises
        ------
        ValueError, OSError, FloatingPointError, KeyboardInterrupt
            As `fusedlstm.training.fit`; also a token that is not in the vocabulary.
        """
        from fusedlstm.training import fit

        tokens = self._tokens(text, "text")
        held_out: Tokens | None = None
        if isinstance(validation, float | int):
            tokens, held_out = split_tokens(tokens, float(validation))
        elif validation is not None:
            held_out = self._tokens(validation, "validation")
        return fit(self, tokens, validation=held_out, **options)

    def evaluate(self, text: str | Tokens, *, batch_size: int = 1, window: int = 256) -> float:
        """Mean loss over all predictions of a text, without dropout.

        Parameters
        ----------
        text : str or int32 (R,)
            At least two tokens: the first is only read, each other one is predicted.
        batch_size : int
            Number of equal lanes that the text is cut into. Each lane starts from the zero state, so 1
            gives the exact loss and more are faster.
        window : int
            Steps per native call; it does not change the result.

        Returns
        -------
        float
            Nats per token. Divided by ln 2: bits; its exponential is the perplexity.

        Raises
        ------
        ValueError
            Fewer than two tokens; a token that is not in the vocabulary.
        """
        tokens = self._tokens(text, "text")
        predictions = len(tokens) - 1
        if predictions < 1:
            raise ValueError(f"evaluate: text must have at least 2 tokens, got {len(tokens)}")
        if batch_size < 1 or window < 1:
            raise ValueError(f"evaluate: batch_size and window must be >= 1, got {batch_size} and {window}")
        lanes = min(batch_size, predictions)
        steps = -(-predictions // lanes)
        # the last lane is filled up with predictions that are not counted
        inputs = np.zeros((lanes, steps), np.int32)
        targets = np.full((lanes, steps), -1, np.int32)
        inputs.flat[:predictions], targets.flat[:predictions] = tokens[:-1], tokens[1:]
        state = self.zero_state(lanes)
        total = 0.0
        for start in range(0, steps, window):
            piece = np.ascontiguousarray(inputs[:, start : start + window])
            y, state = self.lstm(piece, state=state, embedding=self.embedding)
            loss, _, _ = _core.linear_cross_entropy(
                self._output,
                y.reshape(piece.size, self.lstm.hidden_size),
                np.ascontiguousarray(targets[:, start : start + window]).reshape(-1),
            )
            total += loss
        return total / predictions

    def _tokens(self, text: str | Tokens, name: str) -> Tokens:
        if isinstance(text, str | bytes):
            return self.vocabulary.encode(text)
        tokens = token_array(text, len(self.vocabulary), "LanguageModel", name)
        if tokens.ndim != 1:
            raise ValueError(f"LanguageModel: {name} must be text or token ids (R,), got {tokens.shape}")
        return tokens

    # generation -----------------------------------------------------------------------------------------

    @property
    def decoder(self) -> _core.LanguageModelDecoder:
        """The native generation loop for the present parameters."""
        packed = self.lstm.packed  # another one once the LSTM computes in another type
        made = self._decoder
        if made is None or made[0] is not packed:
            made = packed, _core.LanguageModelDecoder(packed, self.embedding.weight, self._output)
            self._decoder = made
        return made[1]

    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = ...,
        stop: str | Sequence[str] | None = ...,
        processor: _core.Processor | None = ...,
        token_mask: _core.TokenMask | None = ...,
        **options: Unpack[SamplingKeywords],
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = ...,
        stop: str | Sequence[str] | None = ...,
        processor: _core.Processor | None = ...,
        token_mask: _core.TokenMask | None = ...,
        **options: Unpack[SamplingKeywords],
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = 500,
        stop: str | Sequence[str] | None = None,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> str | list[str]:
        """Continue one prompt, or several in one batch.

        Parameters
        ----------
        prompt : str or list of str
            Text to continue, not empty. Prompts of a batch may have different lengths.
        max_new_tokens : int
            Characters, bytes or words to write.
        stop : str or sequence of str, optional
            Tokens, each one character, byte or word; a text ends after any of them. For longer strings
            there is ``stop_strings``.
        processor, token_mask : callable, optional
            See `sample`.
        **options
            ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``typical_p``, ``greedy``, ``seed``,
            ``repetition_penalty``, ``no_repeat_ngram_size``, ``min_new_tokens``, ``banned_tokens``,
            ``forced_tokens``, ``stop_strings``: see `fusedlstm.generation.Sampling`. Prompt b of a batch gets
            what it would get alone with seed ``seed + b``.

        Returns
        -------
        str or list of str
            The continuations, without the prompts.

        Raises
        ------
        ValueError
            An option out of its range; an empty prompt; a character that is not in the vocabulary, with its
            position; constraints that leave no token to choose from.

        Notes
        -----
        One native call; about ``2 (4 H (H + H) L - 4 H E + H V)`` FLOPs per token and sequence.
        """
        made = self.sample(
            prompt,
            max_new_tokens=max_new_tokens,
            stop=stop,
            processor=processor,
            token_mask=token_mask,
            **options,
        )
        return made[0].text if isinstance(prompt, str) else [one.text for one in made]

    def sample(
        self,
        prompt: str | Sequence[str],
        *,
        max_new_tokens: int = 500,
        num_sequences: int = 1,
        top_log_probabilities: int = 0,
        stop: str | Sequence[str] | None = None,
        on_text: Callable[[int, str], object] | None = None,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[GeneratedText]:
        """Continue prompts like `generate`, with all that is known of every token.

        Parameters
        ----------
        prompt, max_new_tokens, stop, **options
            As in `generate`.
        num_sequences : int
            Continuations of each prompt, which is read once. Number ``i`` of prompt ``b`` has
            ``r = b num_sequences + i`` and the seed ``seed + r``.
        top_log_probabilities : int
            How many of the most probable tokens to report at each step.
        on_text : callable, optional
            Called with ``r`` and each piece of its text as it comes.
        processor : callable, optional
            Called before each choice with ``rows`` (int64, the ``r`` of sequences that have not ended),
            ``tokens`` (for each of them its prompt and new tokens so far, int32) and ``logits`` (rows, V)
            after all other constraints. It changes the logits in place, or returns new ones.
        token_mask : callable, optional
            Called with ``rows`` and ``tokens``; returns which tokens may follow, bool (rows, V): a grammar.

        Returns
        -------
        list of GeneratedText
            In the order of ``r``.

        Raises
        ------
        ValueError
            As `generate`; a processor or mask that returns something else.
        Exception
            What a callable raises.

        Examples
        --------
        >>> from fusedlstm.data import Vocabulary
        >>> from fusedlstm import LanguageModel
        >>> model = LanguageModel(Vocabulary.from_text("abc", "char"), hidden_size=8, num_layers=1)
        >>> def no_c(rows, tokens, logits):
        ...     logits[:, 2] = -float("inf")
        >>> made = model.sample(["a", "b"], max_new_tokens=5, num_sequences=3, processor=no_c)
        >>> [len(one.text) for one in made], any("c" in one.text for one in made)
        ([5, 5, 5, 5, 5, 5], False)
        """
        encoded = self._prompts(prompt)
        sampling = self._sampling(
            {
                **options,
                "max_new_tokens": max_new_tokens,
                "num_sequences": num_sequences,
                "top_log_probabilities": top_log_probabilities,
                "stop": stop,
            }
        )
        if not encoded:
            return []
        of_row = [ids for ids in encoded for _ in range(num_sequences)]
        on_tokens = None
        if on_text is not None:
            pieces = TextPieces([self._text_decoder(ids) for ids in of_row])

            def on_tokens(tokens: Tokens, ended: Tokens) -> None:
                for row, piece in pieces.push(tokens, ended):
                    on_text(row, piece)

        made = self.decoder.generate(
            np.concatenate(encoded),
            np.array([len(ids) for ids in encoded], np.int32),
            sampling.core(self.vocabulary.texts),
            seeds=sampling.seeds(len(of_row)),
            on_tokens=on_tokens,
            processor=processor,
            token_mask=token_mask,
        )
        results = []
        for row, ids in enumerate(of_row):
            length = int(made.lengths[row])
            tokens = made.tokens[row, :length]
            decoder = self._text_decoder(ids)
            results.append(
                GeneratedText(
                    cut(decoder.push_many(tokens) + decoder.finish(), int(made.behind[row])),
                    tokens,
                    made.log_probabilities[row, :length],
                    made.top_tokens[row, :length],
                    made.top_log_probabilities[row, :length],
                    made.finish[row],
                )
            )
        return results

    @overload
    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = ...,
        stop: str | Sequence[str] | None = ...,
        processor: _core.Processor | None = ...,
        token_mask: _core.TokenMask | None = ...,
        **options: Unpack[SamplingKeywords],
    ) -> TextStream: ...
    @overload
    def stream(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = ...,
        stop: str | Sequence[str] | None = ...,
        processor: _core.Processor | None = ...,
        token_mask: _core.TokenMask | None = ...,
        **options: Unpack[SamplingKeywords],
    ) -> BatchTextStream: ...
    def stream(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = 500,
        stop: str | Sequence[str] | None = None,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> TextStream | BatchTextStream:
        """Iterate over the pieces of a continuation as they come; joined they are what `generate` returns.

        For several prompts, the pieces are pairs ``(prompt number, text)``. Parameters and errors are those
        of `generate`; errors come at the call, not at the first piece. Closing the iterator stops the native
        loop. A processor is called in the loop's own thread.

        Examples
        --------
        >>> from fusedlstm.data import Vocabulary
        >>> from fusedlstm import LanguageModel
        >>> model = LanguageModel(Vocabulary.from_text("abc", "char"), hidden_size=8, num_layers=1)
        >>> "".join(model.stream("ab", max_new_tokens=5)) == model.generate("ab", max_new_tokens=5)
        True
        """
        encoded = self._prompts(prompt)
        if not encoded:
            raise ValueError("stream: prompt must be a text or at least one, got none")
        sampling = self._sampling({**options, "max_new_tokens": max_new_tokens, "stop": stop})
        steps = token_steps(
            self.decoder,
            encoded,
            sampling,
            token_texts=self.vocabulary.texts,
            processor=processor,
            token_mask=token_mask,
        )
        batch = BatchTextStream(steps, TextPieces([self._text_decoder(ids) for ids in encoded]))
        return TextStream(batch) if isinstance(prompt, str) else batch

    def session(
        self,
        capacity: int = 64,
        *,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
    ) -> Session:
        """A pool of live generators that are stepped together: see `fusedlstm.generation.Session`."""
        return Session(self, capacity, processor=processor, token_mask=token_mask)

    @overload
    def beam_search(
        self,
        prompt: str,
        *,
        stop: str | Sequence[str] | None = ...,
        on_text: Callable[[int, str], object] | None = ...,
        **options: Unpack[BeamKeywords],
    ) -> list[Hypothesis]: ...
    @overload
    def beam_search(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        stop: str | Sequence[str] | None = ...,
        on_text: Callable[[int, str], object] | None = ...,
        **options: Unpack[BeamKeywords],
    ) -> list[list[Hypothesis]]: ...
    def beam_search(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        stop: str | Sequence[str] | None = None,
        on_text: Callable[[int, str], object] | None = None,
        **options: Unpack[BeamKeywords],
    ) -> list[Hypothesis] | list[list[Hypothesis]]:
        """The most probable continuations of one prompt, or of several in one batch.

        Parameters
        ----------
        prompt : str or list of str
            Text to continue, not empty. Prompts of a batch may have different lengths; each gets what it
            would get alone.
        stop : str or sequence of str, optional
            Tokens, each one character, byte or word; a hypothesis ends after any of them.
        on_text : callable, optional
            Called with the number of a prompt and each piece by which the text that is certain grows: what
            all of its beams agree on, see `fusedlstm.generation.prefix_steps`.
        **options
            Those of `fusedlstm.generation.BeamSearch`: ``width``, ``num_return``, ``max_new_tokens``,
            ``length_penalty``, and so on.

        Returns
        -------
        list of Hypothesis, or a list of such lists
            At most ``num_return`` of each prompt, best first; fewer where the constraints leave fewer.

        Raises
        ------
        ValueError, TypeError
            An option out of its range or of a wrong kind; an empty prompt; a character that is not in the
            vocabulary, with its position.
        FloatingPointError
            The model's logits are not finite.

        Notes
        -----
        One native call; a step costs what `generate` costs for ``width`` sequences per prompt.

        Examples
        --------
        >>> from fusedlstm.data import Vocabulary
        >>> from fusedlstm import LanguageModel
        >>> model = LanguageModel(Vocabulary.from_text("abc", "char"), hidden_size=8, num_layers=1)
        >>> found = model.beam_search(["ab", "c"], width=4, num_return=2, max_new_tokens=5)
        >>> [[len(one.text) for one in of_prompt] for of_prompt in found]
        [[5, 5], [5, 5]]
        """
        encoded = self._prompts(prompt)
        search = self._beam_search(options, stop)
        if not encoded:
            return []
        on_prefix = None
        if on_text is not None:
            texts = [self._text_decoder(ids) for ids in encoded]

            def on_prefix(index: int, tokens: Tokens, ended: bool) -> None:
                if piece := texts[index].push_many(tokens) + (texts[index].finish() if ended else ""):
                    on_text(index, piece)

        tokens, lengths, scores, log_probabilities = self.decoder.beam_search(
            np.concatenate(encoded),
            np.array([len(ids) for ids in encoded], np.int32),
            search.core,
            on_prefix=on_prefix,
        )
        found: list[list[Hypothesis]] = []
        for index, ids in enumerate(encoded):
            found.append([])
            for rank, length in enumerate(lengths[index]):
                if not length:
                    break
                decoder, new = self._text_decoder(ids), tokens[index, rank, :length]
                found[-1].append(
                    Hypothesis(
                        text=decoder.push_many(new) + decoder.finish(),
                        score=float(scores[index, rank]),
                        tokens=new,
                        log_probabilities=log_probabilities[index, rank, :length],
                    )
                )
        return found[0] if isinstance(prompt, str) else found

    def stream_beam_search(
        self, prompt: str, *, stop: str | Sequence[str] | None = None, **options: Unpack[BeamKeywords]
    ) -> Generator[str, None, None]:
        """Iterate over the pieces of the best hypothesis as they become certain.

        Joined they are the text of the first hypothesis of `beam_search`, whose parameters and errors these
        are; errors come at the call, not at the first piece. Closing the iterator stops the native search.

        Examples
        --------
        >>> from fusedlstm.data import Vocabulary
        >>> from fusedlstm import LanguageModel
        >>> model = LanguageModel(Vocabulary.from_text("abc", "char"), hidden_size=8, num_layers=1)
        >>> text = "".join(model.stream_beam_search("ab", max_new_tokens=5))
        >>> text == model.beam_search("ab", max_new_tokens=5)[0].text
        True
        """
        ids, search = self._prompt(prompt, ""), self._beam_search(options, stop)
        steps, text = prefix_steps(self.decoder, [ids], search), self._text_decoder(ids)

        def pieces() -> Generator[str, None, None]:
            try:
                for _, tokens, ended in steps:
                    if piece := text.push_many(tokens) + (text.finish() if ended else ""):
                        yield piece
            finally:
                steps.close()

        return pieces()

    # what a session asks for

    @property
    def _generator(self) -> _core.LanguageModelDecoder:
        return self.decoder

    @property
    def _token_texts(self) -> _core.TokenTexts:
        return self.vocabulary.texts

    def _begin(self, prompt: str) -> Beginning:
        return Beginning(self._prompt(prompt, ""))

    def _new_text(self, tokens: Tokens, prompt_length: int) -> NewText:
        pieces = TextPieces([self._text_decoder(tokens)])

        def push(token: int, behind: int | None) -> str:
            made = pieces.push([token], [-1 if behind is None else behind])
            return made[0][1] if made else ""

        return push

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        """Options by name, ``stop`` as text."""
        rest: dict[str, Any] = {"max_new_tokens": 500, **options}
        stops = self._stop_tokens(rest.pop("stop", None))
        sampling = Sampling(**{**rest, "stop_tokens": [*rest.get("stop_tokens", ()), *stops]})
        self._check_constraints("generate", sampling)
        return sampling

    def _beam_search(self, options: Mapping[str, Any], stop: str | Sequence[str] | None) -> BeamSearch:
        """The same for beam search; ``stop`` joins the ``stop_tokens``."""
        search = BeamSearch(**options)
        if stops := self._stop_tokens(stop):
            search = replace(search, stop_tokens=[*search.stop_tokens, *stops])
        self._check_constraints("beam_search", search)
        return search

    def _stop_tokens(self, stop: str | Sequence[str] | None) -> list[int]:
        stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
        return [self._stop_token(text) for text in stops]

    def _check_constraints(self, function: str, options: Sampling | BeamSearch) -> None:
        """Refuse tokens that the vocabulary does not have: here, not at the first piece of a stream."""
        for name in ("banned_tokens", "forced_tokens", "stop_tokens"):
            tokens = getattr(options, name)
            for token in tokens.values() if name == "forced_tokens" else tokens:
                if not 0 <= token < len(self.vocabulary):
                    raise ValueError(
                        f"{function}: {name} must lie in 0 .. {len(self.vocabulary) - 1}, got {token}"
                    )

    def _prompts(self, prompt: str | Sequence[str]) -> list[Tokens]:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        return [
            self._prompt(text, f"prompt {index}: " if len(prompts) > 1 else "")
            for index, text in enumerate(prompts)
        ]

    def _text_decoder(self, prompt: Tokens) -> TextDecoder:
        """A decoder that has read the prompt, so that a word that follows one starts with a space."""
        decoder = self.vocabulary.decoder()
        decoder.push_many(prompt)
        return decoder

    def _prompt(self, text: str, who: str) -> Tokens:
        try:
            ids = self.vocabulary.encode(text)
        except ValueError as error:
            raise ValueError(f"{who}{error}") from None
        if not len(ids):
            raise ValueError(f"{who}prompt must have at least one {self.vocabulary.kind}, got {text!r}")
        return ids

    def _stop_token(self, stop: str) -> int:
        ids = self.vocabulary.encode(stop)
        if len(ids) != 1:
            raise ValueError(
                f"stop must be one token of the {self.vocabulary.kind} vocabulary, got {stop!r} "
                f"({len(ids)} tokens)"
            )
        if ids[0] == self.vocabulary.unknown and self.vocabulary.symbols[ids[0]] != stop.strip():
            raise ValueError(f"stop must be a word of the vocabulary, got {stop!r}")
        return int(ids[0])

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
    def load(cls, path: str | os.PathLike[str], *, compute_dtype: str | None = None) -> LanguageModel:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : str or path
            The file.
        compute_dtype : str, optional
            Instead of the one the model was saved with, for a float32 model: "float32", "bfloat16", or
            "int8" for `evaluate` and `generate` only, with a quarter of the memory for the weights.

        Raises
        ------
        FormatError
            Truncated, damaged, foreign or inconsistent file.
        OSError
            The file cannot be read.
        ValueError
            If `compute_dtype` is not for a model of this dtype.
        """
        file = load_model(path, SCHEMA)
        assert isinstance(file.vocabulary, Vocabulary)  # the schema asks for one
        model = cls(file.vocabulary, **file.config)
        if compute_dtype is not None:
            model.lstm.compute_dtype = compute_dtype
        model.load_state_dict(file.tensors)
        return model
