"""Linear, embedding, losses, optimisers, norms and dropout against the specification and against torch."""

import cases
import numpy as np
import pytest
import reference
import torch
from tolerances import assert_close

from fusedlstm import _core


def normal(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(
    ("R", "I", "O"),
    [
        *[(R, I, O) for R in (0, 1, 5, 70) for I, O in ((1, 1), (3, 17), (16, 64), (33, 65), (290, 9))],
        (600, 290, 9),  # more rows than one block of x, and of the weight gradient
        (3, 33, 200),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(isa, dtype, rng, R, I, O, bias):
    x, weight, dy = normal(rng, dtype, R, I), normal(rng, dtype, O, I), normal(rng, dtype, R, O)
    b = normal(rng, dtype, O) if bias else None
    packed = _core.linear_pack(weight, b)
    assert (packed.in_features, packed.out_features, packed.dtype) == (I, O, dtype)
    assert packed.nbytes >= weight.nbytes
    x64, weight64, dy64 = (array.astype(np.float64) for array in (x, weight, dy))
    wanted = x64 @ weight64.T + (b if bias else 0)
    assert_close(_core.linear_forward(packed, x), wanted, "linear")
    d_weight, d_bias = np.ones_like(weight), np.ones(O, dtype)
    dx = _core.linear_backward(packed, x, dy, d_weight=d_weight, d_bias=d_bias)
    assert_close(dx, dy64 @ weight64, "linear")
    assert_close(d_weight, 1 + dy64.T @ x64, "linear")
    assert_close(d_bias, 1 + dy64.sum(axis=0), "linear")
    assert _core.linear_backward(packed, x, dy, need_dx=False) is None
    only = np.ones(O, dtype)
    _core.linear_backward(packed, x, dy, d_bias=only, need_dx=False)
    cases.assert_same_bits(only, d_bias)


def test_linear_is_a_snapshot(isa, dtype, rng):
    x, weight = normal(rng, dtype, 3, 5), normal(rng, dtype, 4, 5)
    packed = _core.linear_pack(weight)
    before = _core.linear_forward(packed, x)
    weight[:] = 0
    cases.assert_same_bits(before, _core.linear_forward(packed, x))


@pytest.mark.parametrize("R", [0, 1, 50])
@pytest.mark.parametrize("E", [1, 7, 33])
def test_embedding(isa, dtype, rng, R, E):
    weight, dy = normal(rng, dtype, 9, E), normal(rng, dtype, R, E)
    ids = rng.integers(0, 9, R).astype(np.int32)
    cases.assert_same_bits(_core.embedding_forward(weight, ids), weight[ids])
    d_weight = np.ones_like(weight)
    wanted = d_weight.copy()
    np.add.at(wanted, ids, dy)  # in the order of rows: the same bits
    _core.embedding_backward(ids, dy, d_weight)
    cases.assert_same_bits(d_weight, wanted)


@pytest.mark.parametrize(
    ("R", "V"),
    [*[(R, V) for R in (0, 1, 6, 70) for V in (1, 2, 17, 65, 300)], (2300, 5)],  # three blocks of rows
)
@pytest.mark.parametrize("ignored", [False, True])
def test_cross_entropies(isa, dtype, rng, R, V, ignored):
    """Both cross entropies against the specification; `scale` multiplies every gradient and not the loss."""
    I = 6
    x, weight, bias = normal(rng, dtype, R, I), normal(rng, dtype, V, I), normal(rng, dtype, V)
    targets = rng.integers(0, V, R).astype(np.int32)
    ignore_index = int(targets[0]) if ignored and R else -1
    x64, weight64 = x.astype(np.float64), weight.astype(np.float64)
    logits = x64 @ weight64.T + bias
    loss, counted, dlogits = reference.cross_entropy(logits, targets, ignore_index)
    options = {"scale": 0.5, "ignore_index": ignore_index}

    got, rows, gradient = _core.cross_entropy(logits.astype(dtype), targets, **options)
    assert isinstance(got, float)
    assert rows == counted
    assert_close(got / max(counted, 1), loss / max(counted, 1), "cross entropy", dtype)
    assert_close(gradient, 0.5 * dlogits, "cross entropy")
    assert _core.cross_entropy(logits.astype(dtype), targets, need_gradient=False, **options) == (
        got,
        rows,
        None,
    )

    packed = _core.linear_pack(weight, bias)
    d_weight, d_bias = np.ones_like(weight), np.ones_like(bias)
    got, rows, dx = _core.linear_cross_entropy(
        packed, x, targets, d_weight=d_weight, d_bias=d_bias, need_dx=True, **options
    )
    assert rows == counted
    assert_close(got / max(counted, 1), loss / max(counted, 1), "cross entropy", dtype)
    assert_close(dx, 0.5 * dlogits @ weight64, "cross entropy")
    assert_close(d_weight, 1 + 0.5 * dlogits.T @ x64, "cross entropy")
    assert_close(d_bias, 1 + 0.5 * dlogits.sum(axis=0), "cross entropy")
    assert _core.linear_cross_entropy(packed, x, targets, **options) == (got, rows, None)


def test_cross_entropies_equal_torch(isa, dtype, rng):
    x, weight, bias = normal(rng, dtype, 40, 12), normal(rng, dtype, 30, 12), normal(rng, dtype, 30)
    targets = rng.integers(0, 30, 40).astype(np.int32)
    targets[3] = -1
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, weight, bias)]
    logits = torch.nn.functional.linear(*tensors)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).long(), ignore_index=-1)
    loss.backward()
    d_weight, d_bias = np.zeros_like(weight), np.zeros_like(bias)
    got, counted, dx = _core.linear_cross_entropy(
        _core.linear_pack(weight, bias),
        x,
        targets,
        scale=1 / 39,
        d_weight=d_weight,
        d_bias=d_bias,
        need_dx=True,
    )
    assert counted == 39
    assert_close(got / 39, loss.item(), "cross entropy", dtype)
    for actual, tensor in zip((dx, d_weight, d_bias), tensors, strict=True):
        assert_close(actual, tensor.grad.numpy(), "cross entropy")


