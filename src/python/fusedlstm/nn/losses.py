"""Losses with their gradients.

Letters: R rows (all axes but the last), V classes, I inputs of the output layer.
"""

from typing import Any

import numpy as np

from fusedlstm import _core
from fusedlstm.nn._checks import Float, Int, describe, float_array, rate, require_finite, token_array
from fusedlstm.nn.linear import Linear


class MSELoss:
    """Mean squared error over all elements, and its gradient.

    ``loss = mean((y - target)^2)``, ``gradient = 2 (y - target) / size``.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> loss, gradient = nn.MSELoss()(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    >>> loss, gradient.tolist()
    (2.0, [0.0, 2.0])
    """

    def __call__(self, y: Any, target: Any) -> tuple[float, Float]:
        """Loss, and the gradient of ``y`` in its shape.

        Parameters
        ----------
        y, target : array_like
            Of one shape, not empty. Arrays must be of one dtype, float32 or float64.

        Raises
        ------
        ValueError
            If shapes or dtypes differ, or there are no elements.
        """
        prediction = _float_any(y, "MSELoss", "y")
        wanted = float_array(target, prediction.dtype.name, "MSELoss", "target")
        if prediction.shape != wanted.shape:
            raise ValueError(f"MSELoss: target must be {prediction.shape} like y, got {wanted.shape}")
        if not prediction.size:
            raise ValueError(f"MSELoss: y must have elements, got {prediction.shape}")
        loss, gradient = _core.mean_squared_error(prediction.reshape(-1), wanted.reshape(-1))
        assert gradient is not None  # it was asked for
        return loss, gradient.reshape(prediction.shape)


