"""One sum, one order: the same bits however the work is cut, batched, threaded, and on every instruction set.

Forward and backward, float32 and float64. What is compared is bytes, never a difference against a bound.
"""

from dataclasses import replace

import cases
import numpy as np
import pytest
from cases import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedlstm import _core

SIZES = [  # (I, H, L, D): below, at and above one block of units, and K beyond one block
    (3, 5, 1, 1),
    (16, 16, 2, 1),
    (7, 37, 2, 2),
    (131, 40, 1, 1),
]


def assert_same_results(*results):
    for arrays in zip(*(result.everything() for result in results), strict=True):
        assert_same_bits(*arrays)


def at_level(level, function, *arguments):
    before = _core.isa()
    _core.set_isa(level)
    value = function(*arguments)
    _core.set_isa(before)
    return value


def chunks(m, b, cuts):
    """Forward over pieces of T with carried state, then backward from the last piece to the first."""
    T = b.x.shape[1]
    edges = [0, *sorted(cuts), T]
    pieces, tapes, h, c = [], [], b.h0, b.c0
    for start, end in zip(edges, edges[1:], strict=False):
        x = np.ascontiguousarray(b.x[:, start:end])
        lengths = None if b.lengths is None else np.clip(b.lengths - start, 0, end - start).astype(np.int32)
        y, h, c, tape = _core.lstm_forward_tape(m.packed, x, h, c, lengths)
        pieces.append(y)
        tapes.append(tape)
    h_n, c_n, dh, dc, dx, gradients = h, c, b.dh_n, b.dc_n, [], m.zeros()
    for start, end, tape in reversed(list(zip(edges, edges[1:], tapes, strict=False))):
        dy = np.ascontiguousarray(b.dy[:, start:end])
        piece, dh, dc = _core.lstm_backward(m.packed, tape, dy, dh, dc, gradients=gradients)
        dx.insert(0, piece)
    return cases.Result(np.concatenate(pieces, 1), h_n, c_n, np.concatenate(dx, 1), dh, dc, gradients)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ragged", [False, True])
def test_every_instruction_set(dtype, size, ragged):

    def work():
        m = cases.model(*size, dtype=dtype)
        assert m.packed.isa == _core.isa()
        return cases.run(m, cases.batch(m, N=9, T=5, ragged=ragged))

    assert_same_results(*(at_level(level, work) for level in _core.isa_levels()))


@pytest.mark.parametrize(
    ("size", "N", "T"),  # enough work for threads; cut by units of one sequence or a few, or by sequences
    [((3, 250, 1, 1), 1, 10), ((131, 40, 1, 1), 9, 10), ((131, 40, 1, 1), 29, 4), ((7, 37, 2, 2), 32, 10)],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_every_thread_count(isa, dtype, threads, size, N, T, ragged):
    m = cases.model(*size, dtype=dtype)
    b = cases.batch(m, N, T, ragged=ragged)
    if ragged:
        b.lengths[0] = T
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        assert _core.num_threads() == count
        results.append(cases.run(m, b))
    assert_same_results(*results)


@pytest.mark.parametrize(
    "size",  # one pass in each step where weights are small or T is 1, else input products first
    [(16, 16, 2, 1), (5, 37, 2, 1), (131, 40, 1, 1)],
)
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("N", [1, 2])
def test_few_sequences_are_those_of_a_batch(isa, dtype, size, N, T):
    m = cases.model(*size, dtype=dtype)
    b = cases.batch(m, N=6, T=T)
    few = [np.ascontiguousarray(a) for a in (b.x[3 : 3 + N], b.h0[:, 3 : 3 + N], b.c0[:, 3 : 3 + N])]
    for h0, c0, *alone in [(b.h0, b.c0, *few), (None, None, few[0]), (None, b.c0, few[0], None, few[2])]:
        y, h_n, c_n = _core.lstm_forward(m.packed, b.x, h0, c0)
        whole = (y[3 : 3 + N], h_n[:, 3 : 3 + N], c_n[:, 3 : 3 + N])
        for got, expected in zip(_core.lstm_forward(m.packed, *alone), whole, strict=True):
            assert_same_bits(got, np.ascontiguousarray(expected))


def test_every_thread_count_of_a_cell(isa, dtype, threads):
    m = cases.model(I=7, H=150, dtype=dtype)
    b = cases.batch(m, N=20, T=1)
    x, h, c, dh, dc = b.x[:, 0].copy(), b.h0[0], b.c0[0], b.dh_n[0], b.dc_n[0]
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        forward = _core.lstm_cell_forward(m.packed, x, h, c)
        gradients = m.zeros()
        backward = _core.lstm_cell_backward(
            m.packed, x, h, c, forward[1], forward[2], dh, dc, gradients=gradients
        )
        results.append((*forward, *backward, gradients))
    for arrays in zip(*results, strict=True):
        assert_same_bits(*arrays)


@pytest.mark.parametrize("ragged", [False, True])
def test_every_thread_count_on_a_large_batch(dtype, threads, ragged):
    """Large enough for every pass over rows, not the recurrence alone, to be shared among threads."""
    m = cases.model(I=5, H=40, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=150, T=12, ragged=ragged)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(cases.run(m, b, dropout=0.2))
    assert_same_results(*results)


@pytest.mark.parametrize(
    ("dtype", "compute_dtype"),
    [("float32", None), ("float64", None), ("float32", "bfloat16"), ("float32", "int8")],
)
def test_chunks_with_and_without_barriers(threads, dtype, compute_dtype):
    """Stretches of steps with as many sequences for each thread, which then do not wait, and others."""
    training = compute_dtype != "int8"
    m = cases.model(I=5, H=40, L=2, dtype=dtype)
    m.packed = m.lstm.pack(m.flat, backward=training, compute_dtype=compute_dtype)
    b = cases.batch(m, N=128, T=60)
    b.h0 = np.tanh(b.h0)  # as int8 wants them
    b.lengths = np.repeat([60, 40, 20], [64, 33, 31]).astype(np.int32)
    results = []
    for count in (1, 2, 4):
        threads(count)
        arrays = [*_core.lstm_forward(m.packed, b.x, b.h0, b.c0, b.lengths)]
        for mode in ("full", "half", "lean") if training else ():
            *outputs, tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0, b.lengths, tape=mode)
            gradients = m.zeros()
            backward = _core.lstm_backward(m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=gradients)
            arrays += [*outputs, *backward, gradients]
        results.append(arrays)
    for arrays in zip(*results, strict=True):
        assert_same_bits(*arrays)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ragged", [False, True])
