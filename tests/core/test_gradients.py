"""Every gradient of the LSTM against central differences in float64."""

import cases
import numpy as np
import pytest
from cases import central_differences
from tolerances import assert_close

from fusedlstm import _core


def loss(m, b, **options):
    """<dy, y> + <dh_n, h_n> + <dc_n, c_n>: its gradient is what backward gives for (dy, dh_n, dc_n)."""
    m = m.repack()
    y, h_n, c_n, _ = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0, b.lengths, **options)
    return float((y * b.dy).sum() + (h_n * b.dh_n).sum() + (c_n * b.dc_n).sum())


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("lengths", [None, [2, 0, 3]])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_every_gradient(isa, L, D, lengths, dropout):
    m = cases.model(I=2, H=2, L=L, D=D, dtype="float64")
    b = cases.batch(m, N=3, T=3)
    b.lengths = None if lengths is None else np.array(lengths, dtype=np.int32)
    got = cases.run(m, b, dropout, seed=5)
    options = {"dropout": dropout, "seed": 5}
    for array, gradient in ((b.x, got.dx), (b.h0, got.dh0), (b.c0, got.dc0)):
        assert_close(
            gradient, central_differences(array, lambda: loss(m, b, **options)), "finite differences"
        )
    gradients = m.views(got.gradients)
    for name, view in m.views(m.flat).items():
        wanted = central_differences(view, lambda: loss(m, b, **options))
        assert_close(gradients[name], wanted, "finite differences")


@pytest.mark.parametrize("lengths", [None, [3, 1]])
def test_token_input(isa, lengths):
    m = cases.model(I=2, H=3, L=2, dtype="float64")
    b = cases.batch(m, N=2, T=3)
    b.lengths = None if lengths is None else np.array(lengths, dtype=np.int32)
    b.x = np.array([[0, 1, 0], [3, 3, 1]], dtype=np.int32)  # 0, 1 and 3 repeat; 2 never appears
    embedding = np.random.default_rng(0).standard_normal((4, 2))
    *_, tape = _core.lstm_forward_tape(m.packed, b.x, b.h0, b.c0, b.lengths, embedding=embedding)
    gradients, d_embedding = m.zeros(), np.zeros_like(embedding)
    _core.lstm_backward(m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=gradients, d_embedding=d_embedding)
    wanted = central_differences(embedding, lambda: loss(m, b, embedding=embedding))
    assert_close(d_embedding, wanted, "finite differences")
    weight = m.views(m.flat)["weight_ih_l0"]
    wanted = central_differences(weight, lambda: loss(m, b, embedding=embedding))
    assert_close(m.views(gradients)["weight_ih_l0"], wanted, "finite differences")


def test_cell(isa):
    m = cases.model(I=2, H=3, dtype="float64")
    b = cases.batch(m, N=2, T=1)
    x, h, c, dh, dc = b.x[:, 0].copy(), b.h0[0].copy(), b.c0[0].copy(), b.dh_n[0], b.dc_n[0]

    def cell_loss():
        h_next, c_next, _ = _core.lstm_cell_forward(m.repack().packed, x, h, c)
        return float((h_next * dh).sum() + (c_next * dc).sum())

    _, c_next, gates = _core.lstm_cell_forward(m.packed, x, h, c)
    gradients = m.zeros()
    got = _core.lstm_cell_backward(m.packed, x, h, c, c_next, gates, dh, dc, gradients=gradients)
    for array, gradient in zip((x, h, c), got, strict=True):
        assert_close(gradient, central_differences(array, cell_loss), "finite differences")
    for name, view in m.views(m.flat).items():
        assert_close(m.views(gradients)[name], central_differences(view, cell_loss), "finite differences")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore_index", [-1, 2])
def test_linear_cross_entropy(isa, rng, ignore_index, smoothing):
    x, weight, bias = rng.standard_normal((5, 3)), rng.standard_normal((4, 3)), rng.standard_normal(4)
    targets = np.array([0, 3, 2, ignore_index, 1], dtype=np.int32)

    def mean_loss():
        packed = _core.linear_pack(weight, bias)
        loss = _core.linear_cross_entropy(
            packed, x, targets, ignore_index=ignore_index, label_smoothing=smoothing
        )
        return 0.25 * loss[0]

    d_weight, d_bias = np.zeros_like(weight), np.zeros_like(bias)
    _, _, dx = _core.linear_cross_entropy(
        _core.linear_pack(weight, bias),
        x,
        targets,
        scale=0.25,
        ignore_index=ignore_index,
        label_smoothing=smoothing,
        d_weight=d_weight,
        d_bias=d_bias,
        need_dx=True,
    )
    for array, gradient in ((x, dx), (weight, d_weight), (bias, d_bias)):
        assert_close(gradient, central_differences(array, mean_loss), "finite differences")
