"""Sequence to sequence: against PyTorch, learning, measuring, files and errors."""

from __future__ import annotations

import json
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
from fusedlstm.training import Checkpoint, LinearDecay, read_log

LETTERS = "abcdefgh"
TOKENIZER = Tokenizer.from_lines([LETTERS], "char")
SHARED = TokenizerPair(TOKENIZER, TOKENIZER)


def reversals(count: int, longest: int = 6, seed: int = 0) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    words = ("".join(rng.choice(list(LETTERS), n)) for n in rng.integers(1, longest + 1, count))
    return [(word, word[::-1]) for word in words]


# one training step against PyTorch's ----------------------------------------------------------------------


class TorchSeq2Seq(torch.nn.Module):
    """The model step by step, written with PyTorch's modules; names as ours."""

    def __init__(self, V: int, E: int, H: int, L: int, D: int, bridge: str, attention: str | None) -> None:
        super().__init__()
        self.encoder = torch.nn.ModuleDict(
            {
                "embedding": torch.nn.Embedding(V, E),
                "lstm": torch.nn.LSTM(E, H, L, bidirectional=D == 2, batch_first=True),
            }
        )
        names = [f"{state}_l{layer}" for layer in range(L) for state in "hc"] if bridge != "pass" else []
        self.bridge = torch.nn.ModuleDict({name: torch.nn.Linear(D * H, H) for name in names})
        M = D * H
        fed = {None: 0, "bahdanau": M}.get(attention, H)
        self.layers = torch.nn.Module()
        self.layers.lstm = torch.nn.LSTM(E + fed, H, L, batch_first=True)
        weights = {"weight_c": (H, M + H), "weight_memory": (H, M), "weight_query": (H, H), "v": (H,)}
        used = {None: [], "dot": ["weight_c"], "general": ["weight_c", "weight_memory"]}
        for name in used.get(attention, weights):
            setattr(self.layers, name, torch.nn.Parameter(torch.zeros(weights[name])))
        self.decoder = torch.nn.ModuleDict(
            {"embedding": torch.nn.Embedding(V, E), "layers": self.layers, "output": torch.nn.Linear(H, V)}
        )
        del self.layers  # it is the decoder's
        self.L, self.D, self.kind, self.attention = L, D, bridge, attention

    def initial(self, name: str, state: torch.Tensor) -> torch.Tensor:
        if self.kind == "pass":
            return state
        layers = state.unflatten(0, (self.L, self.D)).transpose(1, 2).flatten(2)
        mapped = torch.stack([self.bridge[f"{name}_l{i}"](layers[i]) for i in range(self.L)])
        return torch.tanh(mapped) if self.kind == "tanh" and name == "h" else mapped

    def read(self, ids, lengths):
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            self.encoder["embedding"](torch.tensor(ids, dtype=torch.long)), torch.tensor(lengths),
            batch_first=True, enforce_sorted=False,
        )  # fmt: skip
        y, (h, c) = self.encoder["lstm"](packed)
        memory = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]
        return memory, (self.initial("h", h), self.initial("c", c))

    def step(self, ids, feed, state, memory, lengths):
        """Logits of the next token, and what the step after needs."""
        layers, e = self.decoder["layers"], self.decoder["embedding"](ids)

        def context(query):
            if self.attention in ("dot", "general"):
                keys = memory if self.attention == "dot" else memory @ layers.weight_memory.T
                scores = (keys @ query[:, :, None])[..., 0]
            else:
                keys = memory @ layers.weight_memory.T + (query @ layers.weight_query.T)[:, None]
                scores = torch.tanh(keys) @ layers.v
            outside = torch.arange(memory.shape[1])[None] >= torch.tensor(lengths)[:, None]
            weights = scores.masked_fill(outside, -torch.inf).softmax(1)
            return (weights[:, None] @ memory)[:, 0], weights

        weights = None
        if self.attention is None:
            h, state = layers.lstm(e[:, None], state)
            a = h[:, 0]
        elif self.attention == "bahdanau":
            c, weights = context(state[0][-1])
            h, state = layers.lstm(torch.cat([e, c], 1)[:, None], state)
            a = torch.tanh(torch.cat([c, h[:, 0]], 1) @ layers.weight_c.T)
        else:
            h, state = layers.lstm(torch.cat([e, feed], 1)[:, None], state)
            c, weights = context(h[:, 0])
            a = torch.tanh(torch.cat([c, h[:, 0]], 1) @ layers.weight_c.T)
        return self.decoder["output"](a), a, state, weights

    def loss(self, batch, smoothing: float) -> torch.Tensor:
        memory, state = self.read(batch.source, batch.source_lengths)
        feed = torch.zeros_like(state[0][-1])
        total = 0.0
        for t in range(batch.inputs.shape[1]):
            ids = torch.tensor(batch.inputs[:, t], dtype=torch.long)
            logits, feed, state, _ = self.step(ids, feed, state, memory, batch.source_lengths)
            total = total + torch.nn.functional.cross_entropy(
                logits, torch.tensor(batch.targets[:, t], dtype=torch.long), ignore_index=-1,
                reduction="sum", label_smoothing=smoothing,
            )  # fmt: skip
        return total

    @torch.no_grad()
    def greedy(self, ids, steps: int):
        """Tokens of the most probable next one, up to and with <eos>, their log-probabilities and weights."""
        memory, state = self.read(ids[None], [len(ids)])
        feed, token, result = torch.zeros_like(state[0][-1]), torch.tensor([1]), []
        while len(result) < steps and (not result or result[-1][0] != 2):
            logits, feed, state, weights = self.step(token, feed, state, memory, [len(ids)])
            log_p = logits[0].log_softmax(0)
            token = torch.tensor(
                [int(torch.where(torch.arange(len(log_p)) == 1, -torch.inf, log_p).argmax())]
            )
            result.append((int(token), float(log_p[token]), None if weights is None else weights[0].numpy()))
        return result


