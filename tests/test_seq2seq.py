"""Sequence to sequence: against PyTorch, learning, measuring, files and errors."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tolerances import assert_close

from fusedlstm import Seq2Seq
from fusedlstm.data import PairBatches, Tokenizer, TokenizerPair
from fusedlstm.io import FormatError
from fusedlstm.models import Bridge, Decoder, Encoder
from fusedlstm.training import Checkpoint, read_log

LETTERS = "abcdefgh"
TOKENIZER = Tokenizer.from_lines([LETTERS], "char")
SHARED = TokenizerPair(TOKENIZER, TOKENIZER)


def reversals(count: int, longest: int = 6, seed: int = 0) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    words = ("".join(rng.choice(list(LETTERS), n)) for n in rng.integers(1, longest + 1, count))
    return [(word, word[::-1]) for word in words]


# one training step against PyTorch's ----------------------------------------------------------------------


class TorchSeq2Seq(torch.nn.Module):
    """The plain model, written with PyTorch's modules; names as ours."""

    def __init__(self, V: int, E: int, H: int, L: int, D: int, bridge: str) -> None:
        super().__init__()
        self.encoder = torch.nn.ModuleDict(
            {
                "embedding": torch.nn.Embedding(V, E),
                "lstm": torch.nn.LSTM(E, H, L, bidirectional=D == 2, batch_first=True),
            }
        )
        names = [f"{state}_l{layer}" for layer in range(L) for state in "hc"] if bridge != "pass" else []
        self.bridge = torch.nn.ModuleDict({name: torch.nn.Linear(D * H, H) for name in names})
        self.decoder = torch.nn.ModuleDict(
            {
                "embedding": torch.nn.Embedding(V, E),
                "lstm": torch.nn.LSTM(E, H, L, batch_first=True),
                "output": torch.nn.Linear(H, V),
            }
        )
        self.L, self.D, self.kind = L, D, bridge

    def initial(self, name: str, state: torch.Tensor) -> torch.Tensor:
        if self.kind == "pass":
            return state
        layers = state.unflatten(0, (self.L, self.D)).transpose(1, 2).flatten(2)
        mapped = torch.stack([self.bridge[f"{name}_l{i}"](layers[i]) for i in range(self.L)])
        return torch.tanh(mapped) if self.kind == "tanh" and name == "h" else mapped

    def loss(self, batch, smoothing: float) -> torch.Tensor:
        def run(part, ids, lengths, state=None):
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                part["embedding"](torch.tensor(ids, dtype=torch.long)), torch.tensor(lengths),
                batch_first=True, enforce_sorted=False,
            )  # fmt: skip
            y, state = part["lstm"](packed, state)
            return torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0], state

        _, (h, c) = run(self.encoder, batch.source, batch.source_lengths)
        state = self.initial("h", h), self.initial("c", c)
        y, _ = run(self.decoder, batch.inputs, batch.target_lengths, state)
        return torch.nn.functional.cross_entropy(
            self.decoder["output"](y).flatten(0, 1),
            torch.tensor(batch.targets, dtype=torch.long).flatten(),
            ignore_index=-1,
            reduction="sum",
            label_smoothing=smoothing,
        )


@pytest.mark.parametrize(
    ("L", "bidirectional", "bridge", "smoothing"),
    [(1, False, "pass", 0.0), (2, True, "tanh", 0.1), (2, True, "linear", 0.0), (1, False, "tanh", 0.2)],
)
def test_a_training_step_is_pytorchs(L, bidirectional, bridge, smoothing, dtype):
    E, H = 5, 7
    model = Seq2Seq(
        SHARED, embedding_size=E, hidden_size=H, num_layers=L, bidirectional=bidirectional, bridge=bridge,
        reverse_source=True, dtype=dtype, seed=3,
    )  # fmt: skip
    twin = TorchSeq2Seq(len(TOKENIZER), E, H, L, 1 + bidirectional, bridge).to(getattr(torch, dtype))
    twin.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    batch = PairBatches(reversals(9), SHARED, 9, reverse_source=True).batch(range(9))
    expected = twin.loss(batch, smoothing)
    (expected / batch.count).backward()
    total, count = model.training_step(batch, scale=1 / batch.count, seed=0, label_smoothing=smoothing)
    assert count == batch.count
    assert_close(np.array(total / count), expected.item() / count, "cross entropy", dtype)
    gradients = model.named_gradients()
    parameters = dict(twin.named_parameters())
    assert set(gradients) == set(parameters)
    for name, parameter in parameters.items():
        assert np.abs(gradients[name]).max() > 0, name
        assert_close(gradients[name], parameter.grad, "torch backward")


