"""The output layer in bfloat16 and int8: linear, its gradients and the fused loss.

bfloat16: operands rounded to nearest even, sums in float32. int8: the integers of `test_int8`, exact.
"""

import numpy as np
import pytest
from cases import assert_same_bits
from test_bfloat16 import bf16
from test_int8 import F, quantise, row_scales
from tolerances import assert_close

from fusedlstm import _core

SIZES = [(1, 3, 5), (7, 16, 16), (9, 33, 65), (70, 40, 130)]  # rows, inputs, outputs


def case(rng, rows, inputs, outputs):
    x = rng.standard_normal((rows, inputs)).astype(F)
    weight = (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(F)
    return x, weight, rng.standard_normal(outputs).astype(F)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_is_a_product_of_rounded_operands(isa, rng, size):
    x, weight, bias = case(rng, *size)
    y = _core.linear_forward(_core.linear_pack(weight, bias, compute_dtype="bfloat16"), x)
    expected = bf16(x).astype(float) @ bf16(weight).astype(float).T + bias
    assert_close(y, expected, "linear")


@pytest.mark.parametrize("size", SIZES)
def test_int8_exactly_the_specification(isa, rng, size):
    x, weight, bias = case(rng, *size)
    if len(x) > 2:
        x[1] = 0  # a row without a scale
    y = _core.linear_forward(_core.linear_pack(weight, bias, compute_dtype="int8"), x)
    s_x, s_w = row_scales(x), row_scales(weight)
    sums = (quantise(x, s_x) @ quantise(weight, s_w).T).astype(F)
    assert_same_bits(y, bias + s_w.T * (s_x * sums))


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_gradients(isa, rng, size):
    x, weight, bias = case(rng, *size)
    dy = rng.standard_normal((size[0], size[2])).astype(F)
    packed = _core.linear_pack(weight, bias, compute_dtype="bfloat16")
    d_weight, d_bias = np.ones_like(weight), np.ones_like(bias)
    dx = _core.linear_backward(packed, x, dy, d_weight=d_weight, d_bias=d_bias)
    x16, weight16, dy16 = (bf16(a).astype(float) for a in (x, weight, dy))
    assert_close(dx, dy16 @ weight16, "linear")
    assert_close(d_weight, 1 + dy16.T @ x16, "linear")
    assert_close(d_bias, 1 + dy.astype(float).sum(0), "linear")


def test_bfloat16_loss_and_gradients(isa, rng):
    rows, inputs, vocabulary = 70, 40, 130
    x, weight, bias = case(rng, rows, inputs, vocabulary)
    targets = rng.integers(0, vocabulary, rows).astype(np.int32)
    targets[3] = -1
    packed = _core.linear_pack(weight, bias, compute_dtype="bfloat16")
    d_weight, d_bias = np.zeros_like(weight), np.zeros_like(bias)
    nll, counted, dx = _core.linear_cross_entropy(
        packed, x, targets, scale=0.1, d_weight=d_weight, d_bias=d_bias, need_dx=True
    )
    valid = targets >= 0
    x16, weight16 = bf16(x).astype(float), bf16(weight).astype(float)
    log_p = log_softmax(x16 @ weight16.T + bias)
    assert counted == rows - 1
    assert_close(F(nll), -log_p[valid, targets[valid]].sum(), "cross entropy")
    d = np.exp(log_p)
    d[valid, targets[valid]] -= 1
    d *= 0.1 * valid[:, None]
    # the derivative is rounded to 8 bits, as the autocast of other systems does
    for name, ours, expected in (
        ("dx", dx, d @ weight16),
        ("d_weight", d_weight, d.T @ x16),
        ("d_bias", d_bias, d.sum(0)),
    ):
        assert np.abs(ours - expected).max() < 2**-7 * np.abs(expected).max(), name


def test_int8_loss_is_that_of_its_logits(isa, rng):
    x, weight, bias = case(rng, 70, 40, 130)
    targets = rng.integers(0, 130, 70).astype(np.int32)
    packed = _core.linear_pack(weight, bias, compute_dtype="int8")
    nll, counted, dx = _core.linear_cross_entropy(packed, x, targets)
    log_p = log_softmax(_core.linear_forward(packed, x).astype(float))
    assert (counted, dx) == (70, None)
    assert_close(F(nll), -log_p[np.arange(70), targets].sum(), "cross entropy")


@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_bits_do_not_depend_on_rows_and_threads(isa, rng, threads, compute):
    x, weight, bias = case(rng, 70, 40, 130)
    packed = _core.linear_pack(weight, bias, compute_dtype=compute)
    threads(1)
    whole = _core.linear_forward(packed, x)
    threads(2)
    assert_same_bits(_core.linear_forward(packed, x), whole)
    assert_same_bits(np.concatenate([_core.linear_forward(packed, row[None]) for row in x]), whole)


@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_generation_has_the_logits_of_the_output_layer(isa, rng, compute):
    """The log-probabilities of the loop are those of the whole text run through LSTM and output layer."""
    V, E, H = 35, 8, 24
    lstm = _core.LSTM(E, H, 2)
    flat = rng.uniform(-0.3, 0.3, lstm.num_parameters).astype(F)
    packed = lstm.pack(flat, backward=False, compute_dtype=compute)
    embedding = rng.standard_normal((V, E)).astype(F)
    _, weight, bias = case(rng, 1, H, V)
    output = _core.linear_pack(weight, bias, compute_dtype=compute)
    prompts, lengths = np.array([1, 2, 3, 4, 5], np.int32), np.array([2, 3], np.int32)
    decoder = _core.LanguageModelDecoder(packed, embedding, output)
    made = decoder.generate(
        prompts, lengths, _core.SamplingOptions(max_new_tokens=6), seeds=np.arange(2, dtype=np.uint64)
    )
    for prompt, new, found in zip(([1, 2], [3, 4, 5]), made.tokens, made.log_probabilities, strict=True):
        ids = np.concatenate([prompt, new])[:-1].astype(np.int32)[None]
        y, *_ = _core.lstm_forward(packed, ids, embedding=embedding)
        expected = log_softmax(_core.linear_forward(output, y[0]).astype(float))
        assert_close(found, expected[np.arange(len(prompt) - 1, ids.size), new], "log probabilities")


def test_what_has_no_gradient_is_refused(rng):
    x, weight, bias = case(rng, 4, 3, 5)
    packed = _core.linear_pack(weight, bias, compute_dtype="int8")
    targets = np.zeros(4, np.int32)
    with pytest.raises(ValueError, match="packed must be for training, got int8"):
        _core.linear_backward(packed, x, np.zeros((4, 5), F))
    with pytest.raises(ValueError, match="packed must be for training, got int8"):
        _core.linear_cross_entropy(packed, x, targets, need_dx=True)
    with pytest.raises(
        ValueError, match="linear_pack: compute_dtype must be 'float32', 'bfloat16' or 'int8'"
    ):
        _core.linear_pack(weight, bias, compute_dtype="float16")
    with pytest.raises(ValueError, match="linear_pack: compute_dtype must be 'float64' for float64 weights"):
        _core.linear_pack(weight.astype(float), compute_dtype="bfloat16")