def with_twin(dtype: str = "float64", **options) -> tuple[Seq2Seq, TorchSeq2Seq]:
    model = Seq2Seq(SHARED, **{"embedding_size": 5, "hidden_size": 7, "seed": 3, "dtype": dtype, **options})
    twin = TorchSeq2Seq(
        len(TOKENIZER), 5, 7, options.get("num_layers", 1), 1 + options.get("bidirectional", False),
        model.bridge.kind, options.get("attention"),
    ).to(getattr(torch, dtype))  # fmt: skip
    twin.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    return model, twin


TWINS = [
    {},
    {"num_layers": 2, "bidirectional": True, "bridge": "tanh"},
    {"num_layers": 2, "bridge": "linear", "attention": "dot"},
    {"bidirectional": True, "attention": "general"},
    {"bidirectional": True, "attention": "concat"},
    {"num_layers": 2, "bidirectional": True, "bridge": "tanh", "attention": "bahdanau"},
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("options", TWINS, ids=str)
def test_a_training_step_is_pytorchs(options, smoothing, dtype):
    model, twin = with_twin(dtype, reverse_source=True, **options)
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


@pytest.mark.parametrize("attention", [None, "general", "bahdanau"])
@pytest.mark.parametrize("teacher", [1.0, 0.5])
def test_dropout_and_own_tokens_keep_the_gradient_right(attention, teacher, rng):
    """Central differences of the loss under fixed masks, and with own tokens that do not change."""
    model = Seq2Seq(
        SHARED, hidden_size=3, num_layers=2, bidirectional=True, attention=attention, dropout=0.4,
        share_embedding=True, dtype="float64",
    )  # fmt: skip
    batch = PairBatches(reversals(3), SHARED, 3).batch(range(3))

    def loss(seed=5):
        model.zero_grad()
        model.mark_updated()
        return model.training_step(batch, scale=1.0, seed=seed, teacher_probability=teacher)[0]

    first = loss()
    gradients = model.gradients.copy()
    assert loss() == first
    assert loss(6) != first
    used = np.flatnonzero(np.abs(gradients) > 1e-9)
    for index in rng.choice(used, 40, replace=False):
        value = model.parameters[index]
        ends = []
        for step in (1e-5, -1e-5):
            model.parameters[index] = value + step
            ends.append(loss())
        model.parameters[index] = value
        assert_close(np.array(gradients[index]), (ends[0] - ends[1]) / 2e-5, "finite differences")


def test_products_in_bfloat16(tmp_path):
    """LSTMs and output layer, in training, scores and translation; the file keeps it."""
    pairs = reversals(20)
    batch = PairBatches(pairs, SHARED, 20).batch(range(20))
    models = [
        Seq2Seq(SHARED, hidden_size=24, attention="general", seed=1, compute_dtype=compute_dtype)
        for compute_dtype in (None, "bfloat16")
    ]
    (loss, _), (low_loss, _) = (m.training_step(batch, scale=1 / batch.count, seed=0) for m in models)
    exact, low = models
    assert loss != low_loss == pytest.approx(loss, rel=1e-2)
    assert_close(low.gradients, exact.gradients, "attention bfloat16")
    assert low.decoder.output.packed.compute_dtype == low.encoder.lstm.compute_dtype == "bfloat16"
    path = tmp_path / "model.safetensors"
    low.save(path)
    again, widened = Seq2Seq.load(path), Seq2Seq.load(path, compute_dtype="float32")
    sources = [source for source, _ in pairs]
    assert again.translate(sources, max_new_tokens=8) == low.translate(sources, max_new_tokens=8)
    assert again.evaluate(pairs) == low.evaluate(pairs) != exact.evaluate(pairs) == widened.evaluate(pairs)
    with pytest.raises(ValueError, match="Seq2Seq: compute_dtype 'int8' is for models that are trained"):
        Seq2Seq(SHARED, hidden_size=4, compute_dtype="int8")


def test_own_tokens_are_fed_as_often_as_asked():
    model = Seq2Seq(SHARED, hidden_size=8, attention="general")
    batch = PairBatches([("abcdefgh" * 5, "abcdefgh" * 5)] * 20, SHARED, 20).batch(range(20))
    memory, state = model.encoder(batch.source, batch.source_lengths)
    for teacher in (0.0, 0.3):
        _, tape = model.decoder.forward(
            batch.inputs, batch.target_lengths, state=state, memory=memory,
            memory_lengths=batch.source_lengths, seed=1, teacher_probability=teacher,
        )  # fmt: skip
        own = tape.steps.tokens
        assert (own[:, 0] == -1).all()
        assert abs((own[:, 1:] >= 0).mean() - (1 - teacher)) < 0.06


# learning -------------------------------------------------------------------------------------------------


def test_learns_to_reverse():
    model = Seq2Seq(SHARED, hidden_size=64, seed=1)
    history = model.fit(
        reversals(400, 4), validation=reversals(50, 4, seed=9), epochs=10, batch_size=32, lr=0.02,
        progress=False,
    )  # fmt: skip
    assert history.epochs[-1]["validation_loss"] < 0.25 * history.epochs[0]["validation_loss"]
    assert model.longest_source == 5


def test_attention_learns_to_copy_what_it_has_never_seen():
    model = Seq2Seq(SHARED, hidden_size=32, bidirectional=True, attention="general", seed=1)
    copies = [(source, source) for source, _ in reversals(400, 6)]
    unseen = [(source, source) for source, _ in reversals(40, 6, seed=9)]
    model.fit(copies, epochs=8, batch_size=16, lr=0.02, teacher=LinearDecay(400, final=0.7), progress=False)
    right = [a == b for a, (b, _) in zip(model.translate([a for a, _ in unseen]), unseen, strict=True)]
    assert sum(right) > 12  # of 40; a guess of one token is right once in 8 times


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
        logits = model.decoder.output(model.decoder(inputs, [3], state=state))
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        longer += np.exp(log_p[np.arange(3), ids].sum())
    assert total + longer == pytest.approx(1.0, rel=1e-12)


# translation ----------------------------------------------------------------------------------------------


def random_model(**options) -> Seq2Seq:
    """A model whose targets end after a few tokens, at different places."""
    model, _ = with_twin(**options)
    model.parameters[:] += np.random.default_rng(1).standard_normal(model.parameters.size)
    sources = [source for source, _ in reversals(12)]
    for _ in range(20):
        model.decoder.output.bias[2] += 0.5
        model.mark_updated()
        lengths = {len(found[0].tokens) for found in model.beam_search(sources, width=1, max_new_tokens=12)}
        if min(lengths) < 5 and len(lengths) > 2:
            return model
    raise AssertionError("no bias of <eos> ends the targets at different places")


@pytest.mark.parametrize("options", TWINS, ids=str)
def test_greedy_translation_is_pytorchs(options):
    model = random_model(**options)
    _, twin = with_twin(**options)
    twin.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    sources = [source for source, _ in reversals(12)]
    for source, found in zip(sources, model.beam_search(sources, width=1, max_new_tokens=12), strict=True):
        ids = np.append(TOKENIZER.encode(source), 2)
        expected = twin.greedy(ids, 12)
        assert found[0].tokens.tolist() == [token for token, _, _ in expected]
        np.testing.assert_allclose(found[0].log_probabilities, [p for _, p, _ in expected], rtol=1e-9)
        assert (
            found[0].text
            == TOKENIZER.decode(found[0].tokens)
            == model.generate(source, greedy=True, max_new_tokens=12)
        )
        if found[0].tokens[-1] == 2 and 0 not in found[0].tokens:  # "<unk>" has no ids to go back to
            assert model.score(source, found[0].text) == pytest.approx(sum(p for _, p, _ in expected))
            if options.get("attention"):
                alignment = model.alignment(source, found[0].text)
                assert alignment.source == (*source, "<eos>")
                np.testing.assert_allclose(alignment.weights, [w for _, _, w in expected], atol=1e-9)


@pytest.mark.parametrize("attention", [None, "general"])
def test_translations_do_not_depend_on_the_batch(attention):
    model = random_model(bidirectional=True, attention=attention)
    sources = [source for source, _ in reversals(8)]
    for options in ({"beam": 1}, {"beam": 4, "length_penalty": 0.5}):
        alone = [model.translate(source, max_new_tokens=15, **options) for source in sources]
        for size in (3, 32):
            assert model.translate(sources, batch_size=size, max_new_tokens=15, **options) == alone
        for source, text in zip(sources, alone, strict=True):
            assert "".join(model.stream(source, max_new_tokens=15, **options)) == text
    drawn = [model.generate(source, seed=7 + n, max_new_tokens=15) for n, source in enumerate(sources)]
    assert model.generate(sources, seed=7, max_new_tokens=15, batch_size=4) == drawn
    assert len(set(drawn)) > 4
    assert model.translate([]) == []


def test_samples_say_all_of_their_tokens():
    model = random_model(attention="general")
    sources = ["abc", "h"]
    made = model.sample(sources, num_sequences=3, top_log_probabilities=2, max_new_tokens=9, seed=1)
    again = model.sample("h", num_sequences=3, max_new_tokens=9, seed=4)
    assert [one.text for one in made[3:]] == [one.text for one in again]
    for number, one in enumerate(made):
        assert one.finish == ("stop_token" if one.tokens[-1] == 2 else "length")
        assert one.top_tokens.shape == (len(one.tokens), 2)
        if one.finish == "stop_token" and 0 not in one.tokens:
            score = model.score(sources[number // 3], one.text)
            assert one.log_probabilities.sum() == pytest.approx(score)
    seen = []

    def processor(rows, tokens, logits):
        seen.append((rows.tolist(), [ids.tolist() for ids in tokens]))
        logits[:] = 0
        logits[:, 3] = 100

    forced = model.sample(["a", "bcd"], processor=processor, max_new_tokens=2)
    assert [one.text for one in forced] == ["aa", "aa"]
    assert seen == [([0, 1], [[1], [1]]), ([0, 1], [[1, 3], [1, 3]])]
    stopped = model.sample("abc", processor=processor, stop_strings="aaa", max_new_tokens=9)[0]
    assert (stopped.text, stopped.finish) == ("aaa", "stop_string")


def test_drawn_translations_come_in_pieces():
    model = random_model(attention="general")
    sources = ["abc", "h", "gfe", "dd"]
    for options in ({}, {"stop_strings": ["a", "bc"]}):
        texts = dict.fromkeys(range(8), "")

        def on_text(row, piece, texts=texts):
            texts[row] += piece

        arguments = {"max_new_tokens": 9, "seed": 3, **options}
        made = model.sample(sources, num_sequences=2, batch_size=3, on_text=on_text, **arguments)
        assert [*texts.values()] == [one.text for one in made]
        for n, source in enumerate(sources):
            arguments["seed"] = 3 + n
            assert "".join(model.stream_sample(source, **arguments)) == model.generate(source, **arguments)
    for call, message in (
        (lambda: model.stream_sample(""), "stream_sample: the source is empty"),
        (lambda: model.stream_sample("a", top_p=1.5), "top_p must be"),
        (lambda: model.stream_sample(["a"]), "source must be a str, got list"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()  # not at the first piece


def test_unknown_and_empty_sources_are_named():
    model = Seq2Seq(SHARED, hidden_size=4)
    for call, message in (
        (lambda: model.translate(""), "beam_search: the source is empty: ''"),
        (lambda: model.translate(["a", "  "]), "source 2 of 2 has unknown tokens only"),
        (lambda: model.translate("xyz"), "unknown tokens only, none of the 11"),
        (lambda: model.generate(["a", ""]), "source 2 of 2 is empty"),
        (lambda: model.stream(""), "stream: the source is empty"),
        (lambda: model.translate("a", beam=0), "beam must be at least 1, got 0"),
        (lambda: model.stream("a", beam=0), "beam must be at least 1, got 0"),
        (lambda: model.translate("a", batch_size=0), "batch_size must be"),
        (lambda: model.translate("a", max_new_tokens=0), "max_new_tokens must be"),
        (lambda: model.generate("a", top_p=1.5), "top_p must be"),
        (lambda: model.generate("a", stop_strings=""), "stop_strings must not be empty"),
        (lambda: model.alignment("a"), "has no attention"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="text must be a str"):
        model.translate([3])


def test_sources_longer_than_any_in_training_are_told():
    model = Seq2Seq(SHARED, hidden_size=4)
    model.fit([("ab", "ba")] * 4, epochs=1, batch_size=2, progress=False)
    model.translate("ab", max_new_tokens=3)
    with pytest.warns(UserWarning, match="the source has 500 tokens, and the longest in training had 2"):
        model.translate("a" * 500, max_new_tokens=3)


def test_a_processor_that_raises_leaves_the_model_as_it_was():
    model = random_model(attention="general")
    before = model.translate("abc", max_new_tokens=5)

    def processor(rows, tokens, logits):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.sample("abc", processor=processor)
    stream = model.stream("abc", max_new_tokens=200)
    next(stream, None)
    stream.close()
    assert model.translate("abc", max_new_tokens=5) == before


def test_alignment_of_a_reversed_source_and_its_picture(tmp_path):
    pytest.importorskip("matplotlib")
    model = random_model(attention="general", reverse_source=True)
    alignment = model.alignment("abc", "ba")
    plain = random_model(attention="general").alignment("cba", "ba")
    np.testing.assert_allclose(alignment.weights[:, :3], plain.weights[:, 2::-1], rtol=1e-12)
    np.testing.assert_allclose(alignment.weights.sum(1), 1, rtol=1e-6)
    alignment.plot(tmp_path / "alignment.png")
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_bleu_is_sacrebleus():
    pytest.importorskip("sacrebleu")
    words = Tokenizer.from_lines(["the cat sat on the mat ."], "word")
    model = Seq2Seq(TokenizerPair(words, words), hidden_size=32, seed=1)
    pairs = [("the cat sat on the mat .", "the cat sat on the mat ."), ("the mat", "the mat")]
    model.fit(pairs * 8, epochs=30, lr=0.02, progress=False)
    score, signature = model.bleu(pairs, tokenize="none")
    assert score == pytest.approx(100.0)
    assert "tok:none" in signature


# files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True, "bridge": "tanh", "share_embedding": True},
        {"attention": "dot"},
        {"attention": "general", "input_feeding": False, "bidirectional": True},
        {"attention": "concat", "attention_size": 3, "coverage": True},
        {"attention": "bahdanau"},
    ],
    ids=str,
)
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
        ({"attention": "general"}, "decoder.layers.weight_c is missing"),
        ({"attention": "dot", "bidirectional": True, "bridge": "linear"}, "is missing|must be|'dot' needs"),
    ],
)
def test_inconsistent_files_are_refused(change, message, tmp_path):

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
        (lambda m: m.evaluate([("a", "")]), "pair 1: the target sentence is empty"),
        (lambda m: m.score(["a"], ["a", "b"]), "1 sources need as many targets, got 2"),
        (lambda m: m.evaluate([]), "at least one pair"),
        (lambda m: m.fit([("a", "b")], validation=0.5), "validation must be a fraction"),
        (lambda m: m.fit([("a", "b")], validation=2), "validation must be a fraction"),
        (lambda m: m.fit([("a", "b")], label_smoothing=1.0), "label_smoothing must be"),
        (lambda m: m.fit([("a", "b")], loss_scale="sum"), "loss_scale must be"),
        (lambda m: m.fit([("a", "b")], epochs=0), "epochs must be"),
        (lambda m: m.fit([("a", "b")], teacher=1.5), "teacher must be"),
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
    model.translate("ab", max_new_tokens=2)  # what is packed for it is no part of a copy
    other = copy.deepcopy(model)
    assert other.decoder.embedding is other.encoder.embedding
    other.parameters[:] = 0
    other.mark_updated()
    assert model.parameters.any()
    assert other.score("ab", "ba") == pytest.approx(3 * np.log(1 / len(TOKENIZER)))