def test_every_row_alone_and_in_any_batch(isa, dtype, size, ragged):
    """A row's outputs and its own gradients do not see its batch mates; a ragged row is the row run alone."""
    m = cases.model(*size, dtype=dtype)
    b = cases.batch(m, N=31, T=4, ragged=ragged)
    whole = cases.run(m, b)
    for rows in ([0], [30], [5, 6], list(range(13)), list(range(30, -1, -1))):
        part = cases.run(m, b.rows(rows))
        for position, n in enumerate(rows):
            for mine, alone in zip(whole.row(n), part.row(position), strict=True):
                assert_same_bits(mine, alone)
    for n in range(0, 31, 7):
        length = 4 if b.lengths is None else int(b.lengths[n])
        row = replace(b.rows([n]), lengths=None)
        row.x, row.dy = row.x[:, :length].copy(), row.dy[:, :length].copy()
        alone = cases.run(m, row)
        assert_same_bits(whole.y[n, :length], alone.y[0])
        assert_same_bits(whole.dx[n, :length], alone.dx[0])
        for name in ("h_n", "c_n", "dh0", "dc0"):
            assert_same_bits(getattr(whole, name)[:, n], getattr(alone, name)[:, 0])


@pytest.mark.parametrize("size", [size for size in SIZES if size[3] == 1])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("N", [1, 5, 26])
def test_steps_are_the_sequence(isa, dtype, size, ragged, N):
    """T steps in one call = T calls of one step = any cut, forward and backward but weight gradients."""
    m = cases.model(*size, dtype=dtype)
    b = cases.batch(m, N, T=5, ragged=ragged)
    whole = cases.run(m, b)
    for cuts in ([1, 2, 3, 4], [0, 2, 5]):
        cut = chunks(m, b, cuts)
        for one, other in zip(whole.everything()[:6], cut.everything()[:6], strict=True):
            assert_same_bits(one, other)


def test_inference_is_training(isa, dtype):
    for size in SIZES:
        m = cases.model(*size, dtype=dtype)
        for ragged in (False, True):
            b = cases.batch(m, N=33, T=5, ragged=ragged)
            inference = _core.lstm_forward(m.packed, b.x, b.h0, b.c0, b.lengths)
            training = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0, b.lengths)
            for one, other in zip(inference, training[:3], strict=True):
                assert_same_bits(one, other)


