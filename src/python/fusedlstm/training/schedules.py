"""Learning-rate schedules: the factor on the base learning rate, as a function of where training is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol


class Schedule(Protocol):
    """What ``fit`` asks of a schedule.

    Examples
    --------
    >>> schedule: Schedule = Constant()
    >>> schedule.config()
    {'name': 'constant'}
    """

    def factor(self, *, step: int, epoch: float, progress: float) -> float:
        """Multiplier of the base learning rate for a step.

        Parameters
        ----------
        step : int
            Steps completed so far.
        epoch : float
            Epochs completed so far, and the part that is done of the one that runs.
        progress : float
            Part of the whole training that is done, in [0, 1).
        """

    def epoch_end(self, loss: float) -> None:
        """Learn the validation loss (training loss if there is no validation) of a finished epoch."""

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""

    def state(self) -> dict[str, float | None]:
        """What a resumed run needs."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned in an earlier process."""


class _Stateless:
    def epoch_end(self, loss: float) -> None:
        """Nothing to learn from a loss."""

    def state(self) -> dict[str, float | None]:
        """Nothing to keep."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


class Constant(_Stateless):
    """The base learning rate throughout.

    Examples
    --------
    >>> Constant().factor(step=100, epoch=3, progress=0.5)
    1.0
    """

    def factor(self, *, step: int, epoch: float, progress: float) -> float:
        """Multiplier of the base learning rate: 1."""
        return 1.0

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        return {"name": "constant"}


class StepDecay(_Stateless):
    """Constant for the first `after` epochs, then multiplied by `decay` at once and `every` so many epochs.

    Parameters
    ----------
    decay : float
        Factor each time, in (0, 1].
    after : int
        Number of epochs at the base learning rate.
    every : float
        Epochs between one multiplication and the next, > 0; 0.5 for every half epoch.

    Raises
    ------
    ValueError
        An option out of its range.

    References
    ----------
    Zaremba, Sutskever and Vinyals, Recurrent neural network regularization, 2014: decay 1/2 after 4 epochs.
    Sutskever, Vinyals and Le, Sequence to sequence learning with neural networks, 2014: 1/2 every half epoch
    after 5 epochs.

    Examples
    --------
    >>> schedule = StepDecay(0.5, after=4)
    >>> [schedule.factor(step=0, epoch=e, progress=0.0) for e in (0, 3, 4, 5)]
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(self, decay: float = 0.5, *, after: int = 4, every: float = 1.0) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"StepDecay: decay must be in (0, 1], got {decay!r}")
        if after < 0:
            raise ValueError(f"StepDecay: after must be an epoch count >= 0, got {after!r}")
        if not 0 < every < math.inf:
            raise ValueError(f"StepDecay: every must be a finite number > 0, got {every!r}")
        self.decay, self.after, self.every = float(decay), int(after), float(every)

    def factor(self, *, step: int, epoch: float, progress: float) -> float:
        """Multiplier of the base learning rate at this epoch (counted from 0)."""
        if epoch < self.after:
            return 1.0
        return float(self.decay ** (1 + math.floor((epoch - self.after) / self.every)))

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        config = {"name": "step", "decay": self.decay, "after": self.after}
        return config if self.every == 1.0 else {**config, "every": self.every}


class Cosine(_Stateless):
    """Half a cosine from the base learning rate down to `final` times it, after a linear warm-up.

    Parameters
    ----------
    warmup_steps : int
        Steps of the linear rise from 0.
    final : float
        Factor at the end of training, in [0, 1].

    Raises
    ------
    ValueError
        An option out of its range.

    References
    ----------
    Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, 2017 (one period).

    Examples
    --------
    >>> schedule = Cosine(warmup_steps=10, final=0.1)
    >>> [round(schedule.factor(step=s, epoch=0, progress=s / 100), 3) for s in (0, 4, 10, 50, 99)]
    [0.1, 0.498, 0.978, 0.55, 0.1]
    """

    def __init__(self, *, warmup_steps: int = 0, final: float = 0.0) -> None:
        if warmup_steps < 0:
            raise ValueError(f"Cosine: warmup_steps must be >= 0, got {warmup_steps!r}")
        if not 0 <= final <= 1:
            raise ValueError(f"Cosine: final must be in [0, 1], got {final!r}")
        self.warmup_steps, self.final = int(warmup_steps), float(final)

    def factor(self, *, step: int, epoch: float, progress: float) -> float:
        """Multiplier of the base learning rate at this step."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * (self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        return {"name": "cosine", "warmup_steps": self.warmup_steps, "final": self.final}


class Plateau:
    """Multiplied by `decay` when the loss has not improved for more than `patience` epochs.

    Parameters
    ----------
    decay : float
        Factor each time, in (0, 1).
    patience : int
        Epochs without improvement that are forgiven.

    Raises
    ------
    ValueError
        An option out of its range.

    Examples
    --------
    >>> schedule = Plateau(0.25)
    >>> factors = []
    >>> for loss in (2.0, 1.5, 1.6, 1.4):
    ...     schedule.epoch_end(loss)
    ...     factors.append(schedule.factor(step=0, epoch=0, progress=0.0))
    >>> factors
    [1.0, 1.0, 0.25, 0.25]
    """

    def __init__(self, decay: float = 0.25, *, patience: int = 0) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"Plateau: decay must be in (0, 1), got {decay!r}")
        if patience < 0:
            raise ValueError(f"Plateau: patience must be an epoch count >= 0, got {patience!r}")
        self.decay, self.patience = float(decay), int(patience)
        self._factor, self._waited = 1.0, 0
        self._best: float | None = None

    def factor(self, *, step: int, epoch: float, progress: float) -> float:
        """Multiplier of the base learning rate after the epochs seen so far."""
        return self._factor

    def epoch_end(self, loss: float) -> None:
        """Compare with the best loss so far."""
        if self._best is None or loss < self._best:
            self._best, self._waited = loss, 0
            return
        self._waited += 1
        if self._waited > self.patience:
            self._factor, self._waited = self._factor * self.decay, 0

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        return {"name": "plateau", "decay": self.decay, "patience": self.patience}

    def state(self) -> dict[str, float | None]:
        """Current factor, best loss, and epochs waited."""
        return {"factor": self._factor, "best": self._best, "waited": self._waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned in an earlier process."""
        self._factor, self._best, self._waited = state["factor"], state["best"], state["waited"]
