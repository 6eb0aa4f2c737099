"""Seconds per step of one streamed sequence, with the state kept between calls: ours, torch, ONNX Runtime.

Each peer does what it offers for this: torch.nn.LSTM on one step under inference_mode, ONNX Runtime a session
with I/O binding and the state bound as input and output in turn. "native" is our step called through its
capsule by a loop in C (without a compiler: `Stream.run`), beside the same figure of ONNX Runtime, which holds
a Python call. Before timing, 20 steps are compared.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import fusedlstm
from fusedlstm import nn

from . import peers
from .harness import Plan, Record, add_bandwidth, alternate, assert_close, use_threads

BENCHMARK = "streaming"
SIZES = [8, 32, 64, 128, 256, 512]  # I = H
NATIVE_STEPS = 1000

LOOP = """
#include <fusedlstm/stream.h>
int steps(const fusedlstm_stream_v1* s, int64_t n, const float* x, float* y) {
  int failed = 0;
  while (n-- > 0) failed |= s->step(s->stream, 1, x, y);
  return failed;
}
"""

Step = Callable[[np.ndarray], np.ndarray]


def torch_step(lstm: nn.LSTM) -> Step:
    size = lstm.input_size
    peer = torch.nn.LSTM(size, size)
    peer.load_state_dict({name: torch.from_numpy(p.copy()) for name, p in lstm.named_parameters().items()})
    state = (torch.zeros(1, size), torch.zeros(1, size))

    @torch.inference_mode()
    def step(x: np.ndarray) -> np.ndarray:
        nonlocal state
        y, state = peer(torch.from_numpy(x)[None], state)
        return y[0].numpy()

    return step


def onnxruntime_step(lstm: nn.LSTM, threads: int) -> Step:
    import onnx
    import onnxruntime

    size = lstm.input_size
    parameters = lstm.named_parameters()

    def gates(name: str) -> np.ndarray:  # i f g o -> ONNX's i o f c
        i, f, g, o = np.split(parameters[name], 4)
        return np.concatenate([i, o, f, g])[None]

    weights = {
        "W": gates("weight_ih_l0"),
        "R": gates("weight_hh_l0"),
        "B": np.concatenate([gates("bias_ih_l0"), gates("bias_hh_l0")], 1),
    }
    node = onnx.helper.make_node(
        "LSTM", ["x", "W", "R", "B", "", "h", "c"], ["", "h_next", "c_next"], hidden_size=size
    )
    values = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, size])
        for name in ("x", "h", "c", "h_next", "c_next")
    }
    graph = onnx.helper.make_graph(
        [node],
        "step",
        [values[name] for name in ("x", "h", "c")],
        [values[name] for name in ("h_next", "c_next")],
        [onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    session = peers.onnxruntime_session(peers.onnx_model(graph), threads)

    def zeros() -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, size), np.float32))

    x_value = zeros()
    states = [(zeros(), zeros()), (zeros(), zeros())]
    turns = []
    for before, after in (states, states[::-1]):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x_value)
        for name, read, written in zip("hc", before, after, strict=True):
            binding.bind_ortvalue_input(name, read)
            binding.bind_ortvalue_output(f"{name}_next", written)
        turns.append((binding, after[0]))
    turn = 0

    def step(x: np.ndarray) -> np.ndarray:
        nonlocal turn
        binding, h = turns[turn]
        turn = 1 - turn
        x_value.update_inplace(x[None, None])
        session.run_with_iobinding(binding)
        return h.numpy()[0, 0]

    return step


def native_steps(stream: fusedlstm.Stream, x: np.ndarray, folder: Path) -> Callable[[], object]:
    """A call that makes NATIVE_STEPS steps without Python in between."""
    source, library = folder / "loop.c", folder / "loop.so"
    source.write_text(LOOP)
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-I", fusedlstm.get_include()]
    try:
        if not library.exists():
            subprocess.run([*command, source, "-o", library], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        block = np.tile(x, (NATIVE_STEPS, 1))
        return lambda: stream.run(block)
    loop = ctypes.CDLL(str(library)).steps
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = stream.capsule
    host, y = get(capsule, b"fusedlstm.stream.v1"), np.empty(stream.hidden_size, np.float32)

    def work(_keep: object = capsule) -> None:
        if loop(ctypes.c_void_p(host), ctypes.c_int64(NATIVE_STEPS), x.ctypes.data_as(ctypes.c_void_p),
                y.ctypes.data_as(ctypes.c_void_p)):  # fmt: skip
            raise AssertionError("a native step failed")

    return work


def per_step(record: Record) -> Record:
    """Seconds of NATIVE_STEPS steps on our side to those of one, and the ratios with them."""
    for key in ("median", "lower_quartile", "upper_quartile", "least"):
        record["ours_seconds"][key] /= NATIVE_STEPS
    for key in ("ratio", "ratio_lower_quartile", "ratio_upper_quartile", "ratio_of_least"):
        record[key] *= NATIVE_STEPS
    if record["disturbed"]["rounds"]:
        record["disturbed"]["ratio"] *= NATIVE_STEPS
    return record


def run(plan: Plan) -> Iterator[Record]:
    use_threads(plan.threads)
    rng = np.random.default_rng(0)
    repetitions = 5 if plan.quick else 15
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES[:2] if plan.quick else SIZES:
            cases = {how: f"I=H={size} {how}" for how in ("Python", "native")}
            wanted = {how for how, case in cases.items() if plan.wants(BENCHMARK, case)}
            if not wanted:
                continue
            lstm = nn.LSTM(size, size, seed=1)
            stream = lstm.stream()
            steps: dict[str, Step] = {}
            if "torch" in peers.chosen:
                steps["torch"] = torch_step(lstm)
            if "onnxruntime" in peers.chosen:
                steps["onnxruntime"] = onnxruntime_step(lstm, plan.threads)
            xs = rng.standard_normal((20, size)).astype(np.float32)
            ours = np.stack([stream.step(x).copy() for x in xs])
            x = xs[0]
            works = {"Python": lambda stream=stream, x=x: stream.step(x)}
            works["native"] = native_steps(stream, x, Path(folder))
            for name, step in steps.items():
                theirs = np.stack([step(x_t).copy() for x_t in xs])
                difference = assert_close(f"{size} {name}", ours, theirs, 1e-5)
                for how in sorted(wanted):
                    record = alternate(works[how], lambda step=step, x=x: step(x), repetitions=repetitions)
                    if how == "native":
                        record = per_step(record)
                    record |= {
                        "benchmark": BENCHMARK,
                        "case": cases[how],
                        "shape": {"N": 1, "T": 1, "I": size, "H": size, "L": 1, "dtype": "float32"},
                        "peer": name,
                        "largest_difference": difference,
                    }
                    # every step reads all weights, on one thread
                    yield add_bandwidth(record, 4 * (4 * size) * (2 * size), 1, 1)