@pytest.mark.parametrize("offset", [0.0, 80.0, -3000.0, 3000.0])
def test_cross_entropy_of_large_logits(isa, dtype, offset):
    """The maximum is subtracted first: a common offset changes nothing, nothing overflows."""
    logits = np.array([[1.0, 2.0, -50.0], [0.0, -200.0, 3.0]], dtype=dtype)
    targets = np.array([2, 1], dtype=np.int32)
    got, _, gradient = _core.cross_entropy(logits + np.dtype(dtype).type(offset), targets)
    loss, _, wanted = reference.cross_entropy(logits.astype(np.float64), targets)
    assert_close(got / 200, loss / 200, "cross entropy", dtype)
    assert_close(gradient, wanted, "cross entropy")


def test_loss_of_many_rows_does_not_drift(isa, dtype):
    """The sum over rows is kept to float64: 50 000 equal rows give 50 000 times one row."""
    logits = np.tile(np.array([[0.3, -0.2, 0.1]], dtype=dtype), (50_000, 1))
    targets = np.zeros(50_000, dtype=np.int32)
    one = _core.cross_entropy(logits[:1], targets[:1])[0]
    assert abs(_core.cross_entropy(logits, targets)[0] / 50_000 / one - 1) < 1e-11


@pytest.mark.parametrize("shape", [(1,), (5, 7), (3, 4, 33)])
def test_mean_squared_error(isa, dtype, rng, shape):
    y, target = normal(rng, dtype, *shape), normal(rng, dtype, *shape)
    loss, dy = _core.mean_squared_error(y, target)
    assert isinstance(loss, float)
    assert dy.shape == shape
    wanted, d_wanted = reference.mean_squared_error(y.astype(np.float64), target.astype(np.float64))
    assert_close(loss, wanted, "mean squared error", dtype)
    assert_close(dy, d_wanted, "mean squared error")
    assert _core.mean_squared_error(y, target, need_gradient=False) == (loss, None)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 5000])
def test_gradient_norm(isa, dtype, rng, size):
    gradients = normal(rng, dtype, size)
    norm = _core.gradient_norm(gradients)
    assert isinstance(norm, float)
    assert_close(norm, np.linalg.norm(gradients.astype(np.float64)), "gradient norm", dtype)


@pytest.mark.parametrize("size", [0, 1, 17, 200_000])
def test_zero_gradients(dtype, size):
    """Also those that no product would make zero; nothing beside them."""
    around = np.full(size + 2, np.nan, dtype)
    _core.zero_gradients(around[1:-1])
    cases.assert_same_bits(around, np.pad(np.zeros(size, dtype), 1, constant_values=np.nan))


