"""compute_dtype="int8": the NumPy specification in integers and float32, equal bit for bit on every level."""

import cases
import numpy as np
import pytest
from cases import assert_same_bits
from tolerances import assert_close

from fusedlstm import _core

F = np.float32
STEPS = F(127)
SIZES = [(3, 5, 1, 1), (16, 16, 2, 1), (7, 37, 2, 2), (131, 40, 1, 1), (33, 70, 2, 1)]


def packed(m):
    return m.lstm.pack(m.flat, backward=False, compute_dtype="int8")


def run(m, b):
    return _core.lstm_forward(packed(m), b.x, b.h0, b.c0, b.lengths)


def batch(m, N, T, ragged=False):
    b = cases.batch(m, N, T, ragged)
    b.h0 = np.tanh(b.h0)
    return b


def quantise(x, scale):
    """Integers x / scale, nearest even."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, F(1) / scale, F(0)).astype(F)
    return np.clip(np.rint(x * inverse), -127, 127).astype(np.int64)


def row_scales(x):
    return (np.abs(x).max(axis=-1, keepdims=True) / STEPS).astype(F)


def fma(a, b, c):
    return (a.astype(float) * b + c).astype(F)


def of_kernels(function, x):
    return function(np.ascontiguousarray(x).reshape(-1)).reshape(x.shape)


def specification(m, b):
    """y (N, T, H) and the last c of one direction."""
    weights, L, H = m.views(m.flat), m.lstm.num_layers, m.lstm.hidden_size
    x, c_n = b.x, []
    for k in range(L):
        W, R = weights[f"weight_ih_l{k}"], weights[f"weight_hh_l{k}"]
        bias = weights[f"bias_ih_l{k}"] + weights[f"bias_hh_l{k}"]
        s_w, s_r = row_scales(W), row_scales(R)
        w8, r8, unit = quantise(W, s_w), quantise(R, s_r), F(1) / STEPS
        h, c, y = b.h0[k], b.c0[k], []
        for t in range(x.shape[1]):
            if k == 0:
                s_x = row_scales(x[:, t])
                a = (quantise(x[:, t], s_x) @ w8.T).astype(F) * s_x * s_w.T + bias
            else:
                a = (quantise(x[:, t], unit) @ w8.T).astype(F) * (s_w.T * unit) + bias
            a = a + (quantise(h, unit) @ r8.T).astype(F) * (s_r.T * unit)
            i, f, g, o = np.moveaxis(a.reshape(-1, 4, H), 1, 0)
            i, f, o = (of_kernels(_core.sigmoid, gate) for gate in (i, f, o))
            c = fma(f, c, i * of_kernels(_core.tanh, g))
            h = o * of_kernels(_core.tanh, c)
            y.append(h)
        x = np.stack(y, 1)
        c_n.append(c)
    return x, np.stack(c_n)


@pytest.mark.parametrize("size", [size for size in SIZES if size[3] == 1])
def test_exactly_the_specification(isa, size):
    m = cases.model(*size)
    b = batch(m, N=9, T=7)
    b.x[2, 3] = 0  # a row without a scale
    y, _, c_n = run(m, b)
    expected_y, expected_c = specification(m, b)
    assert_same_bits(y, expected_y)
    assert_same_bits(c_n, expected_c)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ragged", [False, True])
def test_one_result(threads, size, ragged):
    """The same bits on every level, for any number of threads, alone and in a batch."""
    m = cases.model(*size)
    b = batch(m, N=37, T=4, ragged=ragged)
    before, whole = _core.isa(), run(m, b)
    for level in _core.isa_levels():
        _core.set_isa(level)
        for count in (1, 2, 3):
            threads(count)
            for one, other in zip(whole, run(m, b), strict=True):
                assert_same_bits(one, other)
        for rows in ([0], [5, 6], list(range(17))):
            part = run(m, b.rows(rows))
            assert_same_bits(part[0], whole[0][rows])
            assert_same_bits(part[2], np.ascontiguousarray(whole[2][:, rows]))
    _core.set_isa(before)


@pytest.mark.parametrize(("H", "N"), [(250, 1), (250, 3), (64, 40)])
def test_threads_share_a_layer(isa, threads, H, N):
    m = cases.model(20, H, L=2)
    b = batch(m, N, T=20)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(m, b))
    for arrays in zip(*results, strict=True):
        assert_same_bits(*arrays)


def test_tokens_are_their_rows(isa, rng):
    m = cases.model(16, 24, L=2)
    b = batch(m, N=9, T=5)
    embedding = rng.standard_normal((11, 16)).astype(F)
    ids = rng.integers(0, 11, (9, 5)).astype(np.int32)
    weights = packed(m)
    dense = _core.lstm_forward(weights, embedding[ids], b.h0, b.c0)
    for one, other in zip(
        dense, _core.lstm_forward(weights, ids, b.h0, b.c0, embedding=embedding), strict=True
    ):
        assert_same_bits(one, other)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ragged", [False, True])
def test_error_against_float32(size, ragged):
    m = cases.model(*size)
    b = batch(m, N=9, T=12, ragged=ragged)
    for got, wanted in zip(run(m, b), _core.lstm_forward(m.packed, b.x, b.h0, b.c0, b.lengths), strict=True):
        assert_close(got, wanted, "int8 forward")


def test_not_a_number(isa):
    """NaN and infinity in x spoil their own sequence, from their step on; in a weight, their unit."""
    m = cases.model(5, 6)
    b = batch(m, N=3, T=4)
    clean = run(m, b)[0]
    for bad in (np.nan, np.inf):
        b.x[1, 2, 3] = bad
        y = run(m, b)[0]
        assert_same_bits(y[[0, 2]], clean[[0, 2]])
        assert_same_bits(y[1, :2], clean[1, :2])
        assert np.isnan(y[1, 2]).all()
    b = batch(m, N=3, T=4)
    m.views(m.flat)["weight_ih_l0"][4, 2] = np.nan
    y = run(m, b)[0]
    assert np.isnan(y[:, :, 4]).all()
    assert np.isfinite(np.delete(y, 4, 2)).all()


def test_packing_quarters_the_weights():
    m = cases.model(128, 128)
    assert packed(m).compute_dtype == "int8"
    assert packed(m).nbytes < 0.3 * m.lstm.pack(m.flat, backward=False).nbytes


def test_errors():
    m = cases.model(3, 5)
    x = np.zeros((2, 4, 3), F)
    with pytest.raises(ValueError, match="'int8' is for inference: backward must be False"):
        m.lstm.pack(m.flat, compute_dtype="int8")
    with pytest.raises(ValueError, match="packed must be for training, got int8 weights"):
        _core.lstm_forward_tape(packed(m), x)
    h0 = np.zeros((1, 2, 5), F)
    for bad in (1.5, np.nan):
        h0[0, 1, 2] = bad
        with pytest.raises(
            ValueError, match=r"h0 must lie in \[-1, 1\] with int8 weights, got .* position 7"
        ):
            _core.lstm_forward(packed(m), x, h0)
    wide = _core.LSTM(65537, 1)
    with pytest.raises(ValueError, match="adds up to 65536 products, got inputs of 65537"):
        wide.pack(np.zeros(wide.num_parameters, F), backward=False, compute_dtype="int8")
    double = cases.model(3, 5, dtype="float64")
    with pytest.raises(ValueError, match="must be 'float64' for float64 weights, got 'int8'"):
        double.lstm.pack(double.flat, backward=False, compute_dtype="int8")
