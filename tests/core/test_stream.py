"""Streams: the bits of a whole sequence step by step, rows that come and go, native hosts, bad calls."""

import ctypes
import gc
import shutil
import subprocess
import sysconfig
import threading

import cases
import numpy as np
import pytest
from cases import assert_same_bits

import fusedlstm
from fusedlstm import _core

SIZES = [  # (I, H, L): below, at and above one and two blocks of units, and an odd number of half panels
    (3, 5, 1),
    (16, 16, 2),
    (7, 37, 3),
    (32, 32, 1),
    (20, 48, 2),
    (131, 100, 1),
]


def whole(m, x, h0=None, c0=None):
    """(y, h_n, c_n) of `lstm_forward` over x (N, T, I)."""
    return _core.lstm_forward(m.packed, np.ascontiguousarray(x), h0, c0)


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def joined(m, rows, capacity=None):
    stream = _core.Stream(m.packed, capacity or rows)
    for _ in range(rows):
        stream.join()
    return stream


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 14])
def test_steps_are_the_sequence(isa, dtype, size, rows):
    m = cases.model(*size, dtype=dtype)
    x = normal(rows, 6, size[0], dtype=dtype)
    y, h_n, c_n = whole(m, x)
    stream = joined(m, rows, rows + 1)
    for t in range(6):
        assert_same_bits(stream.step(np.ascontiguousarray(x[:, t])), y[:, t])
    for row in range(rows):
        assert_same_bits(np.stack(stream.save(row)), np.stack([h_n[:, row], c_n[:, row]]))


def test_every_instruction_set(dtype):
    results = []
    before = _core.isa()
    for level in _core.isa_levels():
        _core.set_isa(level)
        results.append(joined(cases.model(20, 48, L=2, dtype=dtype), 3).run(normal(3, 9, 20, dtype=dtype)))
        _core.set_isa(before)
    assert_same_bits(*results)


@pytest.mark.parametrize("bias", [False, True])
def test_one_row_without_a_batch_axis(isa, dtype, bias):
    m = cases.model(7, 37, L=2, bias=bias, dtype=dtype)
    x = normal(5, 7, dtype=dtype)
    y = whole(m, x[None])[0][0]
    stream, block = joined(m, 1), joined(m, 1)
    for t in range(5):
        assert_same_bits(stream.step(x[t]), y[t])
    assert_same_bits(block.run(x), y)


@pytest.mark.parametrize("cuts", [[], [1], [2, 5]])
def test_run_is_its_steps(isa, dtype, cuts):
    m = cases.model(20, 48, L=2, dtype=dtype)
    x = normal(3, 8, 20, dtype=dtype)
    stream = joined(m, 3)
    edges = [0, *cuts, 8]
    pieces = [stream.run(np.ascontiguousarray(x[:, a:b])) for a, b in zip(edges, edges[1:], strict=False)]
    assert_same_bits(np.concatenate(pieces, 1), whole(m, x)[0])
    assert stream.run(x[:, :0].copy()).shape == (3, 0, 48)


def test_against_the_specification(dtype):
    """The equations in float64, not our own sequence."""
    m = cases.model(7, 37, L=2, dtype=dtype)
    x = normal(6, 7, dtype=dtype)
    h, c = np.zeros((2, 37)), np.zeros((2, 37))
    weights = m.exact
    stream = joined(m, 1)
    for x_t in x:
        below = x_t.astype(np.float64)
        for layer in range(2):
            w = {name[: -len("_l0")]: v for name, v in weights.items() if name.endswith(f"_l{layer}")}
            a = w["weight_ih"] @ below + w["bias_ih"] + w["weight_hh"] @ h[layer] + w["bias_hh"]
            i, f, g, o = a.reshape(4, 37)
            i, f, o = (1 / (1 + np.exp(-v)) for v in (i, f, o))
            c[layer] = f * c[layer] + i * np.tanh(g)
            below = h[layer] = o * np.tanh(c[layer])
        np.testing.assert_allclose(
            stream.step(x_t), below, rtol=0, atol=2e-6 if dtype == "float32" else 1e-14
        )


