"""Beam search with a 2 x 512 language model of 10,000 words, five beams, one prompt and sixteen.

The peer is the same search over torch's layers under inference_mode: all beams of all prompts in one batch,
`topk` over (beam, token), states reordered by index, prompts that have ended taken out. Before timing, the
n-best lists are compared: equal ids, scores up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

import fusedlstm
from fusedlstm.data import Vocabulary
from fusedlstm.generation import BeamSearch

from .harness import Plan, Record, alternate, assert_close, use_threads
from .language_model import LAYERS, Size, TorchLanguageModel, pair

BENCHMARK = "beam_search"
WIDTH = 5
PROMPT_TOKENS = 8
MODEL = Size(512, Vocabulary.from_text(" ".join(f"w{k}" for k in range(9998)) + "\n", "word"), 16, 64)
State = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Best:
    """n-best of one source: tokens (W, T) with lengths (W,), scores (W,) in descending order."""

    tokens: torch.Tensor
    lengths: torch.Tensor
    scores: torch.Tensor


@torch.inference_mode()
def torch_beam_search(
    model: TorchLanguageModel, prompts: torch.Tensor, stop: int, most: int, length_penalty: float
) -> list[Best]:
    """early_stopping=False of Hugging Face's ``generate``; ``prompts`` (N, P)."""
    N, W = len(prompts), WIDTH
    results: list[Best | None] = [None] * N
    source = torch.arange(N)  # of the prompts that still run
    logits, (h, c) = model(prompts)
    logits = logits[:, -1]
    sums = torch.zeros(N, 1)
    tokens = torch.zeros(N, 1, most, dtype=torch.int64)
    best = Best(
        torch.zeros(N, W, most, dtype=torch.int64),
        torch.zeros(N, W, dtype=torch.int64),
        torch.full((N, W), -torch.inf),
    )
    in_front = torch.arange(2 * W) < W
    for step in range(most):
        n, beams = sums.shape
        log_p = torch.log_softmax(logits, -1).view(n, beams, -1) + sums[..., None]
        top, index = log_p.view(n, -1).topk(2 * W)
        parent, token = index // log_p.shape[-1], index % log_p.shape[-1]
        ends = (token == stop) | (step + 1 == most)
        longer = tokens.take_along_dim(parent[..., None], 1)
        longer[..., step] = token

        score = (top / (step + 1) ** length_penalty).masked_fill(~(ends & in_front), -torch.inf)
        scores, order = torch.cat([best.scores, score], 1).topk(W)
        lengths = torch.cat([best.lengths, torch.full_like(token, step + 1)], 1)
        best = Best(
            torch.cat([best.tokens, longer], 1).take_along_dim(order[..., None], 1),
            lengths.take_along_dim(order, 1),
            scores,
        )

        sums, order = top.masked_fill(ends, -torch.inf).topk(W)
        tokens = longer.take_along_dim(order[..., None], 1)
        parent, token = parent.take_along_dim(order, 1), token.take_along_dim(order, 1)
        runs = sums[:, 0] / (step + 1) ** length_penalty > best.scores[:, -1]
        if not runs.all():
            for j in (~runs).nonzero()[:, 0].tolist():
                results[source[j]] = Best(best.tokens[j], best.lengths[j], best.scores[j])
            sums, tokens, token, source = sums[runs], tokens[runs], token[runs], source[runs]
            best = Best(best.tokens[runs], best.lengths[runs], best.scores[runs])
            if not len(source):
                break
        rows = (torch.arange(n)[:, None] * beams + parent)[runs].flatten()
        state = h[:, rows], c[:, rows]
        logits, (h, c) = model(token.view(-1, 1), state)
        logits = logits[:, -1]
    return [result for result in results if result is not None]


def assert_same_n_best(ours: tuple[np.ndarray, ...], peer: list[Best]) -> None:
    tokens, lengths, scores, _ = ours
    for n, best in enumerate(peer):
        for rank in range(WIDTH):
            mine = tokens[n, rank, : lengths[n, rank]].tolist()
            theirs = best.tokens[rank, : best.lengths[rank]].tolist()
            if mine != theirs:
                raise AssertionError(f"hypothesis {rank} of prompt {n} differs: {mine}, torch {theirs}")
        assert_close(f"scores of prompt {n}", scores[n], best.scores.numpy(), 1e-5)


def models(size: Size) -> tuple[fusedlstm.LanguageModel, TorchLanguageModel, int]:
    """Both with equal weights, far from uniform, and a stop token as likely as in text; its id."""
    _, peer = pair(size)
    stop = int(size.vocabulary.encode("\n")[0])
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter *= 2
        peer.output.bias[stop] += 5
    ours = fusedlstm.LanguageModel(size.vocabulary, hidden_size=size.hidden, num_layers=LAYERS)
    ours.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    return ours, peer, stop


def run(plan: Plan, size: Size = MODEL) -> Iterator[Record]:
    use_threads(plan.threads)
    ours, peer, stop = models(size)
    new = 16 if plan.quick else 64
    search = BeamSearch(width=WIDTH, num_return=WIDTH, max_new_tokens=new, stop_tokens=[stop])
    for N in (1, 16):
        case = f"{LAYERS}x{size.hidden} V={len(size.vocabulary)} N={N} W={WIDTH}"
        if not plan.wants(BENCHMARK, case):
            continue
        prompts = np.random.default_rng(N).integers(0, len(size.vocabulary), (N, PROMPT_TOKENS), np.int32)
        lengths = np.full(N, PROMPT_TOKENS, np.int32)
        decoder, flat, peer_prompts = ours.decoder, prompts.reshape(-1), torch.from_numpy(prompts).long()

        def work(decoder=decoder, flat=flat, lengths=lengths) -> tuple[np.ndarray, ...]:
            return decoder.beam_search(flat, lengths, search.core)

        def peer_work(prompts=peer_prompts) -> list[Best]:
            return torch_beam_search(peer, prompts, stop, new, search.length_penalty)

        found = work()
        assert_same_n_best(found, peer_work())
        record = alternate(work, peer_work, repetitions=3 if plan.quick else 11)
        record |= {
            "benchmark": BENCHMARK,
            "case": case,
            "shape": {"N": N, "W": WIDTH, "new": new, "H": size.hidden, "L": LAYERS},
            "length_of_best": found[1][:, 0].tolist(),
            "peer": "torch",
        }
        yield record
