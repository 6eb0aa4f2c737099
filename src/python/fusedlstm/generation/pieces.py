"""Text of a native call in a thread of its own, as it comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue


class _Closed(Exception):
    """Raised in the native loop's callback when nobody reads any more."""


def text_pieces(run: Callable[[Callable[[str], None]], object]) -> Generator[str, None, None]:
    """Iterate over what a function hands to its callback, while it is running in another thread.

    Closing the iterator, or an exception (Ctrl-C) in the reader, stops the function at its next piece.

    Parameters
    ----------
    run : callable
        ``run(on_text)``, which calls ``on_text`` with each piece.

    Yields
    ------
    str
        One piece after the other; empty ones are left out.

    Raises
    ------
    BaseException
        What ``run`` raises, after the pieces before it.

    Examples
    --------
    >>> list(text_pieces(lambda on_text: [on_text(piece) for piece in ("a", "", "b")]))
    ['a', 'b']
    """
    # None marks the end; an exception is passed on as it is
    queue: SimpleQueue[str | BaseException | None] = SimpleQueue()
    closed = threading.Event()

    def on_text(piece: str) -> None:
        if closed.is_set():
            raise _Closed
        if piece:
            queue.put(piece)

    def loop() -> None:
        try:
            run(on_text)
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