def test_gradient_norm_of_large_and_bad_values(isa, dtype):
    """A NaN or an infinity shows; squares beyond the type are infinity, as in torch."""
    assert np.isnan(_core.gradient_norm(np.array([1, np.nan, 2], dtype=dtype)))
    assert _core.gradient_norm(np.array([1, -np.inf, 2], dtype=dtype)) == np.inf
    large = np.array([3e30, 4e30], dtype=dtype)
    with np.errstate(over="ignore"):
        assert _core.gradient_norm(large) == pytest.approx(float(np.sqrt((large * large).sum())))


SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "weight_decay": 0.1},
    {"weight_decay": 0.1},
]


@pytest.mark.parametrize("options", SGD, ids=str)
@pytest.mark.parametrize("size", [1, 16, 35])
def test_sgd(isa, dtype, rng, options, size):
    p = normal(rng, dtype, size)
    velocity = np.zeros_like(p) if "momentum" in options else None
    peer = torch.nn.Parameter(torch.from_numpy(p.astype(np.float64)))
    optimiser = torch.optim.SGD([peer], lr=0.05, **options)
    p64, v64 = p.astype(np.float64), np.zeros(size)
    for _ in range(10):
        gradient = normal(rng, dtype, size)
        peer.grad = torch.from_numpy(gradient.astype(np.float64) * 0.25)
        optimiser.step()
        reference.sgd_step(p64, gradient.astype(np.float64), v64, lr=0.05, gradient_scale=0.25, **options)
        _core.sgd_step(p, gradient, velocity, lr=0.05, gradient_scale=0.25, **options)
    assert_close(p, peer.detach().numpy(), "optimiser")
    assert_close(p, p64, "optimiser")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("size", [1, 16, 35])
def test_adam(isa, dtype, rng, weight_decay, decoupled, size):
    p = normal(rng, dtype, size)
    m, v = np.zeros_like(p), np.zeros_like(p)
    peer = torch.nn.Parameter(torch.from_numpy(p.astype(np.float64)))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    options = {"lr": 0.05, "eps": 1e-6, "weight_decay": weight_decay}
    optimiser = kind([peer], betas=(0.8, 0.95), **options)
    for step in range(1, 11):
        gradient = normal(rng, dtype, size)
        peer.grad = torch.from_numpy(gradient.astype(np.float64) * 0.25)
        optimiser.step()
        _core.adam_step(
            p,
            gradient,
            m,
            v,
            step=step,
            beta1=0.8,
            beta2=0.95,
            decoupled=decoupled,
            gradient_scale=0.25,
            **options,
        )
    state = optimiser.state[peer]
    assert_close(p, peer.detach().numpy(), "optimiser")
    assert_close(m, state["exp_avg"].numpy(), "optimiser")
    assert_close(v, state["exp_avg_sq"].numpy(), "optimiser")


def test_adam_defaults_are_torch(isa, dtype, rng):
    p = normal(rng, dtype, 5)
    gradient, m, v = normal(rng, dtype, 5), np.zeros(5, dtype), np.zeros(5, dtype)
    peer = torch.nn.Parameter(torch.from_numpy(p.astype(np.float64)))
    peer.grad = torch.from_numpy(gradient.astype(np.float64))
    torch.optim.Adam([peer], lr=0.001).step()
    _core.adam_step(p, gradient, m, v, step=1, lr=0.001)
    assert_close(p, peer.detach().numpy(), "optimiser")


def test_adam_after_many_steps(isa, dtype):
    """Bias correction by beta^step stays right far beyond what a float32 power would hold."""
    p = np.zeros(3, dtype)
    m, v, gradient = np.full(3, 0.1, dtype), np.full(3, 0.01, dtype), np.full(3, 0.1, dtype)
    p64, m64, v64 = p.astype(np.float64), m.astype(np.float64), v.astype(np.float64)
    for step in (1_000, 30_000, 10_000_000):
        _core.adam_step(p, gradient, m, v, step=step, lr=0.5)
        reference.adam_step(p64, gradient.astype(np.float64), m64, v64, step, lr=0.5)
        assert_close(p, p64, "optimiser")


