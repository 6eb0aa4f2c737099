"""Sessions of translation models: each source gets what it gets alone, whoever joins and leaves."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from test_seq2seq import SHARED, TOKENIZER, TWINS, random_model, with_twin

from fusedlstm import LanguageModel, Seq2Seq, _core
from fusedlstm.data import Tokenizer, TokenizerPair, Vocabulary

SOURCES = ["abc", "h", "gfedcbaabcdefgh", "dd", "hgab", "a", "cab", "fedd"]  # the longest joins later
VARIANTS = [
    *TWINS,
    {"attention": "dot", "input_feeding": False, "reverse_source": True},
    {"attention": "general", "share_embedding": True},
    {"attention": "concat", "coverage": True, "attention_size": 5},
    {"attention": "concat", "coverage": True, "input_feeding": False, "bidirectional": True},
    {"attention": "bahdanau", "coverage": True, "num_layers": 2},
]


def new_model(**options) -> Seq2Seq:
    return Seq2Seq(
        SHARED, **{"embedding_size": 5, "hidden_size": 7, "init": ("uniform", 1.5), "seed": 3, **options}
    )


def options_of(row: int) -> dict:
    """Options that differ from row to row."""
    return {
        "max_new_tokens": 9 + 5 * row % 13,
        "min_new_tokens": 3 + row % 6,
        "seed": 100 + row,
        "greedy": row % 4 == 0,
        "temperature": 0.5 + row / 4,
        "top_k": 0 if row % 3 else 9,
        "repetition_penalty": 1.0 + row % 2 / 5,
        "stop_strings": ["ba", "ee"] if row % 4 == 1 else [],
        "top_log_probabilities": row % 3,
    }


class Live:
    """A session and what it has said of each source so far."""

    def __init__(self, model, **options):
        self.model = model
        self.session = model.session(**options)
        self.row, self.said = {}, {}

    def join(self, row):
        id = self.session.join(SOURCES[row], **options_of(row))
        self.row[id], self.said[id] = row, []
        return id

    def step(self):
        for new in self.session.step():
            self.said[new.id].append(new)

    def leave(self, id):
        self.session.leave(id)
        del self.row[id]

    def assert_as_alone(self):
        """To the end; all that is said of every source is what a call of its own says."""
        while self.session.ids:
            self.step()
        for id, row in self.row.items():
            (alone,) = self.model.sample(SOURCES[row], **options_of(row))
            said = self.said[id]
            assert [new.token for new in said] == alone.tokens.tolist()
            assert [new.log_probability for new in said] == alone.log_probabilities.tolist()
            assert [[token for token, _ in new.top] for new in said] == alone.top_tokens.tolist()
            assert "".join(new.text for new in said) == alone.text
            assert [new.finish for new in said] == [None] * (len(said) - 1) + [alone.finish]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_sequences_are_as_alone(isa, options):
    live = Live(new_model(**options), capacity=4)
    for row in range(len(SOURCES)):  # join while others are under way; wait for a place when there is none
        while len(live.session.ids) == live.session.capacity:
            live.step()
        live.join(row)
        live.step()
    assert list(live.row) == list(range(len(SOURCES)))
    live.assert_as_alone()
    assert len({len(said) for said in live.said.values()}) > 2


@pytest.mark.parametrize("options", TWINS, ids=str)
def test_greedy_is_pytorchs(options):
    model = random_model(**options)
    _, twin = with_twin(**options)
    twin.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    session = model.session()
    said = {}
    for source in SOURCES:
        said[session.join(source, greedy=True, max_new_tokens=12)] = []
        for new in session.step():
            said[new.id].append((new.token, new.log_probability))
    while session.ids:
        for new in session.step():
            said[new.id].append((new.token, new.log_probability))
    for source, found in zip(SOURCES, said.values(), strict=True):
        expected = twin.greedy(np.append(TOKENIZER.encode(source), 2), 12)
        assert [token for token, _ in found] == [token for token, _, _ in expected]
        np.testing.assert_allclose([p for _, p in found], [p for _, p, _ in expected], rtol=1e-9)


@pytest.mark.parametrize("left", range(3))
@pytest.mark.parametrize("steps", [0, 2])
def test_others_go_on_when_one_leaves(left, steps, threads):
    threads(2)
    for options in ({}, VARIANTS[-3], VARIANTS[-1]):
        live = Live(new_model(**options), capacity=3)
        ids = [live.join(row) for row in (2, 6, 7)]
        for _ in range(steps):
            live.step()
        live.leave(ids[left])
        live.join(3)
        live.assert_as_alone()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_saved_restored_and_forked(options):
    live = Live(new_model(**options), capacity=6)
    ids = [live.join(row) for row in (0, 2, 7)]
    for _ in range(2):
        live.step()
    assert live.session.ids == tuple(ids)
    saved = [pickle.loads(pickle.dumps(live.session.save(id))) for id in ids]
    for id, row in zip(ids, (0, 2, 7), strict=True):
        fork = live.session.fork(id)
        live.row[fork], live.said[fork] = row, list(live.said[id])
    forks = live.session.ids[3:]
    live.leave(ids[1])
    live.step()
    live.leave(forks[0])
    live.assert_as_alone()

    again = Live(live.model, capacity=3)  # a new one knows nothing of the old, nor of its longest source
    for one, id, row in zip(saved[::-1], ids[::-1], (7, 2, 0), strict=True):
        new = again.session.restore(one)
        if one.memory is not None:
            one.memory[:] = 0  # ours is a copy
        again.row[new], again.said[new] = row, live.said[id][:2]
    twice = again.session.save(0)
    assert (twice.memory is None) == (options.get("attention") is None)
    assert twice.memory is None or twice.memory.any()
    again.assert_as_alone()


def test_forks_draw_by_their_own_seed():
    model = new_model(attention="general")
    session = model.session(capacity=8)
    options = {"max_new_tokens": 15, "temperature": 2.0, "seed": 5, "banned_tokens": [2]}
    first = session.join("abc", **options)
    said = {first: [session.step()[0].token for _ in range(4)]}
    for seed in (None, 6, 7):
        said[session.fork(first, seed=seed)] = list(said[first])
    while session.ids:
        for new in session.step():
            said[new.id].append(new.token)
    drawn = list(said.values())
    assert drawn[0] == drawn[1] == model.sample("abc", **options)[0].tokens.tolist()
    assert all(one[:4] == drawn[0][:4] for one in drawn)
    assert len({tuple(one) for one in drawn}) == 3


def test_text_comes_in_whole_characters():
    byte = Tokenizer("byte")
    model = Seq2Seq(TokenizerPair(byte, byte), hidden_size=8)
    wanted = "né€ß"
    forced = {n: value + 3 for n, value in enumerate(wanted.encode())} | {8: 2}
    options = {"forced_tokens": forced, "max_new_tokens": 9}
    session = model.session()
    session.join("a", **options)
    pieces = [session.step()[0].text for _ in range(2)]
    restored = session.restore(session.save(0))  # in the middle of a character
    session.leave(0)
    while session.ids:
        pieces += [new.text for new in session.step() if new.id == restored]
    assert pieces == ["n", "", "é", "", "", "€", "", "ß", ""]
    assert "".join(pieces) == wanted == model.generate("a", **options)


def test_a_hook_that_raises_leaves_the_pool_as_it_was(threads):
    threads(2)
    calls = []

    def processor(ids, tokens, logits):
        calls.append((ids.tolist(), [one.tolist() for one in tokens]))
        if len(calls) in (2, 4):
            raise KeyError("mine")

    live = Live(new_model(attention="concat", coverage=True), capacity=4, processor=processor)
    for row in range(3):
        live.join(row)
    live.step()
    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            live.step()
        live.step()
    first = [live.said[id][0].token for id in range(3)]
    assert calls[0] == ([0, 1, 2], [[1]] * 3)
    assert calls[1] == calls[2] == ([0, 1, 2], [[1, token] for token in first])
    live.assert_as_alone()


def test_a_token_mask_is_for_all():
    def mask(ids, tokens):
        allowed = np.zeros((len(ids), len(TOKENIZER)), np.bool_)
        allowed[:, 3] = True
        allowed[[len(one) > 3 for one in tokens], 2] = True
        return allowed

    session = new_model(attention="dot").session(token_mask=mask)
    for source in SOURCES[:3]:
        session.join(source, greedy=True, max_new_tokens=9, banned_tokens=[])
    steps = [session.step() for _ in range(3)]
    assert [[new.text for new in step] for step in steps] == [["a"] * 3] * 3


@pytest.mark.parametrize("options", [{}, VARIANTS[2], VARIANTS[-1]], ids=str)
def test_bad_input_leaves_the_pool_as_it_was(options):
    live = Live(new_model(**options), capacity=3)
    live.join(2)
    live.step()
    session = live.session
    saved = session.save(0)
    for source, changes, message in [
        ("", {}, "join: the source is empty: ''"),
        ("xyz", {}, "join: the source has unknown tokens only"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens >= 1"),
        ("a", {"num_sequences": 2}, "num_sequences 1"),
        ("a", {"top_p": 1.5}, "top_p must be"),
        ("a", {"stop_strings": ""}, "stop_strings must not be empty"),
        ("a", {"banned_tokens": [99]}, "banned_tokens must lie in"),
    ]:
        with pytest.raises(ValueError, match=message):
            session.join(source, **changes)
    with pytest.raises(TypeError, match="join: source must be a str, got list"):
        session.join(["a"])
    wrong_memory = np.zeros((2, 3), np.float32) if saved.memory is None else saved.memory[:, :-1].copy()
    changes = [
        {"tokens": saved.tokens[:0]},
        {"tokens": saved.tokens + np.int32(99)},
        {"prompt_length": 0},
        {"state": saved.state[:-1]},
        {"state": saved.state.astype(np.float64)},
        {"state": saved.state * np.float32(np.nan)},
        {"logits": saved.logits[:-1]},
        {"memory": wrong_memory},
    ]
    if saved.memory is not None:
        changes += [
            {"memory": np.concatenate([saved.memory, [[np.nan] * saved.memory.shape[1]]], dtype=np.float32)},
            {"memory": saved.memory[:0]},
        ]
        with pytest.raises(TypeError, match="memory must be float32"):
            session.restore(dataclasses.replace(saved, memory=None))
    if options.get("coverage"):
        changes.append({"memory": saved.memory[1:].copy()})  # no longer as long as the coverage
    for change in changes:
        with pytest.raises(ValueError, match=r"^GenerationSession\.restore: "):
            session.restore(dataclasses.replace(saved, **change))
    other = new_model(hidden_size=9, **options).session()
    other.join("abc", max_new_tokens=5)
    with pytest.raises(ValueError, match=r"^GenerationSession\.restore: "):
        session.restore(other.save(0))
    for name in ("leave", "save", "fork"):
        with pytest.raises(ValueError, match="id must be that of a live sequence, got 7"):
            getattr(session, name)(7)
    live.join(1)
    live.join(7)
    for call in (lambda: session.join("a"), lambda: session.fork(0), lambda: session.restore(saved)):
        with pytest.raises(ValueError, match="capacity must exceed the 3 sequences in use, got 3"):
            call()
    assert session.ids == (0, 1, 2)
    live.assert_as_alone()


def test_sources_longer_than_any_in_training_are_told():
    model = new_model(attention="general")
    model.longest_source = 3
    session = model.session()
    with pytest.warns(
        UserWarning, match="join: the source has 500 tokens, and the longest in training had 2"
    ):
        session.join("ab" * 250, greedy=True, max_new_tokens=3)
    session.step()


def test_a_sequence_with_nothing_to_choose_is_named():
    """It blocks the pool until it leaves; the others then go on."""
    live = Live(new_model(attention="general"))
    live.join(0)
    bad = live.session.join("abc", max_new_tokens=2, banned_tokens=range(len(TOKENIZER)))
    with pytest.raises(ValueError, match=rf"sequence {bad}, new token 0: no token can be chosen"):
        live.step()
    live.session.leave(bad)
    live.assert_as_alone()


def test_the_core_takes_prompts_and_states(rng):
    """Of both kinds of models: what a session begins with is what `generate` begins with."""
    options = _core.SamplingOptions(max_new_tokens=5, greedy=True)
    writer = LanguageModel(Vocabulary.from_text("abcd"), hidden_size=6, num_layers=2)
    h, c = rng.uniform(-1, 1, (2, 2, 6)).astype(np.float32)
    prompt = np.array([1, 3], np.int32)
    made = writer.decoder.generate(
        prompt, np.array([2], np.int32), options, seeds=np.zeros(1, np.uint64), h0=h[:, None], c0=c[:, None]
    )
    session = _core.GenerationSession(writer.decoder, 2)
    session.join(prompt, options, 0, h0=h, c0=c)
    assert [session.step()[0][1] for _ in range(5)] == made.tokens[0].tolist()

    translator = new_model(attention="general")
    memory = rng.standard_normal((4, 7)).astype(np.float32)
    h, c = rng.uniform(-1, 1, (2, 1, 7)).astype(np.float32)
    native = translator.decoder.native
    session = _core.GenerationSession(native, 2)
    session.join(np.array([1, 5, 4], np.int32), options, 0, h0=h, c0=c, memory=memory)
    written = [1, 5, 4]
    for _ in range(5):
        logits, _ = native.logits(
            np.array([written], np.int32), memory[None], np.array([4], np.int32), h0=h[:, None], c0=c[:, None]
        )
        written.append(session.step()[0][1])
        assert written[-1] == logits[0, -1].argmax()

    with pytest.raises(ValueError, match="memory must be None for a language model"):
        _core.GenerationSession(writer.decoder, 1).join(prompt, options, 0, memory=memory)
    with pytest.raises(ValueError, match=r"h0 must be float32 \(L=1, H=7\), got float32 \(1, 1, 7\)"):
        session.join(prompt, options, 0, h0=h[None], memory=memory)
    for wrong in (None, "decoder", translator):
        with pytest.raises(TypeError, match="decoder must be a LanguageModelDecoder or an AttentionDecoder"):
            _core.GenerationSession(wrong, 1)
