"""What a training forward keeps: full, half and lean tapes."""

import cases
import numpy as np
import pytest

from fusedlstm import _core

# All ragged, with more rows than the largest chunk has: 768, or 16 steps of the whole batch.
SIZES = [
    {"I": 3, "H": 5, "L": 1, "D": 1, "N": 3, "T": 900},
    {"I": 4, "H": 9, "L": 2, "D": 1, "N": 33, "T": 60},
    {"I": 2, "H": 17, "L": 2, "D": 2, "N": 34, "T": 54},
]


def train(m, b, tape, *, dropout=0.0, embedding=None):
    y, h_n, c_n, kept = _core.lstm_forward_tape(
        m.packed, b.x, b.h0, b.c0, b.lengths, dropout=dropout, seed=7, embedding=embedding, tape=tape
    )
    gradients = m.zeros()
    d_embedding = None if embedding is None else np.zeros_like(embedding)
    dx, dh0, dc0 = _core.lstm_backward(
        m.packed, kept, b.dy, b.dh_n, b.dc_n, gradients=gradients, d_embedding=d_embedding
    )
    results = {"y": y, "h_n": h_n, "c_n": c_n, "dx": dx, "dh0": dh0, "dc0": dc0, "parameters": gradients}
    return {
        name: value for name, value in {**results, "d_embedding": d_embedding}.items() if value is not None
    }


def inputs(size, dtype, tokens):
    m = cases.model(size["I"], size["H"], size["L"], size["D"], dtype=dtype)
    b = cases.batch(m, size["N"], size["T"], ragged=True)
    assert b.lengths.sum() > max(768, 16 * size["N"])
    if not tokens:
        return m, b, None
    random = np.random.default_rng(3)
    b.x = random.integers(0, 11, (size["N"], size["T"])).astype(np.int32)
    return m, b, random.standard_normal((11, size["I"])).astype(dtype)


@pytest.mark.parametrize(("tokens", "dropout"), [(False, 0.3), (True, 0.0)])
@pytest.mark.parametrize("size", SIZES)
def test_lean_has_the_bits_of_full(isa, dtype, size, tokens, dropout, threads):
    m, b, embedding = inputs(size, dtype, tokens)
    full = train(m, b, "full", dropout=dropout, embedding=embedding)
    for count in (1, 2):
        threads(count)
        lean = train(m, b, "lean", dropout=dropout, embedding=embedding)
        for name, value in full.items():
            cases.assert_same_bits(value, lean[name])


@pytest.mark.parametrize(("size", "dropout"), [(SIZES[0], 0.0), (SIZES[2], 0.3)])
def test_half_is_near_full_and_the_same_everywhere(isa, dtype, size, dropout, threads):
    m, b, _ = inputs(size, dtype, False)
    full = train(m, b, "full", dropout=dropout)
    half = train(m, b, "half", dropout=dropout)
    for name, value in full.items():
        if name in ("y", "h_n", "c_n"):
            cases.assert_same_bits(value, half[name])
        else:
            assert np.linalg.norm(value - half[name]) < 1e-4 * np.linalg.norm(value), name
            assert not np.array_equal(value, half[name]), name
    _core.set_isa("generic" if "generic" in _core.isa_levels() else isa)
    threads(2)
    other = train(m.repack(), b, "half", dropout=dropout)
    for name, value in half.items():
        cases.assert_same_bits(value, other[name])


def test_half_over_a_thousand_steps():
    """Errors of the gates do not build up: each step's derivative takes its own, and forward none."""
    m = cases.model(I=8, H=64)
    b = cases.batch(m, N=4, T=1000)
    full, half = train(m, b, "full"), train(m, b, "half")
    for name in ("dx", "dh0", "dc0", "parameters"):
        assert np.linalg.norm(full[name] - half[name]) < 1e-4 * np.linalg.norm(full[name]), name


@pytest.mark.parametrize("tape", ["half", "lean"])
def test_nan_reaches_the_gradients(isa, tape):
    m, b, _ = inputs(SIZES[1], "float32", False)
    b.lengths = None
    b.x[1, 2, 0] = np.nan
    results = train(m, b, tape)
    assert np.isnan(results["parameters"]).any()
    assert np.isnan(results["dx"][1]).any()
    assert not np.isnan(results["dx"][0]).any()


def test_bytes_and_views():
    m = cases.model(I=4, H=256)
    x = np.zeros((8, 256, 4), np.float32)
    held = {mode: _core.lstm_forward_tape(m.packed, x, tape=mode)[3] for mode in ("full", "half", "lean")}
    each = {mode: (tape.nbytes - x.nbytes) / (8 * 256 * 256) for mode, tape in held.items()}
    assert 24 <= each["full"] < 25.5  # row pitches are padded
    assert 16 <= each["half"] < 17.5
    assert 4 <= each["lean"] < 4.6
    assert held["half"].h(0).shape == held["lean"].h(0).shape == (8 * 256, 256)
    for mode in ("half", "lean"):
        with pytest.raises(RuntimeError, match="full tape only"):
            held[mode].gates(0)
        with pytest.raises(RuntimeError, match="full tape only"):
            held[mode].c(0)
