"""One training step of a translation model: 2 x 512, 64 pairs, Luong's general attention, input feeding.

Encoder, teacher forcing, loss, backward, clipping and Adam. The peers are torch's layers: a packed encoder
and a loop over the target's steps, each a call of nn.LSTM or of lstm_cell per layer; autocast for bfloat16.
Before timing, both train from the same weights on the same batches, and their losses are compared.

Batches are as in training: 50 of them are drawn, sorted by length and cut, and some of these, evenly spread,
are timed together. Lengths are those of the files given with ``--pairs``, in words; otherwise they are drawn
from a log-normal distribution with the means, deviations and correlation of Multi30k's 29,000 training pairs.
Words are random ones of as many as pytorch-seq2seq takes from Multi30k, those seen twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusedlstm import Seq2Seq
from fusedlstm.data import PairBatch, Tokenizer, TokenizerPair, read_pairs
from fusedlstm.training import Adam

from .beam_search import TorchAttentionDecoder
from .harness import Plan, Record, add_rates, alternate_all, use_threads
from .language_model import LAYERS
from .language_model_step import CLIP, LEARNING_RATE, LOSS_BOUNDS, STEPS_COMPARED, update

BENCHMARK = "seq2seq training"
HIDDEN, BATCH, POOL = 512, 64, 50
SOURCE_WORDS, TARGET_WORDS = 7853, 5893
# natural logarithms of the numbers of words of German and English sentences: mean, deviation, least, most
LOG_LENGTHS = ((2.468, 0.324, 2, 44), (2.522, 0.296, 4, 40))
CORRELATION = 0.852
BEGIN, END, FIRST_WORD = Tokenizer.begin, Tokenizer.end, 3


def pair_lengths(files: tuple[Path, Path] | None, count: int) -> np.ndarray:
    """Words of source and target, (count, 2)."""
    random = np.random.default_rng(0)
    if files is not None:
        words = np.array([[len(side.split()) for side in pair] for pair in read_pairs(*files)])
        return random.choice(words, count)
    z = random.multivariate_normal([0, 0], [[1, CORRELATION], [CORRELATION, 1]], count)
    columns = [
        np.exp(mean + deviation * of_side).round().clip(least, most)
        for of_side, (mean, deviation, least, most) in zip(z.T, LOG_LENGTHS, strict=True)
    ]
    return np.stack(columns, 1).astype(int)


def batches(files: tuple[Path, Path] | None, count: int) -> list[PairBatch]:
    """So many of a pool that was sorted by length, evenly spread, in random order."""
    lengths = pair_lengths(files, BATCH * POOL)
    lengths = lengths[np.lexsort((lengths[:, 0], lengths[:, 1]))].reshape(POOL, BATCH, 2)
    random = np.random.default_rng(1)
    made = [
        PairBatch.pad(
            [[*random.integers(FIRST_WORD, SOURCE_WORDS, S), END] for S in of_batch[:, 0]],
            [random.integers(FIRST_WORD, TARGET_WORDS, T) for T in of_batch[:, 1]],
            begin=BEGIN,
            end=END,
        )
        for of_batch in lengths[POOL // (2 * count) :: POOL // count]
    ]
    return [made[k] for k in random.permutation(len(made))]


class TorchSeq2Seq(torch.nn.Module):
    """The same model of torch's layers, its parameters named as ours but those of the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.ModuleDict(
            {
                "embedding": torch.nn.Embedding(SOURCE_WORDS, HIDDEN),
                "lstm": torch.nn.LSTM(HIDDEN, HIDDEN, LAYERS, batch_first=True),
            }
        )
        self.decoder = TorchAttentionDecoder(HIDDEN, TARGET_WORDS)

    def weights(self) -> dict[str, np.ndarray]:
        """By our names."""
        named = {name: value.numpy() for name, value in self.state_dict().items() if "decoder" not in name}
        return named | {f"decoder.{name}": value for name, value in self.decoder.weights().items()}

    def loss(self, batch: TorchBatch, cells: bool) -> torch.Tensor:
        """Mean over the valid target tokens; a step is a cell of each layer, or a call of nn.LSTM."""
        embedded = self.encoder["embedding"](batch.source)
        packed = pack_padded_sequence(embedded, batch.source_lengths, True, enforce_sorted=False)
        y, (h, c) = self.encoder["lstm"](packed)
        memory, _ = pad_packed_sequence(y, batch_first=True)
        decoder = self.decoder
        keys = decoder.keys(memory).transpose(1, 2)
        inputs = decoder.embedding(batch.inputs)
        a = torch.zeros(len(inputs), HIDDEN)
        h, c = h.float(), c.float()  # under autocast, an LSTM wants states and inputs of one type
        state = (h.unbind(), c.unbind()) if cells else (h, c)
        outputs = []
        for e_t in inputs.unbind(1):
            x = torch.cat([e_t, a], -1)
            if cells:
                query, state = self._cells(x, state)
                query = query[:, None]
            else:
                query, (h, c) = decoder.lstm(x[:, None], state)
                state = (h.float(), c.float())
            scores = torch.bmm(query, keys).masked_fill(batch.padding, -torch.inf)
            context = torch.bmm(scores.softmax(-1), memory)
            a = decoder.combine(torch.cat([context, query], -1)).tanh()[:, 0]
            outputs.append(a)
        rows = torch.stack(outputs, 1)[batch.valid]
        return torch.nn.functional.cross_entropy(decoder.output(rows), batch.targets)

    def _cells(self, x, state):
        next_h, next_c = [], []
        for layer, (h, c) in enumerate(zip(*state, strict=True)):
            w_ih, w_hh, b_ih, b_hh = self.decoder.lstm.all_weights[layer]
            x, c = torch.lstm_cell(x, (h, c), w_ih, w_hh, b_ih, b_hh)
            next_h.append(x)
            next_c.append(c)
        return x, (next_h, next_c)


