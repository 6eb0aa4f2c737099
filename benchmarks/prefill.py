"""First token after a prompt of 1,000: fusedlstm beside torch, and beside our layers over the same steps.

Reading a prompt is one call of the kernel for sequences; what comes on top is one row of logits, and the
choice. Before timing, token and log-probability are compared with torch's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fusedlstm.generation import Sampling

from .harness import Plan, Record, add_bandwidth, alternate_all, assert_close, beside_itself, use_threads
from .language_model import CHARACTERS, LAYERS, WORDS, Size, TorchLanguageModel, pair
from .shapes import Shape

BENCHMARK = "prefill"
PROMPT_TOKENS = 1000


@torch.inference_mode()
def torch_first(model: TorchLanguageModel, prompt: torch.Tensor) -> tuple[int, float]:
    """Greedy token after the prompt (1, T), and its log-probability."""
    y, _ = model.lstm(model.embedding(prompt))
    log_p = torch.log_softmax(model.output(y[0, -1]), -1)
    token = int(log_p.argmax())
    return token, float(log_p[token])


def measure(size: Size, steps: int, case: str, plan: Plan) -> Record:
    use_threads(plan.threads)
    ours, peer = pair(size)
    prompt = np.random.default_rng(0).integers(0, len(size.vocabulary), steps, np.int32)
    prompt_peer, length = torch.from_numpy(prompt).long()[None], np.array([steps], np.int32)
    sampling = Sampling(max_new_tokens=1, greedy=True)
    options, seeds = sampling.core(), sampling.seeds(1)

    def work() -> tuple[int, float]:
        made = ours.decoder.generate(prompt, length, options, seeds=seeds)
        return int(made.tokens[0, 0]), float(made.log_probabilities[0, 0])

    token, log_p = work()
    peer_token, peer_log_p = torch_first(peer, prompt_peer)
    if token != peer_token:
        raise AssertionError(f"{case}: token {token}, torch {peer_token}")
    difference = assert_close(case, np.array([log_p]), np.array([peer_log_p]), 1e-5)
    own = {"layers": lambda: ours.lstm(prompt[None], embedding=ours.embedding)}
    records = alternate_all(
        work, {"torch": lambda: torch_first(peer, prompt_peer), **own}, repetitions=3 if plan.quick else 15
    )
    beside = beside_itself(records, own)
    shape = Shape(1, steps, size.hidden, size.hidden, LAYERS)
    record = records["torch"] | {
        "benchmark": BENCHMARK,
        "case": case,
        "shape": shape.record() | {"V": len(size.vocabulary)},
        "peer": "torch",
        "largest_difference": difference,
        "beside_itself": beside,
    }
    return add_bandwidth(record, 4 * shape.recurrent_weights, steps, plan.threads)


def run(plan: Plan) -> Iterator[Record]:
    steps = 100 if plan.quick else PROMPT_TOKENS
    for size in (CHARACTERS, WORDS):
        case = f"{LAYERS}x{size.hidden} V={len(size.vocabulary)} N=1 T={steps}"
        if plan.wants(BENCHMARK, case):
            yield measure(size, steps, case, plan)
