"""`nn.LSTM.stream` and `fusedlstm.Stream`: conversion, defaults and errors of the Python side."""

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from cases import assert_same_bits

import fusedlstm
from fusedlstm import _core, nn


@pytest.fixture
def lstm():
    return nn.LSTM(3, 5, num_layers=2, seed=1)


@pytest.fixture
def x(rng):
    return rng.standard_normal((6, 3)).astype(np.float32)


def test_a_stream_is_the_layer(dtype, rng):
    lstm = nn.LSTM(3, 5, num_layers=2, dtype=dtype)
    x = rng.standard_normal((6, 3)).astype(dtype)
    stream = lstm.stream()
    assert isinstance(stream, fusedlstm.Stream)
    assert_same_bits(np.stack([stream.step(x_t).copy() for x_t in x]), lstm(x))
    assert_same_bits(lstm.stream().run(x), lstm(x))


def test_against_torch(rng):
    torch = pytest.importorskip("torch")
    lstm = nn.LSTM(7, 40, num_layers=2)
    peer = torch.nn.LSTM(7, 40, num_layers=2)
    peer.load_state_dict({name: torch.from_numpy(p.copy()) for name, p in lstm.named_parameters().items()})
    x = rng.standard_normal((20, 7)).astype(np.float32)
    stream, state = lstm.stream(), None
    for x_t in x:
        with torch.inference_mode():
            y, state = peer(torch.from_numpy(x_t)[None], state)
        np.testing.assert_allclose(stream.step(x_t), y[0].numpy(), rtol=0, atol=2e-6)


def test_state_of_a_layer_goes_on_in_a_stream(lstm, x):
    whole = lstm(x)
    lstm.return_state = True
    _, state = lstm(x[:4])
    assert_same_bits(lstm.stream(state=state).run(x[4:]), whole[4:])
    stream = lstm.stream(capacity=2)
    stream.leave(0)
    stream.join(list(state))
    assert_same_bits(stream.run(x[4:]), whole[4:])
    assert_same_bits(np.stack(stream.save()), np.stack(lstm(x)[1]))


def test_lists_are_converted(lstm):
    stream = lstm.stream()
    zeros = [[0.0] * 5] * 2
    first = stream.run([[1, 2, 3], [4, 5, 6]])
    stream.restore((zeros, zeros))
    assert_same_bits(stream.run(np.array([[1, 2, 3], [4, 5, 6]], np.float32)), first)


def test_states_can_be_pickled(lstm, x):
    stream = lstm.stream()
    stream.run(x[:4])
    saved = pickle.loads(pickle.dumps(stream.save()))
    rest = stream.run(x[4:])
    assert_same_bits(lstm.stream(state=saved).run(x[4:]), rest)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(stream)


def test_weights_are_a_snapshot(lstm, x):
    before = lstm(x)
    stream = lstm.stream()
    lstm.parameters[:] *= 2
    lstm.mark_updated()
    assert_same_bits(stream.run(x), before)
    assert_same_bits(lstm.stream().run(x), lstm(x))


def test_repr(lstm):
    assert repr(lstm.stream(capacity=3)) == (
        "Stream(3, 5, num_layers=2, dtype='float32', capacity=3, rows=1)"
    )


@pytest.mark.parametrize(("capacity", "error"), [(0, ValueError), (-3, ValueError), (1.0, TypeError)])
def test_bad_capacity(lstm, capacity, error):
    with pytest.raises(error, match=r"^capacity must be .*, got"):
        lstm.stream(capacity)


def test_bidirectional():
    with pytest.raises(ValueError, match=r"^LSTM\.stream: needs one direction, got bidirectional=True"):
        nn.LSTM(3, 5, bidirectional=True).stream()


def test_bad_states(lstm):
    stream, good = lstm.stream(capacity=2), np.zeros((2, 5), np.float32)
    for call, name in ((stream.join, "join"), (stream.restore, "restore")):
        with pytest.raises(TypeError, match=rf"^Stream\.{name}: state must be a pair"):
            call(good)
        with pytest.raises(ValueError, match=rf"^Stream\.{name}: h must be float32, got float64"):
            call((good.astype(np.float64), good))
        with pytest.raises(ValueError, match=rf"^Stream\.{name}: c must be float32 \(L=2, H=5\), got"):
            call((good, good[:1]))


def test_bad_blocks(lstm, x):
    with pytest.raises(ValueError, match=r"^Stream\.run: block must be float32, got float64"):
        lstm.stream().run(x.astype(np.float64))
    with pytest.raises(
        ValueError, match=r"^Stream\.run: block must be float32 \(T, I=3\), got float32 \(6, 2\)"
    ):
        lstm.stream().run(x[:, :2])


def test_get_include():
    assert (Path(fusedlstm.get_include()) / "fusedlstm" / "stream.h").is_file()


def test_ctrl_c_ends_a_run():
    program = """
        import os, signal, threading, numpy as np
        from fusedlstm import nn
        stream = nn.LSTM(64, 64).stream()
        block = np.zeros((1_000_000, 64), np.float32)  # some seconds
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            stream.run(block)
        except KeyboardInterrupt:
            print(stream.step(block[0]).shape)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (0, "(64,)\n"), run.stderr


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "int8"])
def test_streams_are_for_full_precision(compute_dtype):
    lstm = nn.LSTM(3, 4, compute_dtype=compute_dtype)
    with pytest.raises(ValueError, match=f"computes in float32, got compute_dtype='{compute_dtype}'"):
        lstm.stream()
    packed = _core.LSTM(3, 4).pack(lstm.parameters, backward=False, compute_dtype=compute_dtype)
    with pytest.raises(ValueError, match="packed for float32"):
        fusedlstm.Stream(packed, 1)