class TorchBatch:
    """A batch as torch reads it."""

    def __init__(self, batch: PairBatch) -> None:
        self.source, self.inputs = (torch.from_numpy(ids).long() for ids in (batch.source, batch.inputs))
        self.source_lengths = torch.from_numpy(batch.source_lengths).long()
        self.padding = torch.arange(self.source.shape[1]) >= self.source_lengths[:, None, None]
        targets = torch.from_numpy(batch.targets).long()
        self.valid = targets >= 0
        self.targets = targets[self.valid]


def our_training(model: Seq2Seq) -> Callable[[PairBatch], float]:
    optimiser = Adam(LEARNING_RATE)

    def step(batch: PairBatch) -> float:
        model.zero_grad()
        total, count = model.training_step(batch, scale=1.0 / batch.count, seed=0)
        update(model, optimiser)
        return total / count

    return step


def peer_training(model: TorchSeq2Seq, bf16: bool, cells: bool) -> Callable[[TorchBatch], float]:
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step(batch: TorchBatch) -> float:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.loss(batch, cells)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        return loss.item()

    return step


def flops(batch: PairBatch) -> float:
    """Of the matrix products of a forward pass over valid steps; multiply-adds count two."""
    H, sources, targets = HIDDEN, int(batch.source_lengths.sum()), batch.count
    # the decoder's first layer also reads a_{t-1}
    layers = (2 * LAYERS * sources + (2 * LAYERS + 1) * targets) * 4 * H * H
    looked_at = int((batch.source_lengths * batch.target_lengths).sum())
    attention = H * H * sources + 2 * H * looked_at + 2 * H * H * targets
    return 2.0 * (layers + attention + H * TARGET_WORDS * targets)


def measure(dtype: str, case: str, plan: Plan) -> Iterator[Record]:
    use_threads(plan.threads)
    ours_batches = batches(plan.pairs, 2 if plan.quick else 5)
    peer_batches = [TorchBatch(batch) for batch in ours_batches]
    words = (
        Tokenizer("word", [f"w{k}" for k in range(V - FIRST_WORD)]) for V in (SOURCE_WORDS, TARGET_WORDS)
    )
    suffix = "" if dtype == "float32" else " bf16"
    peer_steps = {}
    initial: dict[str, np.ndarray] = {}
    for name, cells in ((f"torch{suffix}", False), (f"torch cells{suffix}", True)):
        torch.manual_seed(0)
        peer = TorchSeq2Seq()
        initial = initial or {key: value.copy() for key, value in peer.weights().items()}
        peer_steps[name] = peer_training(peer, dtype == "bfloat16", cells)
    ours = Seq2Seq(
        TokenizerPair(*words),
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        attention="general",
        compute_dtype=None if dtype == "float32" else dtype,
    )
    ours.load_state_dict(initial)
    our_step = our_training(ours)

    difference = 0.0
    for k in range(2 if plan.quick else STEPS_COMPARED):
        batch = k % len(ours_batches)
        loss = our_step(ours_batches[batch])
        for name, step in peer_steps.items():
            peer_loss = step(peer_batches[batch])
            difference = max(difference, abs(loss - peer_loss) / peer_loss)
            if not difference <= LOSS_BOUNDS[dtype]:
                raise AssertionError(f"step {k + 1}: loss {loss}, {name} {peer_loss}")
    records = alternate_all(
        lambda: [our_step(batch) for batch in ours_batches],
        {
            name: lambda step=step: [step(batch) for batch in peer_batches]
            for name, step in peer_steps.items()
        },
        repetitions=2 if plan.quick else 9,
    )
    tokens = sum(batch.count for batch in ours_batches)
    for name, record in records.items():
        record |= {
            "benchmark": BENCHMARK,
            "case": case,
            "shape": {
                "N": BATCH,
                "batches": len(ours_batches),
                "source_tokens": sum(int(batch.source_lengths.sum()) for batch in ours_batches),
                "target_tokens": tokens,
                "H": HIDDEN,
                "L": LAYERS,
                "V": TARGET_WORDS,
                "dtype": dtype,
            },
            "peer": name,
            "largest_difference": difference,
        }
        for side in ("ours", "peer"):
            record[f"{side}_tokens_per_second"] = tokens / record[f"{side}_seconds"]["median"]
        yield add_rates(record, 3 * sum(map(flops, ours_batches)), plan.threads, dtype)


def run(plan: Plan) -> Iterator[Record]:
    lengths = "" if plan.pairs is None else f" ({plan.pairs[0].stem})"
    for dtype in ("float32", "bfloat16"):
        case = f"{LAYERS}x{HIDDEN} N={BATCH} attention" + ("" if dtype == "float32" else " bf16") + lengths
        if plan.wants(BENCHMARK, case):
            yield from measure(dtype, case, plan)
