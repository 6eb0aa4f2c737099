"""The kernels against the specification and against torch.nn.LSTM: outputs and every gradient."""

import cases
import numpy as np
import pytest
import reference
import torch
from cases import LANES
from tolerances import assert_close
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusedlstm import _core


def assert_equals_specification(m, b, dropout=0.0, seed=0):
    N, T, _ = b.x.shape
    masks = None
    if dropout:
        masks = [mask / (1 - dropout) for mask in cases.dropout_masks(m, N, T, dropout, seed, b.lengths)]
    wanted = reference.lstm_forward(m.exact, b.x, b.h0, b.c0, b.lengths, masks)
    got = cases.run(m, b, dropout, seed)
    for actual, expected in zip((got.y, got.h_n, got.c_n), wanted[:3], strict=True):
        assert_close(actual, expected, "lstm forward")
    if not dropout:
        for actual, expected in zip(
            _core.lstm_forward(m.packed, b.x, b.h0, b.c0, b.lengths), wanted[:3], strict=True
        ):
            assert_close(actual, expected, "lstm forward")
    dx, dh0, dc0, gradients = reference.lstm_backward(wanted[3], b.dy, b.dh_n, b.dc_n)
    for actual, expected in zip((got.dx, got.dh0, got.dc0), (dx, dh0, dc0), strict=True):
        assert_close(actual, expected, "lstm backward")
    for name, actual in m.views(got.gradients).items():
        assert_close(actual, gradients[name], "lstm backward")


@pytest.mark.parametrize("H", range(1, 2 * LANES["float32"] + 4))
def test_every_hidden_size(isa, dtype, H):
    N, T = (1, 4) if H % 2 else (5, 3)
    m = cases.model(I=3, H=H, dtype=dtype)
    assert_equals_specification(m, cases.batch(m, N, T))


@pytest.mark.parametrize("I", [1, 2, 5, 7, 15, 16, 17, 31, 33])
def test_every_input_size(isa, dtype, I):
    m = cases.model(I, H=6, dtype=dtype)
    assert_equals_specification(m, cases.batch(m, N=3, T=2))


@pytest.mark.parametrize("N", range(20))
def test_every_batch_size(isa, dtype, N):
    m = cases.model(I=3, H=9, dtype=dtype)
    assert_equals_specification(m, cases.batch(m, N, T=2))


@pytest.mark.parametrize("T", [0, 1, 2, 9])
@pytest.mark.parametrize("N", [0, 1, 7])
@pytest.mark.parametrize("ragged", [False, True])
def test_empty_and_single(isa, dtype, N, T, ragged):
    m = cases.model(I=3, H=5, L=2, D=2, dtype=dtype)
    assert_equals_specification(m, cases.batch(m, N, T, ragged))


@pytest.mark.parametrize("L", [1, 2, 3])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
def test_every_stack(isa, dtype, L, D, bias, ragged):
    m = cases.model(I=5, H=7, L=L, D=D, bias=bias, dtype=dtype)
    assert_equals_specification(m, cases.batch(m, N=6, T=5, ragged=ragged))


@pytest.mark.parametrize(
    ("N", "T", "I", "H", "D", "ragged"),
    [
        (33, 3, 131, 90, 1, False),
        (70, 3, 9, 40, 2, True),
        (2, 3, 300, 21, 1, False),
        (3, 140, 4, 18, 2, False),
    ],
)
def test_sizes_beyond_one_block(isa, dtype, N, T, I, H, D, ragged):
    m = cases.model(I, H, D=D, dtype=dtype)
    assert_equals_specification(m, cases.batch(m, N, T, ragged))


