"""Ctrl-C between two states of training, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """Context in which ``shield`` blocks are not torn by Ctrl-C.

    Outside a shield Ctrl-C raises KeyboardInterrupt at once, native calls included. Within a shield it
    waits for the end of the block. In a thread other than the main one, or under a handler of the
    application's own, nothing is changed.

    Examples
    --------
    >>> with Interrupts() as interrupts:
    ...     with interrupts.shield:
    ...         pass  # parameters and counters change together
    """

    def __init__(self) -> None:
        self.shield = _Shield()
        self._installed = False

    def __enter__(self) -> Interrupts:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.shield.handle)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False


class _Shield:
    def __init__(self) -> None:
        self._up = False
        self._pending = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self._up:
            self._pending = True
        else:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self._up = True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._up = False
        if self._pending:
            self._pending = False
            if kind is None:  # an error of the block itself goes first
                raise KeyboardInterrupt
