"""One training step of a character language model: 2 x 512, V=65, N=64, T=128, Adam, clip 5, float32.

Forward with carried state, loss, backward, clipping and optimiser; the peer is torch's nn.Embedding, nn.LSTM,
nn.Linear, cross_entropy, clip_grad_norm_ and Adam. Before timing, both train from the same weights on the
same windows and their losses are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from fusedlstm import LanguageModel, _core
from fusedlstm.training import Adam

from .harness import Record, add_rates, alternate, use_threads
from .language_model import HIDDEN, LAYERS, VOCABULARY, TorchLanguageModel, pair
from .shapes import forward_flops

BATCH, WINDOW, CLIP, LEARNING_RATE = 64, 128, 5.0, 1e-3
STEPS_COMPARED, LOSS_BOUND = 5, 1e-4  # rounding differs and Adam's first steps amplify it; seen: about 1e-6


def our_training(model: LanguageModel) -> Callable[[np.ndarray, np.ndarray], float]:
    optimiser = Adam(LEARNING_RATE)
    state = model.zero_state(BATCH)
    steps = 0

    def step(inputs: np.ndarray, targets: np.ndarray) -> float:
        nonlocal state, steps
        model.zero_grad()
        total, count, state = model.training_step(inputs, targets, state, scale=1.0 / inputs.size, seed=steps)
        norm = _core.gradient_norm(model.gradients)
        optimiser.step(
            model.parameters,
            model.gradients,
            lr=LEARNING_RATE,
            gradient_scale=min(1.0, CLIP / max(norm, CLIP)),
        )
        model.mark_updated()
        steps += 1
        return total / count

    return step


def peer_training(model: TorchLanguageModel) -> Callable[[torch.Tensor, torch.Tensor], float]:
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    state = (torch.zeros(LAYERS, BATCH, HIDDEN), torch.zeros(LAYERS, BATCH, HIDDEN))

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        nonlocal state
        optimiser.zero_grad()
        logits, (h, c) = model(inputs, state)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        state = (h.detach(), c.detach())
        return loss.item()

    return step


def run(threads: int, quick: bool) -> Iterator[Record]:
    use_threads(threads)
    ours, peer = pair()
    our_step, peer_step = our_training(ours), peer_training(peer)
    random = np.random.default_rng(0)
    windows = random.integers(0, VOCABULARY, (STEPS_COMPARED, BATCH, WINDOW + 1), dtype=np.int32)
    inputs, targets = np.ascontiguousarray(windows[..., :-1]), np.ascontiguousarray(windows[..., 1:])
    peer_inputs = torch.from_numpy(inputs.astype(np.int64))
    peer_targets = torch.from_numpy(targets.astype(np.int64))

    difference = 0.0
    for k in range(STEPS_COMPARED):
        loss, peer_loss = our_step(inputs[k], targets[k]), peer_step(peer_inputs[k], peer_targets[k])
        difference = max(difference, abs(loss - peer_loss) / peer_loss)
        if not difference <= LOSS_BOUND:
            raise AssertionError(f"step {k + 1}: loss {loss}, torch {peer_loss}")
    record = alternate(
        lambda: our_step(inputs[0], targets[0]),
        lambda: peer_step(peer_inputs[0], peer_targets[0]),
        repetitions=3 if quick else 11,
        warm_up=1,
    )
    record |= {
        "benchmark": "language model step",
        "case": f"{LAYERS}x{HIDDEN} V={VOCABULARY} N={BATCH} T={WINDOW}",
        "shape": {"N": BATCH, "T": WINDOW, "H": HIDDEN, "L": LAYERS, "V": VOCABULARY, "dtype": "float32"},
        "peer": "torch",
        "threads": threads,
        "largest_difference": difference,
    }
    for side in ("ours", "peer"):
        record[f"{side}_tokens_per_second"] = BATCH * WINDOW / record[f"{side}_seconds"]["median"]
    # Token input: the first layer's products with the embedding are counted for both as if they were dense.
    flops = forward_flops(BATCH, WINDOW, HIDDEN, HIDDEN, LAYERS) + 2.0 * BATCH * WINDOW * HIDDEN * VOCABULARY
    yield add_rates(record, 3 * flops, threads)