def test_dropout_keeps_the_gradient_right(rng):
    """Central differences of the loss under fixed masks: embedding, between layers, before the output."""
    model = Seq2Seq(
        SHARED, hidden_size=3, num_layers=2, bidirectional=True, dropout=0.4, share_embedding=True,
        dtype="float64",
    )  # fmt: skip
    batch = PairBatches(reversals(3), SHARED, 3).batch(range(3))

    def loss():
        model.zero_grad()
        model.mark_updated()
        return model.training_step(batch, scale=1.0, seed=5)[0]

    first = loss()
    gradients = model.gradients.copy()
    assert loss() == first
    assert model.training_step(batch, scale=1.0, seed=6)[0] != first
    used = np.flatnonzero(np.abs(gradients) > 1e-9)
    for index in rng.choice(used, 40, replace=False):
        value = model.parameters[index]
        ends = []
        for step in (1e-5, -1e-5):
            model.parameters[index] = value + step
            ends.append(loss())
        model.parameters[index] = value
        assert_close(np.array(gradients[index]), (ends[0] - ends[1]) / 2e-5, "finite differences")


# learning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse_source", [False, True])
def test_learns_to_reverse(reverse_source):
    model = Seq2Seq(SHARED, hidden_size=64, reverse_source=reverse_source, seed=1)
    history = model.fit(
        reversals(600, 4), validation=reversals(50, 4, seed=9), epochs=12, batch_size=32, lr=0.01,
        progress=False,
    )  # fmt: skip
    assert history.epochs[-1]["validation_loss"] < 0.25 * history.epochs[0]["validation_loss"]
    assert model.longest_source == 5


PROGRAM = f"""
import sys, time
from fusedlstm import Seq2Seq
from fusedlstm.data import Tokenizer, TokenizerPair
folder, steps = sys.argv[1:]
tokenizer = Tokenizer.from_lines([{LETTERS!r}], "char")
model = Seq2Seq(TokenizerPair(tokenizer, tokenizer), hidden_size=8, num_layers=2, dropout=0.2)
real, calls = model.training_step, []
def training_step(*arguments, **options):
    calls.append(1)
    if len(calls) == int(steps):
        print("now", flush=True)
        time.sleep(60)
    return real(*arguments, **options)
model.training_step = training_step
model.fit({reversals(200)!r}, validation=0.2, epochs=3, batch_size=16, pool=3, label_smoothing=0.1, seed=7,
          log=folder + "/log", checkpoint=folder + "/checkpoint", checkpoint_steps=3, resume=True,
          progress=False)
model.save(folder + "/model")
"""


def test_killed_and_resumed_is_the_same_to_the_last_bit(tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for folder, stops in ((whole, [0]), (torn, [5, 12, 0])):
        folder.mkdir()
        for steps in stops:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(folder), str(steps)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            if steps:
                assert process.stdout.readline() == "now\n"
                process.send_signal(signal.SIGKILL)
            _, err = process.communicate(timeout=60)
            assert process.returncode == (-signal.SIGKILL if steps else 0), err
            assert steps == 0 or Checkpoint.load(folder / "checkpoint").counters["step"] > 0
    assert (torn / "log").read_bytes() == (whole / "log").read_bytes()
    ours, theirs = (Seq2Seq.load(folder / "model") for folder in (torn, whole))
    assert np.array_equal(ours.parameters, theirs.parameters)
    assert len({event["loss"] for event in read_log(whole / "log") if event["event"] == "step"}) == 30


# measuring ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
def test_evaluate_is_the_mean_of_scores(bidirectional):
    model = Seq2Seq(SHARED, hidden_size=8, num_layers=2, bidirectional=bidirectional)
    pairs = reversals(20)
    scores = model.score([source for source, _ in pairs], [target for _, target in pairs])
    tokens = sum(len(target) + 1 for _, target in pairs)
    for size in (1, 7, 64):
        assert model.evaluate(pairs, batch_size=size) == pytest.approx(-sum(scores) / tokens, rel=1e-6)
    for (source, target), score in zip(pairs, scores, strict=True):
        assert model.score(source, target) == score  # not changed by others in the batch
    assert model.score([], []) == []


def test_scores_of_all_targets_sum_to_one():
    """p(target) over all targets up to a length, and the probability of being longer."""
    one = Tokenizer.from_lines(["x"], "char")
    model = Seq2Seq(TokenizerPair(TOKENIZER, one), hidden_size=6, dtype="float64", seed=2)
    alphabet = len(one)
    total = 0.0
    rng = np.random.default_rng(0)
    model.parameters[:] += 0.3 * rng.standard_normal(model.parameters.size)
    model.mark_updated()
    # targets of up to 2 tokens of the whole vocabulary but <eos>; ids, as no text has <bos>
    batch = PairBatches([("ab", "x")], model.tokenizers, 1)
    for length in range(3):
        for ids in np.ndindex(*[alphabet] * length):
            if model.tokenizers.target.end in ids:
                continue
            batch.targets = [np.array(ids, np.int32)]
            batch._lengths = np.array([[length, 3]])
            total += np.exp(-model._pair_losses(batch)[0])
    longer = 0.0
    for ids in np.ndindex(*[alphabet] * 3):
        if model.tokenizers.target.end in ids:
            continue
        batch.targets = [np.array(ids, np.int32)]
        batch._lengths = np.array([[3, 3]])
        state = model.bridge(model.encoder(batch.batch([0]).source, [3])[1])
        inputs = [[model.tokenizers.target.begin, *ids[:2]]]
        logits = model.decoder.output(model.decoder(inputs, [3], state))
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        longer += np.exp(log_p[np.arange(3), ids].sum())
    assert total + longer == pytest.approx(1.0, rel=1e-12)


# files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "bridge": "tanh", "share_embedding": True}])
def test_saved_and_loaded(options, tmp_path):
    model = Seq2Seq(SHARED, hidden_size=8, embedding_size=5, num_layers=2, reverse_source=True, **options)
    model.longest_source = 17
    model.save(tmp_path / "model")
    again = Seq2Seq.load(tmp_path / "model")
    assert again.config() == model.config()
    assert again.tokenizers.to_dict() == model.tokenizers.to_dict()
    assert np.array_equal(again.parameters, model.parameters)
    pairs = reversals(5)
    assert again.evaluate(pairs) == model.evaluate(pairs)


def test_files_of_other_models_are_refused(tmp_path):
    from fusedlstm import LanguageModel
    from fusedlstm.data import Vocabulary

    LanguageModel(Vocabulary.from_text("ab"), hidden_size=4).save(tmp_path / "lm")
    with pytest.raises(FormatError, match="model must be 'seq2seq', got 'language_model'"):
        Seq2Seq.load(tmp_path / "lm")
    Seq2Seq(SHARED, hidden_size=4).save(tmp_path / "s")
    with pytest.raises(FormatError, match="model must be 'language_model', got 'seq2seq'"):
        LanguageModel.load(tmp_path / "s")
    data = bytearray((tmp_path / "s").read_bytes())
    data[-3] ^= 1
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        Seq2Seq.load(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bidirectional": True}, "bridge 'pass' needs bidirectional false"),
        ({"num_layers": 2}, "encoder.lstm.weight_ih_l1 is missing"),
        ({"bridge": "jump"}, "bridge must be one of"),
        ({"share_embedding": True}, "tensor decoder.embedding.weight does not belong"),
        ({"hidden_size": 5}, r"encoder.embedding.weight must be|weight_ih_l0 must be"),
        ({"longest_source": -1}, "longest_source must be at least 0"),
        ({"colour": 1}, "foreign"),
    ],
)
def test_inconsistent_files_are_refused(change, message, tmp_path):
    import json

    from fusedlstm.io import read_tensors, write_tensors

    path = tmp_path / "m"
    Seq2Seq(SHARED, hidden_size=4).save(path)
    tensors, metadata = read_tensors(path)
    metadata = {key: value for key, value in metadata.items() if key != "checksum"}
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), **change})
    write_tensors(path, tensors, metadata)
    with pytest.raises(FormatError, match=message):
        Seq2Seq.load(path)


# errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.score("", "a"), "the source is empty"),
        (lambda m: m.score(["a", ""], ["a", "b"]), "source 2 of 2 is empty"),
        (lambda m: m.score("xyz", "a"), "unknown tokens only"),
        (lambda m: m.score("a", ""), "the target sentence is empty"),
        (lambda m: m.score(["a"], ["a", "b"]), "1 sources need as many targets, got 2"),
        (lambda m: m.evaluate([]), "at least one pair"),
        (lambda m: m.fit([("a", "b")], validation=0.5), "validation must be a fraction"),
        (lambda m: m.fit([("a", "b")], validation=2), "validation must be a fraction"),
        (lambda m: m.fit([("a", "b")], label_smoothing=1.0), "label_smoothing must be"),
        (lambda m: m.fit([("a", "b")], loss_scale="sum"), "loss_scale must be"),
        (lambda m: m.fit([("a", "b")], epochs=0), "epochs must be"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Seq2Seq(SHARED, hidden_size=4))


def test_wrong_models_are_refused():
    other = TokenizerPair(TOKENIZER, Tokenizer("byte"))
    for make, message in (
        (lambda: Seq2Seq(other, hidden_size=4, share_embedding=True), "needs one tokenizer"),
        (lambda: Seq2Seq(SHARED, hidden_size=4, bidirectional=True, bridge="pass"), "'pass' needs"),
        (lambda: Seq2Seq(SHARED, hidden_size=4, bridge="jump"), "kind must be one of"),
        (lambda: Seq2Seq(SHARED, hidden_size=0), "hidden_size must be"),
        (lambda: Seq2Seq(SHARED, hidden_size=4, dropout=1.0), "dropout must be"),
        (lambda: Bridge("pass", 4, 5), "'pass' needs"),
        (lambda: Decoder(9, 4, 4, embedding=Encoder(8, 4, 4).embedding), "embedding must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="tokenizers must be a TokenizerPair"):
        Seq2Seq(TOKENIZER, hidden_size=4)


def test_a_copy_does_not_share_parameters():
    import copy

    model = Seq2Seq(SHARED, hidden_size=6, share_embedding=True)
    other = copy.deepcopy(model)
    assert other.decoder.embedding is other.encoder.embedding
    other.parameters[:] = 0
    other.mark_updated()
    assert model.parameters.any()
    assert other.score("ab", "ba") == pytest.approx(3 * np.log(1 / len(TOKENIZER)))
