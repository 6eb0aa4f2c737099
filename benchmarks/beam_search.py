"""Beam search with five beams, one source and sixteen: a language model and a decoder with attention.

Both have 2 x 512 units and 10,000 words. The peers are the same search over torch's layers under
inference_mode: all beams of all sources in one batch, `topk` over (beam, token), states reordered by index,
the memory kept once per source, sources that have ended taken out. Before timing, the n-best lists are
compared: equal ids, scores up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

import fusedlstm
from fusedlstm.data import Vocabulary
from fusedlstm.generation import BeamSearch
from fusedlstm.models import Decoder

from .harness import Plan, Record, alternate, assert_close, use_threads
from .language_model import LAYERS, Size, TorchLanguageModel, pair

BENCHMARK = "beam_search"
WIDTH = 5
PROMPT_TOKENS = 8
SHORTEST_SOURCE, LONGEST_SOURCE = 10, 30
MODEL = Size(512, Vocabulary.from_text(" ".join(f"w{k}" for k in range(9998)) + "\n", "word"), 16, 64)
Found = tuple[np.ndarray, ...]


class Model(Protocol):
    """States of n sources with the same number of beams each."""

    def start(self) -> torch.Tensor:
        """Logits (N, V) of the first new token; one beam per source."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feeds tokens (n, beams); logits (n * beams, V)."""

    def keep(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Takes these rows (source * beams + beam) and sources (bool) in place of all."""


class LanguageModelState:
    """Prompts (N, P) read by a language model."""

    def __init__(self, model: TorchLanguageModel, prompts: torch.Tensor) -> None:
        self.model, self.prompts = model, prompts

    def start(self) -> torch.Tensor:
        logits, self.state = self.model(self.prompts)
        return logits[:, -1]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        logits, self.state = self.model(tokens.view(-1, 1), self.state)
        return logits[:, -1]

    def keep(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        h, c = self.state
        self.state = h[:, rows], c[:, rows]


class TorchAttentionDecoder(torch.nn.Module):
    """Luong's general attention with input feeding."""

    def __init__(self, H: int, V: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(V, H)
        self.lstm = torch.nn.LSTM(2 * H, H, LAYERS, batch_first=True)
        self.keys = torch.nn.Linear(H, H, bias=False)
        self.combine = torch.nn.Linear(2 * H, H, bias=False)
        self.output = torch.nn.Linear(H, V)

    def weights(self) -> dict[str, np.ndarray]:
        """By the names of `fusedlstm.models.Decoder`."""
        names = {"lstm": "layers.lstm", "keys.weight": "layers.weight_memory"}
        names["combine.weight"] = "layers.weight_c"
        return {
            names.get(name, name.replace("lstm", names["lstm"])): value.numpy()
            for name, value in self.state_dict().items()
        }


@dataclass
class Sources:
    """What an encoder leaves: memory (N, S, H), valid steps (N,), states (L, N, H)."""

    memory: torch.Tensor
    lengths: torch.Tensor
    h: torch.Tensor
    c: torch.Tensor

    @classmethod
    def random(cls, N: int, H: int) -> Sources:
        generator = torch.Generator().manual_seed(N)
        lengths = torch.randint(SHORTEST_SOURCE, LONGEST_SOURCE + 1, (N,), generator=generator)
        memory, h, c = (
            torch.randn(shape, generator=generator)
            for shape in ((N, int(lengths.max()), H), (LAYERS, N, H), (LAYERS, N, H))
        )
        return cls(memory.tanh(), lengths, h.tanh(), c)


class AttentionState:
    """Sources in front of a decoder with attention."""

    def __init__(self, model: TorchAttentionDecoder, sources: Sources, start: int) -> None:
        self.model, self.sources, self.begin = model, sources, start

    def start(self) -> torch.Tensor:
        memory, lengths = self.sources.memory, self.sources.lengths
        N, steps, H = memory.shape
        self.memory, self.keys = memory, self.model.keys(memory).transpose(1, 2)
        self.padding = torch.arange(steps) >= lengths[:, None, None]
        self.state, self.fed = (self.sources.h, self.sources.c), torch.zeros(N, H)
        return self.step(torch.full((N, 1), self.begin))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        n, beams = tokens.shape
        x = torch.cat([self.model.embedding(tokens.view(-1)), self.fed], -1)
        y, self.state = self.model.lstm(x[:, None], self.state)
        query = y.view(n, beams, -1)
        scores = torch.bmm(query, self.keys).masked_fill(self.padding, -torch.inf)
        context = torch.bmm(scores.softmax(-1), self.memory)
        combined = self.model.combine(torch.cat([context, query], -1)).tanh()
        self.fed = combined.view(n * beams, -1)
        return self.model.output(self.fed)

    def keep(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        h, c = self.state
        self.state, self.fed = (h[:, rows], c[:, rows]), self.fed[rows]
        if not sources.all():
            self.memory, self.keys = self.memory[sources], self.keys[sources]
            self.padding = self.padding[sources]


@dataclass
class Best:
    """n-best of sources: tokens (n, W, T) with lengths (n, W), scores (n, W) in descending order."""

    tokens: torch.Tensor
    lengths: torch.Tensor
    scores: torch.Tensor

    def of(self, sources: int | torch.Tensor) -> Best:
        return Best(self.tokens[sources], self.lengths[sources], self.scores[sources])


@torch.inference_mode()
def torch_beam_search(model: Model, stop: int, most: int, length_penalty: float) -> list[Best]:
    """early_stopping=False of Hugging Face's ``generate``."""
    W = WIDTH
    logits = model.start()
    N = len(logits)
    results: dict[int, Best] = {}
    source = torch.arange(N)  # those that still run
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
        rows = torch.arange(n)[:, None] * beams + parent
        if not runs.all():
            for j in (~runs).nonzero()[:, 0].tolist():
                results[int(source[j])] = best.of(j)
            if not runs.any():
                break
            sums, tokens, token, source, rows = (x[runs] for x in (sums, tokens, token, source, rows))
            best = best.of(runs)
        model.keep(rows.flatten(), runs)
        logits = model.step(token)
    return [results[j] for j in range(N)]


def assert_same_n_best(ours: Found, peer: list[Best]) -> None:
    tokens, lengths, scores, _ = ours
    for n, best in enumerate(peer):
        for rank in range(WIDTH):
            mine = tokens[n, rank, : lengths[n, rank]].tolist()
            theirs = best.tokens[rank, : best.lengths[rank]].tolist()
            if mine != theirs:
                raise AssertionError(f"hypothesis {rank} of source {n} differs: {mine}, torch {theirs}")
        assert_close(f"scores of source {n}", scores[n], best.scores.numpy(), 1e-5)


def sharpen(model: torch.nn.Module, stop: int) -> None:
    """Random weights made as decided as trained ones; texts end at different lengths."""
    with torch.no_grad():
        for parameter in model.lstm.parameters():
            parameter *= 2
        model.output.weight *= 20
        model.output.bias[stop] += 3


def language_model(size: Size, stop: int) -> Callable[[int, BeamSearch], tuple[Callable[[], Found], Model]]:
    _, peer = pair(size)
    sharpen(peer, stop)
    ours = fusedlstm.LanguageModel(size.vocabulary, hidden_size=size.hidden, num_layers=LAYERS)
    ours.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})

    def case(N: int, search: BeamSearch) -> tuple[Callable[[], Found], Model]:
        shape = (N, PROMPT_TOKENS)
        prompts = np.random.default_rng(N).integers(0, len(size.vocabulary), shape, np.int32)
        flat, lengths = prompts.reshape(-1), np.full(N, PROMPT_TOKENS, np.int32)
        return (
            lambda: ours.decoder.beam_search(flat, lengths, search.core),
            LanguageModelState(peer, torch.from_numpy(prompts).long()),
        )

    return case


def attention_decoder(
    size: Size, stop: int
) -> Callable[[int, BeamSearch], tuple[Callable[[], Found], Model]]:
    torch.manual_seed(0)
    H, V = size.hidden, len(size.vocabulary)
    peer = TorchAttentionDecoder(H, V)
    sharpen(peer, stop)
    ours = Decoder(V, H, H, LAYERS, memory_size=H, attention="general")
    ours.load_state_dict(peer.weights())

    def case(N: int, search: BeamSearch) -> tuple[Callable[[], Found], Model]:
        sources = Sources.random(N, H)
        return (
            lambda: ours.native.beam_search(
                h0=sources.h.numpy(),
                c0=sources.c.numpy(),
                start_token=stop,
                options=search.core,
                memory=sources.memory.numpy(),
                memory_lengths=sources.lengths.numpy().astype(np.int32),
            ),
            AttentionState(peer, sources, stop),
        )

    return case


def run(plan: Plan, size: Size = MODEL) -> Iterator[Record]:
    use_threads(plan.threads)
    stop = int(size.vocabulary.encode("\n")[0])
    new = 16 if plan.quick else 64
    search = BeamSearch(width=WIDTH, num_return=WIDTH, max_new_tokens=new, stop_tokens=[stop])
    for kind, make in (("language model", language_model), ("attention", attention_decoder)):
        case = make(size, stop)
        for N in (1, 16):
            name = f"{kind} {LAYERS}x{size.hidden} N={N}"
            if not plan.wants(BENCHMARK, name):
                continue
            work, model = case(N, search)

            def peer_work(model: Model = model) -> list[Best]:
                return torch_beam_search(model, stop, new, search.length_penalty)

            found = work()
            assert_same_n_best(found, peer_work())
            record = alternate(work, peer_work, repetitions=3 if plan.quick else 11)
            record |= {
                "benchmark": BENCHMARK,
                "case": name,
                "shape": {"N": N, "W": WIDTH, "new": new, "H": size.hidden, "V": len(size.vocabulary)},
                "lengths_of_best": found[1][:, 0].tolist(),
                "peer": "torch",
            }
            yield record
