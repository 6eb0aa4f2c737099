"""Affine map of the last axis."""

from typing import Any

import numpy as np

from fusedlstm import _core
from fusedlstm.nn._checks import (
    Float,
    Init,
    compute_name,
    dtype_name,
    float_array,
    integer,
    require_finite,
    seed_number,
    shaped,
    uniform_limit,
)
from fusedlstm.nn.module import Layer, Tape, lay_out


class LinearTape(Tape):
    """The input and the packed weights of one `Linear.forward`."""

    def __init__(self, layer: "Linear", packed: _core.PackedLinear, x: Float) -> None:
        super().__init__(layer)
        self.packed = packed
        self.x = x


class Linear(Layer):
    """Affine map of the last axis: ``y = x weight^T + bias``, at every step of a sequence.

    Shapes: ``x`` (..., I), ``y`` (..., O), ``weight`` (O, I), ``bias`` (O,). For ``x`` (N, T, I) this is
    Keras's ``TimeDistributed(Dense)``.

    Parameters
    ----------
    in_features, out_features : int
        I and O.
    bias : bool
        Whether there is a bias.
    dtype : str
        ``"float32"`` or ``"float64"``.
    compute_dtype : str, optional
        ``"bfloat16"``: operands of the products are rounded to it, forward and backward, with float32 sums
        and parameters. ``"int8"``: for inference, with a scale for each row of ``x`` and ``weight``. None or
        `dtype` itself: in `dtype`.
    init : str or tuple
        ``"torch"``: U(-1/sqrt(I), 1/sqrt(I)); ``("uniform", a)``: U(-a, a).
    seed : int
        Of the initial values.

    Raises
    ------
    ValueError, TypeError
        If a size, dtype, compute_dtype or init is not as described.

    Notes
    -----
    2*I*O FLOPs for each row, three times that in training. The tape keeps ``x`` itself, not a copy: do not
    write into it between forward and backward.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> layer = nn.Linear(3, 2)
    >>> y, tape = layer.forward(np.ones((4, 7, 3), np.float32))
    >>> y.shape, layer.backward(tape, np.ones_like(y)).shape
    ((4, 7, 2), (4, 7, 3))
    >>> layer.d_bias
    array([28., 28.], dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        init: Init = "torch",
        seed: int = 0,
    ) -> None:
        self.in_features = integer(in_features, "in_features", 1)
        self.out_features = integer(out_features, "out_features", 1)
        generator = np.random.default_rng(seed_number(seed))
        limit = uniform_limit(init, self.in_features**-0.5, "Linear")
        shapes: list[tuple[str, tuple[int, ...]]] = [("weight", (self.out_features, self.in_features))]
        if bias:
            shapes.append(("bias", (self.out_features,)))
        self._has_bias = bool(bias)
        self._packed: _core.PackedLinear | None = None
        self._compute_dtype = compute_name(compute_dtype, dtype_name(dtype), "Linear")
        super().__init__(dtype, lay_out(shapes))
        for view in self.named_parameters().values():
            view[...] = generator.uniform(-limit, limit, view.shape)

    @property
    def compute_dtype(self) -> str | None:
        """``"bfloat16"``, ``"int8"`` or None: what is multiplied is rounded to it first."""
        return self._compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, compute_dtype: str | None) -> None:
        self._compute_dtype = compute_name(compute_dtype, self.dtype, "Linear")
        self._packed = None

    @property
    def weight(self) -> Float:
        """View (O, I) of the weight."""
        return self._view(self._parameters, "weight")

    @property
    def bias(self) -> Float | None:
        """View (O,) of the bias, if there is one."""
        return self._view(self._parameters, "bias") if self._has_bias else None

    @property
    def d_weight(self) -> Float:
        """View (O, I) of the weight's gradient."""
        return self._view(self._gradients, "weight")

    @property
    def d_bias(self) -> Float | None:
        """View (O,) of the bias's gradient, if there is one."""
        return self._view(self._gradients, "bias") if self._has_bias else None

    @property
    def packed(self) -> _core.PackedLinear:
        """The weights laid out for the kernels; packed again if the parameters were marked as updated."""
        packed = self._packed
        if packed is None:
            packed = self._packed = _core.linear_pack(
                self.weight, self.bias, compute_dtype=self.compute_dtype
            )
        return packed

    def _drop_packed(self) -> None:
        self._packed = None

    def _input(self, x: Any) -> Float:
        array = float_array(x, self.dtype, "Linear", "x")
        if array.ndim == 0 or array.shape[-1] != self.in_features:
            raise ValueError(f"Linear: x must be (..., I={self.in_features}), got {array.shape}")
        require_finite(array, "Linear", "x")
        return array

    def __call__(self, x: Any) -> Float:
        """``y`` (..., O) for ``x`` (..., I).

        Raises
        ------
        ValueError
            If `x` has another shape or dtype, or has NaN or infinities.
        """
        array = self._input(x)
        y = _core.linear_forward(self.packed, _rows(array))
        return y.reshape(*array.shape[:-1], self.out_features)

    def forward(self, x: Any) -> tuple[Float, LinearTape]:
        """``y`` (..., O) for ``x`` (..., I), and the tape for `backward`.

        Raises what a call raises, and ValueError with int8, which has no backward.
        """
        if self.compute_dtype == "int8":
            raise ValueError("Linear.forward: compute_dtype 'int8' is for inference: it has no backward")
        array = self._input(x)
        packed = self.packed
        y = _core.linear_forward(packed, _rows(array)).reshape(*array.shape[:-1], self.out_features)
        return y, LinearTape(self, packed, array)

    def backward(self, tape: LinearTape, dy: Any, *, need_dx: bool = True) -> Float | None:
        """Add the gradients of weight and bias, and return ``dx`` (..., I), or None without `need_dx`.

        Raises
        ------
        ValueError
            If `dy` has another shape or dtype than the output.
        RuntimeError
            If the tape was already used.
        """
        tape.check(self)
        given = float_array(dy, self.dtype, "Linear.backward", "dy")
        shaped(given, (*tape.x.shape[:-1], self.out_features), "(..., O)", "Linear.backward", "dy")
        tape.take(self)
        dx = _core.linear_backward(
            tape.packed,
            _rows(tape.x),
            _rows(given),
            d_weight=self.d_weight,
            d_bias=self.d_bias,
            need_dx=need_dx,
        )
        return None if dx is None else dx.reshape(tape.x.shape)

    def _describe(self) -> str:
        return f"{self.in_features}, {self.out_features}" + ("" if self._has_bias else ", bias=False")


def _rows(x: Float) -> Float:
    """``x`` (..., C) as rows (R, C), also where R is 0 and ``reshape(-1, C)`` could not tell."""
    return x.reshape(x.size // x.shape[-1], x.shape[-1])
