"""One LSTM call in other systems, with the weights of a ``torch.nn.LSTM``: inference and training.

`inference` and `training` give the chosen contestants for a type of products. A call of inference returns y
(N, T, D*H) as NumPy, zeros past a sequence's length; a call of training dx (N, T, I). A contestant that
cannot do a shape is left out, and the reason is printed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusedlstm import _core

from . import native_peers
from .harness import LIMITED
from .shapes import Shape

Work = Callable[[], np.ndarray]

NAMES = ["torch", "onnxruntime", "openvino", "jax", "onednn", "libxsmm"]
chosen = list(NAMES)
bf16_emulated = False  # neither AMX nor AVX512-BF16


class LeftOut(Exception):
    """The contestant cannot do this shape or type; says where not."""


@functools.cache
def say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def choose(names: list[str] | None) -> dict[str, str]:
    """Keep these contestants; returns those skipped, each with the reason."""
    global bf16_emulated
    skipped = {}
    for name in NAMES:
        needed = {"onnxruntime": ["onnx", "onnxruntime"], "onednn": [], "libxsmm": []}.get(name, [name])
        missing = [module for module in needed if importlib.util.find_spec(module) is None]
        if names is not None and name not in names:
            skipped[name] = "not chosen"
        elif missing:
            skipped[name] = f"{' and '.join(missing)} not installed"
        elif LIMITED and name in ("onnxruntime", "jax"):
            skipped[name] = "has no setting that limits its matrix products to AVX2"
        elif LIMITED and name == "libxsmm":
            skipped[name] = "its LSTM needs AVX-512"
        elif name in native_peers.NAMES and native_peers.version(name) is None:
            skipped[name] = "its library and headers, or a C++ compiler, are not installed"
    chosen[:] = [name for name in NAMES if name not in skipped]
    features = _core.cpu_info()["features"]
    bf16_emulated = LIMITED or not {"amx-bf16", "avx512bf16"} & set(features)
    if "openvino" in chosen and bf16_emulated:
        skipped["openvino bf16"] = "emulated on this processor, fifty times slower than float32"
    return skipped


def versions() -> dict[str, str]:
    return {
        name: native_peers.version(name) or ""
        if name in native_peers.NAMES
        else importlib.metadata.version(name)
        for name in chosen
    }


# --- weights ----------------------------------------------------------------------------------------------


def weights(
    lstm: torch.nn.LSTM, order: str = "ifgo", layer: int = 0, direction: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """W_ih, W_hh, b_ih, b_hh with the gates in this order (torch's is ifgo)."""
    index = ["ifgo".index(gate) for gate in order]
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    arrays = [getattr(lstm, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    split = [a.detach().numpy().reshape(4, lstm.hidden_size, *a.shape[1:])[index] for a in arrays]
    w_ih, w_hh, b_ih, b_hh = (np.ascontiguousarray(a.reshape(-1, *a.shape[2:])) for a in split)
    return w_ih, w_hh, b_ih, b_hh


def stacked(lstm: torch.nn.LSTM, order: str, layer: int) -> tuple[np.ndarray, ...]:
    """The same of both directions, one above the other."""
    directions = range(2 if lstm.bidirectional else 1)
    parts = zip(*(weights(lstm, order, layer, direction) for direction in directions), strict=True)
    return tuple(np.stack(part) for part in parts)


# --- inference --------------------------------------------------------------------------------------------


def torch_call(lstm: torch.nn.Module, x: torch.Tensor, lengths: np.ndarray | None) -> torch.Tensor:
    if lengths is None:
        return lstm(x)[0]
    lengths_peer = torch.from_numpy(lengths.astype(np.int64))
    y, _ = lstm(pack_padded_sequence(x, lengths_peer, True, enforce_sorted=False))
    return pad_packed_sequence(y, batch_first=True)[0]


def torch_inference(lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, threads: int, dtype: str) -> Work:
    x_peer, lengths = torch.from_numpy(x), shape.lengths
    layer: torch.nn.Module = lstm
    if dtype == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it moves to another package
            layer = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(lstm), {torch.nn.LSTM}, dtype=torch.qint8
            )[0]

    def work() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return torch_call(layer, x_peer, lengths).float().numpy()

    return work


def onnxruntime_inference(lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, threads: int, dtype: str) -> Work:
    from onnx import TensorProto, helper, numpy_helper

    if dtype == "bfloat16":
        raise LeftOut("products are in bfloat16: its CPU kernel has none")
    n, t, i, h, directions = shape.n, shape.t, shape.i, shape.h, shape.directions
    nodes, constants = [], {"flat": np.array([t, n, directions * h])}
    name = "x"
    for layer in range(shape.layers):
        w, r, b_ih, b_hh = stacked(lstm, "iofg", layer)
        constants |= {f"W{layer}": w, f"R{layer}": r, f"B{layer}": np.concatenate([b_ih, b_hh], -1)}
        inputs = [name, f"W{layer}", f"R{layer}", f"B{layer}"] + (["lengths"] if shape.ragged else [])
        direction = "bidirectional" if shape.bidirectional else "forward"
        nodes += [
            helper.make_node("LSTM", inputs, [f"y{layer}"], hidden_size=h, direction=direction),
            helper.make_node("Transpose", [f"y{layer}"], [f"rows{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"rows{layer}", "flat"], [f"x{layer + 1}"]),
        ]
        name = f"x{layer + 1}"
    fed = {"x": np.ascontiguousarray(x.swapaxes(0, 1))}  # its CPU kernel takes time first: not timed
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [t, n, i])]
    if shape.ragged:
        fed["lengths"] = shape.lengths
        values.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [n]))
    graph = helper.make_graph(
        nodes,
        "lstm",
        values,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [t, n, directions * h])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = onnx_model(graph)
    session = onnxruntime_session(_quantised(model) if dtype == "int8" else model, threads)
    return lambda: session.run(None, fed)[0].swapaxes(0, 1)


