"""One LSTM layer in other systems, with the weights of a ``torch.nn.LSTM``: inference and training.

``inference(...)`` gives the chosen contestants; each call returns y (N, T, H) as NumPy.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable

import numpy as np
import torch

NAMES = ["torch", "torch bf16", "onnxruntime", "openvino", "openvino bf16", "jax"]
Work = Callable[[], np.ndarray]
chosen = list(NAMES)


def choose(names: list[str] | None) -> dict[str, str]:
    """Keep the contestants of these packages; returns those skipped, each with the reason."""
    skipped = {}
    for name in NAMES:
        package = name.split()[0]
        needed = [package, "onnx"] if package == "onnxruntime" else [package]
        missing = [module for module in needed if importlib.util.find_spec(module) is None]
        if names is not None and package not in names:
            skipped[name] = "not chosen"
        elif missing:
            skipped[name] = f"{' and '.join(missing)} not installed"
    chosen[:] = [name for name in NAMES if name not in skipped]
    return skipped


def versions() -> dict[str, str]:
    packages = sorted({name.split()[0] for name in chosen})
    return {package: importlib.metadata.version(package) for package in packages}


def weights(
    layer: torch.nn.LSTM, order: str = "ifgo"
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """W_ih, W_hh, b_ih, b_hh with the gates in this order (torch's is ifgo)."""
    index = ["ifgo".index(gate) for gate in order]
    arrays = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
    split = [a.detach().numpy().reshape(4, layer.hidden_size, *a.shape[1:])[index] for a in arrays]
    w_ih, w_hh, b_ih, b_hh = (np.ascontiguousarray(a.reshape(-1, *a.shape[2:])) for a in split)
    return w_ih, w_hh, b_ih, b_hh


def torch_inference(layer: torch.nn.LSTM, x: np.ndarray, threads: int, bf16: bool) -> Work:
    x_peer = torch.from_numpy(x)

    def work() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y, _ = layer(x_peer)
        return y.float().numpy()

    return work


def onnxruntime_inference(layer: torch.nn.LSTM, x: np.ndarray, threads: int, bf16: bool) -> Work:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    n, t, i = x.shape
    h = layer.hidden_size
    w, r, b_ih, b_hh = weights(layer, "iofg")
    constants = {"W": w[None], "R": r[None], "B": np.concatenate([b_ih, b_hh])[None]}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=h)],
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [t, n, i])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [t, 1, n, h])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    x_peer = np.ascontiguousarray(x.swapaxes(0, 1))  # its CPU kernel takes time first: not timed
    return lambda: session.run(None, {"x": x_peer})[0][:, 0].swapaxes(0, 1)


def openvino_inference(layer: torch.nn.LSTM, x: np.ndarray, threads: int, bf16: bool) -> Work:
    import openvino
    from openvino import opset8

    n, _, _ = x.shape
    h = layer.hidden_size
    w, r, b_ih, b_hh = weights(layer, "figo")
    x_node = opset8.parameter(list(x.shape), np.float32)
    zeros = opset8.constant(np.zeros((n, 1, h), np.float32))
    lengths = opset8.constant(np.full(n, x.shape[1], np.int32))
    constants = [opset8.constant(a[None]) for a in (w, r, b_ih + b_hh)]
    sequence = opset8.lstm_sequence(x_node, zeros, zeros, lengths, *constants, h, "FORWARD")
    model = openvino.Model([sequence.output(0)], [x_node])
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the others are not pinned either
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)[0][:, 0]


def _jax_layer(h: int) -> Callable[..., object]:
    import jax
    import jax.numpy as jnp

    def forward(parameters, x):
        w_ih, w_hh, b_ih, b_hh = parameters

        def step(carry, z_x):
            h_t, c_t = carry
            i, f, g, o = jnp.split(z_x + h_t @ w_hh.T, 4, axis=-1)
            c_t = jax.nn.sigmoid(f) * c_t + jax.nn.sigmoid(i) * jnp.tanh(g)
            h_t = jax.nn.sigmoid(o) * jnp.tanh(c_t)
            return (h_t, c_t), h_t

        zeros = jnp.zeros((x.shape[0], h), x.dtype)
        _, y = jax.lax.scan(step, (zeros, zeros), (x @ w_ih.T + (b_ih + b_hh)).swapaxes(0, 1))
        return y.swapaxes(0, 1)

    return forward


def jax_inference(layer: torch.nn.LSTM, x: np.ndarray, threads: int, bf16: bool) -> Work:
    import jax

    forward = jax.jit(_jax_layer(layer.hidden_size))
    parameters, x_peer = jax.device_put((weights(layer), x))
    return lambda: np.asarray(forward(parameters, x_peer))


def jax_training(layer: torch.nn.LSTM, x: np.ndarray, dy: np.ndarray) -> Work:
    """dx; the gradients of the weights are made in the same jitted call."""
    import jax

    forward = _jax_layer(layer.hidden_size)
    parameters, x_peer, dy_peer = jax.device_put((weights(layer), x, dy))

    @jax.jit
    def gradients(parameters, x, dy):
        y, pull = jax.vjp(forward, parameters, x)
        return y, pull(dy)

    def work() -> np.ndarray:
        _, (_, dx) = jax.block_until_ready(gradients(parameters, x_peer, dy_peer))
        return np.asarray(dx)

    return work


MAKERS = {
    "torch": torch_inference,
    "onnxruntime": onnxruntime_inference,
    "openvino": openvino_inference,
    "jax": jax_inference,
}


def inference(layer: torch.nn.LSTM, x: np.ndarray, threads: int) -> dict[str, Work]:
    return {name: MAKERS[name.split()[0]](layer, x, threads, name.endswith("bf16")) for name in chosen}


def bound_of(name: str, float32: float) -> float:
    """Largest accepted difference, relative to the largest value; bfloat16 keeps 8 bits."""
    return 0.1 if name.endswith("bf16") else float32
