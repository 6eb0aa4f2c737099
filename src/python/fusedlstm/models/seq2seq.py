"""Sequence to sequence: an encoder reads one text, a decoder writes another."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.data import PairBatch, PairBatches, Tokenizer, TokenizerPair
from fusedlstm.data.pairs import pad, source_ids
from fusedlstm.generation import BeamSearch, GeneratedText, Hypothesis, Sampling, Session
from fusedlstm.generation._loop import iterate
from fusedlstm.generation.session import Beginning, NewText
from fusedlstm.generation.stream import cut
from fusedlstm.io import FormatError, ModelSchema, Option, load_model, save_model
from fusedlstm.io.model_file import lstm_shapes
from fusedlstm.models.alignment import Alignment, corpus_bleu
from fusedlstm.models.encoder_decoder import BRIDGES, Bridge, Decoder, Encoder
from fusedlstm.nn import Module, derive_seed
from fusedlstm.nn._checks import Init, integer, rate
from fusedlstm.nn.attention import ATTENTIONS

if TYPE_CHECKING:
    from fusedlstm.training import History
    from fusedlstm.training.scheduled_sampling import TeacherSchedule

Float = NDArray[Any]
Int = NDArray[np.int32]
Pairs = Sequence[tuple[str, str]]


def _shapes(config: Mapping[str, Any], sizes: tuple[int, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of a model file."""
    sources, targets = sizes
    E, H, L = config["embedding_size"], config["hidden_size"], config["num_layers"]
    D = 2 if config["bidirectional"] else 1
    if config["bridge"] == "pass" and D == 2:
        raise FormatError("config: bridge 'pass' needs bidirectional false")
    yield "encoder.embedding.weight", (sources, E)
    yield from lstm_shapes("encoder.lstm", E, H, L, D)
    if config["bridge"] != "pass":
        for layer in range(L):
            for state in ("h", "c"):
                yield f"bridge.{state}_l{layer}.weight", (H, D * H)
                yield f"bridge.{state}_l{layer}.bias", (H,)
    if not config["share_embedding"]:
        yield "decoder.embedding.weight", (targets, E)
    elif sources != targets:
        raise FormatError(f"config: share_embedding needs one vocabulary, got {sources} and {targets}")
    fed = 0
    attention = config["attention"]
    if attention is not None:
        M, keys = D * H, config["attention_size"] or H
        if attention == "dot" and D == 2:
            raise FormatError("config: attention 'dot' needs bidirectional false")
        fed = M if attention == "bahdanau" else H if config["input_feeding"] else 0
        yield "decoder.layers.weight_c", (H, M + H)
        if attention != "dot":
            yield "decoder.layers.weight_memory", (keys, M)
        if attention in ("concat", "bahdanau"):
            yield "decoder.layers.weight_query", (keys, H)
            yield "decoder.layers.v", (keys,)
            if config["coverage"]:
                yield "decoder.layers.weight_coverage", (keys,)
    yield from lstm_shapes("decoder.layers.lstm", E + fed, H, L)
    yield "decoder.output.weight", (targets, H)
    yield "decoder.output.bias", (targets,)


_RATE = Option(float, minimum=0.0, below=1.0)

SCHEMA = ModelSchema(
    "seq2seq",
    {
        "embedding_size": Option(int, minimum=1),
        "hidden_size": Option(int, minimum=1),
        "num_layers": Option(int, minimum=1),
        "bidirectional": Option(bool),
        "bridge": Option(str, choices=BRIDGES),
        "attention": Option(str, choices=ATTENTIONS, nullable=True),
        "attention_size": Option(int, minimum=1, nullable=True),
        "input_feeding": Option(bool),
        "coverage": Option(bool),
        "reverse_source": Option(bool),
        "share_embedding": Option(bool),
        "dropout": _RATE,
        "embedding_dropout": _RATE,
        "output_dropout": _RATE,
        "dtype": Option(str, choices=("float32", "float64")),
        "compute_dtype": Option(str, choices=("bfloat16",), nullable=True),
        "longest_source": Option(int, minimum=0),
    },
    _shapes,
    pair=True,
)

# places of random numbers under one seed
_ENCODER, _BRIDGE, _DECODER = 0, 1, 2


@dataclass(frozen=True)
class _Read:
    """Sources that were read: the native loops, and initial states and memory as their arguments."""

    native: _core.AttentionDecoder
    arguments: dict[str, Any]


