"""One training step of a language model: characters 2 x 512 and words 2 x 650, Adam, clip 5.

Forward with carried state, loss, backward, clipping and optimiser; the peer is torch's nn.Embedding, nn.LSTM,
nn.Linear, cross_entropy, clip_grad_norm_ and Adam. Before timing, both train from the same weights on the
same windows and their losses are compared. Ours in float32 stands beside torch in float32, ours in bfloat16
beside torch's autocast. Afterwards every part of our step is timed by itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fusedlstm import LanguageModel, _core
from fusedlstm.nn import Module
from fusedlstm.training import Adam

from .harness import LIMITED, Plan, Record, add_rates, alternate, use_threads
from .language_model import CHARACTERS, LAYERS, WORDS, Size, TorchLanguageModel, pair
from .shapes import Shape

BENCHMARK = "language model step"
CLIP, LEARNING_RATE = 5.0, 1e-3
STEPS_COMPARED = 5
LOSS_BOUNDS = {  # rounding differs and Adam's first steps amplify it; seen in float32: about 1e-6
    "float32": 1e-4,
    "bfloat16": 2e-2,
}


def our_training(model: LanguageModel, batch: int) -> Callable[[np.ndarray, np.ndarray], float]:
    optimiser = Adam(LEARNING_RATE)
    state = model.zero_state(batch)
    steps = 0

    def step(inputs: np.ndarray, targets: np.ndarray) -> float:
        nonlocal state, steps
        model.zero_grad()
        total, count, state = model.training_step(inputs, targets, state, scale=1.0 / inputs.size, seed=steps)
        update(model, optimiser)
        steps += 1
        return total / count

    return step


def update(model: Module, optimiser: Adam) -> None:
    """Parameters after one step with clipped gradients."""
    norm = _core.gradient_norm(model.gradients)
    optimiser.step(
        model.parameters,
        model.gradients,
        lr=LEARNING_RATE,
        gradient_scale=min(1.0, CLIP / max(norm, CLIP)),
    )
    model.mark_updated()


def peer_training(
    model: TorchLanguageModel, size: Size, bf16: bool
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    state = (torch.zeros(LAYERS, size.batch, size.hidden), torch.zeros(LAYERS, size.batch, size.hidden))

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        nonlocal state
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, (h, c) = model(inputs, state)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        state = (h.detach().float(), c.detach().float())
        return loss.item()

    return step


def parts(
    model: LanguageModel, inputs: np.ndarray, targets: np.ndarray, repetitions: int
) -> dict[str, float]:
    """Median seconds of every part of our step, each called by itself."""
    lstm, rows = model.lstm, inputs.size
    state = model.zero_state(len(inputs))
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    optimiser = Adam(LEARNING_RATE)
    for _ in range(repetitions):
        timed("zero gradients", model.zero_grad)
        model.mark_updated()
        timed("pack LSTM", lambda: lstm.packed)
        output = timed("pack output", lambda: model._output)
        (y, _), tape = timed(
            "LSTM forward", lambda: lstm.forward(inputs, state=state, embedding=model.embedding)
        )
        _, _, dh = timed(
            "projection and loss",
            lambda output=output, y=y: _core.linear_cross_entropy(
                output,
                y.reshape(rows, -1),
                targets.reshape(-1),
                scale=1.0 / rows,
                d_weight=model.named_gradients()["output.weight"],
                d_bias=model.named_gradients()["output.bias"],
                need_dx=True,
            ),
        )
        timed("LSTM backward", lambda tape=tape, dh=dh, y=y: lstm.backward(tape, dh.reshape(y.shape)))
        timed("gradient norm", lambda: _core.gradient_norm(model.gradients))
        timed("Adam", lambda: optimiser.step(model.parameters, model.gradients, lr=LEARNING_RATE))
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(plan: Plan) -> Iterator[Record]:
    for size in (CHARACTERS, WORDS):
        for dtype in ("float32", "bfloat16"):
            case = size.case + ("" if dtype == "float32" else " bf16")
            if dtype == "bfloat16" and LIMITED:
                print(f"{case} is left out with AVX2: torch has no LSTM in bfloat16 there", flush=True)
            elif plan.wants(BENCHMARK, case):
                yield measure(size, dtype, plan) | {"case": case}


def measure(size: Size, dtype: str, plan: Plan) -> Record:
    use_threads(plan.threads)
    ours, peer = pair(size, None if dtype == "float32" else dtype)
    our_step, peer_step = our_training(ours, size.batch), peer_training(peer, size, dtype == "bfloat16")
    random = np.random.default_rng(0)
    vocabulary = len(size.vocabulary)
    shape = (STEPS_COMPARED, size.batch, size.window + 1)
    windows = random.integers(0, vocabulary, shape, dtype=np.int32)
    inputs, targets = np.ascontiguousarray(windows[..., :-1]), np.ascontiguousarray(windows[..., 1:])
    peer_inputs = torch.from_numpy(inputs.astype(np.int64))
    peer_targets = torch.from_numpy(targets.astype(np.int64))

    difference = 0.0
    for k in range(2 if plan.quick else STEPS_COMPARED):
        loss, peer_loss = our_step(inputs[k], targets[k]), peer_step(peer_inputs[k], peer_targets[k])
        difference = max(difference, abs(loss - peer_loss) / peer_loss)
        if not difference <= LOSS_BOUNDS[dtype]:
            raise AssertionError(f"step {k + 1}: loss {loss}, torch {peer_loss}")
    record = alternate(
        lambda: our_step(inputs[0], targets[0]),
        lambda: peer_step(peer_inputs[0], peer_targets[0]),
        repetitions=2 if plan.quick else 9,
    )
    record |= {
        "benchmark": BENCHMARK,
        "shape": {
            "N": size.batch,
            "T": size.window,
            "H": size.hidden,
            "L": LAYERS,
            "V": vocabulary,
            "dtype": dtype,
        },
        "peer": "torch" if dtype == "float32" else "torch bf16",
        "largest_difference": difference,
        "parts_seconds": parts(ours, inputs[0], targets[0], 2 if plan.quick else 7),
    }
    predictions = size.batch * size.window
    for side in ("ours", "peer"):
        record[f"{side}_tokens_per_second"] = predictions / record[f"{side}_seconds"]["median"]
    flops = Shape(size.batch, size.window, size.hidden, size.hidden, LAYERS).forward_flops
    flops += 2.0 * predictions * size.hidden * vocabulary
    # Ours makes the first layer's input products once for each distinct token, torch for all.
    saved = 8.0 * size.hidden**2 * (predictions - len(np.unique(inputs[0])))
    return add_rates(record, 3 * flops, plan.threads, dtype, ours=3 * (flops - saved))
