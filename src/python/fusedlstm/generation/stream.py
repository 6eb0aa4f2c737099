"""Tokens of one native generation loop, handed over as they come."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.data import TextDecoder
from fusedlstm.generation.sampling import Sampling


class _Closed(Exception):
    """Raised in the native loop's callback when nobody reads any more."""


def token_stream(
    decoder: _core.LanguageModelDecoder, prompt: NDArray[np.int32], sampling: Sampling
) -> Generator[int, None, None]:
    """Iterate over the new tokens of one sequence while the native loop is running.

    The loop runs in a thread of its own; it does not wait for the reader. Closing the iterator, or an
    exception (Ctrl-C) in the reader, stops the loop at its next token.

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
    # None marks the end; an exception of the loop is passed on as it is
    queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
    closed = threading.Event()

    def on_tokens(ids: NDArray[np.int32]) -> None:
        if closed.is_set():
            raise _Closed
        queue.put(int(ids[0]))

    def loop() -> None:
        try:
            decoder.generate(
                prompt,
                np.array([len(prompt)], np.int32),
                seeds=sampling.seeds(1),
                on_tokens=on_tokens,
                **sampling.core(),
            )
        except _Closed:
            return
        except BaseException as error:  # handed to the reader, who raises it
            queue.put(error)
        queue.put(None)

    thread = threading.Thread(target=loop, name="fusedlstm-generate", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()


class TextStream(Iterator[str]):
    """Pieces of one generated text as they come; a byte vocabulary's are whole characters.

    Parameters
    ----------
    decoder : LanguageModelDecoder
        The prepared model.
    prompt : int32 (T,)
        At least one token.
    sampling : Sampling
        How tokens are chosen.
    text : TextDecoder
        Between tokens and text.

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

    def __init__(
        self,
        decoder: _core.LanguageModelDecoder,
        prompt: NDArray[np.int32],
        sampling: Sampling,
        text: TextDecoder,
    ) -> None:
        self.tokens = 0
        self._ids = token_stream(decoder, prompt, sampling)
        self._text = text
        self._finished = False

    def __next__(self) -> str:
        for token in self._ids:
            self.tokens += 1
            if piece := self._text.push(token):
                return piece
        if not self._finished:
            self._finished = True
            if piece := self._text.finish():
                return piece
        raise StopIteration

    def close(self) -> None:
        """Stop the native loop, if it is still running."""
        self._finished = True
        self._ids.close()
