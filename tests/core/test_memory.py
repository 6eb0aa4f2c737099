"""Misaligned starts, odd and zero sizes, and who keeps what alive."""

import gc

import cases
import numpy as np
import pytest

from fusedlstm import _core


def misaligned(array, offset=1):
    """The same values in memory that starts `offset` elements after an allocation."""
    room = np.empty(array.size + offset, array.dtype)
    room[offset:] = array.ravel()
    return room[offset:].reshape(array.shape)


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("H", [1, 7, 16, 35])
def test_lstm_at_misaligned_starts(isa, dtype, H, offset):
    m = cases.model(I=3, H=H, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=5, T=3, ragged=True)
    wanted = cases.run(m, b)
    moved = cases.Batch(**{name: misaligned(array, offset) for name, array in vars(b).items()})
    m = cases.Model(m.lstm, misaligned(m.flat, offset), m.lstm.pack(misaligned(m.flat, offset)))
    y, h_n, c_n, tape = _core.lstm_forward_tape(m.packed, moved.x, moved.h0, moved.c0, moved.lengths)
    gradients = misaligned(m.zeros(), offset)
    dx, dh0, dc0 = _core.lstm_backward(m.packed, tape, moved.dy, moved.dh_n, moved.dc_n, gradients=gradients)
    got = cases.Result(y, h_n, c_n, dx, dh0, dc0, gradients)
    for one, other in zip(wanted.everything(), got.everything(), strict=True):
        cases.assert_same_bits(one, other)


def test_cell_and_operations_at_misaligned_starts(isa, dtype, rng):
    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    m = cases.model(I=3, H=7, dtype=dtype)
    x, h, c, dh = normal(5, 3), normal(5, 7), normal(5, 7), normal(5, 7)
    forward = _core.lstm_cell_forward(m.packed, x, h, c)
    backward = _core.lstm_cell_backward(m.packed, x, h, c, forward[1], forward[2], dh)
    moved = [misaligned(array) for array in (x, h, c)]
    for one, other in zip(forward, _core.lstm_cell_forward(m.packed, *moved), strict=True):
        cases.assert_same_bits(one, other)
    moved += [misaligned(array) for array in (forward[1], forward[2], dh)]
    for one, other in zip(backward, _core.lstm_cell_backward(m.packed, *moved), strict=True):
        cases.assert_same_bits(one, other)

    weight, bias, x, y = normal(17, 9), normal(17), normal(6, 9), normal(6, 17)
    targets = rng.integers(0, 17, 6).astype(np.int32)

    def operations(place):
        packed = _core.linear_pack(place(weight), place(bias))
        d_weight, d_bias, d_embedding = (place(np.zeros_like(a)) for a in (weight, bias, weight))
        p, v, s = place(weight.ravel()), place(np.zeros(153, dtype)), place(np.zeros(153, dtype))
        outputs = [_core.linear_forward(packed, place(x))]
        outputs += [_core.linear_backward(packed, place(x), place(y), d_weight=d_weight, d_bias=d_bias)]
        outputs += [
            _core.linear_cross_entropy(packed, place(x), place(targets), d_weight=d_weight, need_dx=True)[2]
        ]
        outputs += [
            _core.cross_entropy(place(y), place(targets))[2],
            _core.mean_squared_error(place(y), place(y))[1],
        ]
        outputs += [_core.embedding_forward(place(weight), place(targets)), _core.dropout(place(y), 0.5, 1)]
        _core.embedding_backward(place(targets), place(x), d_embedding)
        _core.sgd_step(p, place(weight.ravel()), v, lr=0.1, momentum=0.9)
        _core.adam_step(p, place(weight.ravel()), v, s, step=1, lr=0.1)
        outputs += [np.array(_core.gradient_norm(place(weight.ravel())))]
        outputs += [getattr(_core, name)(place(np.abs(bias))) for name in ("exp", "log", "sigmoid", "tanh")]
        return [*outputs, d_weight, d_bias, d_embedding, p, v, s]

    for one, other in zip(operations(np.copy), operations(misaligned), strict=True):
        cases.assert_same_bits(one, other)


