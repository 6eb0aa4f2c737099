"""Optimisers over one flat parameter buffer: one native pass per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core

Float = NDArray[Any]


class Optimiser(Protocol):
    """What ``fit`` asks of an optimiser.

    Examples
    --------
    >>> optimiser: Optimiser = SGD(lr=0.5)
    >>> optimiser.lr
    0.5
    """

    lr: float

    def step(
        self,
        parameters: Float,
        gradients: Float,
        *,
        lr: float | None = None,
        gradient_scale: float = 1.0,
    ) -> None:
        """Update ``parameters`` in place from ``gradient_scale * gradients``, at rate ``lr`` or its own."""

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""

    def state(self) -> dict[str, Float]:
        """Arrays and counters that a resumed run needs."""

    def load_state(self, state: Mapping[str, Float]) -> None:
        """Take over what ``state`` returned in an earlier process."""


def _check(who: str, name: str, value: float, low: float, high: float, wanted: str) -> float:
    if not low <= value < high:  # also false for NaN
        raise ValueError(f"{who}: {name} must be {wanted}, got {value!r}")
    return float(value)


class SGD:
    """Stochastic gradient descent with momentum, the same arithmetic as ``torch.optim.SGD``.

    ``g = d + weight_decay * p``;  ``v = momentum * v + g``;  ``p -= lr * v``
    (``p -= lr * g`` without momentum, ``p -= lr * (g + momentum * v)`` with Nesterov momentum).

    Parameters
    ----------
    lr : float
        Learning rate.
    momentum : float
        In [0, 1).
    weight_decay : float
        L2 penalty, added to the gradient.
    nesterov : bool
        Look ahead along the velocity; needs ``momentum > 0``.

    Raises
    ------
    ValueError
        An option out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> p, d = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    >>> SGD(lr=1.0).step(p, d)
    >>> p
    array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """

    def __init__(
        self, lr: float = 1.0, *, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        self.lr = _check("SGD", "lr", lr, 0.0, np.inf, "a finite number >= 0")
        self.momentum = _check("SGD", "momentum", momentum, 0.0, 1.0, "in [0, 1)")
        self.weight_decay = _check("SGD", "weight_decay", weight_decay, 0.0, np.inf, "a finite number >= 0")
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs momentum > 0")
        self.nesterov = bool(nesterov)
        self._velocity: Float | None = None

    def step(
        self,
        parameters: Float,
        gradients: Float,
        *,
        lr: float | None = None,
        gradient_scale: float = 1.0,
    ) -> None:
        """Update ``parameters`` in place from ``gradient_scale * gradients``, at rate ``lr`` or its own."""
        if self.momentum and self._velocity is None:
            self._velocity = _core.aligned_zeros(parameters.size, parameters.dtype.name)
        _core.sgd_step(
            parameters,
            gradients,
            self._velocity,
            lr=self.lr if lr is None else lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            gradient_scale=gradient_scale,
        )

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        return {
            "name": "sgd",
            "lr": self.lr,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "nesterov": self.nesterov,
        }

    def state(self) -> dict[str, Float]:
        """Velocity, when there is one."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def load_state(self, state: Mapping[str, Float]) -> None:
        """Take over the velocity of an earlier process."""
        self._velocity = _restored(state["velocity"]) if "velocity" in state else None


class Adam:
    """Adam, the same arithmetic as ``torch.optim.Adam``.

    ``m = beta1 m + (1 - beta1) g``;  ``v = beta2 v + (1 - beta2) g^2``;
    ``p -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)``

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : tuple of float
        Decay of the two moments, each in [0, 1).
    eps : float
        Added to the square root.
    weight_decay : float
        L2 penalty, added to the gradient.

    Raises
    ------
    ValueError
        An option out of its range.

    References
    ----------
    Kingma and Ba, Adam: a method for stochastic optimization, 2015.

    Examples
    --------
    >>> import numpy as np
    >>> p, d = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    >>> optimiser = Adam(lr=0.1)
    >>> optimiser.step(p, d)
    >>> p.round(4)
    array([0.9, 0.9, 0.9, 0.9], dtype=float32)
    """

    name = "adam"
    _decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        who = type(self).__name__
        self.lr = _check(who, "lr", lr, 0.0, np.inf, "a finite number >= 0")
        self.betas = (
            _check(who, "betas[0]", betas[0], 0.0, 1.0, "in [0, 1)"),
            _check(who, "betas[1]", betas[1], 0.0, 1.0, "in [0, 1)"),
        )
        self.eps = _check(who, "eps", eps, 0.0, np.inf, "a finite number >= 0")
        self.weight_decay = _check(who, "weight_decay", weight_decay, 0.0, np.inf, "a finite number >= 0")
        self._m: Float | None = None
        self._v: Float | None = None
        self._t = 0

    def step(
        self,
        parameters: Float,
        gradients: Float,
        *,
        lr: float | None = None,
        gradient_scale: float = 1.0,
    ) -> None:
        """Update ``parameters`` in place from ``gradient_scale * gradients``, at rate ``lr`` or its own."""
        if self._m is None or self._v is None:
            self._m = _core.aligned_zeros(parameters.size, parameters.dtype.name)
            self._v = _core.aligned_zeros(parameters.size, parameters.dtype.name)
        self._t += 1
        _core.adam_step(
            parameters,
            gradients,
            self._m,
            self._v,
            step=self._t,
            lr=self.lr if lr is None else lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled=self._decoupled,
            gradient_scale=gradient_scale,
        )

    def config(self) -> dict[str, Any]:
        """Name and options, as plain JSON values."""
        return {
            "name": self.name,
            "lr": self.lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def state(self) -> dict[str, Float]:
        """Both moments and the number of steps taken."""
        if self._m is None or self._v is None:
            return {}
        return {"m": self._m, "v": self._v, "t": np.array([self._t], np.int64)}

    def load_state(self, state: Mapping[str, Float]) -> None:
        """Take over the moments and the step count of an earlier process."""
        if "t" not in state:
            self._m, self._v, self._t = None, None, 0
            return
        self._m, self._v, self._t = _restored(state["m"]), _restored(state["v"]), int(state["t"][0])


class AdamW(Adam):
    """Adam with decoupled weight decay (``p -= lr * weight_decay * p``), as ``torch.optim.AdamW``.

    Parameters are those of `Adam`; ``weight_decay`` defaults to 0.01.

    References
    ----------
    Loshchilov and Hutter, Decoupled weight decay regularization, 2019.

    Examples
    --------
    >>> import numpy as np
    >>> p, d = np.ones(4, np.float32), np.zeros(4, np.float32)
    >>> AdamW(lr=0.1, weight_decay=0.5).step(p, d)
    >>> p
    array([0.95, 0.95, 0.95, 0.95], dtype=float32)
    """

    name = "adamw"
    _decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, betas=betas, eps=eps, weight_decay=weight_decay)


OPTIMISERS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def _restored(array: Float) -> Float:
    """Copy into memory of our own, aligned as the kernels like it."""
    own = _core.aligned_zeros(array.size, array.dtype.name)
    own[:] = array
    return own