def test_rows_join_leave_and_fork(isa, dtype):
    """Random comings and goings; every row must be what its sequence gives alone."""
    m = cases.model(7, 37, L=2, dtype=dtype)
    rng = np.random.default_rng(4)
    stream = _core.Stream(m.packed, 6)
    history, start, outputs = {}, {}, {}
    for _ in range(60):
        ids = stream.ids
        assert ids == tuple(history)
        action = rng.integers(4)
        if action == 0 and len(ids) < 6:
            state = (normal(2, 37, dtype=dtype), normal(2, 37, dtype=dtype, seed=1))
            new = stream.join(state)
            history[new], start[new], outputs[new] = [], state, []
        elif action == 1 and ids:
            gone = int(rng.choice(ids))
            stream.leave(gone)
            check_history(m, history.pop(gone), start[gone], outputs[gone])
        elif action == 2 and ids and len(ids) < 6:
            parent = int(rng.choice(ids))
            new = stream.fork(parent)
            history[new], start[new] = list(history[parent]), start[parent]
            outputs[new] = list(outputs[parent])
        x = rng.standard_normal((len(stream.ids), 7)).astype(dtype)
        y = stream.step(x)
        for row, id in enumerate(stream.ids):
            history[id].append(x[row])
            outputs[id].append(y[row].copy())
    for id in stream.ids:
        check_history(m, history[id], start[id], outputs[id])
    assert len(start) == max(start) + 1, "an id was used twice"


def check_history(m, history, start, outputs):
    if history:
        y = whole(m, np.stack(history)[None], *(part[:, None].copy() for part in start))[0]
        assert_same_bits(np.stack(outputs), y[0])


def test_save_restore_and_reset(dtype):
    m = cases.model(3, 20, L=2, dtype=dtype)
    x = normal(4, 3, dtype=dtype)
    stream = joined(m, 1)
    fresh = stream.run(x)
    saved = stream.save()
    kept = [part.copy() for part in saved]
    later = stream.run(x)
    assert_same_bits(np.stack(saved), np.stack(kept))  # a copy, not a view
    stream.restore(saved)
    assert_same_bits(stream.run(x), later)
    stream.restore(saved, 0)
    assert_same_bits(stream.run(x), later)
    stream.reset()
    assert_same_bits(stream.run(x), fresh)
    stream.restore(None)
    assert_same_bits(stream.run(x), fresh)
    two = joined(m, 2)
    both = np.stack([x, x])
    two.run(both)
    two.reset(1)
    assert_same_bits(two.run(both), np.stack([later, fresh]))
    two.reset()
    assert_same_bits(two.run(both), np.stack([fresh, fresh]))


def test_nan_and_subnormals_stay_in_their_row():
    m = cases.model(3, 20)
    x = normal(2, 5, 3)
    x[0, 1] = np.nan
    x[1] *= 1e-42
    y = joined(m, 2).run(x)
    assert np.isnan(y[0, 1:]).all()
    assert_same_bits(y, whole(m, x)[0])


def test_weights_are_a_snapshot():
    m = cases.model(3, 5)
    stream, x = joined(m, 1), normal(3)
    first = stream.step(x).copy()
    m.flat[:] = 0
    stream.reset()
    assert_same_bits(stream.step(x), first)


def test_output_is_one_array():
    m = cases.model(3, 5)
    stream, x = joined(m, 2, 3), normal(2, 3)
    y = stream.step(x)
    first = y.copy()
    assert stream.step(x) is y
    assert not (y == first).all()
    stream.join()
    assert stream.step(normal(3, 3)).shape == (3, 5)
    assert y.shape == (2, 5)  # an old view still is one
    del stream
    gc.collect()
    y[:] = 1  # and keeps its memory alive


def test_no_rows():
    stream = _core.Stream(cases.model(3, 5).packed, 2)
    assert stream.ids == ()
    assert stream.step(np.zeros((0, 3), np.float32)).shape == (0, 5)
    assert stream.run(np.zeros((0, 4, 3), np.float32)).shape == (0, 4, 5)
    stream.reset()