def test_zero_sizes(isa, dtype):
    """No sequences, no steps, no rows: shapes are right and gradients stay as they were."""
    m = cases.model(I=3, H=5, L=2, D=2, dtype=dtype)
    for N, T in ((0, 4), (3, 0), (0, 0)):
        got = cases.run(m, cases.batch(m, N, T))
        assert got.y.shape == (N, T, 10)
        assert got.h_n.shape == got.dh0.shape == (4, N, 5)
        assert got.dx.shape == (N, T, 3)
        assert not got.gradients.any()
    for name in ("exp", "log", "sigmoid", "tanh"):
        assert getattr(_core, name)(np.zeros(0, dtype)).shape == (0,)
    nothing = np.zeros((0, 4), dtype)
    assert _core.dropout(nothing, 0.5, 1).shape == (0, 4)
    assert _core.gradient_norm(nothing[:, 0].copy()) == 0
    assert _core.cross_entropy(nothing, np.zeros(0, np.int32))[:2] == (0.0, 0)
    assert _core.embedding_forward(np.ones((3, 4), dtype), np.zeros(0, np.int32)).shape == (0, 4)
    cell = cases.model(I=3, H=5, dtype=dtype)
    h, c, gates = _core.lstm_cell_forward(cell.packed, *(np.zeros((0, n), dtype) for n in (3, 5, 5)))
    assert (h.shape, c.shape, gates.shape) == ((0, 5), (0, 5), (0, 4, 5))


def test_lengths_all_zero(isa, dtype):
    m = cases.model(I=3, H=5, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=3, T=4)
    b.lengths = np.zeros(3, np.int32)
    got = cases.run(m, b)
    assert not got.y.any()
    assert not got.dx.any()
    assert not got.gradients.any()
    cases.assert_same_bits(got.h_n, b.h0)
    cases.assert_same_bits(got.dc0, b.dc_n)


def test_views_outlive_their_tape(isa, dtype):
    """Views keep the memory of a deleted tape: what they show does not change afterwards."""
    m = cases.model(I=3, H=20, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=8, T=9)
    *_, tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0)
    views = [tape.gates(1, 1), tape.c(0, 1), tape.h(1), *tape.row_of]
    before = [view.copy() for view in views]
    assert not any(view.flags.owndata for view in views[:3])
    del tape
    gc.collect()
    for _ in range(5):
        _core.lstm_forward_tape(m.packed, -b.x, b.h0, b.c0)
    for view, copy in zip(views, before, strict=True):
        cases.assert_same_bits(view, copy)


def test_tape_outlives_its_inputs(isa, dtype):
    """Backward gives the same whether or not the packed weights, x and the states were let go in between."""
    m = cases.model(I=3, H=20, L=2, dtype=dtype)
    b = cases.batch(m, N=8, T=9, ragged=True)
    wanted = cases.run(m, b)

    def forward():
        inner = cases.batch(m, N=8, T=9, ragged=True)
        return _core.lstm_forward_tape(m.repack().packed, inner.x, inner.h0, inner.c0, inner.lengths)[3]

    tape = forward()
    gc.collect()
    filler = [np.full((8, 9, 3), np.nan, dtype) for _ in range(50)]
    gradients = m.zeros()
    got = _core.lstm_backward(m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=gradients)
    assert len(filler) == 50
    for one, other in zip(
        (wanted.dx, wanted.dh0, wanted.dc0, wanted.gradients), (*got, gradients), strict=True
    ):
        cases.assert_same_bits(one, other)


def test_inputs_are_not_written(isa, dtype):
    m = cases.model(I=3, H=5, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=4, T=3, ragged=True)
    copies = {name: array.copy() for name, array in vars(b).items()}
    flat = m.flat.copy()
    for array in vars(b).values():
        array.flags.writeable = False
    m.flat.flags.writeable = False
    cases.run(m.repack(), b, dropout=0.5)
    for name, array in vars(b).items():
        cases.assert_same_bits(array, copies[name])
    cases.assert_same_bits(m.flat, flat)


@pytest.mark.parametrize("size", [0, 1, 17, 100_000])
def test_all_finite(dtype, size):
    largest = np.finfo(dtype).max
    x = np.resize(np.array([largest, -largest, -0.0, np.finfo(dtype).smallest_subnormal], dtype), size + 1)[
        1:
    ]
    assert _core.all_finite(x)
    for place in {0, size // 2, size - 1} if size else ():
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            kept, x[place] = x[place], bad
            assert not _core.all_finite(x)
            x[place] = kept
    assert _core.all_finite(x.reshape(1, -1, 1))


@pytest.mark.parametrize("size", [0, 1, 17, 100_000])
def test_aligned_zeros(dtype, size):
    array = _core.aligned_zeros(size, dtype)
    assert array.shape == (size,)
    assert array.dtype == dtype
    assert not array.any()
    assert size == 0 or array.ctypes.data % 64 == 0
    assert array.flags.writeable
    view = array[size // 2 :]
    del array
    gc.collect()
    view[:] = 1
    assert (view == 1).all()


def test_memory_is_given_back():
    """Many training steps do not grow the process by more than one tape."""
    import resource

    m = cases.model(I=8, H=32)
    b = cases.batch(m, N=16, T=100)
    for _ in range(3):
        cases.run(m, b)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(50):
        cases.run(m, b)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 25e6  # one tape is 1.4 MB
