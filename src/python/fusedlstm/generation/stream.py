"""Tokens of one native generation loop, handed over as they come."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.data import TextDecoder
from fusedlstm.generation._loop import iterate
from fusedlstm.generation._turn import one_at_a_time
from fusedlstm.generation.sampling import Sampling

Int = NDArray[np.int32]


def token_steps(
    decoder: _core.LanguageModelDecoder,
    prompts: Sequence[Int],
    sampling: Sampling,
    *,
    token_texts: _core.TokenTexts | None = None,
    processor: _core.Processor | None = None,
    token_mask: _core.TokenMask | None = None,
) -> Generator[tuple[Int, Int], None, None]:
    """Iterate over the steps of a batch of sequences while the native loop is running.

    The loop runs in a thread of its own; it does not wait for the reader. Closing the iterator, or an
    exception (Ctrl-C) in the reader, stops the loop at its next token.

    Parameters
    ----------
    decoder : LanguageModelDecoder
        The prepared model.
    prompts : sequence of int32 (T,)
        Each at least one token.
    sampling : Sampling
        How tokens are chosen.
    token_texts : TokenTexts, optional
        Needed for stop strings.
    processor, token_mask : callable, optional
        As in `LanguageModel.sample`; called in the loop's thread.

    Yields
    ------
    tokens : int32 (R,)
        The next token of each sequence, -1 for those that have ended.
    ended : int32 (R,)
        -1 for sequences that go on, else how many bytes of its last token's text lie behind a stop string.

    Raises
    ------
    ValueError
        From the native loop: a token out of range.
    """

    def loop(put: Callable[[tuple[Int, Int]], None]) -> None:
        decoder.generate(
            np.concatenate(prompts),
            np.array([len(prompt) for prompt in prompts], np.int32),
            sampling.core(token_texts),
            seeds=sampling.seeds(len(prompts) * sampling.num_sequences),
            on_tokens=lambda tokens, ended: put((tokens, ended)),
            processor=processor,
            token_mask=token_mask,
        )

    return iterate(loop)


def token_stream(
    decoder: _core.LanguageModelDecoder, prompt: Int, sampling: Sampling
) -> Generator[int, None, None]:
    """Iterate over the new tokens of one sequence while the native loop is running: `token_steps` of one row.

    Parameters
    ----------
    decoder : LanguageModelDecoder
        The prepared model.
    prompt : int32 (T,)
        At least one token.
    sampling : Sampling
        How tokens are chosen.

    Yields
    ------
    int
        One token id after the other, a stop token included.

    Raises
    ------
    ValueError
        From the native loop: a token out of range.
    """
    return first_row(token_steps(decoder, [prompt], sampling))


def first_row(steps: Generator[tuple[Int, Int], None, None]) -> Generator[int, None, None]:
    """The tokens of one sequence out of those of `token_steps`."""
    try:
        for tokens, _ in steps:
            yield int(tokens[0])
    finally:
        steps.close()


class TextPieces:
    """Tokens of sequences, step by step, to pieces of their texts.

    Parameters
    ----------
    texts : sequence of TextDecoder
        One of each sequence; they have read the prompts.

    Examples
    --------
    >>> from fusedlstm.data import Vocabulary
    >>> pieces = TextPieces([Vocabulary.byte().decoder()])
    >>> [pieces.push([byte], [-1]) for byte in "né".encode()]
    [[(0, 'n')], [], [(0, 'é')]]
    """

    def __init__(self, texts: Sequence[TextDecoder]) -> None:
        self._texts = texts

    def push(self, tokens: Sequence[int] | Int, ended: Sequence[int] | Int) -> list[tuple[int, str]]:
        """Pieces ``(row, text)``, not empty, that one step of `token_steps` completes."""
        pieces = []
        for row, (text, token, behind) in enumerate(zip(self._texts, tokens, ended, strict=True)):
            if token < 0:
                continue
            piece = text.push(int(token))
            if behind >= 0:
                piece = cut(piece + text.finish(), int(behind))
            if piece:
                pieces.append((row, piece))
        return pieces


def cut(text: str, behind: int) -> str:
    """A text without its last bytes, those behind a stop string."""
    if not behind:
        return text
    return text.encode("utf-8", "surrogatepass")[:-behind].decode("utf-8", "surrogatepass")


class BatchTextStream(Iterator[tuple[int, str]]):
    """Pieces ``(row, text)`` of several generated texts as they come.

    Parameters
    ----------
    steps : generator
        Of `token_steps`.
    pieces : TextPieces
        Between tokens and texts.

    Attributes
    ----------
    tokens : int
        Number of tokens so far, of all texts.

    Examples
    --------
    >>> from fusedlstm import LanguageModel
    >>> from fusedlstm.data import Vocabulary
    >>> model = LanguageModel(Vocabulary.from_text("abc"), hidden_size=8)
    >>> texts = ["", ""]
    >>> for row, piece in model.stream(["a", "bc"], max_new_tokens=5):
    ...     texts[row] += piece
    >>> texts == model.generate(["a", "bc"], max_new_tokens=5)
    True
    """

    def __init__(self, steps: Generator[tuple[Int, Int], None, None], pieces: TextPieces) -> None:
        self.tokens = 0
        self._steps = steps
        self._pieces = pieces
        self._waiting: deque[tuple[int, str]] = deque()
        self._turn = threading.Lock()

    @one_at_a_time("stream")
    def __next__(self) -> tuple[int, str]:
        while not self._waiting:
            tokens, ended = next(self._steps)
            self.tokens += int((tokens >= 0).sum())
            self._waiting.extend(self._pieces.push(tokens, ended))
        return self._waiting.popleft()

    @one_at_a_time("stream")
    def close(self) -> None:
        """Stop the native loop, if it is still running."""
        self._waiting.clear()
        self._steps.close()


class TextStream(Iterator[str]):
    """Pieces of one generated text as they come; a byte vocabulary's are whole characters.

    Parameters
    ----------
    batch : BatchTextStream
        Of one text.

    Attributes
    ----------
    tokens : int
        Number of tokens so far.

    Examples
    --------
    >>> from fusedlstm import LanguageModel
    >>> from fusedlstm.data import Vocabulary
    >>> model = LanguageModel(Vocabulary.from_text("abc"), hidden_size=8)
    >>> stream = model.stream("a", max_new_tokens=5)
    >>> len("".join(stream)), stream.tokens
    (5, 5)
    """

    def __init__(self, batch: BatchTextStream) -> None:
        self._batch = batch

    @property
    def tokens(self) -> int:
        return self._batch.tokens

    def __next__(self) -> str:
        return next(self._batch)[1]

    def close(self) -> None:
        """Stop the native loop, if it is still running."""
        self._batch.close()
