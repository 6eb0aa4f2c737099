"""The profiler: what it counts, that it changes nothing, its files, and the command."""

from __future__ import annotations

import json
import re
import threading

import numpy as np
import pytest

import fusedlstm
from fusedlstm import LanguageModel, OneToMany, _core, nn
from fusedlstm.cli import main
from fusedlstm.data import Vocabulary
from fusedlstm.profiling import Bandwidth, Ceilings, PhaseTime, measure_ceilings

LAYERS = 2


@pytest.fixture
def x(rng):
    return rng.standard_normal((5, 9, 12), dtype=np.float32)


def run(layer, x, lengths=None):
    layer.zero_grad()
    y, tape = layer.forward(x, lengths=lengths)
    dx = layer.backward(tape, np.ones_like(y))
    return y, dx, layer.gradients.copy()


def flops_of(profile, phase, layer=None):
    return sum(one.flops for one in profile.phases if one.phase == phase and one.layer == layer)


def only(profile, phase, layer=None):
    [found] = [one for one in profile.phases if one.phase == phase and one.layer == layer]
    return found


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [5, 40])  # cut by units, by sequences
@pytest.mark.parametrize("tape", ["full", "lean"])
def test_flops_are_those_of_the_equations(rng, threads, count, batch, tape):
    """2 P M N of each product over the P valid steps, however threads share them."""
    threads(count)
    I, H, T = 24, 70, 9
    layer = nn.LSTM(I, H, LAYERS, tape=tape)
    x = rng.standard_normal((batch, T, I), dtype=np.float32)
    lengths = rng.integers(0, T + 1, batch)
    run(layer, x, lengths)
    with fusedlstm.profile() as p:
        run(layer, x, lengths)
    P = int(lengths.sum())
    again = 2 if tape == "lean" else 1
    for index in range(LAYERS):
        inputs = I if index == 0 else H
        wanted = {
            "input": again * 2 * P * 4 * H * inputs,
            "recurrent": again * 2 * P * 4 * H * H,
            "gates": P * H * (104 + (80 if tape == "lean" else 0)),  # five functions of 20, four more
            "recurrent backward": 2 * P * 4 * H * H,
            "dX": 2 * P * 4 * H * inputs,
            "dW": 2 * P * 4 * H * (inputs + H),
        }
        for phase, flops in wanted.items():
            assert flops_of(p, phase, index) == pytest.approx(flops, rel=1e-9), (phase, index)