class Seq2Seq(Module):
    r"""Encoder–decoder: p(target | source) = prod_t p(y_t | y_<t, source).

    .. code-block:: text

        m_1..m_S, (h, c)     = Encoder(x_1 .. x_S <eos>)        reversed: x_S .. x_1 <eos>
        h_0, c_0             = Bridge(h, c)
        p(y_t | y_<t, x)     = Decoder(y_{t-1}, m, ...)         y_0 = <bos>, until <eos>

    Parameters
    ----------
    tokenizers : TokenizerPair
        Of source and target.
    embedding_size : int, optional
        E of both sides; ``hidden_size`` by default.
    hidden_size, num_layers : int
        H and L of encoder (each direction) and decoder.
    bidirectional : bool
        Whether the encoder also reads from the last token to the first.
    bridge : str, optional
        From the encoder's states to the decoder's, see `Bridge`; by default "pass" for one direction and
        "linear" for two.
    attention : str, optional
        "dot", "general", "concat" or "bahdanau": the decoder looks back at the memory m_1..m_S at every step,
        see `fusedlstm.nn.AttentionDecoder`; None: it has the encoder's final states only.
    attention_size, input_feeding, coverage
        As in `fusedlstm.nn.AttentionDecoder`.
    reverse_source : bool
        Whether the encoder reads sources from their last token to the first.
    share_embedding : bool
        One table for both sides; needs one tokenizer for both.
    dropout : float
        Rate between layers, in [0, 1).
    embedding_dropout, output_dropout : float, optional
        Rates on the embeddings and before the output layer; ``dropout`` by default.
    dtype, compute_dtype
        As in `fusedlstm.nn.LSTM`, the output layer included, in training, scores and translation; attention
        and bridge stay float32. "bfloat16" is saved with the model; "int8" is for `load`.
    init : str or tuple
        "torch", or ("uniform", a): every parameter from U(-a, a).
    seed : int
        Of the initial values.

    Attributes
    ----------
    encoder, bridge, decoder : Module
        The parts.
    longest_source : int
        Most tokens of a source that the model was trained on, ``<eos>`` included.

    Raises
    ------
    ValueError, TypeError
        If an option is out of its range or of a wrong kind.

    Notes
    -----
    A pair costs about ``2 (4 H (E + H) + 8 H^2 (L - 1)) (D S + T) + 2 H V T`` FLOPs to read, and three times
    that to train.

    References
    ----------
    Sutskever, Vinyals and Le: Sequence to sequence learning with neural networks, 2014.
    Cho et al.: Learning phrase representations using RNN encoder–decoder, 2014.
    Luong, Pham and Manning: Effective approaches to attention-based neural machine translation, 2015.

    Examples
    --------
    >>> from fusedlstm import Seq2Seq
    >>> from fusedlstm.data import Tokenizer, TokenizerPair
    >>> letters = Tokenizer.from_lines(["abcd"], "char")
    >>> model = Seq2Seq(TokenizerPair(letters, letters), hidden_size=32, reverse_source=True)
    >>> pairs = [(a + b, b + a) for a in "abcd" for b in "abcd"]
    >>> history = model.fit(pairs, epochs=40, batch_size=16, lr=0.02, progress=False)
    >>> model.evaluate(pairs) < 0.1
    True
    >>> model.translate(["ab", "cd"])
    ['ba', 'dc']
    """

    def __init__(
        self,
        tokenizers: TokenizerPair,
        *,
        embedding_size: int | None = None,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        bridge: str | None = None,
        attention: str | None = None,
        attention_size: int | None = None,
        input_feeding: bool | None = None,
        coverage: bool = False,
        reverse_source: bool = False,
        share_embedding: bool = False,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        output_dropout: float | None = None,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        init: Init = "torch",
        seed: int = 0,
    ) -> None:
        if not isinstance(tokenizers, TokenizerPair):
            raise TypeError(f"Seq2Seq: tokenizers must be a TokenizerPair, got {type(tokenizers).__name__}")
        if compute_dtype == "int8":
            raise ValueError("Seq2Seq: compute_dtype 'int8' is for models that are trained: use load")
        if share_embedding and not tokenizers.shared:
            raise ValueError("Seq2Seq: share_embedding needs one tokenizer for source and target")
        self.tokenizers = tokenizers
        H = integer(hidden_size, "hidden_size", 1)
        E = H if embedding_size is None else integer(embedding_size, "embedding_size", 1)
        self.reverse_source, self.share_embedding = bool(reverse_source), bool(share_embedding)
        self.dropout = rate(dropout, "dropout")
        self.embedding_dropout = rate(
            dropout if embedding_dropout is None else embedding_dropout, "embedding_dropout"
        )
        self.output_dropout = rate(dropout if output_dropout is None else output_dropout, "output_dropout")
        self.attention_size = attention_size
        self.longest_source = 0
        self.encoder = Encoder(
            len(tokenizers.source),
            E,
            H,
            num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            embedding_dropout=self.embedding_dropout,
            dtype=dtype,
            compute_dtype=compute_dtype,
            init=init,
            seed=derive_seed(seed, _ENCODER),
        )
        self.bridge = Bridge(
            bridge or ("linear" if bidirectional else "pass"),
            H,
            H,
            num_layers,
            bidirectional=bidirectional,
            dtype=dtype,
            init=init,
            seed=derive_seed(seed, _BRIDGE),
        )
        self.decoder = Decoder(
            len(tokenizers.target),
            E,
            H,
            num_layers,
            memory_size=self.encoder.memory_size,
            attention=attention,
            attention_size=attention_size,
            input_feeding=input_feeding,
            coverage=coverage,
            dropout=dropout,
            embedding_dropout=self.embedding_dropout,
            output_dropout=self.output_dropout,
            embedding=self.encoder.embedding if share_embedding else None,
            dtype=dtype,
            compute_dtype=compute_dtype,
            init=init,
            seed=derive_seed(seed, _DECODER),
        )
        super().__init__(
            dtype, children={"encoder": self.encoder, "bridge": self.bridge, "decoder": self.decoder}
        )

    @classmethod
    def preset(cls, name: str, tokenizers: TokenizerPair, **changes: Any) -> tuple[Seq2Seq, dict[str, Any]]:
        """Model and training options of a published experiment.

        "sutskever2014": 4 layers of 1000 units and embeddings of 1000, sources reversed, every parameter
        from U(-0.08, 0.08); SGD at 0.7, halved every half epoch after 5; 7.5 epochs in the paper and 8 here;
        batches of 128 pairs of similar lengths, gradients divided by 128 and bounded to a norm of 5. The
        paper then searched with 2 to 12 beams; its vocabularies had 160,000 and 80,000 words.

        Parameters
        ----------
        name : str
            "sutskever2014".
        tokenizers : TokenizerPair
            Of source and target.
        **changes
            Options of the model that shall be others, such as ``hidden_size``.

        Returns
        -------
        model : Seq2Seq
        options : dict
            For `fit`.

        Raises
        ------
        ValueError
            If there is no preset of that name.

        References
        ----------
        Sutskever, Vinyals and Le: Sequence to sequence learning with neural networks, 2014, section 3.4.

        Examples
        --------
        >>> from fusedlstm import Seq2Seq
        >>> from fusedlstm.data import Tokenizer, TokenizerPair
        >>> byte = Tokenizer("byte")
        >>> model, options = Seq2Seq.preset("sutskever2014", TokenizerPair(byte, byte), hidden_size=8)
        >>> history = model.fit([("abc", "cba")] * 20, **{**options, "epochs": 1, "progress": False})
        >>> history.epochs[0]["lr"]
        0.7
        """
        from fusedlstm.training import SGD, StepDecay

        if name != "sutskever2014":
            raise ValueError(f"Seq2Seq.preset: name must be 'sutskever2014', got {name!r}")
        model: dict[str, Any] = {
            "hidden_size": 1000,
            "num_layers": 4,
            "reverse_source": True,
            "init": ("uniform", 0.08),
        }
        options = {
            "optimiser": SGD(0.7),
            "schedule": StepDecay(0.5, after=5, every=0.5),
            "clip": 5.0,
            "loss_scale": "batch",
            "batch_size": 128,
            "epochs": 8,
        }
        return cls(tokenizers, **{**model, **changes}), options

    def config(self) -> dict[str, Any]:
        """Sizes and options, as plain JSON values."""
        lstm = self.encoder.lstm
        return {
            "embedding_size": lstm.input_size,
            "hidden_size": lstm.hidden_size,
            "num_layers": lstm.num_layers,
            "bidirectional": lstm.bidirectional,
            "bridge": self.bridge.kind,
            "attention": self.decoder.layers.attention,
            "attention_size": self.attention_size,
            "input_feeding": self.decoder.layers.input_feeding,
            "coverage": self.decoder.layers.coverage,
            "reverse_source": self.reverse_source,
            "share_embedding": self.share_embedding,
            "dropout": self.dropout,
            "embedding_dropout": self.embedding_dropout,
            "output_dropout": self.output_dropout,
            "dtype": self.dtype,
            "compute_dtype": None if lstm.compute_dtype == "int8" else lstm.compute_dtype,
            "longest_source": self.longest_source,
        }

    # training -------------------------------------------------------------------------------------------

    def training_step(
        self,
        batch: PairBatch,
        *,
        scale: float,
        seed: int,
        label_smoothing: float = 0.0,
        teacher_probability: float = 1.0,
        sample: bool = False,
    ) -> tuple[float, int]:
        """Forward and backward of one batch; gradients are added to `gradients`.

        Parameters
        ----------
        batch : PairBatch
            Sources and targets.
        scale : float
            Factor on every gradient: ``1 / batch.count`` for the mean loss per token.
        seed : int
            Of this step's dropout masks and scheduled sampling.
        label_smoothing : float
            In [0, 1), see `fusedlstm.nn.CrossEntropyLoss`.
        teacher_probability, sample
            Scheduled sampling, see `Decoder.forward`.

        Returns
        -------
        loss : float
            Sum over the predictions, in nats (not scaled).
        count : int
            Number of predictions.
        """
        (memory, final), encoder_tape = self.encoder.forward(
            batch.source, batch.source_lengths, seed=derive_seed(seed, _ENCODER)
        )
        state, bridge_tape = self.bridge.forward(final)
        rows, decoder_tape = self.decoder.forward(
            batch.inputs,
            batch.target_lengths,
            state=state,
            **self._memory(memory, batch.source_lengths),
            seed=derive_seed(seed, _DECODER),
            teacher_probability=teacher_probability,
            sample=sample,
        )
        output = self.decoder.output
        total, count, d_rows = _core.linear_cross_entropy(
            output.packed,
            rows,
            batch.targets[decoder_tape.valid],
            scale=scale,
            label_smoothing=label_smoothing,
            d_weight=output.d_weight,
            d_bias=output.d_bias,
            need_dx=True,
        )
        assert d_rows is not None  # it was asked for
        d_memory, d_state = self.decoder.backward(decoder_tape, d_rows)
        self.encoder.backward(encoder_tape, d_memory, self.bridge.backward(bridge_tape, d_state))
        return total, count

    def _memory(self, memory: Float, lengths: Int) -> dict[str, Any]:
        """What attention reads, as arguments of the decoder."""
        if self.decoder.layers.attention is None:
            return {}
        return {"memory": memory, "memory_lengths": lengths}

    def fit(
        self,
        pairs: Pairs,
        *,
        validation: float | Pairs | None = None,
        batch_size: int = 64,
        max_length: int | None = None,
        pool: int = 50,
        label_smoothing: float = 0.0,
        teacher: float | TeacherSchedule = 1.0,
        sample: bool = False,
        loss_scale: str = "mean",
        **options: Any,
    ) -> History:
        """Train on pairs of sentences.

        Parameters
        ----------
        pairs : sequence of (str, str)
            Source and target sentences.
        validation : float or sequence of pairs, optional
            Pairs to measure the loss on after every epoch; a number in (0, 1) sets that part of ``pairs``
            aside, from their end.
        batch_size : int
            Pairs of a step.
        max_length, pool : int
            Which pairs are left out, and how those of similar length are found: see
            `fusedlstm.data.PairBatches`.
        label_smoothing : float
            In [0, 1), of the training loss only; see `fusedlstm.nn.CrossEntropyLoss`.
        teacher : float or TeacherSchedule
            Probability that a step of the decoder is fed the target's token instead of its own last one:
            a number in [0, 1], or a schedule of `fusedlstm.training` over the steps of training.
        sample : bool
            Whether own tokens are drawn from the softmax instead of being its largest.
        loss_scale : str
            "mean": gradients of the mean loss per token. "batch": of the loss summed over tokens and divided
            by the batch size, as Sutskever et al. 2014; ``clip`` bounds the norm of that.
        **options
            Those of `fusedlstm.training.train`: epochs, optimiser, lr, schedule, clip, early_stopping, seed,
            log, checkpoint, resume, progress, and so on.

        Returns
        -------
        History
            Losses per epoch, in nats per target token.

        Raises
        ------
        ValueError, TypeError
            An option out of its range; no pairs, or an empty sentence; and as `fusedlstm.training.train`.
        FloatingPointError, OSError, KeyboardInterrupt
            As `fusedlstm.training.train`.
        """
        from fusedlstm.training import train
        from fusedlstm.training.translation import Translation

        if isinstance(validation, float | int):
            cut = int(len(pairs) * (1.0 - validation))
            if not 0.0 < validation < 1.0 or cut in (0, len(pairs)):
                raise ValueError(
                    f"fit: validation must be a fraction that leaves pairs on both sides, got {validation} "
                    f"of {len(pairs)}"
                )
            pairs, validation = pairs[:cut], pairs[cut:]
        task = Translation(
            self,
            self._batches(pairs, batch_size, max_length=max_length, pool=pool),
            None if validation is None else self._batches(validation, batch_size),
            label_smoothing=label_smoothing,
            teacher=teacher,
            sample=sample,
            loss_scale=loss_scale,
        )
        return train(task, **options)

    def _batches(self, pairs: Pairs, batch_size: int, **options: Any) -> PairBatches:
        return PairBatches(pairs, self.tokenizers, batch_size, reverse_source=self.reverse_source, **options)

    # measuring ------------------------------------------------------------------------------------------

    def evaluate(self, pairs: Pairs, *, batch_size: int = 64) -> float:
        """Mean loss per target token, ``<eos>`` included, without dropout and label smoothing.

        Parameters
        ----------
        pairs : sequence of (str, str)
            Source and target sentences.
        batch_size : int
            Pairs of a native call; it does not change a pair's loss.

        Returns
        -------
        float
            Nats per token; its exponential is the perplexity.

        Raises
        ------
        ValueError
            If there is no pair or a sentence is empty.
        """
        return self.loss(self._batches(pairs, batch_size))

    def loss(self, pairs: PairBatches) -> float:
        """What `evaluate` measures, of batches that are made already."""
        losses = self._pair_losses(pairs)
        return float(losses.sum()) / pairs.num_targets

    def _pair_losses(self, pairs: PairBatches) -> NDArray[np.float64]:
        """-log p(target | source) of every pair, in their order."""
        losses = np.zeros(len(pairs))
        epoch = pairs.in_order()
        for members, batch in zip(epoch.members, epoch, strict=True):
            memory, final = self.encoder(batch.source, batch.source_lengths)
            rows = self.decoder(
                batch.inputs,
                batch.target_lengths,
                state=self.bridge(final),
                **self._memory(memory, batch.source_lengths),
            )
            stops = np.cumsum(batch.target_lengths)
            for pair, stop, targets in zip(members, stops, batch.targets, strict=True):
                wanted = targets[targets >= 0]
                losses[pair], _, _ = _core.linear_cross_entropy(
                    self.decoder.output.packed, rows[stop - len(wanted) : stop], wanted
                )
        return losses

    def score(self, source: str | Sequence[str], target: str | Sequence[str]) -> float | list[float]:
        """Log-probability of targets given sources, ``<eos>`` included.

        Parameters
        ----------
        source, target : str or sequence of str
            One pair, or as many of both; targets may be empty.

        Returns
        -------
        float or list of float
            Natural logarithms, at most 0.

        Raises
        ------
        ValueError
            If the numbers differ, or a source is empty or has unknown tokens only.
        """
        single = isinstance(source, str)
        sources = [source] if isinstance(source, str) else list(source)
        targets = [target] if isinstance(target, str) else list(target)
        if len(sources) != len(targets):
            raise ValueError(f"score: {len(sources)} sources need as many targets, got {len(targets)}")
        if not sources:
            return []
        self._sources(sources, "score")
        pairs = self._batches(list(zip(sources, targets, strict=True)), 64, empty_targets=True)
        losses = self._pair_losses(pairs)
        return -float(losses[0]) if single else [-float(loss) for loss in losses]

    def _sources(self, texts: Sequence[str], who: str) -> list[Int]:
        """Sources as the encoder reads them."""
        tokenizer = self.tokenizers.source
        encoded = []
        for number, text in enumerate(texts, start=1):
            which = f"source {number} of {len(texts)}" if len(texts) > 1 else "the source"
            ids = tokenizer.encode(text)
            if not len(ids):
                raise ValueError(f"{who}: {which} is empty: {text!r}")
            if tokenizer.all_unknown(ids):
                raise ValueError(
                    f"{who}: {which} has unknown tokens only, none of the {len(tokenizer)} of the "
                    f"vocabulary: {text[:60]!r}"
                )
            encoded.append(source_ids(ids, tokenizer.end, self.reverse_source))
            if len(encoded[-1]) > self.longest_source > 0:
                warnings.warn(
                    f"{who}: {which} has {len(ids)} tokens, and the longest in training had "
                    f"{self.longest_source - 1}",
                    stacklevel=4,
                )
        return encoded

    # translation ----------------------------------------------------------------------------------------

    @overload
    def translate(
        self,
        source: str,
        *,
        beam: int = ...,
        max_new_tokens: int = ...,
        batch_size: int = ...,
        **options: Any,
    ) -> str: ...
    @overload
    def translate(
        self,
        source: Sequence[str],
        *,
        beam: int = ...,
        max_new_tokens: int = ...,
        batch_size: int = ...,
        **options: Any,
    ) -> list[str]: ...
    def translate(
        self,
        source: str | Sequence[str],
        *,
        beam: int = 5,
        max_new_tokens: int = 200,
        batch_size: int = 32,
        **options: Any,
    ) -> str | list[str]:
        """Best translation that a beam search finds, of one source or of each of several.

        Parameters
        ----------
        source : str or sequence of str
            Not empty, each with at least one known token.
        beam : int
            Hypotheses that are kept at every step; 1: greedy.
        max_new_tokens : int
            Longest translation, ``<eos>`` included.
        batch_size : int
            Sources of a native call; it changes nothing but the time.
        **options
            Others of `fusedlstm.generation.BeamSearch`: length_penalty, early_stopping, groups, and so on.

        Returns
        -------
        str or list of str

        Raises
        ------
        ValueError, TypeError
            A source that is empty or has unknown tokens only (its number is in the message); an option out of
            its range.

        Warns
        -----
        UserWarning
            A source is longer than any in training: such translations tend to be poor.
        """
        options = {
            **options,
            "width": integer(beam, "beam", 1),
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
        }
        if isinstance(source, str):
            best: str = self.beam_search(source, **options)[0].text
            return best
        return [found[0].text for found in self.beam_search(source, **options)]

    def stream(
        self, source: str, *, beam: int = 1, max_new_tokens: int = 200, **options: Any
    ) -> Generator[str, None, None]:
        """Iterate over the pieces of a translation as they are fixed; joined they are what `translate` gives.

        With more than one beam a piece is fixed when all of them agree on it.

        Parameters
        ----------
        source : str
            As for `translate`.
        beam, max_new_tokens, **options
            As for `translate`.

        Returns
        -------
        generator of str
            Closing it stops the native loop.

        Raises
        ------
        ValueError, TypeError
            As `translate`; at the call, not at the first piece.
        """
        if not isinstance(source, str):
            raise TypeError(f"stream: source must be a str, got {type(source).__name__}")
        search = self._search(
            {**options, "width": integer(beam, "beam", 1), "max_new_tokens": max_new_tokens}
        )
        read = self._read(self._sources([source], "stream"))

        def run(on_text: Callable[[str], None]) -> None:
            pieces = _Pieces(self.tokenizers.target)

            def on_prefix(_: int, ids: Int, ended: bool) -> None:
                if piece := pieces.push(ids.tolist(), 0 if ended else None):
                    on_text(piece)

            self._hypotheses(read, search, on_prefix)

        return iterate(run)

    @overload
    def beam_search(self, source: str, *, batch_size: int = ..., **options: Any) -> list[Hypothesis]: ...
    @overload
    def beam_search(
        self, source: Sequence[str], *, batch_size: int = ..., **options: Any
    ) -> list[list[Hypothesis]]: ...
    def beam_search(self, source: str | Sequence[str], *, batch_size: int = 32, **options: Any) -> Any:
        """The best translations that a beam search finds, best first.

        Parameters
        ----------
        source : str or sequence of str
            As for `translate`.
        batch_size : int
            Sources of a native call.
        **options
            Those of `fusedlstm.generation.BeamSearch`: width, num_return, length_penalty, max_new_tokens, and
            so on.

        Returns
        -------
        list of Hypothesis, or for several sources a list of such lists
            ``num_return`` for every source, or fewer where fewer exist. Their ids end with ``<eos>``, unless
            they have ``max_new_tokens``.

        Raises
        ------
        ValueError, TypeError
            As `translate`.
        """
        search = self._search(options)
        return self._in_batches(
            source, "beam_search", batch_size, lambda read, _: self._hypotheses(read, search)
        )

    def session(
        self,
        capacity: int = 64,
        *,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
    ) -> Session:
        """A pool of live translations that are stepped together: see `fusedlstm.generation.Session`.

        Sources join and leave at any time; each is translated as by `generate`, greedy or drawn.
        """
        return Session(self, capacity, processor=processor, token_mask=token_mask)

    # what a session asks for

    @property
    def _generator(self) -> _core.AttentionDecoder:
        return self.decoder.native

    @property
    def _token_texts(self) -> _core.TokenTexts:
        return self.tokenizers.target.texts

    def _begin(self, source: str) -> Beginning:
        if not isinstance(source, str):
            raise TypeError(f"join: source must be a str, got {type(source).__name__}")
        read = self._read(self._sources([source], "join")).arguments
        memory = read.get("memory")
        return Beginning(
            np.array([self.tokenizers.target.begin], np.int32),
            read["h0"][:, 0],
            read["c0"][:, 0],
            None if memory is None else memory[0],
        )

    def _new_text(self, tokens: Int, prompt_length: int) -> NewText:
        pieces = _Pieces(self.tokenizers.target)
        pieces.push(tokens[prompt_length:].tolist())
        return lambda token, behind: pieces.push([token], behind)

    def _search(self, options: Mapping[str, Any]) -> BeamSearch:
        return BeamSearch(**self._bounded(options))

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        return Sampling(**self._bounded({"max_new_tokens": 200, **options}))

    def _bounded(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of translations that end with ``<eos>`` and have no ``<bos>``."""
        target = self.tokenizers.target
        return {
            **options,
            "stop_tokens": [target.end, *options.get("stop_tokens", ())],
            "banned_tokens": [target.begin, *options.get("banned_tokens", ())],
        }

    def _hypotheses(
        self,
        read: _Read,
        search: BeamSearch,
        on_prefix: Callable[[int, Int, bool], object] | None = None,
    ) -> list[list[Hypothesis]]:
        """The best hypotheses of every source that was read."""
        target = self.tokenizers.target
        arrays = read.native.beam_search(
            **read.arguments, start_token=target.begin, options=search.core, on_prefix=on_prefix
        )
        return [
            [
                Hypothesis(
                    text=target.decode(ids[:length]),
                    score=float(score),
                    tokens=ids[:length].copy(),
                    log_probabilities=log_p[:length].copy(),
                )
                for ids, length, score, log_p in zip(*row, strict=True)
                if length
            ]
            for row in zip(*arrays, strict=True)
        ]

    @overload
    def generate(
        self, source: str, *, max_new_tokens: int = ..., batch_size: int = ..., **options: Any
    ) -> str: ...
    @overload
    def generate(
        self, source: Sequence[str], *, max_new_tokens: int = ..., batch_size: int = ..., **options: Any
    ) -> list[str]: ...
    def generate(
        self, source: str | Sequence[str], *, max_new_tokens: int = 200, batch_size: int = 32, **options: Any
    ) -> Any:
        """Translations whose tokens are drawn at random, one for each source.

        Parameters
        ----------
        source : str or sequence of str
            As for `translate`.
        max_new_tokens : int
            Longest translation, ``<eos>`` included.
        batch_size : int
            Sources of a native call; it changes nothing but the time.
        **options
            Others of `fusedlstm.generation.Sampling`: temperature, top_k, top_p, greedy, seed, and so on.
            Source n gets what it would get alone with seed ``seed + n``.

        Returns
        -------
        str or list of str

        Raises
        ------
        ValueError, TypeError
            As `translate`.
        """
        made = self.sample(source, max_new_tokens=max_new_tokens, batch_size=batch_size, **options)
        return made[0].text if isinstance(source, str) else [each.text for each in made]

    def sample(
        self,
        source: str | Sequence[str],
        *,
        max_new_tokens: int = 200,
        num_sequences: int = 1,
        top_log_probabilities: int = 0,
        on_text: Callable[[int, str], object] | None = None,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
        batch_size: int = 32,
        **options: Any,
    ) -> list[GeneratedText]:
        """Translate like `generate`, with all that is known of every token.

        Parameters
        ----------
        source, max_new_tokens, batch_size, **options
            As for `generate`.
        num_sequences : int
            Translations of each source, which is read once. Number ``i`` of source ``b`` has
            ``r = b num_sequences + i`` and the seed ``seed + r``.
        top_log_probabilities : int
            How many of the most probable tokens to report at each step.
        on_text : callable, optional
            Called with ``r`` and each piece of its text as it comes.
        processor, token_mask : callable, optional
            As in `LanguageModel.sample`; all sources are then one batch.

        Returns
        -------
        list of GeneratedText
            In the order of ``r``.

        Raises
        ------
        ValueError, TypeError
            As `translate`.
        """
        sampling = self._sampling(
            {
                **options,
                "max_new_tokens": max_new_tokens,
                "num_sequences": num_sequences,
                "top_log_probabilities": top_log_probabilities,
            }
        )
        sources = [source] if isinstance(source, str) else list(source)
        seeds = sampling.seeds(len(sources) * num_sequences).reshape(len(sources), num_sequences)

        def run(read: _Read, numbers: Sequence[int]) -> list[list[GeneratedText]]:
            of_row = [number * num_sequences + i for number in numbers for i in range(num_sequences)]
            on_piece = None if on_text is None else lambda row, piece: on_text(of_row[row], piece)
            texts = self._draw(
                read, sampling, seeds[list(numbers)].reshape(-1), on_piece, processor, token_mask
            )
            return [texts[first : first + num_sequences] for first in range(0, len(texts), num_sequences)]

        together = processor is not None or token_mask is not None  # a hook counts the rows of the call
        made = self._in_batches(sources, "sample", batch_size, run, together=together)
        return [text for each in made for text in each]

    def stream_sample(
        self, source: str, *, max_new_tokens: int = 200, **options: Any
    ) -> Generator[str, None, None]:
        """Iterate over the pieces of a translation that is drawn; joined they are what `generate` gives.

        Parameters
        ----------
        source, max_new_tokens, **options
            As for `generate`, one source.

        Returns
        -------
        generator of str
            Closing it stops the native loop.

        Raises
        ------
        ValueError, TypeError
            As `translate`; at the call, not at the first piece.
        """
        if not isinstance(source, str):
            raise TypeError(f"stream_sample: source must be a str, got {type(source).__name__}")
        sampling = self._sampling({**options, "max_new_tokens": max_new_tokens, "num_sequences": 1})
        read = self._read(self._sources([source], "stream_sample"))

        def run(on_text: Callable[[str], None]) -> None:
            self._draw(read, sampling, sampling.seeds(1), lambda _, piece: on_text(piece))

        return iterate(run)

    def _draw(
        self,
        read: _Read,
        sampling: Sampling,
        seeds: NDArray[np.uint64],
        on_text: Callable[[int, str], object] | None = None,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
    ) -> list[GeneratedText]:
        """Translations of the sources that were read, one for each seed."""
        target = self.tokenizers.target
        on_tokens = None
        if on_text is not None:
            pieces = [_Pieces(target) for _ in seeds]

            def on_tokens(tokens: Int, ended: Int) -> None:
                for row, (token, behind) in enumerate(zip(tokens.tolist(), ended.tolist(), strict=True)):
                    if token >= 0 and (piece := pieces[row].push([token], None if behind < 0 else behind)):
                        on_text(row, piece)

        made = read.native.generate(
            **read.arguments,
            start_token=target.begin,
            options=sampling.core(target.texts if sampling.stop_strings else None),
            seeds=seeds,
            on_tokens=on_tokens,
            processor=processor,
            token_mask=token_mask,
        )
        return [
            GeneratedText(
                text=cut(target.decode(ids[:length]), int(behind)),
                tokens=ids[:length].copy(),
                log_probabilities=log_p[:length].copy(),
                top_tokens=top[:length].copy(),
                top_log_probabilities=top_log_p[:length].copy(),
                finish=finish,
            )
            for ids, length, behind, log_p, top, top_log_p, finish in zip(
                made.tokens,
                made.lengths,
                made.behind,
                made.log_probabilities,
                made.top_tokens,
                made.top_log_probabilities,
                made.finish,
                strict=True,
            )
        ]

    def _in_batches(
        self,
        source: str | Sequence[str],
        who: str,
        batch_size: int,
        run: Callable[[_Read, Sequence[int]], list[Any]],
        *,
        together: bool = False,
    ) -> Any:
        """What ``run`` makes of memories, states and numbers of sources, similar lengths together."""
        texts = [source] if isinstance(source, str) else list(source)
        batch_size = integer(batch_size, "batch_size", 1)
        encoded = self._sources(texts, who)
        order = list(range(len(encoded)))
        if together:
            batch_size = max(len(order), 1)
        else:
            order.sort(key=lambda number: -len(encoded[number]))
        results: list[Any] = [None] * len(encoded)
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            made = run(self._read([encoded[number] for number in numbers]), numbers)
            for number, result in zip(numbers, made, strict=True):
                results[number] = result
        return results[0] if isinstance(source, str) else results

    def _read(self, encoded: Sequence[Int]) -> _Read:
        ids, lengths = pad(encoded)
        memory, final = self.encoder(ids, lengths)
        h0, c0 = self.bridge(final)
        return _Read(self.decoder.native, {"h0": h0, "c0": c0, **self._memory(memory, lengths)})

    def alignment(self, source: str, target: str | None = None) -> Alignment:
        """Where the decoder looks while it writes a target.

        Parameters
        ----------
        source : str
            As for `translate`.
        target : str, optional
            The model's own translation by default.

        Returns
        -------
        Alignment
            Weights of every target token over the source tokens.

        Raises
        ------
        ValueError
            A model without attention, and as `score`.
        """
        if self.decoder.layers.attention is None:
            raise ValueError("alignment: this model has no attention")
        wanted = self.translate(source) if target is None else target
        self._sources([source], "alignment")
        batch = self._batches([(source, wanted)], 1, empty_targets=True).batch([0])
        memory, final = self.encoder(batch.source, batch.source_lengths)
        h0, c0 = self.bridge(final)
        _, steps = self.decoder.native.logits(batch.inputs, memory, batch.source_lengths, h0=h0, c0=c0)
        assert steps is not None  # there is attention
        weights = steps[0]
        if self.reverse_source:
            weights = np.concatenate([weights[:, -2::-1], weights[:, -1:]], axis=1)
        end = "<eos>"
        return Alignment(
            (*self.tokenizers.source.tokens(source), end),
            (*self.tokenizers.target.tokens(wanted), end),
            weights,
        )

    def bleu(self, pairs: Pairs, *, tokenize: str = "13a", **options: Any) -> tuple[float, str]:
        """BLEU of the model's translations, by ``sacrebleu`` (extra ``bleu``).

        Parameters
        ----------
        pairs : sequence of (str, str)
            Sources and reference translations.
        tokenize : str
            How sacrebleu splits both sides: "none" for text that is tokenised already.
        **options
            Those of `translate`.

        Returns
        -------
        score : float
            0 to 100.
        signature : str
            Of the metric, to be given beside the score.

        Raises
        ------
        ImportError
            If sacrebleu is missing; the message says how to get it.
        ValueError
            As `translate`.

        References
        ----------
        Post: A call for clarity in reporting BLEU scores, 2018.
        """
        return corpus_bleu(
            self.translate([source for source, _ in pairs], **options),
            [target for _, target in pairs],
            tokenize=tokenize,
        )

    # files ----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters, configuration and tokenizers to one safetensors file, atomically.

        Raises
        ------
        OSError
            Disk full, no permission: names the path; a file that was there is untouched.
        """
        save_model(path, self.named_parameters(), self.config(), self.tokenizers, schema=SCHEMA)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, compute_dtype: str | None = None) -> Seq2Seq:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : str or path
            The file.
        compute_dtype : str, optional
            Instead of the one the model was saved with, for a float32 model: "float32", "bfloat16", or
            "int8" for scores and translation only, with a quarter of the memory for the weights of LSTMs and
            output layer. Attention and bridge stay float32.

        Raises
        ------
        FormatError
            Truncated, damaged, foreign or inconsistent file.
        OSError
            The file cannot be read.
        ValueError
            If `compute_dtype` is not for a model of this dtype.
        ImportError
            If it has subword tokenizers, and the package is missing.
        """
        file = load_model(path, SCHEMA)
        assert isinstance(file.vocabulary, TokenizerPair)  # the schema asks for one
        config = dict(file.config)
        longest = config.pop("longest_source")
        if config["share_embedding"] and not file.vocabulary.shared:
            raise FormatError(f"{path}: config: share_embedding needs one tokenizer for source and target")
        model = cls(file.vocabulary, **config)
        if compute_dtype is not None:
            model.encoder.lstm.compute_dtype = model.decoder.compute_dtype = compute_dtype
        model.longest_source = longest
        model.load_state_dict(file.tensors)
        return model


class _Pieces:
    """Tokens of one target to pieces of its text, as they are fixed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._written = 0

    def push(self, ids: Sequence[int], behind: int | None = None) -> str:
        """What more tokens add; with ``behind`` the last ones, less so many bytes at their end."""
        self._ids += ids
        text = self._tokenizer.decode(self._ids)
        if behind is not None:
            text = cut(text, behind)
        elif self._tokenizer.kind == "byte":
            text = text.rstrip("\ufffd")  # perhaps the beginning of a character
        piece = text[self._written :]
        self._written += len(piece)
        return piece
