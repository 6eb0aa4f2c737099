"""One call at a time on an object that several threads hold."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class HasTurn(Protocol):
    """What `one_at_a_time` needs of an object: the lock of the call under way."""

    _turn: threading.Lock


S = TypeVar("S", bound=HasTurn)
P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(what: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """A method that refuses a call during another one on the same `what`, with a ``RuntimeError``."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def call(self: S, /, *arguments: P.args, **options: P.kwargs) -> R:
            if not self._turn.acquire(blocking=False):
                who = f"{type(self).__name__}.{method.__name__}"
                raise RuntimeError(f"{who}: the {what} is in use by another call")
            try:
                return method(self, *arguments, **options)
            finally:
                self._turn.release()

        return call

    return decorate
