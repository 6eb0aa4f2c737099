"""Random zeros in training, nothing in inference."""

from typing import Any

from fusedlstm import _core
from fusedlstm.nn._checks import Float, float_array, seed_number, shaped
from fusedlstm.nn._checks import rate as checked_rate
from fusedlstm.nn.module import Layer, Tape


class DropoutTape(Tape):
    """Seed and shape from which `Dropout.backward` draws the same mask again."""

    def __init__(self, layer: "Dropout", shape: tuple[int, ...], seed: int) -> None:
        super().__init__(layer)
        self.shape = shape
        self.seed = seed


class Dropout(Layer):
    """Zero with probability ``rate`` for each element in `forward`; the others are scaled to keep the mean.

    ``y = x * mask / (1 - rate)`` in training, ``y = x`` in a call.

    Parameters
    ----------
    rate : float
        Probability of zero, in [0, 1).
    dtype : str
        ``"float32"`` or ``"float64"``.

    Raises
    ------
    ValueError
        If `rate` or `dtype` is out of range.

    Notes
    -----
    The mask is a function of the seed and of the place of the element, so it does not depend on threads, and
    `backward` draws it again instead of keeping it.

    References
    ----------
    Srivastava et al.: Dropout, 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> layer = nn.Dropout(0.5)
    >>> y, tape = layer.forward(np.ones((100, 10), np.float32), seed=1)
    >>> sorted(set(y.ravel().tolist()))
    [0.0, 2.0]
    """

    def __init__(self, rate: float, *, dtype: str = "float32") -> None:
        self.rate = checked_rate(rate, "rate")
        super().__init__(dtype)

    @property
    def takes_seed(self) -> bool:
        """Whether `forward` needs ``seed=``: with a rate above 0."""
        return self.rate > 0.0

    def __call__(self, x: Any) -> Float:
        """``x`` itself, as an array."""
        return float_array(x, self.dtype, "Dropout", "x")

    def forward(self, x: Any, *, seed: int | None = None) -> tuple[Float, DropoutTape]:
        """``x`` (..., C) with some elements zero, and the tape for `backward`.

        Parameters
        ----------
        x : array_like
            At least 1-D.
        seed : int, optional
            Of the mask, needed for a rate above 0. Give every step its own.

        Raises
        ------
        ValueError
            If `x` has another dtype or no axis, or the seed is missing.
        """
        if self.takes_seed and seed is None:
            raise ValueError(f"Dropout.forward: rate {self.rate} needs seed=, another one at every step")
        array = float_array(x, self.dtype, "Dropout", "x")
        if array.ndim == 0:
            raise ValueError("Dropout: x must be (..., C), got a scalar")
        tape = DropoutTape(self, array.shape, 0 if seed is None else seed_number(seed))
        return self._mask(array, tape.seed), tape

    def backward(self, tape: DropoutTape, dy: Any, *, need_dx: bool = True) -> Float | None:
        """Gradient of the input: ``dy`` under the same mask, or None without `need_dx`.

        Raises
        ------
        ValueError
            If `dy` has another shape or dtype than the output.
        RuntimeError
            If the tape was already used.
        """
        tape.check(self)
        given = float_array(dy, self.dtype, "Dropout.backward", "dy")
        shaped(given, tape.shape, "(..., C)", "Dropout.backward", "dy")
        tape.take(self)
        return self._mask(given, tape.seed) if need_dx else None

    def _mask(self, array: Float, seed: int) -> Float:
        if not self.takes_seed or not array.size:
            return array
        rows = array.reshape(-1, array.shape[-1])
        return _core.dropout(rows, self.rate, seed).reshape(array.shape)

    def _describe(self) -> str:
        return f"{self.rate}"