@pytest.mark.parametrize(("L", "D"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("ragged", [False, True])
def test_dropout_between_layers(isa, dtype, L, D, ragged):
    m = cases.model(I=3, H=6, L=L, D=D, dtype=dtype)
    assert_equals_specification(m, cases.batch(m, N=4, T=5, ragged=ragged), dropout=0.3, seed=(7 << 40) + 11)


@pytest.mark.parametrize("H", [1, 7, 16, 19])
def test_single_cell(isa, dtype, H):
    """The fused cell step, forward and backward; gradients are accumulated or left alone."""
    m = cases.model(I=5, H=H, dtype=dtype)
    b = cases.batch(m, N=4, T=1)
    x, h0, c0 = b.x[:, 0].copy(), b.h0[0], b.c0[0]
    h, c, gates = _core.lstm_cell_forward(m.packed, x, h0, c0)
    y, h_n, c_n, tape = reference.lstm_forward(m.exact, b.x, b.h0, b.c0)
    assert_close(h, h_n[0], "lstm forward")
    assert_close(c, c_n[0], "lstm forward")
    assert_close(gates, tape.directions[0][0].gates[:, 0], "lstm forward")
    gradients = m.zeros() + 1
    got = _core.lstm_cell_backward(m.packed, x, h0, c0, c, gates, b.dh_n[0], b.dc_n[0], gradients=gradients)
    dx, dh0, dc0, wanted = reference.lstm_backward(tape, np.zeros_like(y), b.dh_n, b.dc_n)
    for actual, expected in zip(got, (dx[:, 0], dh0[0], dc0[0]), strict=True):
        assert_close(actual, expected, "lstm backward")
    for name, actual in m.views(gradients).items():
        assert_close(actual, 1 + wanted[name], "lstm backward")
    without = _core.lstm_cell_backward(m.packed, x, h0, c0, c, gates, b.dh_n[0], b.dc_n[0])
    cases.assert_same_bits(*zip(got, without, strict=True).__next__())
    _, dh0, _, _ = reference.lstm_backward(tape, np.zeros_like(y), b.dh_n)
    assert_close(
        _core.lstm_cell_backward(m.packed, x, h0, c0, c, gates, b.dh_n[0])[1], dh0[0], "lstm backward"
    )


def test_tape_views(isa, dtype):
    """row_of, gates, c and h of a ragged bidirectional tape are the specification's, packed time-major."""
    m = cases.model(I=3, H=5, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=6, T=5)
    b.lengths = np.array([2, 5, 0, 5, 3, 1], dtype=np.int32)
    *_, tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0, b.lengths)
    wanted = reference.lstm_forward(m.exact, b.x, b.h0, b.c0, b.lengths)[3]
    order = np.argsort(-b.lengths, kind="stable")
    rows = [(n, t) for t in range(5) for n in order if t < b.lengths[n]]
    n, t = tape.row_of
    assert n.dtype == t.dtype == np.int32
    assert list(zip(n, t, strict=True)) == rows
    assert not tape.consumed
    assert tape.nbytes >= len(rows) * 4 * 6 * 5 * np.dtype(dtype).itemsize
    for layer in range(2):
        for direction in range(2):
            spec = wanted.directions[layer][direction]
            assert_close(tape.gates(layer, direction), spec.gates[n, t], "lstm forward")
            assert_close(tape.c(layer, direction), spec.c[n, t + 1], "lstm forward")
            assert_close(tape.h(layer, direction), spec.h[n, t + 1], "lstm forward")


@pytest.mark.parametrize("missing", ["h0", "c0", "dy", "dh_n", "dc_n"])
def test_a_missing_state_or_gradient_is_zero(isa, dtype, missing):
    m = cases.model(I=3, H=5, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=3, T=4, ragged=True)
    setattr(b, missing, np.zeros_like(getattr(b, missing)))
    zero = cases.run(m, b)
    setattr(b, missing, None)
    for with_zero, without in zip(zero.everything(), cases.run(m, b).everything(), strict=True):
        cases.assert_same_bits(with_zero, without)


def test_gradients_are_accumulated_and_padding_stays_zero(isa, dtype):
    m = cases.model(I=3, H=5, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=3, T=4)
    once = cases.run(m, b)
    *_, tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0)
    twice = once.gradients.copy()
    dx, _, _ = _core.lstm_backward(m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=twice, need_dx=False)
    assert dx is None
    assert tape.consumed
    assert_close(twice, 2 * once.gradients, "lstm backward")
    padding = np.ones(len(twice), dtype=bool)
    for _, shape, offset in m.lstm.parameter_table():
        assert offset % 16 == 0
        padding[offset : offset + int(np.prod(shape))] = False
    assert padding.any()
    assert not twice[padding].any()


def test_nothing_is_written_past_a_length(isa, dtype):
    m = cases.model(I=3, H=5, D=2, dtype=dtype)
    b = cases.batch(m, N=5, T=6)
    b.lengths = np.array([3, 0, 6, 1, 5], dtype=np.int32)
    b.x[np.arange(6) >= b.lengths[:, None]] = np.nan  # no arithmetic is spent on padding
    b.dy[np.arange(6) >= b.lengths[:, None]] = np.nan
    got = cases.run(m, b)
    assert all(np.isfinite(array).all() for array in got.everything())
    assert not got.y[np.arange(6) >= b.lengths[:, None]].any()
    assert not got.dx[np.arange(6) >= b.lengths[:, None]].any()
    cases.assert_same_bits(got.h_n[:, 1], b.h0[:, 1])
    cases.assert_same_bits(got.c_n[:, 1], b.c0[:, 1])
    cases.assert_same_bits(got.dh0[:, 1], b.dh_n[:, 1])
    cases.assert_same_bits(got.dc0[:, 1], b.dc_n[:, 1])


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
def test_torch(isa, dtype, L, D, bias, ragged):
    """Outputs, final states and all gradients of torch.nn.LSTM with the same weights."""
    N, T, I, H = 7, 6, 5, 19
    m = cases.model(I, H, L, D, bias, dtype)
    b = cases.batch(m, N, T)
    if ragged:
        b.lengths = np.array([3, 6, 1, 6, 2, 5, 4], dtype=np.int32)
    lstm = torch.nn.LSTM(
        I, H, L, bias=bias, batch_first=True, bidirectional=D == 2, dtype=getattr(torch, dtype)
    )
    lstm.load_state_dict({name: torch.from_numpy(view.copy()) for name, view in m.views(m.flat).items()})
    x, h0, c0 = (torch.from_numpy(array.copy()).requires_grad_() for array in (b.x, b.h0, b.c0))
    given = x
    if ragged:
        given = pack_padded_sequence(
            x, torch.from_numpy(b.lengths).long(), batch_first=True, enforce_sorted=False
        )
    y, (h_n, c_n) = lstm(given, (h0, c0))
    if ragged:
        y = pad_packed_sequence(y, batch_first=True, total_length=T)[0]
    torch.autograd.backward((y, h_n, c_n), tuple(map(torch.from_numpy, (b.dy, b.dh_n, b.dc_n))))
    got = cases.run(m, b)
    for actual, expected in zip((got.y, got.h_n, got.c_n), (y, h_n, c_n), strict=True):
        assert_close(actual, expected.detach().numpy(), "torch forward")
    for actual, expected in zip((got.dx, got.dh0, got.dc0), (x, h0, c0), strict=True):
        assert_close(actual, expected.grad.numpy(), "torch backward")
    for name, actual in m.views(got.gradients).items():
        assert_close(actual, lstm.get_parameter(name).grad.numpy(), "torch backward")


