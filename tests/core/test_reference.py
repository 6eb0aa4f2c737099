"""The specification itself: against values recorded from PyTorch and the vectors published with Random123."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from tolerances import assert_close

GOLDEN = Path(__file__).parents[1] / "golden"
LSTM = json.loads((GOLDEN / "lstm.json").read_text())
OPS = json.loads((GOLDEN / "ops.json").read_text())


def arrays(lists):
    return {name: np.array(values) for name, values in lists.items()}


@pytest.mark.parametrize("name", LSTM)
def test_lstm_equals_recorded_pytorch(name):
    case = LSTM[name]
    parameters, inputs, upstream = (
        arrays(case["parameters"]),
        arrays(case["inputs"]),
        arrays(case["upstream"]),
    )
    y, h_n, c_n, tape = reference.lstm_forward(parameters, **inputs, lengths=case["lengths"])
    for actual, output in zip((y, h_n, c_n), case["outputs"].values(), strict=True):
        assert_close(actual, output, "golden")
    dx, dh0, dc0, gradients = reference.lstm_backward(
        tape, upstream["dy"], upstream["dh_n"], upstream["dc_n"]
    )
    for actual, gradient in zip((dx, dh0, dc0), case["input_gradients"].values(), strict=True):
        assert_close(actual, gradient, "golden")
    for parameter, gradient in case["parameter_gradients"].items():
        assert_close(gradients[parameter], gradient, "golden")


def test_cross_entropy_equals_recorded_pytorch():
    case = OPS["cross_entropy"]
    loss, counted, dlogits = reference.cross_entropy(np.array(case["logits"]), np.array(case["targets"]))
    assert counted == 3
    assert_close(loss, case["loss"], "golden")
    assert_close(dlogits, case["dlogits"], "golden")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("sgd_momentum", {"momentum": 0.9, "weight_decay": 0.01}),
        ("sgd_nesterov", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_sgd_equals_recorded_pytorch(name, options):
    case = OPS[name]
    p, velocity = np.array(case["start"]), np.zeros(4)
    for gradient, wanted in zip(case["gradients"], case["path"], strict=True):
        reference.sgd_step(p, np.array(gradient), velocity, lr=0.1, **options)
        assert_close(p, wanted, "golden")


@pytest.mark.parametrize(("name", "decoupled"), [("adam", False), ("adamw", True)])
def test_adam_equals_recorded_pytorch(name, decoupled):
    case = OPS[name]
    p, m, v = np.array(case["start"]), np.zeros(4), np.zeros(4)
    for step, (gradient, wanted) in enumerate(zip(case["gradients"], case["path"], strict=True), start=1):
        reference.adam_step(p, np.array(gradient), m, v, step, lr=0.1, weight_decay=0.01, decoupled=decoupled)
        assert_close(p, wanted, "golden")


@pytest.mark.parametrize(
    ("counter", "key", "words"),  # Random123 kat_vectors, philox4x32 10
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert tuple(reference.philox4x32(counter, key)) == words


def test_kept_tokens_by_hand():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    assert reference.kept_tokens(logits).all()
    assert list(np.flatnonzero(reference.kept_tokens(logits, top_k=2))) == [1, 3]
    assert list(np.flatnonzero(reference.kept_tokens(logits, top_p=0.65))) == [1, 3]
    assert list(np.flatnonzero(reference.kept_tokens(logits, top_p=0.75))) == [1, 2, 3]
    assert list(np.flatnonzero(reference.kept_tokens(logits, top_k=2, top_p=0.5))) == [1]  # 0.4 / 0.7 >= 0.5
    assert list(np.flatnonzero(reference.kept_tokens(logits, temperature=0.5, top_p=0.5))) == [
        1
    ]  # 0.16 / 0.3
    assert list(np.flatnonzero(reference.kept_tokens(np.zeros(4), top_k=2))) == [0, 1]