def test_properties(dtype):
    stream = _core.Stream(cases.model(3, 5, L=2, dtype=dtype).packed, 4)
    assert (stream.input_size, stream.hidden_size, stream.num_layers) == (3, 5, 2)
    assert (stream.dtype, stream.capacity) == (dtype, 4)


# bad calls ------------------------------------------------------------------------------------------------


def test_equal_dtypes_and_subclasses_are_taken():
    """What is not an ordinary array, but means the same, goes the slower way."""

    class Mine(np.ndarray):
        pass

    m = cases.model(3, 5)
    x = normal(3)
    y = joined(m, 1).step(x)
    for same in (x.view(Mine), x.astype(np.dtype("f4", metadata={"unit": "m"})), x.astype(np.dtype("<f4"))):
        assert_same_bits(joined(m, 1).step(same), y)


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (np.zeros(4, np.float32), r"float32 \(4,\)"),
        (np.zeros(2, np.float32), r"float32 \(2,\)"),
        (np.zeros((2, 3), np.float32), r"float32 \(2, 3\)"),
        (np.zeros((1, 4), np.float32), r"float32 \(1, 4\)"),
        (np.zeros((1, 1, 3), np.float32), r"float32 \(1, 1, 3\)"),
        (np.zeros((), np.float32), r"float32 \(\)"),
        (np.zeros(3), r"float64 \(3,\)"),
        (np.zeros(3, np.int32), r"int32 \(3,\)"),
        (np.zeros(3, ">f4"), r">f4 \(3,\)"),
        (np.zeros(6, np.float32)[::2], r"a strided array \(3,\).*contiguous.*"),
        (np.zeros(3, np.float32)[::-1], r"a strided array \(3,\).*contiguous.*"),
    ],
)
def test_bad_steps(bad, got):
    stream = joined(cases.model(3, 5), 1)
    with pytest.raises(
        ValueError, match=rf"^Stream\.step: x must be float32 \((rows=1, )?I=3,?\), got {got}"
    ):
        stream.step(bad)


def test_unaligned_step():
    memory = np.zeros(13, np.uint8)[1:]
    with pytest.raises(ValueError, match=r"^Stream\.step: x must .* not aligned"):
        joined(cases.model(3, 5), 1).step(memory.view(np.float32))


@pytest.mark.parametrize("bad", [None, 1.0, [0.0, 0.0, 0.0], "text", b"bytes", memoryview(b"123"), object()])
def test_not_an_array(bad):
    stream = joined(cases.model(3, 5), 1)
    with pytest.raises(TypeError, match=r"^Stream\.step: x must be float32 .*, got "):
        stream.step(bad)
    with pytest.raises(TypeError, match=r"^Stream\.run: block must be float32 .*, got "):
        stream.run(bad)


def test_step_takes_one_argument_of_its_own_kind():
    stream = joined(cases.model(3, 5), 1)
    x = normal(3)
    for arguments in ((), (x, x)):
        with pytest.raises(TypeError):
            stream.step(*arguments)
    with pytest.raises(TypeError):
        _core.Stream.step(3, x)
    with pytest.raises(TypeError, match="__init__"):
        _core.Stream.step(_core.Stream.__new__(_core.Stream), x)


@pytest.mark.parametrize("shape", [(1, 3), (2, 4, 4), (3, 4, 3), (4, 3), (3,), (1, 2, 4, 3)])
def test_bad_blocks(shape):
    stream = joined(cases.model(3, 5), 2)
    with pytest.raises(
        ValueError, match=r"^Stream\.run: block must be float32 \(rows=2, T, I=3\), got float32"
    ):
        stream.run(np.zeros(shape, np.float32))


def test_more_rows_need_a_batch_axis():
    stream = joined(cases.model(3, 5), 2)
    with pytest.raises(ValueError, match=r"x must be float32 \(rows=2, I=3\), got float32 \(3,\)"):
        stream.step(normal(3))


def test_bidirectional():
    with pytest.raises(ValueError, match=r"^Stream: packed must have one direction, got a bidirectional"):
        _core.Stream(cases.model(3, 5, D=2).packed, 1)


