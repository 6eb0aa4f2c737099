"""The public layers against PyTorch: outputs and every gradient; their options, errors and buffers."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from fusedlstm import nn

SIZES = {"I": 5, "H": 7, "N": 4, "T": 6}
RAGGED = [6, 2, 5, 1]  # unsorted; PyTorch refuses 0


def torch_dtype(dtype):
    return {"float32": torch.float32, "float64": torch.float64}[dtype]


def torch_twin(layer, twin):
    """The PyTorch module with the parameters of the layer: the names are the same."""
    twin = twin.to(torch_dtype(layer.dtype))
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in layer.state_dict().items()})
    return twin


def lstm_twin(layer):
    return torch_twin(
        layer,
        torch.nn.LSTM(
            layer.input_size,
            layer.hidden_size,
            layer.num_layers,
            bias=layer.bias,
            batch_first=True,
            bidirectional=layer.bidirectional,
        ),
    )


def leaf(array):
    return torch.from_numpy(np.array(array)).requires_grad_()


def run_twin(twin, x, state, lengths):
    """Outputs (N, T, D*H) and final states of PyTorch, through packed sequences where there are lengths."""
    if lengths is None:
        return twin(x, state)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    y, final = twin(packed, state)
    return torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], final


def assert_gradients(layer, twin):
    expected = {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()}
    gradients = layer.named_gradients()
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], "torch backward")


@pytest.fixture
def arrays(rng, dtype):
    """Random arrays of a shape, in the dtype of the test."""
    return lambda *shape: rng.standard_normal(shape).astype(dtype)


# LSTM against PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_lstm_is_torch(isa, arrays, dtype, num_layers, bidirectional, bias, lengths):
    I, H, N, T = SIZES.values()
    layer = nn.LSTM(
        I, H, num_layers, bias=bias, bidirectional=bidirectional, return_state=True, dtype=dtype, seed=3
    )
    rows, width = num_layers * layer.num_directions, H * layer.num_directions
    x, h0, c0 = arrays(N, T, I), arrays(rows, N, H), arrays(rows, N, H)
    dy, dh_n, dc_n = arrays(N, T, width), arrays(rows, N, H), arrays(rows, N, H)

    twin = lstm_twin(layer)
    tx, th0, tc0 = leaf(x), leaf(h0), leaf(c0)
    ty, (th, tc) = run_twin(twin, tx, (th0, tc0), lengths)
    torch.autograd.backward([ty, th, tc], [torch.from_numpy(d) for d in (dy, dh_n, dc_n)])

    y, (h, c) = layer(x, state=(h0, c0), lengths=lengths)
    for actual, expected in ((y, ty), (h, th), (c, tc)):
        assert_close(actual, expected.detach(), "torch forward")
    (y2, (h2, c2)), tape = layer.forward(x, state=(h0, c0), lengths=lengths)
    for actual, expected in ((y2, y), (h2, h), (c2, c)):
        np.testing.assert_array_equal(actual, expected)
    dx = layer.backward(tape, dy, (dh_n, dc_n))
    for actual, expected in ((dx, tx), (tape.dh0, th0), (tape.dc0, tc0)):
        assert_close(actual, expected.grad, "torch backward")
    assert_gradients(layer, twin)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
def test_last_output_is_torch(isa, arrays, dtype, bidirectional, lengths):
    """return_sequences=False is the last valid step forward and the first step in reverse, as in Keras."""
    I, H, N, T = SIZES.values()
    layer = nn.LSTM(I, H, 2, bidirectional=bidirectional, return_sequences=False, dtype=dtype)
    D = layer.num_directions
    x, dy, dh_n = arrays(N, T, I), arrays(N, D * H), arrays(2 * D, N, H)
    twin, tx = lstm_twin(layer), leaf(x)
    ty, (th, _) = run_twin(twin, tx, None, lengths)
    ends = [length - 1 for length in lengths or [T] * N]
    last = torch.cat([ty[range(N), ends, :H], *([ty[:, 0, H:]] if bidirectional else [])], dim=1)
    torch.autograd.backward([last, th], [torch.from_numpy(dy), torch.from_numpy(dh_n)])

    y, tape = layer.forward(x, lengths=lengths)
    np.testing.assert_array_equal(layer(x, lengths=lengths), y)
    assert_close(y, last.detach(), "torch forward")
    assert_close(layer.backward(tape, dy, (dh_n, None)), tx.grad, "torch backward")
    assert_gradients(layer, twin)


def test_last_output_is_the_element_of_the_sequence(arrays, dtype):
    layer = nn.LSTM(3, 5, 2, bidirectional=True, dtype=dtype)
    last = nn.LSTM(3, 5, 2, bidirectional=True, return_sequences=False, dtype=dtype)
    x, lengths = arrays(4, 6, 3), [3, 6, 1, 2]
    y = layer(x, lengths=lengths)
    expected = np.concatenate([y[range(4), np.array(lengths) - 1, :5], y[:, 0, 5:]], axis=1)
    np.testing.assert_array_equal(last(x, lengths=lengths), expected)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_length_zero_is_the_initial_state(arrays, dtype, bidirectional, return_sequences):
    layer = nn.LSTM(
        3,
        5,
        2,
        bidirectional=bidirectional,
        return_sequences=return_sequences,
        return_state=True,
        dtype=dtype,
    )
    D = layer.num_directions
    x, h0, c0 = arrays(3, 4, 3), arrays(2 * D, 3, 5), arrays(2 * D, 3, 5)
    (y, (h, c)), tape = layer.forward(x, state=(h0, c0), lengths=[2, 0, 4])
    np.testing.assert_array_equal(h[:, 1], h0[:, 1])
    np.testing.assert_array_equal(c[:, 1], c0[:, 1])
    if return_sequences:
        assert not y[1].any()
        assert not y[0, 2:].any()
    else:
        np.testing.assert_array_equal(y[1], h0[-D:, 1].reshape(-1))
    dy = arrays(*y.shape)
    dx = layer.backward(tape, dy)
    assert not dx[1].any()
    # the gradient of a state that passes through unchanged
    expected = np.zeros_like(h0[:, 1])
    if not return_sequences:
        expected[-D:] = dy[1].reshape(D, 5)
    np.testing.assert_array_equal(tape.dh0[:, 1], expected)
    assert not tape.dc0[:, 1].any()


def test_tokens_are_embedded_as_in_torch(isa, rng, dtype):
    V, E, H = 11, 4, 6
    table = nn.Embedding(V, E, dtype=dtype, seed=1)
    layer = nn.LSTM(E, H, 2, dtype=dtype, seed=2)
    ids = rng.integers(0, V, (3, 5))
    dy = rng.standard_normal((3, 5, H)).astype(dtype)
    lengths = [5, 2, 3]
    table_twin, twin = torch_twin(table, torch.nn.Embedding(V, E)), lstm_twin(layer)
    ty, _ = run_twin(twin, table_twin(torch.from_numpy(ids)), None, lengths)
    ty.backward(torch.from_numpy(dy))

    y, tape = layer.forward(ids, embedding=table, lengths=lengths)
    np.testing.assert_array_equal(layer(table(ids), lengths=lengths), y)
    assert_close(y, ty.detach(), "torch forward")
    assert layer.backward(tape, dy) is None
    assert_gradients(layer, twin)
    assert_gradients(table, table_twin)


def test_a_single_sequence_needs_no_batch_axis(arrays, dtype):
    layer = nn.LSTM(3, 5, 2, return_state=True, dtype=dtype)
    x, h0, c0, dy, dh_n = arrays(4, 3), arrays(2, 5), arrays(2, 5), arrays(4, 5), arrays(2, 5)
    (y, (h, c)), tape = layer.forward(x, state=(h0, c0))
    dx = layer.backward(tape, dy, (dh_n, None))
    single = layer.gradients.copy()
    layer.zero_grad()
    (y1, (h1, c1)), tape1 = layer.forward(x[None], state=(h0[:, None], c0[:, None]))
    dx1 = layer.backward(tape1, dy[None], (dh_n[:, None], None))
    for one, batch in ((y, y1[0]), (h, h1[:, 0]), (c, c1[:, 0]), (dx, dx1[0]), (tape.dh0, tape1.dh0[:, 0])):
        np.testing.assert_array_equal(one, batch)
    np.testing.assert_array_equal(single, layer.gradients)

    table = nn.Embedding(9, 3, dtype=dtype)
    tokens = nn.LSTM(3, 5, return_sequences=False, dtype=dtype)
    np.testing.assert_array_equal(tokens([1, 8, 2], embedding=table), tokens([[1, 8, 2]], embedding=table)[0])


@pytest.mark.parametrize("N", [0, 2])
@pytest.mark.parametrize("T", [0, 3])
def test_empty_batches_and_sequences(arrays, dtype, N, T):
    layer = nn.LSTM(3, 5, return_state=True, dtype=dtype)
    h0, c0 = arrays(1, N, 5), arrays(1, N, 5)
    (y, (h, c)), tape = layer.forward(arrays(N, T, 3), state=(h0, c0))
    assert y.shape == (N, T, 5)
    assert h.shape == c.shape == (1, N, 5)
    if T == 0:
        np.testing.assert_array_equal(h, h0)
        np.testing.assert_array_equal(c, c0)
    assert layer.backward(tape, np.zeros_like(y)).shape == (N, T, 3)


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 9), max_size=4),
    N=st.integers(1, 4),
    H=st.integers(1, 20),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_steps_are_the_sequence(cuts, N, H, dtype):
    """Passing the state on gives the bits of one call, however the sequence is cut."""
    layer = nn.LSTM(3, H, 2, return_state=True, dtype=dtype)
    x = np.random.default_rng(H).standard_normal((N, 9, 3)).astype(dtype)
    y, (h, c) = layer(x)
    state, pieces = None, []
    edges = [0, *sorted(cuts), 9]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        piece, state = layer(x[:, start:stop], state=state)
        pieces.append(piece)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), y)
    np.testing.assert_array_equal(state[0], h)
    np.testing.assert_array_equal(state[1], c)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5), bidirectional=st.booleans())
def test_padding_does_not_matter(lengths, bidirectional):
    """Whatever stands past a length, NaN too, changes no output and no gradient."""
    layer = nn.LSTM(3, 4, 2, bidirectional=bidirectional)
    rng = np.random.default_rng(len(lengths))
    x = rng.standard_normal((len(lengths), 5, 3)).astype(np.float32)
    padded = x.copy()
    padded[np.arange(5) >= np.array(lengths)[:, None]] = np.nan
    results = []
    for batch in (x, padded):
        layer.zero_grad()
        y, tape = layer.forward(batch, lengths=lengths)
        dx = layer.backward(tape, np.ones_like(y))
        results.append((y, dx, layer.gradients.copy()))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


def test_dropout_between_layers(rng):
    layer = nn.LSTM(3, 16, 2, dropout=0.5, dtype="float64")
    x, dy = rng.standard_normal((4, 6, 3)), rng.standard_normal((4, 6, 16))
    first, tape = layer.forward(x, seed=1)
    again, _ = layer.forward(x, seed=1)
    other, _ = layer.forward(x, seed=2)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(layer(x), nn.LSTM(3, 16, 2, dtype="float64")(x))  # none in inference
    dx = layer.backward(tape, dy)
    for index in ((0, 0, 0), (3, 5, 2), (1, 2, 1)):
        step = np.zeros_like(x)
        step[index] = 1e-5
        up, down = (layer.forward(x + sign * step, seed=1)[0] for sign in (1, -1))
        slope = ((up - down) * dy).sum() / 2e-5
        assert_close(dx[index], slope, "finite differences", np.float64)
    # one layer has no place between layers
    single = nn.LSTM(3, 16, dropout=0.5, dtype="float64")
    np.testing.assert_array_equal(single.forward(x)[0], single(x))


def test_gradients_are_added(arrays, dtype):
    layer = nn.LSTM(3, 5, dtype=dtype)
    x, dy = arrays(2, 4, 3), arrays(2, 4, 5)
    for _ in range(2):
        y, tape = layer.forward(x)
        layer.backward(tape, dy, need_dx=False)
    twice = layer.gradients.copy()
    layer.zero_grad()
    assert not layer.gradients.any()
    _, tape = layer.forward(x)
    assert layer.backward(tape, dy, need_dx=False) is None
    assert_close(twice, 2.0 * layer.gradients.astype(np.float64), "torch backward")
    assert y.dtype == dtype


def test_backward_uses_the_weights_of_its_forward(arrays, dtype):
    layer = nn.LSTM(3, 5, dtype=dtype)
    x, dy = arrays(2, 4, 3), arrays(2, 4, 5)
    _, tape = layer.forward(x)
    expected = layer.backward(tape, dy)
    _, tape = layer.forward(x)
    layer.parameters[:] *= 2
    layer.mark_updated()
    np.testing.assert_array_equal(layer.backward(tape, dy), expected)


def test_initial_values():
    layer = nn.LSTM(3, 16, 2, seed=5)
    values = np.concatenate([view.ravel() for view in layer.named_parameters().values()])
    assert 0.9 * 0.25 < np.abs(values).max() <= 0.25  # U(-1/sqrt(H), 1/sqrt(H))
    assert abs(values.mean()) < 0.01
    np.testing.assert_array_equal(layer.parameters, nn.LSTM(3, 16, 2, seed=5).parameters)
    assert (layer.parameters != nn.LSTM(3, 16, 2, seed=6).parameters).any()
    wider = nn.LSTM(3, 16, init=("uniform", 2.0))
    assert 1.8 < np.abs(wider.parameters).max() <= 2.0
    plain, started = nn.LSTM(3, 4).state_dict(), nn.LSTM(3, 4, forget_bias=1.0).state_dict()
    for name, value in plain.items():
        shift = np.zeros_like(value)
        if name == "bias_ih_l0":
            shift[4:8] = 1.0
        np.testing.assert_array_equal(started[name], value + shift)
    assert np.abs(nn.Linear(16, 50).weight).max() <= 0.25
    table = nn.Embedding(1000, 10).weight
    assert abs(table.std() - 1.0) < 0.05
    assert np.abs(nn.Embedding(1000, 10, init=("uniform", 0.1)).weight).max() <= np.float32(0.1)


# one step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_cell_is_torch(isa, arrays, dtype, bias):
    I, H, N, _ = SIZES.values()
    cell = nn.LSTMCell(I, H, bias=bias, dtype=dtype)
    x, h, c, dh, dc = arrays(N, I), arrays(N, H), arrays(N, H), arrays(N, H), arrays(N, H)
    twin = torch_twin(cell, torch.nn.LSTMCell(I, H, bias=bias))
    tx, th, tc = leaf(x), leaf(h), leaf(c)
    expected = twin(tx, (th, tc))
    torch.autograd.backward(expected, [torch.from_numpy(dh), torch.from_numpy(dc)])
    result, tape = cell.forward(x, (h, c))
    for actual, once, wanted in zip(result, cell(x, (h, c)), expected, strict=True):
        assert_close(actual, wanted.detach(), "torch forward")
        np.testing.assert_array_equal(actual, once)
    for actual, wanted in zip(cell.backward(tape, dh, dc), (tx, th, tc), strict=True):
        assert_close(actual, wanted.grad, "torch backward")
    assert_gradients(cell, twin)


def test_cell_is_a_step_of_the_sequence(arrays, dtype):
    layer, cell = nn.LSTM(3, 9, return_state=True, dtype=dtype), nn.LSTMCell(3, 9, dtype=dtype)
    np.testing.assert_array_equal(layer.parameters, cell.parameters)
    x, state = arrays(2, 5, 3), None
    y, _ = layer(x)
    for t in range(5):
        state = cell(x[:, t], state)
        np.testing.assert_array_equal(state[0], y[:, t])


# the other layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (0, 4)])
def test_linear_at_every_step_is_torch(isa, arrays, dtype, shape, bias):
    layer = nn.Linear(5, 7, bias=bias, dtype=dtype)
    twin = torch_twin(layer, torch.nn.Linear(5, 7, bias=bias))
    x, dy = arrays(*shape, 5), arrays(*shape, 7)
    tx = leaf(x)
    ty = twin(tx)
    ty.backward(torch.from_numpy(dy))
    y, tape = layer.forward(x)
    np.testing.assert_array_equal(layer(x), y)
    assert_close(y, ty.detach(), "linear")
    assert_close(layer.backward(tape, dy), tx.grad, "linear")
    assert_gradients(layer, twin)
    _, tape = layer.forward(x)
    assert layer.backward(tape, dy, need_dx=False) is None


def test_embedding_is_torch(rng, arrays, dtype):
    layer = nn.Embedding(9, 5, dtype=dtype)
    twin = torch_twin(layer, torch.nn.Embedding(9, 5))
    ids, dy = rng.integers(0, 9, (3, 4)), arrays(3, 4, 5)
    ty = twin(torch.from_numpy(ids))
    ty.backward(torch.from_numpy(dy))
    y, tape = layer.forward(ids)
    np.testing.assert_array_equal(y, ty.detach())
    np.testing.assert_array_equal(layer(ids.tolist()), y)
    assert layer.backward(tape, dy) is None
    assert_gradients(layer, twin)
    assert layer([]).shape == (0, 5)
    assert layer(3).shape == (5,)


def test_dropout(dtype):
    layer = nn.Dropout(0.25, dtype=dtype)
    x = np.ones((400, 50), dtype)
    y, tape = layer.forward(x, seed=7)
    zeros = y == 0
    assert_close(y[~zeros], np.full((~zeros).sum(), 1 / 0.75), "dropout")
    assert abs(zeros.mean() - 0.25) < 0.02
    np.testing.assert_array_equal(layer.backward(tape, x), y)
    np.testing.assert_array_equal(layer(x), x)
    assert (layer.forward(x, seed=8)[0] != y).any()
    np.testing.assert_array_equal(nn.Dropout(0.0, dtype=dtype).forward(x)[0], x)
    assert layer.forward(np.zeros((0, 3), dtype), seed=1)[0].shape == (0, 3)


class TorchModel(torch.nn.Module):
    """Embedding, LSTM and Linear under the names that Sequential gives."""

    def __init__(self, V, E, H):
        super().__init__()
        self.add_module("0", torch.nn.Embedding(V, E))
        self.add_module("1", torch.nn.LSTM(E, H, 2, batch_first=True))
        self.add_module("2", torch.nn.Linear(H, V))


def test_sequential_is_torch(isa, rng, dtype):
    """A whole language model: token ids to the gradients of every weight."""
    V, E, H = 11, 4, 6
    model = nn.Sequential(
        nn.Embedding(V, E, dtype=dtype), nn.LSTM(E, H, 2, dtype=dtype), nn.Linear(H, V, dtype=dtype)
    )
    twin = torch_twin(model, TorchModel(V, E, H))
    ids, targets = rng.integers(0, V, (3, 5)), rng.integers(0, V, (3, 5))
    targets[1, 2:] = -1
    embedding, lstm, linear = twin.children()
    ty = linear(lstm(embedding(torch.from_numpy(ids)))[0])
    expected = torch.nn.functional.cross_entropy(
        ty.reshape(-1, V), torch.from_numpy(targets).reshape(-1), ignore_index=-1
    )
    expected.backward()
    y, tape = model.forward(ids)
    np.testing.assert_array_equal(model(ids), y)
    loss, dy = nn.CrossEntropyLoss()(y, targets)
    assert_close(np.array(loss), expected.item(), "cross entropy", dtype)
    assert model.backward(tape, dy) is None
    assert_gradients(model, twin)


def test_sequential_is_its_layers(arrays, dtype):
    def layers():
        return (
            nn.LSTM(3, 4, 2, bidirectional=True, dropout=0.3, dtype=dtype),
            nn.Dropout(0.4, dtype=dtype),
            nn.LSTM(8, 5, return_sequences=False, dtype=dtype, seed=1),
            nn.Linear(5, 2, dtype=dtype, seed=2),
        )

    model, parts = nn.Sequential(*layers()), layers()
    x, dy, lengths = arrays(4, 6, 3), arrays(4, 2), [6, 0, 3, 1]
    z = parts[0](x, lengths=lengths)
    np.testing.assert_array_equal(model(x, lengths=lengths), parts[3](parts[2](z, lengths=lengths)))

    y, tape = model.forward(x, lengths=lengths, seed=9)
    z0, tape0 = parts[0].forward(x, lengths=lengths, seed=nn.derive_seed(9, 0))
    z1, tape1 = parts[1].forward(z0, seed=nn.derive_seed(9, 1))
    z2, tape2 = parts[2].forward(z1, lengths=lengths)
    z3, tape3 = parts[3].forward(z2)
    np.testing.assert_array_equal(y, z3)
    dx = model.backward(tape, dy)
    d = parts[2].backward(tape2, parts[3].backward(tape3, dy))
    np.testing.assert_array_equal(dx, parts[0].backward(tape0, parts[1].backward(tape1, d)))
    own = model.named_gradients()
    for index, part in enumerate(parts):
        for name, gradient in part.named_gradients().items():
            np.testing.assert_array_equal(own[f"{index}.{name}"], gradient)
    # nested, and without the gradient of the input
    nested = nn.Sequential(nn.Sequential(nn.Linear(3, 4, dtype=dtype)), nn.Linear(4, 2, dtype=dtype))
    _, tape = nested.forward(x)
    assert nested.backward(tape, arrays(4, 6, 2), need_dx=False) is None
    assert list(nested.named_parameters()) == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]


# losses ---------------------------------------------------------------------------------------------------


def test_mean_squared_error_is_torch(arrays, dtype):
    y, target = arrays(3, 4, 2), arrays(3, 4, 2)
    ty = leaf(y)
    expected = torch.nn.functional.mse_loss(ty, torch.from_numpy(target))
    expected.backward()
    loss, dy = nn.MSELoss()(y, target)
    assert_close(np.array(loss), expected.item(), "mean squared error", dtype)
    assert_close(dy, ty.grad, "mean squared error")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("ignore_index", [-1, -100])
def test_cross_entropy_is_torch(isa, rng, arrays, dtype, ignore_index, smoothing):
    layer = nn.Linear(5, 13, dtype=dtype)
    x, targets = arrays(3, 4, 5), rng.integers(0, 13, (3, 4))
    targets[0, 1] = targets[2, 3] = ignore_index
    twin, tx = torch_twin(layer, torch.nn.Linear(5, 13)), leaf(x)
    logits = twin(tx)
    logits.retain_grad()
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 13), torch.from_numpy(targets).reshape(-1),
        ignore_index=ignore_index, label_smoothing=smoothing,
    )  # fmt: skip
    expected.backward()

    loss, gradient = nn.CrossEntropyLoss(ignore_index=ignore_index, label_smoothing=smoothing)(
        logits.detach().numpy(), targets
    )
    assert_close(np.array(loss), expected.item(), "cross entropy", dtype)
    assert_close(gradient, logits.grad, "cross entropy")
    assert not gradient[0, 1].any()

    fused = nn.LinearCrossEntropy(layer, ignore_index=ignore_index, label_smoothing=smoothing)
    assert_close(np.array(fused.loss(x, targets)), expected.item(), "cross entropy", dtype)
    assert not layer.gradients.any()
    loss, dx = fused(x, targets)
    assert_close(np.array(loss), expected.item(), "cross entropy", dtype)
    assert_close(dx, tx.grad, "cross entropy")
    for name, parameter in twin.named_parameters():
        assert_close(layer.named_gradients()[name], parameter.grad, "cross entropy")


def test_cross_entropy_without_rows_that_count():
    loss, gradient = nn.CrossEntropyLoss()(np.ones((2, 3)), [-1, -1])
    assert loss == 0.0
    assert not gradient.any()
    loss, gradient = nn.CrossEntropyLoss()(np.ones((0, 3)), [])
    assert loss == 0.0
    assert gradient.shape == (0, 3)
    layer = nn.Linear(2, 3)
    loss, dx = nn.LinearCrossEntropy(layer)(np.ones((2, 2), np.float32), [-1, -1])
    assert loss == 0.0
    assert not dx.any()
    assert not layer.gradients.any()


def test_losses_take_lists():
    assert nn.MSELoss()([1.0, 3.0], [0.0, 1.0])[0] == 2.5
    loss, gradient = nn.CrossEntropyLoss()([[0.0, 0.0]], [1])
    assert abs(loss - np.log(2)) < 1e-7
    np.testing.assert_array_equal(gradient, np.array([[0.5, -0.5]], np.float32))


# buffers and names ----------------------------------------------------------------------------------------


def test_everything_lies_in_one_buffer(dtype):
    model = nn.Sequential(nn.LSTM(3, 5, dtype=dtype), nn.Linear(5, 2, dtype=dtype))
    assert model.parameters.ctypes.data % 64 == 0
    assert model.num_parameters == 4 * 5 * (3 + 5 + 2) + 5 * 2 + 2
    covered = np.zeros(model.parameters.size, int)
    for name, view in model.named_parameters().items():
        assert np.shares_memory(view, model.parameters)
        start = (view.ctypes.data - model.parameters.ctypes.data) // view.itemsize
        covered[start : start + view.size] += 1
        assert view.ctypes.data % 64 == 0
        assert model.named_gradients()[name].shape == view.shape
    assert covered.max() == 1
    assert covered.sum() == model.num_parameters
    assert not model.parameters[covered == 0].any()
    lstm, linear = model.layers
    for layer in (lstm, linear):
        assert np.shares_memory(layer.parameters, model.parameters)
        assert np.shares_memory(layer.gradients, model.gradients)
    linear.weight[...] = 3
    np.testing.assert_array_equal(model.named_parameters()["1.weight"], 3)


def test_padding_of_the_buffers_stays_zero(arrays, dtype):
    model = nn.Sequential(nn.LSTM(3, 5, 2, dtype=dtype), nn.Linear(5, 3, dtype=dtype))
    used = np.zeros(model.parameters.size, bool)
    for view in model.named_parameters().values():
        start = (view.ctypes.data - model.parameters.ctypes.data) // view.itemsize
        used[start : start + view.size] = True
    y, tape = model.forward(arrays(2, 4, 3))
    model.backward(tape, np.ones_like(y))
    assert not model.gradients[~used].any()
    assert model.gradients[used].any()


def test_mark_updated(arrays, dtype):
    model = nn.Sequential(nn.LSTM(3, 5, dtype=dtype), nn.Linear(5, 2, dtype=dtype))
    x = arrays(2, 4, 3)
    y = model(x)
    packed = [layer.packed for layer in model.layers]
    assert [layer.packed for layer in model.layers] == packed  # once per version of the weights
    model.parameters[:] *= 0.5
    np.testing.assert_array_equal(model(x), y)  # still what was packed
    model.mark_updated()
    assert np.abs(model(x) - y).max() > 1e-3


def test_state_dict(arrays, dtype):
    model = nn.Sequential(nn.LSTM(3, 5, dtype=dtype), nn.Linear(5, 2, dtype=dtype))
    other = nn.Sequential(nn.LSTM(3, 5, dtype=dtype, seed=1), nn.Linear(5, 2, dtype=dtype, seed=1))
    x = arrays(2, 4, 3)
    assert (model(x) != other(x)).any()
    state = model.state_dict()
    other.load_state_dict(state)
    np.testing.assert_array_equal(model(x), other(x))
    state["1.bias"][:] = 7  # a copy
    assert (model.layers[1].bias != 7).all()


def test_load_state_dict_from_torch(arrays, dtype):
    twin = torch.nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True, dtype=torch_dtype(dtype))
    layer = nn.LSTM(3, 5, 2, bidirectional=True, dtype=dtype)
    layer.load_state_dict(twin.state_dict())
    x = arrays(2, 4, 3)
    assert_close(layer(x), twin(torch.from_numpy(x))[0].detach(), "torch forward")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bias"), "missing ['bias']"),
        (lambda state: state.update(scale=np.ones(2)), "unknown ['scale']"),
        (
            lambda state: state.update(bias=np.zeros(3, np.float32)),
            "bias must be float32 (2,), got float32 (3,)",
        ),
        (lambda state: state.update(bias=np.zeros(2)), "bias must be float32 (2,), got float64 (2,)"),
    ],
)
def test_load_state_dict_writes_all_or_nothing(change, message):
    layer = nn.Linear(3, 2)
    before = layer.parameters.copy()
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.load_state_dict(state)
    np.testing.assert_array_equal(layer.parameters, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_apart(arrays, dtype, duplicate):
    model = nn.Sequential(nn.LSTM(3, 5, dtype=dtype), nn.Linear(5, 2, dtype=dtype))
    x = arrays(2, 4, 3)
    y, tape = model.forward(x)
    model.backward(tape, np.ones_like(y))
    twin = duplicate(model)
    np.testing.assert_array_equal(twin(x), y)
    assert not twin.gradients.any()
    assert np.shares_memory(twin.layers[0].parameters, twin.parameters)
    assert np.shares_memory(twin.layers[1].gradients, twin.gradients)
    twin.parameters[:] = 0
    twin.mark_updated()
    assert not twin(x).any()
    np.testing.assert_array_equal(model(x), y)
    part = duplicate(model.layers[1])  # a part leaves its parent
    assert not np.shares_memory(part.parameters, model.parameters)
    nn.Sequential(part)


def test_strided_input_and_lists(arrays, dtype):
    layer = nn.LSTM(3, 5, dtype=dtype)
    x = arrays(4, 6, 3)
    wide = np.empty((4, 6, 6), dtype)
    wide[..., ::2] = x
    y = layer(x)
    np.testing.assert_array_equal(layer(wide[..., ::2]), y)
    np.testing.assert_array_equal(layer(np.asfortranarray(x)), y)
    np.testing.assert_array_equal(layer(x.tolist()), y)
    np.testing.assert_array_equal(layer(x.astype(x.dtype.newbyteorder()).astype(dtype)), y)


def test_repr():
    assert repr(nn.LSTM(3, 5, 2, bidirectional=True)) == "LSTM(3, 5, num_layers=2, bidirectional=True)"
    model = nn.Sequential(nn.Embedding(9, 3), nn.LSTM(3, 5), nn.Dropout(0.5), nn.Linear(5, 9, bias=False))
    assert repr(model) == (
        "Sequential(Embedding(9, 3), LSTM(3, 5, num_layers=1), Dropout(0.5), Linear(5, 9, bias=False))"
    )


def test_derived_seeds_differ():
    seeds = {
        nn.derive_seed(seed, *path)
        for seed in range(9)
        for path in ((), (0,), (1,), (0, 0), (0, 1), (2**40,))
    }
    assert len(seeds) == 54
    assert all(0 <= seed < 2**64 for seed in seeds)


# errors ---------------------------------------------------------------------------------------------------

ZEROS = np.zeros((2, 4, 3), np.float32)
LSTM = nn.LSTM(3, 5)
NAN = ZEROS.copy()
NAN[1, 2, 0] = np.nan
INFINITE = ZEROS.copy()
INFINITE[0, 0, 1] = np.inf


def used_tape():
    y, tape = LSTM.forward(ZEROS)
    LSTM.backward(tape, y)
    LSTM.backward(tape, y)


def foreign_tape():
    y, tape = nn.LSTM(3, 5).forward(ZEROS)
    LSTM.backward(tape, y)


def backward(d_output, d_state=None):
    LSTM.backward(LSTM.forward(ZEROS)[1], d_output, d_state)


def backward_linear(dy):
    layer = nn.Linear(3, 2)
    layer.backward(layer.forward(ZEROS)[1], dy)


def shared_layer():
    layer = nn.Linear(3, 3)
    nn.Sequential(layer, layer)


def layer_of_two():
    layer = nn.Linear(3, 3)
    nn.Sequential(layer)
    nn.Sequential(layer)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: nn.LSTM(0, 5), ValueError, "input_size must be at least 1, got 0"),
        (lambda: nn.LSTM(3, 2.0), TypeError, "hidden_size must be an int at least 1, got 2.0"),
        (lambda: nn.LSTM(3, True), TypeError, "hidden_size must be an int"),
        (lambda: nn.LSTM(3, 5, -1), ValueError, "num_layers must be at least 1, got -1"),
        (
            lambda: nn.LSTM(3, 5, dropout=1.0),
            ValueError,
            "dropout must be at least 0 and less than 1, got 1.0",
        ),
        (lambda: nn.LSTM(3, 5, dropout=np.nan), ValueError, "dropout must be"),
        (lambda: nn.LSTM(3, 5, dropout="0.5"), TypeError, "dropout must be a number"),
        (lambda: nn.LSTM(3, 5, dtype="float16"), ValueError, "dtype must be 'float32' or 'float64'"),
        (lambda: nn.LSTM(3, 5, dtype="real"), ValueError, "dtype must be 'float32' or 'float64', got 'real'"),
        (lambda: nn.LSTM(3, 5, init="keras"), ValueError, "init must be 'torch' or ('uniform', a)"),
        (lambda: nn.LSTM(3, 5, init=("uniform", -1)), ValueError, "init must be"),
        (lambda: nn.LSTM(3, 5, bias=False, forget_bias=1.0), ValueError, "forget_bias needs bias=True"),
        (lambda: nn.LSTM(3, 5, seed=-1), ValueError, "seed must be between 0 and"),
        (lambda: LSTM(np.zeros((2, 4, 9), np.float32)), ValueError, "(T, I) with I = 3, got (2, 4, 9)"),
        (lambda: LSTM(np.zeros(3, np.float32)), ValueError, "x must be (N, T, I)"),
        (lambda: LSTM(np.zeros((2, 4, 3))), ValueError, "LSTM: x must be float32, got float64 (2, 4, 3)"),
        (lambda: LSTM(np.zeros((2, 4, 3), int)), ValueError, "LSTM: x must be float32, got int64"),
        (lambda: LSTM([[1.0], [1.0, 2.0]]), ValueError, "x must be a rectangular array of numbers"),
        (lambda: LSTM("text"), TypeError, "x must be an array of numbers"),
        (lambda: LSTM(None), TypeError, "x must be an array of numbers"),
        (lambda: LSTM(NAN), ValueError, "LSTM: x must be finite, got nan at (1, 2, 0)"),
        (lambda: LSTM(INFINITE), ValueError, "LSTM: x must be finite, got inf at (0, 0, 1)"),
        (lambda: LSTM(NAN, lengths=[4, 3]), ValueError, "x must be finite"),
        (lambda: LSTM(ZEROS, lengths=[4]), ValueError, "lengths must be (N,) = (2,), got (1,)"),
        (lambda: LSTM(ZEROS, lengths=[4, 5]), ValueError, "between 0 and T = 4, got 5 at 1"),
        (lambda: LSTM(ZEROS, lengths=[-1, 2]), ValueError, "between 0 and T = 4, got -1 at 0"),
        (lambda: LSTM(ZEROS, lengths=[1.0, 2.0]), TypeError, "lengths must be ints"),
        (lambda: LSTM(ZEROS, lengths=np.array([2**32, 1])), ValueError, "got 4294967296 at 0"),
        (lambda: LSTM(ZEROS[0], lengths=[1]), ValueError, "lengths need x of (N, T, ...)"),
        (lambda: LSTM(ZEROS, state=ZEROS), TypeError, "state must be a pair (h0, c0), got ndarray"),
        (
            lambda: LSTM(ZEROS, state=(np.zeros((1, 3, 5), np.float32), None)),
            ValueError,
            "h0 must be (L*D, N, H) = (1, 2, 5), got (1, 3, 5)",
        ),
        (
            lambda: LSTM(ZEROS, state=(None, np.full((1, 2, 5), np.nan, np.float32))),
            ValueError,
            "c0 must be finite, got nan at (0, 0, 0)",
        ),
        (lambda: LSTM([[1]], embedding=nn.Embedding(5, 4)), ValueError, "must have embedding_dim 3"),
        (lambda: LSTM([[5]], embedding=nn.Embedding(5, 3)), ValueError, "between 0 and 4, got 5 at (0, 0)"),
        (lambda: LSTM([[0.5]], embedding=nn.Embedding(5, 3)), TypeError, "x must be ints"),
        (
            lambda: LSTM([[2**32]], embedding=nn.Embedding(5, 3)),
            ValueError,
            "between 0 and 4, got 4294967296 at (0, 0)",
        ),
        (lambda: LSTM([[[1]]], embedding=nn.Embedding(5, 3)), ValueError, "token ids (N, T) or (T,)"),
        (lambda: nn.LSTM(3, 5, 2, dropout=0.5).forward(ZEROS), ValueError, "dropout 0.5 needs seed="),
        (lambda: nn.LSTM(3, 5, 2, dropout=0.5).forward(ZEROS, seed=1.5), TypeError, "seed must be an int"),
        (used_tape, RuntimeError, "this tape was already used"),
        (foreign_tape, ValueError, "tape is of another LSTM"),
        (lambda: backward(None), ValueError, "d_output or d_state must be given"),
        (lambda: backward(ZEROS), ValueError, "d_output must be (N, T, D*H) = (2, 4, 5), got (2, 4, 3)"),
        (lambda: backward(np.zeros((2, 4, 5))), ValueError, "d_output must be float32, got float64"),
        (lambda: backward(None, (ZEROS, None)), ValueError, "dh_n must be (L*D, N, H) = (1, 2, 5)"),
        (lambda: nn.LSTMCell(3, 5)(ZEROS), ValueError, "LSTMCell: x must be (N, I=3), got (2, 4, 3)"),
        (lambda: nn.LSTMCell(3, 5)(ZEROS[0], ZEROS), TypeError, "state must be a pair (h, c)"),
        (lambda: nn.LSTMCell(3, 5)(NAN[1]), ValueError, "x must be finite, got nan at (2, 0)"),
        (lambda: nn.Linear(4, 2)(ZEROS), ValueError, "Linear: x must be (..., I=4), got (2, 4, 3)"),
        (lambda: nn.Linear(3, 2)(NAN), ValueError, "Linear: x must be finite"),
        (lambda: nn.Linear(3, 2)(1.0), ValueError, "x must be (..., I=3), got ()"),
        (lambda: backward_linear(ZEROS), ValueError, "dy must be (..., O) = (2, 4, 2), got (2, 4, 3)"),
        (lambda: nn.Embedding(5, 3)([5]), ValueError, "ids must be between 0 and 4, got 5 at (0,)"),
        (lambda: nn.Embedding(5, 3)([-1]), ValueError, "ids must be between 0 and 4, got -1 at (0,)"),
        (lambda: nn.Embedding(5, 3)([True]), TypeError, "ids must be ints, got bool (1,)"),
        (lambda: nn.Dropout(-0.1), ValueError, "rate must be at least 0 and less than 1, got -0.1"),
        (lambda: nn.Dropout(0.5).forward(ZEROS), ValueError, "rate 0.5 needs seed="),
        (lambda: nn.Sequential(), ValueError, "at least one layer"),
        (lambda: nn.Sequential(nn.MSELoss()), TypeError, "0 must be a layer, got MSELoss"),
        (lambda: nn.Sequential(nn.LSTM(3, 5, return_state=True)), ValueError, "layer 0 returns its state"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Embedding(5, 3)), ValueError, "must be the first"),
        (
            lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, dtype="float64")),
            ValueError,
            "1 must be float32 like the rest, got float64",
        ),
        (shared_layer, ValueError, "is given twice"),
        (layer_of_two, ValueError, "already belongs to another Sequential"),
        (lambda: nn.Sequential(nn.Linear(3, 3))(ZEROS, lengths=[1, 1]), ValueError, "no layer takes them"),
        (lambda: nn.Sequential(nn.Dropout(0.5)).forward(ZEROS), ValueError, "dropout needs seed="),
        (lambda: nn.MSELoss()(ZEROS, ZEROS[0]), ValueError, "target must be (2, 4, 3) like y, got (4, 3)"),
        (lambda: nn.MSELoss()(ZEROS[:0], ZEROS[:0]), ValueError, "y must have elements"),
        (lambda: nn.MSELoss()(ZEROS, np.zeros((2, 4, 3))), ValueError, "target must be float32, got float64"),
        (lambda: nn.CrossEntropyLoss(ignore_index=0), ValueError, "ignore_index must be a negative"),
        (
            lambda: nn.CrossEntropyLoss()(ZEROS, np.full((2, 4), 3)),
            ValueError,
            "target must be between 0 and 2, got 3 at (0, 0)",
        ),
        (lambda: nn.CrossEntropyLoss()(ZEROS, [0]), ValueError, "target must be (2, 4), got (1,)"),
        (
            lambda: nn.LinearCrossEntropy(nn.Linear(4, 2))(ZEROS, np.zeros((2, 4), int)),
            ValueError,
            "x must be (..., I=4), got (2, 4, 3)",
        ),
        (lambda: nn.derive_seed(-1), ValueError, "seed must be between 0 and"),
    ],
)
def test_errors_say_what_was_wanted_and_what_came(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_large_finite_values_are_not_refused():
    """Their sum overflows, which a check for NaN must not look at."""
    x = np.full((2, 4, 3), 3e38, np.float32)
    assert np.isfinite(LSTM(x)).all()
    assert np.isfinite(LSTM(-x)).all()


def test_an_error_does_not_use_up_the_tape():
    y, tape = LSTM.forward(ZEROS)
    with pytest.raises(ValueError, match="d_output"):
        LSTM.backward(tape, y[:1])
    assert not tape.consumed
    assert LSTM.backward(tape, y).shape == ZEROS.shape
    assert tape.consumed


def test_lstm_tape_modes():
    x = np.random.default_rng(0).standard_normal((3, 9, 4)).astype(np.float32)
    gradients = {}
    for tape in ("full", "half", "lean"):
        layer = nn.LSTM(4, 6, tape=tape)
        y, kept = layer.forward(x)
        layer.backward(kept, np.ones_like(y))
        gradients[tape] = layer.gradients.copy()
    np.testing.assert_array_equal(gradients["full"], gradients["lean"])
    np.testing.assert_allclose(gradients["full"], gradients["half"], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="tape must be 'full', 'half' or 'lean', got 'none'"):
        nn.LSTM(4, 6, tape="none")


def test_linear_compute_dtype(rng):
    x = rng.standard_normal((4, 30)).astype(np.float32)
    layer = nn.Linear(30, 5)
    y = layer(x)
    for compute_dtype, error in (("bfloat16", 0.02), ("int8", 0.03)):
        layer.compute_dtype = compute_dtype  # packs anew
        assert 0 < np.abs(layer(x) - y).max() < error
    layer.compute_dtype = "float32"
    assert np.array_equal(layer(x), y)
    with pytest.raises(ValueError, match="compute_dtype must be 'float32', 'bfloat16' or 'int8', got 'half'"):
        layer.compute_dtype = "half"


def test_lstm_compute_dtype(rng):
    x = rng.standard_normal((2, 4, 3)).astype(np.float32)
    lstm, full = nn.LSTM(3, 5, compute_dtype="bfloat16"), nn.LSTM(3, 5, compute_dtype="float32")
    assert (lstm.compute_dtype, full.compute_dtype, nn.LSTM(3, 5).compute_dtype) == ("bfloat16", None, None)
    y = lstm(x)
    assert 0 < np.abs(y - full(x)).max() < 0.01
    lstm.compute_dtype = "int8"  # packs anew
    assert 0 < np.abs(lstm(x) - full(x)).max() < 0.02
    assert not np.array_equal(lstm(x), y)
    with pytest.raises(ValueError, match=r"LSTM.forward: compute_dtype 'int8' is for inference"):
        lstm.forward(x)
    lstm.compute_dtype = None
    assert np.array_equal(lstm(x), full(x))
    with pytest.raises(ValueError, match="compute_dtype must be 'float32', 'bfloat16' or 'int8', got 'half'"):
        lstm.compute_dtype = "half"
    with pytest.raises(ValueError, match="compute_dtype 'bfloat16' needs dtype 'float32', got 'float64'"):
        nn.LSTM(3, 5, dtype="float64", compute_dtype="bfloat16")