def test_parameter_table_is_torch(dtype):
    for L, D, bias in [(1, 1, True), (2, 2, True), (3, 1, False)]:
        lstm = _core.LSTM(5, 7, num_layers=L, bidirectional=D == 2, bias=bias, dtype=dtype)
        peer = torch.nn.LSTM(5, 7, L, bias=bias, bidirectional=D == 2)
        wanted = {name: tuple(p.shape) for name, p in peer.named_parameters()}
        assert {name: shape for name, shape, _ in lstm.parameter_table()} == wanted
        ends = sorted((offset, offset + int(np.prod(shape))) for _, shape, offset in lstm.parameter_table())
        assert all(end <= start for (_, end), (start, _) in zip(ends, ends[1:], strict=False))
        assert ends[0][0] == 0
        assert ends[-1][1] <= lstm.num_parameters < ends[-1][1] + 16
        assert (lstm.input_size, lstm.hidden_size, lstm.num_layers) == (5, 7, L)
        assert (lstm.bidirectional, lstm.bias, lstm.dtype) == (D == 2, bias, dtype)


def test_packed_weights_are_a_snapshot(isa, dtype):
    m = cases.model(I=3, H=5, dtype=dtype)
    b = cases.batch(m, N=2, T=2)
    before = _core.lstm_forward(m.packed, b.x)[0]
    m.flat[:] = 0
    cases.assert_same_bits(before, _core.lstm_forward(m.packed, b.x)[0])
    assert m.packed.isa == isa
    assert m.packed.lstm.hidden_size == 5
    assert m.packed.nbytes >= m.flat.nbytes / 2


def test_token_input(isa, dtype, rng):
    """Token ids with an embedding are the dense rows; d_embedding is the scatter-added dx."""
    m = cases.model(I=6, H=5, L=2, D=2, dtype=dtype)
    b = cases.batch(m, N=4, T=5, ragged=True)
    embedding = rng.standard_normal((9, 6)).astype(dtype)
    ids = rng.integers(0, 9, (4, 5)).astype(np.int32)
    wanted = reference.lstm_forward(m.exact, embedding.astype(np.float64)[ids], b.h0, b.c0, b.lengths)
    y, h_n, c_n, tape = _core.lstm_forward_tape(m.packed, ids, b.h0, b.c0, b.lengths, embedding=embedding)
    for actual, expected in zip((y, h_n, c_n), wanted[:3], strict=True):
        assert_close(actual, expected, "lstm forward")
    gradients, d_embedding = m.zeros(), np.ones_like(embedding)
    dx, dh0, dc0 = _core.lstm_backward(
        m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=gradients, d_embedding=d_embedding
    )
    dx_wanted, dh0_wanted, dc0_wanted, gradients_wanted = reference.lstm_backward(
        wanted[3], b.dy, b.dh_n, b.dc_n
    )
    assert dx is None
    assert_close(dh0, dh0_wanted, "lstm backward")
    assert_close(dc0, dc0_wanted, "lstm backward")
    assert_close(d_embedding, 1 + reference.embedding_backward(ids, dx_wanted, 9), "lstm backward")
    for name, actual in m.views(gradients).items():
        assert_close(actual, gradients_wanted[name], "lstm backward")
    *_, tape = _core.lstm_forward_tape(m.packed, ids, b.h0, b.c0, b.lengths, embedding=embedding)
    without = m.zeros()
    _core.lstm_backward(m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=without)
    cases.assert_same_bits(gradients, without)