def test_final_state_is_the_last_output(isa, dtype):
    m = cases.model(I=5, H=21, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=4, T=6)
    y, h_n, _ = _core.lstm_forward(m.packed, b.x, b.h0, b.c0)
    assert_same_bits(y[:, -1, :21], h_n[2])
    assert_same_bits(y[:, 0, 21:], h_n[3])


@pytest.mark.parametrize(("H", "N"), [(1, 1), (1, 9), (16, 1), (16, 30), (37, 1), (37, 9), (150, 20)])
def test_cell_is_one_step(isa, dtype, H, N):
    m = cases.model(I=7, H=H, dtype=dtype)
    b = cases.batch(m, N, T=1)
    x = b.x[:, 0].copy()
    y, h_n, c_n, tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0)
    h, c, gates = _core.lstm_cell_forward(m.packed, x, b.h0[0], b.c0[0])
    assert_same_bits(h, h_n[0], y[:, 0])
    assert_same_bits(c, c_n[0])
    assert_same_bits(gates, tape.gates(0).copy())
    gradients, cell_gradients = m.zeros(), m.zeros()
    dx, dh0, dc0 = _core.lstm_backward(m.packed, tape, None, b.dh_n, b.dc_n, gradients=gradients)
    got = _core.lstm_cell_backward(
        m.packed, x, b.h0[0], b.c0[0], c, gates, b.dh_n[0], b.dc_n[0], gradients=cell_gradients
    )
    for one, other in zip((dx[:, 0], dh0[0], dc0[0], gradients), (*got, cell_gradients), strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("I", "H", "L", "D"), SIZES)
def test_tokens_are_their_rows(isa, dtype, rng, ragged, I, H, L, D):
    m = cases.model(I, H, L, D, dtype=dtype)
    b = cases.batch(m, N=9, T=5, ragged=ragged)
    embedding = rng.standard_normal((11, I)).astype(dtype)
    ids = rng.integers(0, 11, (9, 5)).astype(np.int32)
    dense = _core.lstm_forward(m.packed, embedding[ids], b.h0, b.c0, b.lengths)
    tokens = _core.lstm_forward(m.packed, ids, b.h0, b.c0, b.lengths, embedding=embedding)
    tape = _core.lstm_forward_tape(m.packed, ids, b.h0, b.c0, b.lengths, embedding=embedding)[:3]
    for arrays in zip(dense, tokens, tape, strict=True):
        assert_same_bits(*arrays)


@pytest.mark.parametrize("level_and_threads", [(level, t) for level in _core.isa_levels() for t in (1, 2, 5)])
def test_dropout_is_keyed_by_position(dtype, threads, level_and_threads):
    """With dropout a row's bits depend on its number, t and the seed: not on threads, batch size or level."""

    def work(N):
        m = cases.model(I=3, H=18, L=3, D=2, dtype=dtype)
        b = cases.batch(m, 26, T=3)
        return cases.run(m, b.rows(list(range(N))), dropout=0.5, seed=123)

    base = at_level(_core.isa_levels()[0], work, 26)
    level, count = level_and_threads
    threads(count)
    assert_same_results(base, at_level(level, work, 26))
    part = at_level(level, work, 7)
    for n in range(7):
        for one, other in zip(base.row(n), part.row(n), strict=True):
            assert_same_bits(one, other)


def operations(dtype):
    """Everything in ops with inputs large enough to be split over threads: a list of arrays."""
    rng = np.random.default_rng(9)
    R, I, O = 1100, 67, 45

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    x, dy, weight, bias = normal(R, I), normal(R, O), normal(O, I), normal(O)
    targets = rng.integers(0, O, R).astype(np.int32)
    packed = _core.linear_pack(weight, bias)
    outputs = [_core.linear_forward(packed, x)]
    d_weight, d_bias = np.ones_like(weight), np.ones_like(bias)
    outputs += [_core.linear_backward(packed, x, dy, d_weight=d_weight, d_bias=d_bias), d_weight, d_bias]
    d_weight, d_bias = np.ones_like(weight), np.ones_like(bias)
    loss, _, dx = _core.linear_cross_entropy(
        packed, x, targets, scale=1 / R, d_weight=d_weight, d_bias=d_bias, need_dx=True
    )
    outputs += [np.array(loss), dx, d_weight, d_bias]
    loss, _, dlogits = _core.cross_entropy(outputs[0], targets)
    outputs += [np.array(loss), dlogits]
    loss, _, dlogits = _core.cross_entropy(outputs[0], targets, label_smoothing=0.1)
    outputs += [np.array(loss), dlogits]
    loss, dy2 = _core.mean_squared_error(x, normal(R, I))
    outputs += [np.array(loss), dy2]
    d_embedding = np.zeros((O, I), dtype)
    _core.embedding_backward(targets, x, d_embedding)
    outputs += [_core.embedding_forward(weight, targets), d_embedding]
    flat, gradient = normal(300_001), normal(300_001)
    outputs += [np.array(_core.gradient_norm(gradient)), _core.dropout(x, 0.3, 17, 2)]
    velocity, m, v = (np.zeros_like(flat) for _ in range(3))
    p = flat.copy()
    for _ in range(2):
        _core.sgd_step(p, gradient, velocity, lr=0.1, momentum=0.9, weight_decay=0.01)
    outputs += [p, velocity]
    p = flat.copy()
    for step in (1, 2):
        _core.adam_step(p, gradient, m, v, step=step, lr=0.1, weight_decay=0.01, gradient_scale=0.3)
    return [*outputs, p, m, v]