@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True},
        {"tape": "lean"},
        {"dtype": "float64"},
        {"compute_dtype": "bfloat16", "tape": "lean"},
    ],
    ids=str,
)
@pytest.mark.parametrize("trace", [False, True])
def test_nothing_changes(x, options, trace):
    layer = nn.LSTM(12, 33, LAYERS, **options)
    x = x.astype(layer.dtype)
    before = run(layer, x)
    with fusedlstm.profile(trace=trace):
        during = run(layer, x)
    for one, other in zip(before, during, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("rows", [1, 2, 3])  # in one pass, and a product first
def test_nothing_changes_in_a_stream(rng, rows):
    layer = nn.LSTM(12, 33, LAYERS)
    x = rng.standard_normal((70, rows, 12), dtype=np.float32)

    def steps():
        stream = layer.stream(rows)
        for _ in range(rows - 1):
            stream.join()
        one_by_one = [stream.step(x_t).copy() for x_t in (x if rows > 1 else x[:, 0])]
        block = np.ascontiguousarray(x.swapaxes(0, 1))
        return np.array(one_by_one), stream.run(block if rows > 1 else block[0])

    before = steps()
    with fusedlstm.profile():
        during = steps()
    for one, other in zip(before, during, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("compute_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("batch", [1, 5])
def test_parts_of_a_step(x, threads, compute_dtype, batch):
    """Product and gates are one pass: as many calls, and the time is divided where the kernel looked."""
    threads(1)
    layer = nn.LSTM(12, 128, LAYERS, compute_dtype=compute_dtype)
    layer(x[:batch])
    with fusedlstm.profile() as p:
        for _ in range(3):
            layer(x[:batch])
    for index in range(LAYERS):
        product, gates = only(p, "recurrent", index), only(p, "gates", index)
        assert product.calls == gates.calls == 3 * 9
        assert 0 < product.timed == gates.timed < product.calls
        assert product.seconds > 0
        assert gates.seconds > 0
        cells = 3 * 9 * batch * 128
        size = {None: 4, "bfloat16": 2, "int8": 1}[compute_dtype]
        assert product.bytes == 3 * 9 * (batch + 4 * 128) * 128 * size + 4 * cells * 4  # with W x + b
        assert gates.bytes == 3 * cells * 4  # c before, c and h


def test_parts_of_a_step_from_its_input(x):
    """A block of steps in one pass from x on; its calls are the steps."""
    layer = nn.LSTM(12, 16, LAYERS)
    stream = layer.stream()
    with fusedlstm.profile() as p:
        stream.run(np.ascontiguousarray(x[0]))
    parts = [only(p, phase) for phase in ("input", "recurrent", "gates")]
    for part, flops in zip(parts, [2 * 4 * 16 * (12 + 16), 2 * 2 * 4 * 16 * 16, 2 * 104 * 16], strict=True):
        assert part.calls == 9
        assert part.flops == 9 * flops
        assert 0 < part.seconds < p.seconds
    assert sum(part.seconds for part in parts) <= 1.02 * p.threads[0].busy + 1e-6


def test_time_adds_up(x, threads):
    threads(2)
    layer = nn.LSTM(12, 64, LAYERS)
    with fusedlstm.profile() as p:
        for _ in range(20):
            run(layer, x)
    assert p.threads[0].thread == "caller"
    assert 0 < p.python_seconds < p.seconds
    for one in p.threads:
        assert one.busy >= 0
        assert one.waiting >= 0
        assert one.busy + one.waiting <= 1.02 * p.seconds + 1e-4  # ticks are converted by a short calibration
        assert one.busy + one.waiting + one.idle == pytest.approx(p.seconds, rel=0.03, abs=1e-4)


def test_a_profile_has_its_own_time_only(x):
    layer = nn.LSTM(12, 16)
    run(layer, x)
    with fusedlstm.profile() as first:
        run(layer, x)
    run(layer, x)
    with fusedlstm.profile() as second:
        layer(x)
    with fusedlstm.profile() as empty:
        pass
    assert flops_of(first, "dW", 0) > 0
    assert flops_of(second, "dW", 0) == 0
    assert flops_of(second, "recurrent", 0) == flops_of(first, "recurrent", 0)
    assert empty.phases == []
    assert empty.threads[0].idle == empty.seconds


def test_packing_is_counted_once_for_an_update(x):
    layer = nn.LSTM(12, 16, LAYERS)
    with fusedlstm.profile() as p:
        layer(x)
        layer(x)
        layer.mark_updated()
        layer(x)
    packed = [one for one in p.phases if one.phase == "pack"]
    assert {one.layer for one in packed} == {0, 1}
    assert {one.calls for one in packed} == {2 * 4}  # W, R and both for backward, twice


def test_other_python_threads_are_seen(x):
    layer = nn.LSTM(12, 16)
    layer(x)

    def call():
        for _ in range(3):
            layer(x)

    with fusedlstm.profile() as p:
        others = [threading.Thread(target=call) for _ in range(2)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
    names = {one.thread for one in p.threads}
    assert names >= {"caller", "other caller 1"}
    assert flops_of(p, "recurrent", 0) == 6 * 2 * 5 * 9 * 4 * 16 * 16


def test_generation(threads):
    threads(1)
    model = LanguageModel(Vocabulary("char", "abcdefgh"), hidden_size=32, num_layers=2)
    model.generate("a", max_new_tokens=2)
    with fusedlstm.profile() as p:
        model.generate("a", max_new_tokens=11)
    steps = 1 + 10  # the prompt's, and one after each token but the last
    assert flops_of(p, "input", 0) == 2 * 4 * 32 * 32  # the prompt's; then looked up
    for phase in ("recurrent", "gates"):
        assert {only(p, phase, index).calls for index in range(2)} == {steps}
    assert {flops_of(p, *key) for key in [("recurrent", 0), ("recurrent", 1), ("input", 1)]} == {
        steps * 2 * 4 * 32 * 32
    }
    assert flops_of(p, "output") == steps * 2 * 32 * 8
    assert sum(one.calls for one in p.phases if one.phase == "sampling") >= 11


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["dot", "general", "concat"])
def test_flops_of_attention(rng, threads, count, kind):
    """Scores, contexts and [c ; h] W_c of the valid steps; tanh counts 20."""
    threads(count)
    E, H, M = 12, 20, 20
    decoder = nn.AttentionDecoder(E, H, M, attention=kind, input_feeding=False)
    x = rng.standard_normal((5, 7, E), dtype=np.float32)
    memory = rng.standard_normal((5, 6, M), dtype=np.float32)
    lengths, sources = np.array([7, 3, 1, 6, 2]), np.array([6, 4, 1, 2, 5])

    def step():
        y, tape = decoder.forward(x, memory, lengths=lengths, memory_lengths=sources)
        decoder.backward(tape, np.ones_like(y))

    step()
    with fusedlstm.profile() as p:
        step()
    P, pairs = int(lengths.sum()), int((lengths * sources).sum())
    additive = kind == "concat"
    forward, backward = (24, 30) if additive else (2, 2)
    attention = pairs * ((forward + backward) * H + 4 * M) + 2 * 2 * P * H * (M + H) + (20 + 4) * P * H
    gradients = 2 * P * H * (M + H) + 2 * pairs * M
    if additive:
        attention += 2 * 2 * P * H * H
        gradients += 2 * P * H * H
    else:
        gradients += 2 * pairs * H
    if kind != "dot":
        gradients += 2 * 2 * int(sources.sum()) * H * M
    assert flops_of(p, "attention") == pytest.approx(attention, rel=1e-9)
    assert flops_of(p, "dW") == pytest.approx(gradients, rel=1e-9)


@pytest.mark.parametrize("feedback", ["teacher", "output"])
def test_flops_of_one_to_many(rng, threads, feedback):
    """Three products with the output layer, two with the layer that makes the initial state."""
    threads(2)
    model = OneToMany(output_size=3, input_size=3, hidden_size=24)
    x = rng.standard_normal((4, 3), dtype=np.float32)
    target = rng.standard_normal((4, 6, 3), dtype=np.float32)
    options = {"feedback": feedback, "epochs": 1, "batch_size": 4, "progress": False}
    model.fit(x, target, **options)
    with fusedlstm.profile() as p:
        model.fit(x, target, **options)
    outputs, initial = 2 * 4 * 6 * 3 * 24, 2 * 4 * 3 * (2 * 24)  # of the input, to h_0 and c_0
    assert flops_of(p, "output") == outputs + initial
    assert flops_of(p, "dX") == outputs
    assert flops_of(p, "dW") == outputs + initial


def test_streams(x):
    layer = nn.LSTM(12, 16, LAYERS)
    stream = layer.stream()
    row = np.ascontiguousarray(x[0])
    with fusedlstm.profile() as p:
        for x_t in row:
            stream.step(x_t)
        stream.run(row)
    assert flops_of(p, "input") == 2 * 9 * 2 * 4 * 16 * (12 + 16)
    assert flops_of(p, "recurrent") == 2 * 9 * 2 * 4 * 16 * (16 + 16)


@pytest.mark.parametrize("trace", [False, True])
def test_short_calls_are_timed_by_sample(rng, threads, trace):
    """Every call is counted, and one that is not timed has the time of another; a trace has all of them."""
    threads(1)
    H, count = 64, 1000
    layer = nn.LSTM(H, H)
    stream = layer.stream()
    x = rng.standard_normal((count, H), dtype=np.float32)
    with fusedlstm.profile(trace=trace) as p:
        for x_t in x:
            stream.step(x_t)
    parts = [only(p, phase) for phase in ("input", "recurrent", "gates")]
    assert [part.calls for part in parts] == [count] * 3
    assert [part.flops for part in parts] == [count * flops for flops in (8 * H * H, 8 * H * H, 104 * H)]
    every_eighth = count // 8
    assert {part.timed == every_eighth for part in parts} == {trace}
    assert all(part.seconds > 0 for part in parts)


def test_one_profile_at_a_time(x):
    with fusedlstm.profile() as p:
        with pytest.raises(RuntimeError, match="running already"), fusedlstm.profile():
            pass
        nn.LSTM(12, 4)(x)
    assert p.phases
    with pytest.raises(RuntimeError, match="make a new one"):
        p.__enter__()
    with pytest.raises(RuntimeError, match="no profile is running"):
        _core.profile_stop()
    with pytest.raises(ZeroDivisionError), fusedlstm.profile():
        raise ZeroDivisionError
    with fusedlstm.profile():
        pass  # the one before has ended


@pytest.mark.parametrize("call", [fusedlstm.profile, measure_ceilings])
def test_unknown_dtype(call):
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        call(dtype="float16")


def test_bad_sizes():
    for size in (0, -1, 1 << 40):
        with pytest.raises(ValueError, match="read_bandwidth: bytes must lie in"):
            _core.read_bandwidth(size)
    with pytest.raises(ValueError, match="peak_flops: dtype must be"):
        _core.peak_flops("float16")


# ceilings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8"])
def test_ceilings(dtype, threads):
    threads(1)
    ceilings = measure_ceilings(dtype)
    assert ceilings is measure_ceilings(dtype)
    assert ceilings.flops > 1e8
    assert ceilings.bandwidths[-1].capacity == np.inf
    assert all(level.rate > 1e8 for level in ceilings.bandwidths)
    capacities = [level.capacity for level in ceilings.bandwidths]
    assert capacities == sorted(capacities)


def test_what_is_attainable():
    levels = Bandwidth("L1", 1e4, 100e9), Bandwidth("memory", float("inf"), 10e9)
    ceilings = Ceilings("avx2", 1, "float32", 50e9, levels)
    few = PhaseTime(
        "recurrent", 0, calls=10, timed=10, seconds=1.0, flops=1e10, bytes=1e10
    )  # 1e9 bytes a call: memory
    assert few.fraction_of(ceilings) == pytest.approx(1e10 / 10e9)
    near = PhaseTime("recurrent", 0, calls=10_000_000, timed=10, seconds=1.0, flops=1e10, bytes=1e10)
    assert near.fraction_of(ceilings) == pytest.approx(1e10 / 50e9)
    copy = PhaseTime("copy", 0, calls=1, timed=1, seconds=2.0, flops=0.0, bytes=1e10)
    assert copy.fraction_of(ceilings) == pytest.approx(0.5)
    assert PhaseTime("wait", None, 1, 1, 1.0, 0.0, 0.0).fraction_of(ceilings) is None


# output --------------------------------------------------------------------------------------------------


@pytest.fixture
def profiled(x, threads):
    threads(2)
    layer = nn.LSTM(12, 128, LAYERS)
    x = np.tile(x, (8, 1, 1))
    run(layer, x)
    with fusedlstm.profile(trace=True) as p:
        run(layer, x)
    return p


def test_table(profiled):
    text = profiled.table()
    for phase in ("input", "recurrent", "gates", "gates backward", "recurrent backward", "dX", "dW"):
        estimated = "~" if phase in ("recurrent", "gates") else ""
        row = re.search(rf"^{phase} +0 +\d+ +{estimated}[\d.]+ +[\d.]+%", text, re.MULTILINE)
        assert row, f"no {phase} in:\n{text}"
    assert re.search(r"^Python +[\d.]+ +[\d.]+%$", text, re.MULTILINE)
    assert "~ from a sample of the calls" in text
    assert re.search(r"^caller( +[\d.]+%){3}$", text, re.MULTILINE)
    assert re.search(r"^ceilings: [\d.]+ GF/s; reading GB/s: .*memory [\d.]+$", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 110


def test_json(profiled, tmp_path):
    profiled.save_json(tmp_path / "profile.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads((tmp_path / "profile.json").read_text(), parse_constant=refuse)
    assert found["isa"] == fusedlstm.isa()
    assert found["num_threads"] == 2
    assert sum(one["seconds"] for one in found["phases"]) == pytest.approx(
        sum(one["busy"] + one["waiting"] for one in found["threads"])
    )
    assert found["ceilings"]["bandwidths"][-1]["level"] == "memory"


def test_trace(profiled, tmp_path):
    profiled.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert tracks[0] == "caller"
    assert len(tracks) == len(profiled.threads)
    pieces = [event for event in events if event["ph"] == "X"]
    assert sum(event["name"] == "step, layer 1" for event in pieces) >= 9
    last = 1e6 * profiled.seconds
    for track in tracks:
        open_until: list[float] = []  # pieces of a track lie within each other or apart
        for event in sorted(
            (one for one in pieces if one["tid"] == track), key=lambda one: (one["ts"], -one["dur"])
        ):
            begin, end = event["ts"], event["ts"] + event["dur"]
            assert -1 <= begin <= end <= 1.02 * last + 100
            while open_until and open_until[-1] <= begin + 1e-3:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-3
            open_until.append(end)


def test_a_trace_must_be_asked_for(tmp_path):
    with fusedlstm.profile() as p:
        pass
    with pytest.raises(ValueError, match="trace=True"):
        p.save_trace(tmp_path / "trace.json")


def test_roofline(profiled, tmp_path):
    profiled.plot_roofline(tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    with fusedlstm.profile() as empty:
        pass
    with pytest.raises(ValueError, match="no phase"):
        empty.plot_roofline(tmp_path / "empty.png")


# command -------------------------------------------------------------------------------------------------

SHAPE = ["--batch", "3", "--time", "6", "--hidden", "16", "--layers", "1", "--seconds", "0.01"]


@pytest.mark.parametrize(
    ("words", "phases"),
    [
        (["--train"], {"input", "recurrent", "gates", "gates backward", "dW", "loss", "optimiser", "pack"}),
        (["--train", "--vocabulary", "11", "--dtype", "bfloat16"], {"gates", "dW", "loss", "optimiser"}),
        (["--infer", "--input", "5", "--dtype", "int8"], {"input", "recurrent", "gates"}),
        (["--infer", "--vocabulary", "7"], {"input", "recurrent", "gates"}),
        (["--generate", "--dtype", "int8"], {"recurrent", "gates", "output", "sampling"}),
        (["--stream", "--dtype", "float64"], {"input", "recurrent", "gates"}),
    ],
    ids=lambda value: " ".join(sorted(value)),
)
def test_command(words, phases, capsys):
    assert main(["profile", *words, *SHAPE]) == 0
    shown = capsys.readouterr().out
    assert phases <= set(re.findall(r"^([a-zA-Z][a-zA-Z ]*?) +\d", shown, re.MULTILINE)), shown


def test_command_with_a_model_and_files(tmp_path, capsys):
    model = LanguageModel(Vocabulary("char", "abc"), hidden_size=16, num_layers=1)
    path = str(tmp_path / "model.safetensors")
    model.save(path)
    files = {name: str(tmp_path / f"p.{name}") for name in ("json", "trace", "roofline")}
    files["roofline"] += ".png"
    words = [word for name, file in files.items() for word in (f"--{name}", file)]
    assert main(["profile", "--infer", "--model", path, *SHAPE, *words, "--overhead"]) == 0
    assert "with the profiler on" in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text())["phases"]
    assert json.loads((tmp_path / "p.trace").read_text())["traceEvents"]
    assert (tmp_path / "p.roofline.png").stat().st_size > 1000
    for what in ("--train", "--generate", "--stream"):
        assert main(["profile", what, "--model", path, *SHAPE]) == 0


def test_command_says_what_cannot_be(capsys):
    assert main(["profile", "--train", "--dtype", "int8", *SHAPE]) == 1
    assert "int8" in capsys.readouterr().err
    assert main(["profile", "--model", "nowhere.safetensors", *SHAPE]) == 1
    with pytest.raises(SystemExit):
        main(["profile", "--train", "--infer"])