@pytest.mark.parametrize("capacity", [0, -1, 2**20 + 1, 2**62])
def test_bad_capacity(capacity):
    with pytest.raises(ValueError, match=rf"^Stream: capacity must lie in 1 .. 2\^20, got {capacity}"):
        _core.Stream(cases.model(3, 5).packed, capacity)


def test_bad_handles():
    for bad in (None, "packed", np.zeros(3), cases.model(3, 5).lstm):
        with pytest.raises(TypeError, match="packed"):
            _core.Stream(bad, 1)
    with pytest.raises(TypeError, match="capacity"):
        _core.Stream(cases.model(3, 5).packed, 1.5)


def test_full():
    stream = joined(cases.model(3, 5), 2)
    for add in (stream.join, lambda: stream.fork(0)):
        with pytest.raises(ValueError, match=r"capacity must exceed the 2 rows in use, got 2$"):
            add()
    assert stream.ids == (0, 1)


@pytest.mark.parametrize("method", ["leave", "reset", "save", "fork", "restore"])
@pytest.mark.parametrize("id", [0, 7, -1, 2**62])
def test_unknown_ids(method, id):
    stream = joined(cases.model(3, 5), 2)
    stream.leave(0)
    call = (lambda: stream.restore(None, id)) if method == "restore" else lambda: getattr(stream, method)(id)
    with pytest.raises(ValueError, match=rf"^Stream\.{method}: id must be one of \[1\], got {id}$"):
        call()


@pytest.mark.parametrize("method", ["save", "restore"])
def test_id_may_be_left_out_for_one_row_only(method):
    stream = joined(cases.model(3, 5), 2)
    with pytest.raises(ValueError, match=rf"^Stream\.{method}: id must be given .* 2 rows$"):
        stream.restore(None) if method == "restore" else stream.save()


@pytest.mark.parametrize("method", ["join", "restore"])
def test_bad_states(method):
    stream = _core.Stream(cases.model(3, 5, L=2).packed, 2)
    stream.join()
    good = np.zeros((2, 5), np.float32)
    for bad in (good, (good,), (good, good, good), "hc", 3):
        with pytest.raises(TypeError, match=rf"^Stream\.{method}: state must be a pair \(h, c\), got "):
            getattr(stream, method)(bad)
    for name, pair in (("h", (good[:1], good)), ("c", (good, good.astype(np.float64)))):
        with pytest.raises(
            ValueError, match=rf"^Stream\.{method}: {name} must be float32 \(L=2, H=5\), got "
        ):
            getattr(stream, method)(pair)
    assert stream.ids == (0,)


# threads ----------------------------------------------------------------------------------------------------


def busy_or_done(call):
    """Whether the call was refused because another thread is in one."""
    try:
        call()
    except RuntimeError as error:
        return "in use by another call" in str(error)
    return False


def test_one_call_at_a_time():
    """While a long run is under way every other call is refused, and the run is what it would be alone."""
    m = cases.model(1, 64)
    x = normal(300_000, 1)  # some tenths of a second
    stream = joined(m, 1, 2)
    result = []
    thread = threading.Thread(target=lambda: result.append(stream.run(x)))
    thread.start()
    while thread.is_alive() and not busy_or_done(lambda: stream.ids):
        pass
    calls = {
        "step": lambda: stream.step(x[0]),
        "run": lambda: stream.run(x[:1]),
        "join": stream.join,
        "fork": lambda: stream.fork(0),
        "leave": lambda: stream.leave(0),
        "reset": stream.reset,
        "save": stream.save,
        "restore": lambda: stream.restore(None),
        "ids": lambda: stream.ids,
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match=rf"^Stream\.{name}: the stream is in use by another call$"):
            call()
    thread.join()
    assert_same_bits(result[0], whole(m, x[None])[0][0])
    assert stream.ids == (0,)


