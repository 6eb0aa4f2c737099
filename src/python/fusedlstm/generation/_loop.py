"""Native loops that call back, read as iterators."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class _Closed(Exception):
    """Raised in the native loop's callback when nobody reads any more."""


class _End:
    """The loop is over; by an exception of its own, or not."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def iterate(loop: Callable[[Callable[[T], None]], object]) -> Generator[T, None, None]:
    """Iterate over what ``loop(put)`` hands to ``put``; its thread does not wait for the reader.

    Closing the iterator, or an exception (Ctrl-C) in the reader, stops the loop at its next ``put``. An
    exception of the loop is raised in the reader.
    """
    queue: SimpleQueue[T | _End] = SimpleQueue()
    closed = threading.Event()

    def put(item: T) -> None:
        if closed.is_set():
            raise _Closed
        queue.put(item)

    def run() -> None:
        error: BaseException | None = None
        try:
            loop(put)
        except _Closed:
            return
        except BaseException as raised:  # handed to the reader, who raises it
            error = raised
        queue.put(_End(error))

    thread = threading.Thread(target=run, name="fusedlstm-generate", daemon=True)
    thread.start()
    try:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        thread.join()
