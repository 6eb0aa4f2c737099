"""The profile: what was counted, and the ways to look at it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from fusedlstm import _core
from fusedlstm.io import atomic_write
from fusedlstm.profiling.ceilings import DTYPES, Ceilings, measure_ceilings

WAIT = "wait"
CALLER = "caller"


@dataclass(frozen=True)
class PhaseTime:
    """What was done in one phase, of one layer or of none, by one thread or by all.

    Attributes
    ----------
    phase : str
        The profiling page lists them.
    layer : int or None
        From 0; both directions are one layer.
    calls : int
        How often the phase was entered; of steps, their number.
    timed : int
        How many of the calls were timed. With fewer than all, `seconds` is an estimate: short calls count as
        long as one before them that had as much work, and the parts of a step (input, recurrent, gates),
        which are one pass, divide its time as they did in the steps where the kernel told them apart.
    seconds : float
        Without what other phases inside it took; a sum over threads.
    flops, bytes : float
        Additions and multiplications; bytes of operands and results, each once a call. Of every call.

    Examples
    --------
    >>> from fusedlstm.profiling import PhaseTime
    >>> PhaseTime("dW", 0, calls=2, timed=2, seconds=0.5, flops=1e9, bytes=1e6).flops_per_second
    2000000000.0
    """

    phase: str
    layer: int | None
    calls: int
    timed: int
    seconds: float
    flops: float
    bytes: float

    @property
    def flops_per_second(self) -> float:
        """Of one thread while it is in this phase."""
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Of one thread while it is in this phase."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def intensity(self) -> float:
        """FLOPs per byte; 0 where nothing is moved."""
        return self.flops / self.bytes if self.bytes else 0.0

    def fraction_of(self, ceilings: Ceilings) -> float | None:
        """Of what the machine could do: of FLOP/s, or without FLOPs of bytes/s; None with neither."""
        if not self.seconds or not (self.flops or self.bytes):
            return None
        if not self.flops:
            return self.bytes_per_second / ceilings.bandwidth(self.bytes / self.calls).rate
        limit = ceilings.attainable(flops=self.flops, bytes_moved=self.bytes, calls=self.calls)
        return self.flops_per_second / limit


@dataclass(frozen=True)
class ThreadTime:
    """How one thread spent the time of the profile.

    Attributes
    ----------
    thread : str
        ``"caller"`` began the profile; ``"worker 1"`` and so on are the pool's; ``"other caller 1"`` and so
        on are other threads of the program.
    busy : float
        Seconds in native work.
    waiting : float
        Seconds at a barrier, or until the other threads had finished.
    idle : float
        The rest: asleep, or, for a caller, in Python.

    Examples
    --------
    >>> from fusedlstm.profiling import ThreadTime
    >>> ThreadTime("worker 1", busy=0.8, waiting=0.1, idle=0.1).busy
    0.8
    """

    thread: str
    busy: float
    waiting: float
    idle: float


def together(parts: Iterable[PhaseTime]) -> list[PhaseTime]:
    """Sums, one for each phase and layer, longest first."""
    sums: dict[tuple[str, int | None], PhaseTime] = {}
    for part in parts:
        key = part.phase, part.layer
        have = sums.get(key, PhaseTime(*key, 0, 0, 0.0, 0.0, 0.0))
        sums[key] = PhaseTime(
            *key,
            have.calls + part.calls,
            have.timed + part.timed,
            have.seconds + part.seconds,
            have.flops + part.flops,
            have.bytes + part.bytes,
        )
    return sorted(sums.values(), key=lambda one: -one.seconds)


class Profile:
    """Counts native work between entering and leaving a ``with`` block; made by `profile`.

    Attributes
    ----------
    seconds : float
        From beginning to end.
    by_thread : dict of str to list of PhaseTime
        What each thread did.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedlstm
    >>> layer = fusedlstm.nn.LSTM(16, 32)
    >>> x = np.zeros((8, 20, 16), np.float32)
    >>> with fusedlstm.profile() as p:
    ...     y, tape = layer.forward(x)
    ...     dx = layer.backward(tape, y)
    >>> product = next(one for one in p.phases if one.phase == "recurrent")
    >>> product.flops == 2 * 8 * 20 * 4 * 32 * 32
    True
    """

    def __init__(self, *, trace: bool = False, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"profile: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.dtype = dtype
        self.trace = bool(trace)
        self.seconds = 0.0
        self.by_thread: dict[str, list[PhaseTime]] = {}
        self._intervals: dict[str, list[tuple[str, int, float, float]]] = {}
        self._left_out = 0
        self._ceilings: Ceilings | None = None
        self._machine: tuple[str, int] | None = None

    def __enter__(self) -> Profile:
        if self._machine is not None:
            raise RuntimeError("profile: this profile has been used: make a new one for each block")
        _core.profile_start(self.trace)
        self._machine = _core.isa(), _core.num_threads()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        report = _core.profile_stop()
        self.seconds = report["seconds"]
        self.by_thread = {CALLER: []}
        for thread in report["threads"]:
            self.by_thread[thread["name"]] = [
                PhaseTime(phase, None if layer < 0 else layer, *numbers)
                for phase, layer, *numbers in thread["counts"]
            ]
            self._intervals[thread["name"]] = thread["intervals"]
            self._left_out += thread["intervals_left_out"]

    @property
    def phases(self) -> list[PhaseTime]:
        """All threads together, one for each phase and layer, longest first."""
        return together(one for phases in self.by_thread.values() for one in phases)

    @property
    def threads(self) -> list[ThreadTime]:
        """How each thread spent its time."""
        times = []
        for thread, phases in self.by_thread.items():
            waiting = sum(one.seconds for one in phases if one.phase == WAIT)
            busy = sum(one.seconds for one in phases) - waiting
            times.append(ThreadTime(thread, busy, waiting, max(0.0, self.seconds - busy - waiting)))
        return times

    @property
    def python_seconds(self) -> float:
        """What the thread that began the profile spent outside of native work."""
        return self.threads[0].idle if self.by_thread else 0.0

    @property
    def ceilings(self) -> Ceilings:
        """Of this machine for `dtype`; measured when first asked for, outside of any profile."""
        if self._ceilings is None:
            self._ceilings = measure_ceilings(self.dtype)
        return self._ceilings

    def table(self) -> str:
        """The profile as text: phases, threads, ceilings.

        Time is summed over threads, and its share is of all threads' time; rates are those of one thread
        while it is in the phase. The last column is their part of what the machine allows for that many FLOPs
        per byte.
        """
        from fusedlstm.profiling.report import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the intervals, as plain JSON values."""
        isa, threads = self._machine or (_core.isa(), _core.num_threads())
        ceilings = self.ceilings
        levels = [asdict(level) for level in ceilings.bandwidths]
        levels[-1]["capacity"] = None
        return {
            "seconds": self.seconds,
            "isa": isa,
            "num_threads": threads,
            "python_seconds": self.python_seconds,
            "phases": [
                {**asdict(one), "fraction_of_ceiling": one.fraction_of(ceilings)} for one in self.phases
            ],
            "threads": [asdict(one) for one in self.threads],
            "by_thread": {name: [asdict(one) for one in phases] for name, phases in self.by_thread.items()},
            "ceilings": {**asdict(ceilings), "bandwidths": levels},
        }

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON, atomically."""
        text = json.dumps(self.to_dict(), indent=1)
        atomic_write(path, lambda file: file.write(text.encode()))

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write every interval, one track for each thread, for https://ui.perfetto.dev or chrome://tracing.

        Raises
        ------
        ValueError
            If the profile was made without ``trace=True``.
        """
        from fusedlstm.profiling.report import trace

        if not self.trace:
            raise ValueError("save_trace: the profile has no intervals: make it with profile(trace=True)")
        text = json.dumps(trace(self._intervals, self._left_out))
        atomic_write(path, lambda file: file.write(text.encode()))

    def plot_roofline(self, path: str | os.PathLike[str]) -> None:
        """Draw FLOP/s over FLOPs per byte: the ceilings as lines, a point for each phase (needs matplotlib).

        Raises
        ------
        ImportError
            matplotlib is not installed; the message says how to get it.
        ValueError
            If no phase has FLOPs.
        """
        from fusedlstm.profiling.roofline import plot_roofline

        plot_roofline(self, path)


def profile(*, trace: bool = False, dtype: str = "float32") -> Profile:
    """Profile the native work of a ``with`` block, of all threads of the process.

    Parameters
    ----------
    trace : bool
        Also keep when each piece of work began and ended, up to 131,072 pieces of a thread, for
        `Profile.save_trace`.
    dtype : str
        What products are made in, which says what ceiling they have: ``"float32"``, ``"float64"``,
        ``"bfloat16"`` or ``"int8"``.

    Returns
    -------
    Profile
        To be used in ``with``; it is filled when the block ends.

    Raises
    ------
    ValueError
        Another dtype.
    RuntimeError
        On entering, if another profile is running: there is one at a time in a process.

    Notes
    -----
    Two readings of the processor's counter for each piece of work. Pieces below 20 microseconds are timed by
    sample, unless there is a trace. While no profile runs, one load.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedlstm
    >>> layer = fusedlstm.nn.LSTM(16, 32)
    >>> with fusedlstm.profile() as p:
    ...     y = layer(np.zeros((8, 20, 16), np.float32))
    >>> p.threads[0].thread, p.seconds > p.python_seconds
    ('caller', True)
    """
    return Profile(trace=trace, dtype=dtype)