def test_threads_do_not_crash():
    m = cases.model(8, 32)
    stream = joined(m, 1)
    x, block = normal(8), normal(200, 8)
    finished = []

    def work():
        for _ in range(300):
            busy_or_done(lambda: stream.step(x))
            busy_or_done(lambda: stream.run(block))
        finished.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(finished) == 4
    stream.reset()
    assert_same_bits(stream.run(block), whole(m, block[None])[0][0])


# native hosts -----------------------------------------------------------------------------------------------


class Host(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32),
        ("dtype", ctypes.c_uint32),
        ("input_size", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("num_layers", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
        (
            "step",
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p),
        ),
        ("reset", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)),
    )


def host_of(capsule):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return Host.from_address(get(capsule, b"fusedlstm.stream.v1"))


def test_capsule(isa, dtype):
    m = cases.model(7, 37, L=2, dtype=dtype)
    x = normal(5, 3, 7, dtype=dtype)
    y, wanted = np.zeros((3, 37), dtype), whole(m, x.transpose(1, 0, 2))[0]
    stream = joined(m, 3, 4)
    capsule = stream.capsule
    host = host_of(capsule)
    assert (host.version, host.dtype) == (1, ["float32", "float64"].index(dtype))
    assert (host.input_size, host.hidden_size, host.num_layers, host.capacity) == (7, 37, 2, 4)
    assert host.step(host.stream, 2, x[0].ctypes.data, y.ctypes.data) == 2
    assert host.step(host.stream, 4, x[0].ctypes.data, y.ctypes.data) == 2
    assert host.reset(host.stream, 3) == host.reset(host.stream, -1) == 2
    for t in range(2):
        assert host.step(host.stream, 3, x[t].ctypes.data, y.ctypes.data) == 0
        assert_same_bits(y, wanted[:, t])
    assert_same_bits(stream.step(x[2]), wanted[:, 2])  # the same stream, from both sides
    del stream, m
    gc.collect()
    assert host.step(host.stream, 3, x[3].ctypes.data, y.ctypes.data) == 0
    assert_same_bits(y, wanted[:, 3])
    for row in range(3):
        assert host.reset(host.stream, row) == 0
    assert host.step(host.stream, 3, x[0].ctypes.data, y.ctypes.data) == 0
    assert_same_bits(y, wanted[:, 0])


def test_capsules_come_and_go():
    stream = joined(cases.model(3, 5), 1)
    for _ in range(100):
        first, second = stream.capsule, stream.capsule
        assert host_of(first).stream == host_of(second).stream
    del first, second
    gc.collect()
    stream.step(normal(3))


PROGRAM = """
#include <fusedlstm/stream.h>

int all_steps(const fusedlstm_stream_v1* s, int64_t steps, const float* x, float* y) {
  if (s->version != 1 || s->dtype != FUSEDLSTM_FLOAT32) return -1;
  for (int64_t t = 0; t < steps; ++t) {
    const int status = s->step(s->stream, 1, x + t * s->input_size, y + t * s->hidden_size);
    if (status != FUSEDLSTM_STREAM_OK) return status;
  }
  return FUSEDLSTM_STREAM_OK;
}
"""


def test_c_program(tmp_path):
    """The header as C and as C++ compiles, and a loop in C computes the same bits."""
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")
    m = cases.model(7, 37, L=2)
    x = normal(50, 7)
    y, wanted = np.zeros((50, 37), np.float32), whole(m, x[None])[0][0]
    capsule = joined(m, 1).capsule
    if compiler is None:  # the same loop, without what only a compiler can check
        host = host_of(capsule)
        for t in range(50):
            assert host.step(host.stream, 1, x[t].ctypes.data, y[t].ctypes.data) == 0
    else:
        source, library = tmp_path / "host.c", tmp_path / "host.so"
        source.write_text(PROGRAM)
        flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I", fusedlstm.get_include()]
        subprocess.run([compiler, *flags, "-shared", "-fPIC", source, "-o", library], check=True)
        function = ctypes.CDLL(str(library)).all_steps
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
        host = host_of(capsule)
        assert function(ctypes.addressof(host), 50, x.ctypes.data, y.ctypes.data) == 0
    assert_same_bits(y, wanted)
