"""Every bound of the numeric suite, with its reason; none looser than ten times the largest error observed.

`pytest --errors` prints the largest error seen beside each bound.
"""

from __future__ import annotations

import numpy as np

# name: (float32 bound, float64 bound, reason)
# An error is max |actual - expected| / max(1, max |expected|) unless the reason says otherwise.
BOUNDS: dict[str, tuple[float, float, str]] = {
    "lstm forward": (
        2e-6,
        5e-15,
        "rounding of sums of at most 300 terms, and 4 ulp per activation, over a few steps",
    ),
    "lstm backward": (5e-6, 1e-14, "as forward, and every derivative is a product of rounded gates"),
    "bfloat16 forward": (2e-2, 0.0, "operands keep 8 bits, 2^-9 each; 12 steps, two layers"),
    "bfloat16 backward": (4e-2, 0.0, "as forward, and dA is rounded at every step"),
    "int8 forward": (5e-2, 0.0, "weights and inputs in 127 steps of their largest; 12 steps, two layers"),
    "torch forward": (1e-6, 3e-15, "both sides round"),
    "torch backward": (5e-6, 8e-15, "both sides round"),
    "attention forward": (4e-6, 5e-15, "as lstm forward, with sums over source positions"),
    "attention backward": (5e-6, 1.5e-14, "as lstm backward, through scores that are differences of sums"),
    "one-to-many forward": (2e-6, 5e-15, "as lstm forward, and outputs are fed back over some steps"),
    "one-to-many backward": (1e-6, 2e-15, "as lstm backward, and through the feedback"),
    "golden": (0.0, 3e-15, "float64 PyTorch against the float64 specification: summation order only"),
    "finite differences": (0.0, 1.5e-9, "step 1e-5: truncation about 1e-10, cancellation eps / step = 2e-11"),
    "linear": (2e-6, 5e-15, "rounding of sums of at most 300 terms"),
    "cross entropy": (2e-6, 5e-15, "exp and log to 2 ulp, a sum over V"),
    "mean squared error": (3e-7, 1e-15, "a sum of squares"),
    "gradient norm": (3e-7, 1e-15, "a sum of squares"),
    "optimiser": (1e-6, 1e-15, "a few rounded operations per step, ten steps"),
    "dropout": (5e-7, 1e-15, "the rate is rounded to float32 before 1 / (1 - rate), at rates up to 0.9"),
    "log probabilities": (1e-6, 3e-15, "logits rounded at |logit| < 10, then exp, log and a sum over V"),
    "beam score": (1e-6, 3e-15, "a sum of log probabilities, rounded once"),
    "beam score of transformers": (0.0, 1e-6, "float32 sums on their side, float64 in the specification"),
}

# Largest error in units in the last place, float32 and float64 (the contract in kernels/vecmath.h).
ULP: dict[str, tuple[float, float]] = {
    "exp": (2.0, 2.0),
    "log": (2.0, 2.0),
    "sigmoid": (4.0, 4.0),
    "tanh": (4.0, 4.0),
}
ACTIVATION_ABSOLUTE = 2.5e-7  # sigmoid and tanh in float32, whole range

OBSERVED: dict[tuple[str, str], float] = {}  # (name, dtype): largest error seen in this run


def record(name: str, dtype, error: float) -> None:
    key = (name, np.dtype(dtype).name)
    OBSERVED[key] = max(OBSERVED.get(key, 0.0), float(error))


def assert_close(actual, expected, name: str, dtype=None) -> None:
    """Shapes are equal and the error is within the bound `name` for the dtype (default: that of `actual`)."""
    actual, expected = np.asarray(actual), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    dtype = np.dtype(actual.dtype if dtype is None else dtype)
    if not expected.size:
        return
    error = np.abs(actual - expected).max() / max(1.0, np.abs(expected).max())
    record(name, dtype, error)
    bound = BOUNDS[name][0 if dtype == np.float32 else 1]
    assert error <= bound, f"{name} ({dtype}): error {error:.3g} > {bound:.3g}"


def assert_ulp(actual, expected, name: str) -> None:
    """`actual` is within ULP[name] units in the last place of `expected` (a wider type); both finite."""
    error = float(ulp_error(actual, expected).max())
    record(name + " ulp", actual.dtype, error)
    bound = ULP[name][0 if actual.dtype == np.float32 else 1]
    worst = int(np.argmax(ulp_error(actual, expected)))
    assert error <= bound, (
        f"{name}: {error:.2f} ulp > {bound}: got {actual[worst]!r}, wanted {expected[worst]!r}"
    )


def ulp_error(actual, expected):
    """|actual - expected| in units in the last place of expected, not below those of the smallest normal."""
    finfo = np.finfo(actual.dtype)
    magnitude = np.maximum(np.abs(expected), expected.dtype.type(finfo.tiny))
    exponent = np.floor(np.log2(magnitude)).astype(np.int64)
    exponent -= magnitude < np.exp2(exponent.astype(expected.dtype))  # log2 may round up to the next power
    return np.abs(actual.astype(expected.dtype) - expected) / np.exp2(
        (exponent - finfo.nmant).astype(expected.dtype)
    )