# dropout
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_scale_and_statistics(isa, dtype, rate):
    R, C = 400, 250
    mask = _core.dropout(np.ones((R, C), dtype), rate, seed=3)
    dropped = mask == 0
    assert_close(mask[~dropped], np.full(int((~dropped).sum()), 1 / (1 - rate)), "dropout")
    deviation = 5 * np.sqrt(rate * (1 - rate) / (R * C))
    assert abs(dropped.mean() - rate) <= deviation
    across = 6 * np.sqrt(rate * (1 - rate))  # every row and every column keeps its share
    assert np.abs(dropped.mean(axis=0) - rate).max() <= across / np.sqrt(R)
    assert np.abs(dropped.mean(axis=1) - rate).max() <= across / np.sqrt(C)
    x = np.random.default_rng(0).standard_normal((R, C)).astype(dtype)
    assert_close(
        _core.dropout(x, rate, seed=3), np.where(dropped, 0, x.astype(np.float64) / (1 - rate)), "dropout"
    )


def test_dropout_masks_are_independent(isa, dtype):
    """Masks of other seeds, streams, rows and columns agree as often as chance has it."""
    ones = np.ones((300, 301), dtype)
    base = _core.dropout(ones, 0.5, seed=1, stream=0) == 0
    others = [
        _core.dropout(ones, 0.5, seed=2, stream=0),
        _core.dropout(ones, 0.5, seed=1, stream=1),
        _core.dropout(ones, 0.5, seed=1 + (1 << 32), stream=0),
    ]
    pairs = [(base, other == 0) for other in others]
    pairs += [(base[:, a:], base[:, :-a]) for a in (1, 2, 4, 8, 16, 64)]
    pairs += [(base[a:], base[:-a]) for a in (1, 2, 3, 4, 16)]
    for one, other in pairs:
        assert abs((one == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(one.size)


def test_dropout_is_keyed_by_row_and_column(isa, dtype):
    whole = _core.dropout(np.ones((30, 41), dtype), 0.5, seed=9, stream=4)
    for rows in (1, 7, 29):
        cases.assert_same_bits(whole[:rows], _core.dropout(np.ones((rows, 41), dtype), 0.5, seed=9, stream=4))
    for columns in (1, 3, 16, 40):
        part = _core.dropout(np.ones((30, columns), dtype), 0.5, seed=9, stream=4)
        cases.assert_same_bits(whole[:, :columns].copy(), part)


@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_lstm_dropout_statistics(isa, rate):
    """Every layer has its own mask with the right share; another seed gives another one."""
    m = cases.model(I=1, H=20, L=3, D=2)
    N, T = 20, 30
    first, second = cases.dropout_masks(m, N, T, rate, seed=1)
    other = cases.dropout_masks(m, N, T, rate, seed=2)[0]
    size = first.size
    for mask in (first, second, other):
        assert set(np.unique(mask)) == {0.0, 1.0}
        assert abs((1 - mask).mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / size)
    expected = rate**2 + (1 - rate) ** 2
    pairs = [(first, second), (first, other), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])]
    pairs += [(first[..., 1:], first[..., :-1]), (first[..., :20], first[..., 20:])]
    for one, two in pairs:
        assert abs((one == two).mean() - expected) <= 5 * np.sqrt(expected * (1 - expected) / one.size)


# random numbers
def test_philox():
    """The key is the seed, low word first; the counter is (block, step, row, stream)."""
    most = 2**32 - 1
    for seed, stream, row, step, block in [
        (0, 0, 0, 0, 0),
        (2**64 - 1, most, most, most, most),
        (0x299F31D0A4093822, 0x03707344, 0x13198A2E, 0x85A308D3, 0x243F6A88),
    ]:
        words = _core.philox(seed, stream, row, step, block)
        assert words.dtype == np.uint32
        assert list(words) == reference.philox4x32((block, step, row, stream), (seed & most, seed >> 32))


@pytest.mark.parametrize("columns", [1, 11, 16, 32, 75, 200])
def test_dropout_mask_is_the_one_documented(isa, dtype, columns):
    """Column j of row r is dropped where word j mod 4 of block j / 4 is below rate * 2^32; step 0."""
    rate, seed, stream = 0.375, (0xFFFFFFF3 << 32) + 5, 7
    x = np.random.default_rng(columns).normal(size=(5, columns)).astype(dtype)
    words = [[_core.philox(seed, stream, r, 0, j // 4)[j % 4] for j in range(columns)] for r in range(5)]
    expected = np.where(np.array(words) < rate * 2**32, 0, x * x.dtype.type(1 / (1 - rate)))
    np.testing.assert_array_equal(_core.dropout(x, rate, seed, stream), expected)
