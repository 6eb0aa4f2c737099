"""compute_dtype="bfloat16": what is rounded, how far it is from float32, one order of every sum per level.

The specification rounds the operands of every product and does the rest in float64. Errors do not feed each
other in these comparisons: every step starts from the h, c or da that the core itself computed.
"""

import cases
import numpy as np
import pytest
import torch
from cases import assert_same_bits
from reference import sigmoid
from tolerances import assert_close

from fusedlstm import _core

SIZES = [(3, 5, 1, 1), (16, 16, 2, 1), (7, 37, 2, 2), (131, 40, 1, 1), (33, 70, 1, 1)]


def bf16(x):
    """float32 rounded to nearest even on its upper 16 bits, as float64."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (
        ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(float)
    )


def low(I, H, L=1, D=1, **options):
    return cases.model(I, H, L, D, compute_dtype="bfloat16", **options)


@pytest.mark.parametrize(("I", "H"), [(3, 5), (16, 16), (45, 37), (131, 70)])
def test_every_step_and_gradient_is_the_specification(isa, I, H):
    N, T, m = 5, 6, low(I, H, L=2)
    b = cases.batch(m, N, T)
    y, _, c_n, tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0)
    kept = [[part(k).astype(float) for part in (tape.gates, tape.c, tape.h)] for k in (0, 1)]
    gradients = m.zeros()
    dx, dh0, dc0 = _core.lstm_backward(m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=gradients)
    views, weights = m.views(gradients), m.exact
    assert_same_bits(y.swapaxes(0, 1).reshape(T * N, H), kept[1][2].astype(np.float32))
    dy = b.dy.swapaxes(0, 1).astype(float)
    for k in (1, 0):
        x = kept[0][2].reshape(T, N, H) if k else b.x.swapaxes(0, 1)
        gates, c, h = (a.reshape(T, N, *a.shape[1:]) for a in kept[k])
        h_before, c_before = np.concatenate([b.h0[k][None], h[:-1]]), np.concatenate([b.c0[k][None], c[:-1]])
        W, R = bf16(weights[f"weight_ih_l{k}"]), bf16(weights[f"weight_hh_l{k}"])
        a = bf16(x) @ W.T + bf16(h_before) @ R.T + weights[f"bias_ih_l{k}"] + weights[f"bias_hh_l{k}"]
        a = a.reshape(T, N, 4, H)
        i, f, o, g = sigmoid(a[:, :, 0]), sigmoid(a[:, :, 1]), sigmoid(a[:, :, 3]), np.tanh(a[:, :, 2])
        assert_close(gates, np.stack([i, f, g, o], 2), "lstm forward", "float32")
        assert_close(c, f * c_before + i * g, "lstm forward", "float32")
        assert_close(h, o * np.tanh(c), "lstm forward", "float32")

        da = tape.gates(k).astype(float).reshape(T, N, 4, H)  # backward left them there
        i, f, g, o = np.moveaxis(gates, 2, 0)
        dh, dc, tanh_c = b.dh_n[k].astype(float), b.dc_n[k].astype(float), np.tanh(c)
        for t in reversed(range(T)):
            dh = dh + dy[t]
            dc = dc + dh * o[t] * (1 - tanh_c[t] ** 2)
            expected = [
                dc * g[t] * i[t] * (1 - i[t]),
                dc * c_before[t] * f[t] * (1 - f[t]),
                dc * i[t] * (1 - g[t] ** 2),
                dh * tanh_c[t] * o[t] * (1 - o[t]),
            ]
            assert_close(da[t], np.stack(expected, 1), "lstm backward", "float32")
            dh, dc = bf16(da[t].reshape(N, 4 * H)) @ R, dc * f[t]
        assert_close(dh0[k], dh, "lstm backward")
        assert_close(dc0[k], dc, "lstm backward")
        rows = da.reshape(T * N, 4 * H)
        for name, inputs in (("weight_ih", x), ("weight_hh", h_before)):
            expected = bf16(rows).T @ bf16(inputs.reshape(T * N, -1))
            assert_close(views[f"{name}_l{k}"], expected, "lstm backward")
        for name in ("bias_ih", "bias_hh"):  # not a product: not rounded
            assert_close(views[f"{name}_l{k}"], rows.sum(0), "lstm backward")
        dy = (bf16(rows) @ W).reshape(T, N, -1)
        if k == 0:
            assert_close(dx.swapaxes(0, 1), dy, "lstm backward")
    assert_same_bits(c_n[1], kept[1][1].astype(np.float32).reshape(T, N, H)[-1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ragged", [False, True])
def test_error_against_float32(isa, size, ragged):
    """Relative to the largest element of each result; weights 1.5 / sqrt(K), dense random gradients."""
    full, m = cases.model(*size), low(*size)
    b = cases.batch(m, N=9, T=12, ragged=ragged)
    for name, got, wanted in zip(
        ("y", "h_n", "c_n", "dx", "dh0", "dc0", "gradients"),
        cases.run(m, b).everything(),
        cases.run(full, b).everything(),
        strict=True,
    ):
        kind = "bfloat16 forward" if name in ("y", "h_n", "c_n") else "bfloat16 backward"
        assert_close(got, wanted, kind)
        assert not np.array_equal(got, wanted), name


def test_against_torch_autocast():
    N, T, I, H = 8, 12, 24, 40
    m, full = low(I, H), cases.model(I, H)
    b = cases.batch(m, N, T)
    lstm = torch.nn.LSTM(I, H, batch_first=True)
    with torch.no_grad():
        for name, view in m.views(m.flat).items():
            getattr(lstm, name).copy_(torch.from_numpy(view))
    x = torch.from_numpy(b.x).requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = lstm(x, (torch.from_numpy(b.h0), torch.from_numpy(b.c0)))
    y.float().backward(torch.from_numpy(b.dy))
    zero = np.zeros_like(b.dh_n)
    b.dh_n, b.dc_n = zero, zero
    ours, exact = cases.run(m, b), cases.run(full, b)
    views, truth = m.views(ours.gradients), m.views(exact.gradients)
    pairs = [(ours.y, exact.y, y.detach().float()), (ours.dx, exact.dx, x.grad)]
    pairs += [(views[name], truth[name], getattr(lstm, name).grad) for name in views]
    for mine, wanted, theirs in pairs:
        mine_error = np.abs(mine - wanted).max() / np.abs(wanted).max()
        their_error = np.abs(theirs.numpy() - wanted).max() / np.abs(wanted).max()
        assert mine_error < 0.02
        assert mine_error <= 2 * their_error


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ragged", [False, True])
def test_one_order(isa, threads, size, ragged):
    """The same bits for any number of threads, alone and in a batch, and for calls of single steps."""
    m = low(*size)
    b = cases.batch(m, N=37, T=4, ragged=ragged)
    whole = cases.run(m, b)
    for count in (1, 2, 3):
        threads(count)
        for one, other in zip(whole.everything(), cases.run(m, b).everything(), strict=True):
            assert_same_bits(one, other)
    for rows in ([0], [36], [5, 6], list(range(17)), list(range(36, -1, -1))):
        part = cases.run(m, b.rows(rows))
        for position, n in enumerate(rows):
            for mine, alone in zip(whole.row(n), part.row(position), strict=True):
                assert_same_bits(mine, alone)
    inference = _core.lstm_forward(m.packed, b.x, b.h0, b.c0, b.lengths)
    for one, other in zip(inference, (whole.y, whole.h_n, whole.c_n), strict=True):
        assert_same_bits(one, other)
    if m.directions == 2:
        return
    h, c = b.h0, b.c0
    for t in range(4):
        x = np.ascontiguousarray(b.x[:, t : t + 1])
        lengths = None if b.lengths is None else np.clip(b.lengths - t, 0, 1).astype(np.int32)
        y, h, c = _core.lstm_forward(m.packed, x, h, c, lengths)
        assert_same_bits(y[:, 0], np.ascontiguousarray(whole.y[:, t]))
    assert_same_bits(h, whole.h_n)
    assert_same_bits(c, whole.c_n)


@pytest.mark.parametrize(("H", "N", "T"), [(250, 1, 10), (250, 3, 10), (64, 40, 60)])
def test_threads_share_a_layer(isa, threads, H, N, T):
    """Enough work for several threads: units are shared, or sequences; several chunks of steps."""
    m = low(20, H, L=2)
    b = cases.batch(m, N, T, ragged=True)
    b.lengths[0] = T
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(cases.run(m, b).everything())
    for arrays in zip(*results, strict=True):
        assert_same_bits(*arrays)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("N", [9, 50])
def test_lean_tape_is_the_full_one(isa, size, N):
    m = low(*size)
    b = cases.batch(m, N, T=25, ragged=True)
    results = []
    for mode in ("full", "lean"):
        tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0, b.lengths, tape=mode)[3]
        gradients = m.zeros()
        parts = _core.lstm_backward(m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=gradients)
        results.append((*parts, gradients))
    for full, lean in zip(*results, strict=True):
        assert_same_bits(full, lean)


def test_widening_levels_agree():
    """Without an instruction for bfloat16 all levels make the same chains of fused multiply-adds."""
    before, results = _core.isa(), []
    for level in _core.isa_levels():
        if level in ("avx512_bf16", "amx"):
            continue
        _core.set_isa(level)
        m = low(33, 40, L=2)
        results.append(cases.run(m, cases.batch(m, N=9, T=5, ragged=True)).everything())
    _core.set_isa(before)
    for arrays in zip(*results, strict=True):
        assert_same_bits(*arrays)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_their_rows(isa, rng, size):
    m = low(*size)
    b = cases.batch(m, N=9, T=5, ragged=True)
    embedding = rng.standard_normal((11, size[0])).astype(np.float32)
    ids = rng.integers(0, 11, (9, 5)).astype(np.int32)
    dense = _core.lstm_forward_tape(m.packed, embedding[ids], b.h0, b.c0, b.lengths)
    tokens = _core.lstm_forward_tape(m.packed, ids, b.h0, b.c0, b.lengths, embedding=embedding)
    for one, other in zip(dense[:3], tokens[:3], strict=True):
        assert_same_bits(one, other)
    d_dense, d_tokens, d_embedding = m.zeros(), m.zeros(), np.zeros_like(embedding)
    dx, *_ = _core.lstm_backward(m.packed, dense[3], b.dy, None, None, gradients=d_dense)
    _core.lstm_backward(m.packed, tokens[3], b.dy, None, None, gradients=d_tokens, d_embedding=d_embedding)
    expected = np.zeros_like(embedding)
    np.add.at(expected, ids, dx)
    # sums over a token's steps are rounded to bfloat16 once, not their terms
    assert_close(d_embedding, expected, "bfloat16 backward")
    assert_close(d_tokens, d_dense, "bfloat16 backward")


def test_dropout_with_bfloat16(isa):
    """Rows with dropout are gathered before they are rounded: lean makes them again."""
    m = low(7, 37, 2, 2)
    b = cases.batch(m, N=9, T=12, ragged=True)
    results = []
    for mode in ("full", "lean"):
        out = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0, b.lengths, dropout=0.3, seed=5, tape=mode)
        gradients = m.zeros()
        results.append(
            (
                *out[:3],
                *_core.lstm_backward(m.packed, out[3], b.dy, None, None, gradients=gradients),
                gradients,
            )
        )
    for full, lean in zip(*results, strict=True):
        assert_same_bits(full, lean)


def test_packing_halves_the_weights():
    m, full = low(64, 64), cases.model(64, 64)
    assert m.packed.compute_dtype == "bfloat16"
    assert full.packed.compute_dtype == "float32"
    assert m.packed.nbytes < 0.52 * full.packed.nbytes


def test_errors():
    m = cases.model(3, 5, dtype="float64")
    with pytest.raises(
        ValueError, match=r"LSTM.pack: compute_dtype must be 'float64' for float64 weights, got"
    ):
        m.lstm.pack(m.flat, compute_dtype="bfloat16")
    m = low(3, 5)
    with pytest.raises(
        ValueError, match=r"compute_dtype must be 'float32', 'bfloat16' or 'int8' .* got 'half'"
    ):
        m.lstm.pack(m.flat, compute_dtype="half")
    x, h = np.zeros((2, 3), np.float32), np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match="packed must be packed for float32, got bfloat16"):
        _core.lstm_cell_forward(m.packed, x, h, h)
    inference = m.lstm.pack(m.flat, backward=False, compute_dtype="bfloat16")
    tape = _core.lstm_forward_tape(inference, np.zeros((2, 4, 3), np.float32))[3]
    with pytest.raises(ValueError, match="packed must be packed with backward=True"):
        _core.lstm_backward(inference, tape, None, None, None, gradients=m.zeros())