class CrossEntropyLoss:
    """Mean negative log likelihood of targets under softmax of logits, in nats, and its gradient.

    ``loss = mean(log(sum(exp(logits))) - logits[target])`` over the rows that count. With label smoothing e,
    the cross-entropy of softmax against ``(1 - e) onehot(target) + e / V``.

    Parameters
    ----------
    ignore_index : int
        Rows with this target do not count; below 0, so that it is not a class. If none counts, the loss is 0.
    label_smoothing : float
        e, in [0, 1).

    Raises
    ------
    ValueError, TypeError
        If `ignore_index` could be a class, or `label_smoothing` is out of its range.

    References
    ----------
    Szegedy et al.: Rethinking the Inception architecture for computer vision, 2016 (label smoothing).

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> loss, gradient = nn.CrossEntropyLoss()(np.zeros((2, 5, 4)), np.zeros((2, 5), int))
    >>> round(loss, 6), gradient.shape
    (1.386294, (2, 5, 4))
    """

    def __init__(self, *, ignore_index: int = -1, label_smoothing: float = 0.0) -> None:
        self.ignore_index = _ignored(ignore_index, "CrossEntropyLoss")
        self.label_smoothing = rate(label_smoothing, "label_smoothing")

    def __call__(self, y: Any, target: Any) -> tuple[float, Float]:
        """Loss in nats per row that counts, and the gradient of the logits in their shape.

        Parameters
        ----------
        y : array_like
            Logits (..., V).
        target : array_like of int
            Classes (...), 0..V-1 or `ignore_index`.

        Raises
        ------
        ValueError
            If shapes or dtypes are wrong or a target is out of range.
        TypeError
            If targets are not ints.
        """
        logits = _float_any(y, "CrossEntropyLoss", "y")
        if logits.ndim == 0 or logits.shape[-1] == 0:
            raise ValueError(f"CrossEntropyLoss: y must be (..., V) with V >= 1, got {logits.shape}")
        classes = logits.shape[-1]
        rows, counted = _targets(target, logits.shape[:-1], classes, self.ignore_index, "CrossEntropyLoss")
        total, _, gradient = _core.cross_entropy(
            logits.reshape(rows.size, classes),
            rows,
            scale=1.0 / max(counted, 1),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        assert gradient is not None  # it was asked for
        return total / max(counted, 1), gradient.reshape(logits.shape)


class LinearCrossEntropy:
    """`CrossEntropyLoss` of ``linear(x)``, in one call that never makes the array of logits.

    Parameters
    ----------
    linear : Linear
        The output layer (V, I). Its gradients are added to.
    ignore_index, label_smoothing
        As for `CrossEntropyLoss`.

    Raises
    ------
    ValueError, TypeError
        As `CrossEntropyLoss`.

    Notes
    -----
    Rows are done in chunks that stay in the cache: memory does not grow with R*V. Costs the same FLOPs as the
    two calls it replaces.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> output = nn.Linear(8, 1000)
    >>> loss, dx = nn.LinearCrossEntropy(output)(np.zeros((2, 5, 8), np.float32), np.zeros((2, 5), int))
    >>> dx.shape
    (2, 5, 8)
    """

    def __init__(self, linear: Linear, *, ignore_index: int = -1, label_smoothing: float = 0.0) -> None:
        self.linear = linear
        self.ignore_index = _ignored(ignore_index, "LinearCrossEntropy")
        self.label_smoothing = rate(label_smoothing, "label_smoothing")

    def _arguments(self, x: Any, target: Any) -> tuple[Float, Int, int]:
        array = float_array(x, self.linear.dtype, "LinearCrossEntropy", "x")
        if array.ndim == 0 or array.shape[-1] != self.linear.in_features:
            raise ValueError(
                f"LinearCrossEntropy: x must be (..., I={self.linear.in_features}), got {array.shape}"
            )
        require_finite(array, "LinearCrossEntropy", "x")
        classes = self.linear.out_features
        rows, counted = _targets(target, array.shape[:-1], classes, self.ignore_index, "LinearCrossEntropy")
        return array, rows, counted

    def loss(self, x: Any, target: Any) -> float:
        """Loss in nats per row that counts, without gradients.

        Parameters
        ----------
        x : array_like
            (..., I).
        target : array_like of int
            Classes (...), 0..V-1 or `ignore_index`.

        Raises
        ------
        ValueError, TypeError
            As `CrossEntropyLoss`.
        """
        array, rows, counted = self._arguments(x, target)
        total, _, _ = _core.linear_cross_entropy(
            self.linear.packed,
            array.reshape(rows.size, self.linear.in_features),
            rows,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        return total / max(counted, 1)

    def __call__(self, x: Any, target: Any) -> tuple[float, Float]:
        """Loss in nats per row that counts, and ``dx`` (..., I); adds the gradients of `linear`.

        Parameters
        ----------
        x, target
            As for `loss`.

        Raises
        ------
        ValueError, TypeError
            As `CrossEntropyLoss`.
        """
        array, rows, counted = self._arguments(x, target)
        total, _, dx = _core.linear_cross_entropy(
            self.linear.packed,
            array.reshape(rows.size, self.linear.in_features),
            rows,
            scale=1.0 / max(counted, 1),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            d_weight=self.linear.d_weight,
            d_bias=self.linear.d_bias,
            need_dx=True,
        )
        assert dx is not None  # it was asked for
        return total / max(counted, 1), dx.reshape(array.shape)


def _ignored(ignore_index: int, who: str) -> int:
    if (
        isinstance(ignore_index, bool)
        or not isinstance(ignore_index, int)
        or not -(2**31) <= ignore_index < 0
    ):
        raise ValueError(f"{who}: ignore_index must be a negative int32, got {ignore_index!r}")
    return ignore_index


def _float_any(value: Any, who: str, name: str) -> Float:
    """An array of either float type; lists become float32."""
    if isinstance(value, np.ndarray):
        if value.dtype.name not in ("float32", "float64"):
            raise ValueError(f"{who}: {name} must be float32 or float64, got {describe(value)}")
        return float_array(value, value.dtype.name, who, name)
    return float_array(value, "float32", who, name)


def _targets(
    target: Any, shape: tuple[int, ...], classes: int, ignore_index: int, who: str
) -> tuple[Int, int]:
    """Targets as one row of int32, and how many count."""
    ids = token_array(target, classes, who, "target", ignore_index)
    if ids.shape != shape:
        raise ValueError(f"{who}: target must be {shape}, got {ids.shape}")
    rows = ids.reshape(-1)
    return rows, int(np.count_nonzero(rows != ignore_index))