def test_operations_on_every_level_and_thread_count(dtype, threads):
    threads(1)
    base = at_level(_core.isa_levels()[0], operations, dtype)
    for level in _core.isa_levels():
        for count in (1, 2, 5):
            threads(count)
            for one, other in zip(base, at_level(level, operations, dtype), strict=True):
                assert_same_bits(one, other)


def test_rows_of_operations_are_independent(isa, dtype, rng):
    x, weight = rng.standard_normal((67, 33)).astype(dtype), rng.standard_normal((50, 33)).astype(dtype)
    packed = _core.linear_pack(weight, rng.standard_normal(50).astype(dtype))
    targets = rng.integers(0, 50, 67).astype(np.int32)
    y = _core.linear_forward(packed, x)
    dlogits = _core.cross_entropy(y, targets)[2]
    dx = _core.linear_cross_entropy(packed, x, targets, need_dx=True)[2]
    back = _core.linear_backward(packed, x, y)
    for start, end in ((0, 1), (3, 10), (20, 67)):
        rows = slice(start, end)
        assert_same_bits(y[rows], _core.linear_forward(packed, x[rows]))
        assert_same_bits(dlogits[rows], _core.cross_entropy(y[rows], targets[rows])[2])
        assert_same_bits(
            dx[rows], _core.linear_cross_entropy(packed, x[rows], targets[rows], need_dx=True)[2]
        )
        assert_same_bits(back[rows], _core.linear_backward(packed, x[rows], y[rows]))


# properties
shapes = st.fixed_dictionaries(
    {
        "I": st.integers(1, 9),
        "H": st.integers(1, 20),
        "L": st.integers(1, 2),
        "dtype": st.sampled_from(["float32", "float64"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(1, 9), st.data())
def test_property_splitting_time(shape, T, data):
    m = cases.model(**shape)
    b = cases.batch(m, N=3, T=T, ragged=data.draw(st.booleans()))
    cuts = data.draw(st.lists(st.integers(0, T), max_size=4))
    for one, other in zip(cases.run(m, b).everything()[:6], chunks(m, b, cuts).everything()[:6], strict=True):
        assert_same_bits(one, other)


@settings(max_examples=25, deadline=None)
@given(shapes, st.sampled_from([1, 2]), st.integers(1, 12), st.data())
def test_property_permuting_the_batch(shape, D, N, data):
    m = cases.model(**shape, D=D)
    b = cases.batch(m, N, T=4, ragged=data.draw(st.booleans()))
    order = data.draw(st.permutations(range(N)))
    whole, permuted = cases.run(m, b), cases.run(m, b.rows(list(order)))
    for position, n in enumerate(order):
        for one, other in zip(whole.row(n), permuted.row(position), strict=True):
            assert_same_bits(one, other)


@settings(max_examples=25, deadline=None)
@given(shapes, st.sampled_from([1, 2]), st.integers(0, 6), st.integers(0, 5))
def test_property_padding(shape, D, T, extra):
    """More padding changes nothing, whatever lies in it."""
    m = cases.model(**shape, D=D)
    b = cases.batch(m, N=4, T=T, ragged=True)
    x = np.concatenate([b.x, np.full((4, extra, shape["I"]), np.nan, b.x.dtype)], axis=1)
    dy = np.concatenate([b.dy, np.full((4, extra, b.dy.shape[2]), np.nan, b.x.dtype)], axis=1)
    short, long = cases.run(m, b), cases.run(m, replace(b, x=x, dy=dy))
    assert not long.y[:, T:].any()
    assert not long.dx[:, T:].any()
    long.y, long.dx = long.y[:, :T], long.dx[:, :T]
    assert_same_results(short, long)