def onnx_model(graph):
    """A graph as a model, of versions old enough for quantisation."""
    from onnx import helper

    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def onnxruntime_session(model, threads: int):
    """Runs a model on so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _quantised(model):
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # advice on preparing the model
    try:
        import tempfile
        from pathlib import Path

        import onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QInt8)
            return onnx.load(path)
    finally:
        logging.disable(logging.NOTSET)


def openvino_inference(lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, threads: int, dtype: str) -> Work:
    import openvino
    from openvino import opset8

    if dtype == "int8":
        raise LeftOut("products are in int8: it needs calibration")
    if dtype == "bfloat16" and bf16_emulated:
        raise LeftOut("bfloat16 is emulated")
    n, t, h, directions = shape.n, shape.t, shape.h, shape.directions
    x_node = opset8.parameter(list(x.shape), np.float32)
    zeros = opset8.constant(np.zeros((n, directions, h), np.float32))
    lengths = opset8.constant(shape.lengths if shape.ragged else np.full(n, t, np.int32))
    rows = x_node
    for layer in range(shape.layers):
        w, r, b_ih, b_hh = stacked(lstm, "figo", layer)
        constants = [opset8.constant(a) for a in (w, r, b_ih + b_hh)]
        direction = "BIDIRECTIONAL" if shape.bidirectional else "FORWARD"
        sequence = opset8.lstm_sequence(rows, zeros, zeros, lengths, *constants, h, direction)
        by_time = opset8.transpose(sequence.output(0), opset8.constant([0, 2, 1, 3]))
        rows = opset8.reshape(by_time, opset8.constant([n, t, directions * h]), False)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the others are not pinned either
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
    }
    model = openvino.Model([rows.output(0)], [x_node])
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)[0]


def _jax_lstm(lstm: torch.nn.LSTM, shape: Shape) -> tuple[Callable[..., object], list[object]]:
    """A jittable function of (parameters, x), and the parameters."""
    import jax
    import jax.numpy as jnp

    if shape.ragged:
        raise LeftOut("sequences have lengths: a scan has none")

    def direction(parameters, x, reverse):
        w_ih, w_hh, b_ih, b_hh = parameters

        def step(carry, z_x):
            h_t, c_t = carry
            i, f, g, o = jnp.split(z_x + h_t @ w_hh.T, 4, axis=-1)
            c_t = jax.nn.sigmoid(f) * c_t + jax.nn.sigmoid(i) * jnp.tanh(g)
            h_t = jax.nn.sigmoid(o) * jnp.tanh(c_t)
            return (h_t, c_t), h_t

        zeros = jnp.zeros((x.shape[0], shape.h), x.dtype)
        inputs = (x @ w_ih.T + (b_ih + b_hh)).swapaxes(0, 1)
        return jax.lax.scan(step, (zeros, zeros), inputs, reverse=reverse)[1].swapaxes(0, 1)

    def forward(parameters, x):
        for layer in parameters:
            x = jnp.concatenate([direction(p, x, k == 1) for k, p in enumerate(layer)], -1)
        return x

    parameters = [
        [weights(lstm, "ifgo", layer, k) for k in range(shape.directions)] for layer in range(shape.layers)
    ]
    return forward, parameters


def jax_inference(lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, threads: int, dtype: str) -> Work:
    import jax

    if dtype != "float32":
        raise LeftOut(f"products are in {dtype}: it has no LSTM of its own")
    forward, parameters = _jax_lstm(lstm, shape)
    forward = jax.jit(forward)
    parameters, x_peer = jax.device_put((parameters, x))
    return lambda: np.asarray(forward(parameters, x_peer))


# --- training: forward, backward and every gradient; packing the weights is part of it ---------------------


def torch_training(
    lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, dy: np.ndarray, threads: int, dtype: str
) -> Work:
    x_peer, dy_peer = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)
    lengths = shape.lengths

    def work() -> np.ndarray:
        lstm.zero_grad()
        x_peer.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            y = torch_call(lstm, x_peer, lengths)
        y.backward(dy_peer.to(y.dtype))
        return x_peer.grad.numpy()

    return work


def jax_training(
    lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, dy: np.ndarray, threads: int, dtype: str
) -> Work:
    import jax

    if dtype != "float32":
        raise LeftOut(f"products are in {dtype}: it has no LSTM of its own")
    forward, parameters = _jax_lstm(lstm, shape)
    parameters, x_peer, dy_peer = jax.device_put((parameters, x, dy))

    @jax.jit
    def gradients(parameters, x, dy):
        y, pull = jax.vjp(forward, parameters, x)
        return y, pull(dy)

    def work() -> np.ndarray:
        _, (_, dx) = jax.block_until_ready(gradients(parameters, x_peer, dy_peer))
        return np.asarray(dx)

    return work


def native(name: str) -> tuple[Callable[..., Work], Callable[..., Work]]:
    def require(shape: Shape, dtype: str) -> None:
        if dtype != "float32" or shape.layers > 1 or shape.bidirectional or shape.ragged:
            raise LeftOut("there is more than one float32 layer, one direction and one length")

    def inference(lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, threads: int, dtype: str) -> Work:
        require(shape, dtype)
        return native_peers.inference(name, weights(lstm), x, threads)

    def training(
        lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, dy: np.ndarray, threads: int, dtype: str
    ) -> Work:
        require(shape, dtype)
        return native_peers.training(name, weights(lstm), x, dy, threads)

    return inference, training


# --- choice -------------------------------------------------------------------------------------------------

INFERENCE = {
    "torch": torch_inference,
    "onnxruntime": onnxruntime_inference,
    "openvino": openvino_inference,
    "jax": jax_inference,
    "onednn": native("onednn")[0],
    "libxsmm": native("libxsmm")[0],
}
TRAINING = {
    "torch": torch_training,
    "jax": jax_training,
    "onednn": native("onednn")[1],
    "libxsmm": native("libxsmm")[1],
}
SUFFIX = {"float32": "", "bfloat16": " bf16", "int8": " int8"}


def inference(
    lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, threads: int, dtype: str = "float32"
) -> dict[str, Work]:
    return dict(_made(INFERENCE, dtype, lstm, shape, x, threads))


def training(
    lstm: torch.nn.LSTM, shape: Shape, x: np.ndarray, dy: np.ndarray, threads: int, dtype: str = "float32"
) -> dict[str, Work]:
    return dict(_made(TRAINING, dtype, lstm, shape, x, dy, threads))


def _made(makers, dtype: str, lstm, shape: Shape, *arguments) -> Iterator[tuple[str, Work]]:
    for name in chosen:
        if name not in makers:
            continue
        try:
            yield name + SUFFIX[dtype], makers[name](lstm, shape, *arguments, dtype)
        except (LeftOut, native_peers.CannotDo) as reason:
            say_once(f"{name}{SUFFIX[dtype]} is left out where {reason}")


def bound_of(name: str, float32: float) -> float:
    """Largest accepted difference, relative to the largest value; bfloat16 keeps 8 bits, int8 no more."""
    return 0.1 if name.endswith((" bf16", " int8")) else float32
