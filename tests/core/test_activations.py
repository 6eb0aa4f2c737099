"""exp, log, sigmoid and tanh of the kernels: error in ulp over a dense sweep, special values, every lane."""

import numpy as np
import pytest
from cases import LANES, assert_same_bits
from tolerances import ACTIVATION_ABSOLUTE, assert_ulp

from fusedlstm import _core

WIDER = {"float32": np.float64, "float64": np.longdouble}
SWEEP = 100_001


def exact(name, x):
    """The function in a wider type; sigmoid in the form that keeps its relative accuracy on both sides."""
    if name == "sigmoid":
        e = np.exp(-np.abs(x))
        return np.where(x < 0, e, 1) / (1 + e)
    return getattr(np, name)(x)


def points(name, dtype):
    """A dense sweep of the range in which arguments and results are normal; every magnitude near zero."""
    finfo = np.finfo(dtype)
    rng = np.random.default_rng(3)
    lowest, highest = float(np.log(finfo.tiny)), float(np.log(finfo.max))
    magnitudes = np.exp(rng.uniform(lowest, highest, SWEEP))
    signed = magnitudes * rng.choice([-1.0, 1.0], SWEEP)
    near_one = 1 + signed[np.abs(signed) < 0.5]
    uniform = np.linspace(lowest, highest, SWEEP)
    everything = {
        "exp": np.concatenate([uniform, signed[(signed > lowest) & (signed < highest)]]),
        "log": np.concatenate([magnitudes, near_one, np.linspace(0.25, 4, SWEEP)]),
        "sigmoid": np.concatenate([uniform, np.linspace(-20, 20, SWEEP), signed[signed > lowest]]),
        "tanh": np.concatenate([np.linspace(-25, 25, SWEEP), np.linspace(-1, 1, SWEEP), signed]),
    }[name].astype(dtype)
    results = np.abs(exact(name, everything.astype(WIDER[dtype])))
    inside = (results >= finfo.tiny) & (results <= finfo.max) & (np.abs(everything) >= finfo.tiny)
    return everything[inside & np.isfinite(everything)]


@pytest.mark.parametrize("name", ["exp", "log", "sigmoid", "tanh"])
def test_ulp_over_the_whole_range(isa, dtype, name):
    assert np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant
    x = points(name, dtype)
    assert x.size > SWEEP
    actual, expected = getattr(_core, name)(x), exact(name, x.astype(WIDER[dtype]))
    assert actual.dtype == dtype
    assert_ulp(actual, expected, name)
    if name in ("sigmoid", "tanh"):
        assert np.abs(actual - expected).max() <= ACTIVATION_ABSOLUTE


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("exp", [(0.0, 1.0), (-0.0, 1.0), (np.inf, np.inf), (-np.inf, 0.0), (1e6, np.inf), (-1e6, 0.0)]),
        (
            "log",
            [
                (1.0, 0.0),
                (0.0, -np.inf),
                (-0.0, -np.inf),
                (np.inf, np.inf),
                (-1.0, np.nan),
                (-np.inf, np.nan),
            ],
        ),
        ("sigmoid", [(0.0, 0.5), (-0.0, 0.5), (np.inf, 1.0), (-np.inf, 0.0), (1e6, 1.0), (-1e6, 0.0)]),
        ("tanh", [(0.0, 0.0), (-0.0, -0.0), (np.inf, 1.0), (-np.inf, -1.0), (1e6, 1.0), (-1e6, -1.0)]),
    ],
)
def test_special_values(isa, dtype, name, at):
    x, wanted = np.array([*at, (np.nan, np.nan), (-np.nan, np.nan)], dtype=dtype).T.copy()
    got = getattr(_core, name)(x)
    np.testing.assert_array_equal(got, wanted)
    zero = wanted == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(wanted[zero]))


def test_subnormal_arguments_count_as_zero(isa, dtype):
    finfo = np.finfo(dtype)
    x = np.array(
        [finfo.smallest_subnormal, -finfo.smallest_subnormal, finfo.tiny / 2, -finfo.tiny / 2], dtype=dtype
    )
    np.testing.assert_array_equal(_core.exp(x), np.ones(4, dtype))
    np.testing.assert_array_equal(_core.sigmoid(x), np.full(4, 0.5, dtype))
    assert (np.abs(_core.tanh(x)) <= np.abs(x)).all()
    log = _core.log(x[::2].copy())
    assert ((log == -np.inf) | (np.abs(log - np.log(x[::2].astype(np.longdouble))) < 1e-4)).all()


@pytest.mark.parametrize("name", ["exp", "sigmoid"])
def test_underflow_is_zero_or_tiny(isa, dtype, name):
    """Below the smallest normal result: never negative, never NaN, never above the smallest normal number."""
    finfo = np.finfo(dtype)
    lowest = float(np.log(finfo.tiny))
    x = np.linspace(lowest * 1.3, lowest - 1e-3 * abs(lowest), 1001).astype(dtype)
    got = getattr(_core, name)(x)
    assert (got >= 0).all()
    assert (got <= finfo.tiny).all()


@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh"])
def test_bounds_and_order(isa, dtype, name):
    """sigmoid in [0, 1]; tanh in [-1, 1] and odd; a larger argument gives no smaller value by over 4 ulp."""
    x = np.sort(points(name, dtype))
    y = getattr(_core, name)(x)
    assert (np.diff(y) >= -4 * np.spacing(np.abs(y[1:]))).all()
    if name == "sigmoid":
        assert (y >= 0).all()
        assert (y <= 1).all()
    if name == "tanh":
        assert (np.abs(y) <= 1).all()
        assert_same_bits(_core.tanh(-x), -y)


@pytest.mark.parametrize("name", ["exp", "log", "sigmoid", "tanh"])
def test_every_length_and_lane(isa, dtype, name):
    """Each lane of each length gives the value it gives alone; special values do not leak to neighbours."""
    function = getattr(_core, name)
    ordinary = np.linspace(0.1, 3, 2 * LANES["float32"] + 3).astype(dtype)
    alone = np.concatenate([function(ordinary[i : i + 1]) for i in range(len(ordinary))])
    for length in range(len(ordinary) + 1):
        assert_same_bits(function(ordinary[:length]), alone[:length])
    for special in (np.nan, np.inf, -np.inf, 0.0, 1e30):
        single = function(np.array([special], dtype=dtype))
        for position in range(len(ordinary)):
            x, wanted = ordinary.copy(), alone.copy()
            x[position], wanted[position] = special, single[0]
            np.testing.assert_array_equal(function(x), wanted)


@pytest.mark.parametrize("name", ["exp", "log", "sigmoid", "tanh"])
def test_same_bits_on_every_level(dtype, name):
    finfo = np.finfo(dtype)
    rng = np.random.default_rng(5)
    anything = rng.integers(0, 256, 50_000 * finfo.bits // 8, dtype=np.uint8).view(dtype)  # any bit pattern
    x = np.concatenate([points(name, dtype), anything[np.isfinite(anything)]])
    before, results = _core.isa(), []
    for level in _core.isa_levels():
        _core.set_isa(level)
        results.append(getattr(_core, name)(x))
    _core.set_isa(before)
    assert_same_bits(*(np.where(np.isnan(y), np.nan, y) for y in results))
