"""Scheduled sampling: how often a decoder is fed the target instead of its own output, over training."""

from __future__ import annotations

import math
from typing import Any, Protocol


class TeacherSchedule(Protocol):
    """The teacher's probability as a function of the steps of training.

    Examples
    --------
    >>> schedule: TeacherSchedule = LinearDecay(1000)
    >>> schedule.probability(500)
    0.5
    """

    def probability(self, step: int) -> float:
        """Probability, in [0, 1], that a step's input is the target, after so many steps of training."""

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""


class LinearDecay:
    """``max(final, 1 - step / steps)``.

    Parameters
    ----------
    steps : int
        Optimiser steps in which the probability would go from 1 to 0; at least 1.
    final : float
        It does not fall below this, in [0, 1].

    Raises
    ------
    ValueError
        An option out of its range.

    References
    ----------
    Bengio, Vinyals, Jaitly and Shazeer, Scheduled sampling for sequence prediction with recurrent neural
    networks, 2015, section 2.4; also of the two other schedules.

    Examples
    --------
    >>> schedule = LinearDecay(100, final=0.25)
    >>> [schedule.probability(step) for step in (0, 50, 80, 1000)]
    [1.0, 0.5, 0.25, 0.25]
    """

    def __init__(self, steps: int, *, final: float = 0.0) -> None:
        if not steps >= 1:
            raise ValueError(f"LinearDecay: steps must be at least 1, got {steps!r}")
        if not 0 <= final <= 1:
            raise ValueError(f"LinearDecay: final must be in [0, 1], got {final!r}")
        self.steps, self.final = int(steps), float(final)

    def probability(self, step: int) -> float:
        """Probability, in [0, 1], that a step's input is the target, after so many steps of training."""
        return max(self.final, 1.0 - step / self.steps)

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        return {"name": "linear", "steps": self.steps, "final": self.final}


class ExponentialDecay:
    """``k ** step``.

    Parameters
    ----------
    k : float
        Factor per optimiser step, in (0, 1).

    Raises
    ------
    ValueError
        An option out of its range.

    Examples
    --------
    >>> [ExponentialDecay(0.5).probability(step) for step in (0, 1, 2)]
    [1.0, 0.5, 0.25]
    """

    def __init__(self, k: float) -> None:
        if not 0 < k < 1:
            raise ValueError(f"ExponentialDecay: k must be in (0, 1), got {k!r}")
        self.k = float(k)

    def probability(self, step: int) -> float:
        """Probability, in [0, 1], that a step's input is the target, after so many steps of training."""
        return self.k**step

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        return {"name": "exponential", "k": self.k}


class InverseSigmoidDecay:
    """``k / (k + exp(step / k))``: near 1 at first, a half after ``k ln k`` steps, then near 0.

    Parameters
    ----------
    k : float
        At least 1.

    Raises
    ------
    ValueError
        An option out of its range.

    Examples
    --------
    >>> import math
    >>> schedule = InverseSigmoidDecay(100)
    >>> [round(schedule.probability(step), 2) for step in (0, 461, 2000)]
    [0.99, 0.5, 0.0]
    """

    def __init__(self, k: float) -> None:
        if not 1 <= k < math.inf:
            raise ValueError(f"InverseSigmoidDecay: k must be a finite number of at least 1, got {k!r}")
        self.k = float(k)

    def probability(self, step: int) -> float:
        """Probability, in [0, 1], that a step's input is the target, after so many steps of training."""
        return self.k / (self.k + math.exp(min(step / self.k, 700.0)))  # beyond, exp overflows

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        return {"name": "inverse sigmoid", "k": self.k}
