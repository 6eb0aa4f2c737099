"""Sessions: each sequence gets what it gets alone, whoever joins and leaves; errors change nothing."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fusedlstm import LanguageModel
from fusedlstm.data import Vocabulary

TEXT = "the quick brown fox jumps over the lazy dog\n"
PROMPTS = ["the quick ", "fox", "o", "the lazy dog\nthe", "brown", "jumps over", "q", "dog"]


def new_model(dtype="float32", compute_dtype=None) -> LanguageModel:
    model = LanguageModel(
        Vocabulary.from_text(TEXT), hidden_size=24, init=("uniform", 1.0), seed=4, dtype=dtype
    )
    if compute_dtype is not None:
        model.lstm.compute_dtype = compute_dtype
    return model


def options_of(row: int) -> dict:
    """Options that differ from row to row."""
    return {
        "max_new_tokens": 10 + 7 * row % 30,
        "seed": 100 + row,
        "temperature": 0.5 + row / 4,
        "top_k": 0 if row % 3 else 9,
        "repetition_penalty": 1.0 + row % 2 / 5,
        "stop_strings": ["e ", "xq"] if row % 4 == 1 else [],
    }


def assert_as_alone(model, session, row_of_id, texts):
    """Steps to the end; every text is that of a call of its own."""
    while session.ids:
        for new in session.step():
            texts[new.id] = texts.get(new.id, "") + new.text
    for id, row in row_of_id.items():
        assert texts[id] == model.generate(PROMPTS[row], **options_of(row))


@pytest.mark.parametrize("left", range(3))
def test_others_go_on_when_one_leaves(isa, left):
    """Before its first step or later, from any place."""
    model = new_model()
    for steps in (0, 3):
        session = model.session(capacity=3)
        row_of_id = {session.join(PROMPTS[row], **options_of(row)): row for row in range(3)}
        texts = {}
        for _ in range(steps):
            for new in session.step():
                texts[new.id] = texts.get(new.id, "") + new.text
        session.leave(left)
        del row_of_id[left]
        assert_as_alone(model, session, row_of_id, texts)


@pytest.mark.parametrize("compute_dtype", [None, "bfloat16", "int8"])
def test_sequences_are_as_alone(isa, compute_dtype):
    model = new_model(compute_dtype=compute_dtype)
    session = model.session(capacity=5)
    row_of_id, texts = {}, {}
    for row in range(len(PROMPTS)):  # join while others are under way; wait for a place when there is none
        while len(session.ids) == session.capacity:
            for new in session.step():
                texts[new.id] = texts.get(new.id, "") + new.text
        row_of_id[session.join(PROMPTS[row], **options_of(row))] = row
        for new in session.step():
            texts[new.id] = texts.get(new.id, "") + new.text
    assert list(row_of_id) == list(range(len(PROMPTS)))
    assert_as_alone(model, session, row_of_id, texts)


def test_log_probabilities_and_ends(isa):
    model = new_model("float64")
    options = {"max_new_tokens": 60, "stop": ["q", "z"], "top_log_probabilities": 3, "seed": 2}
    alone = model.sample("the", **options)[0]
    session = model.session()
    session.join("the", **options)
    steps = []
    while session.ids:
        steps += session.step()
    assert [new.token for new in steps] == alone.tokens.tolist()
    assert [new.log_probability for new in steps] == alone.log_probabilities.tolist()
    assert [[token for token, _ in new.top] for new in steps] == alone.top_tokens.tolist()
    assert [[p for _, p in new.top] for new in steps] == alone.top_log_probabilities.tolist()
    assert [new.finish for new in steps] == [None] * (len(steps) - 1) + [alone.finish]
    assert session.step() == []


def test_leave_save_restore_and_fork(isa):
    model = new_model()
    session = model.session(capacity=6)
    ids = [session.join(PROMPTS[row], **options_of(row)) for row in range(3)]
    texts = {}
    for _ in range(4):
        for new in session.step():
            texts[new.id] = texts.get(new.id, "") + new.text
    saved = pickle.loads(pickle.dumps(session.save(ids[2])))
    fork = session.fork(ids[0])
    other = session.fork(ids[0], seed=77)
    texts[fork] = texts[other] = texts[ids[0]]
    session.leave(ids[1])
    assert session.ids == (ids[0], ids[2], fork, other)
    session.step()  # of no interest: restored below from before it
    for id in (ids[2], fork, other):
        session.leave(id)
    session = model.session(capacity=2)  # a new one knows nothing of the old
    restored = session.restore(saved)
    assert_as_alone(model, session, {restored: 2}, {restored: texts[ids[2]]})


def test_forks_go_on_from_the_same_place(isa):
    model = new_model()
    session = model.session(capacity=3)
    options = {"max_new_tokens": 30, "temperature": 2.0, "seed": 5}
    first = session.join("the", **options)
    texts = {first: "".join(session.step()[0].text for _ in range(10))}
    same, other = session.fork(first), session.fork(first, seed=6)
    texts[same] = texts[other] = texts[first]
    while session.ids:
        for new in session.step():
            texts[new.id] += new.text
    assert texts[first] == texts[same] == model.generate("the", **options)
    assert texts[other][:10] == texts[first][:10]
    assert texts[other] != texts[first]


def test_a_hook_that_raises_leaves_the_pool_as_it_was(isa, threads):
    threads(2)
    model = new_model()
    calls = []

    def processor(ids, tokens, logits):
        calls.append(ids.tolist())
        if len(calls) in (2, 5):
            raise KeyError("mine")
        if len(calls) == 3:
            logits[0, 0] = np.nan

    session = model.session(capacity=4, processor=processor)
    row_of_id = {session.join(PROMPTS[row], **options_of(row)): row for row in range(4)}
    texts = {}
    for error in (None, KeyError, ValueError, None, KeyError):
        if error is None:
            for new in session.step():
                texts[new.id] = texts.get(new.id, "") + new.text
        else:
            with pytest.raises(error):
                session.step()
    assert calls == [[0, 1, 2, 3]] * 5
    assert_as_alone(model, session, row_of_id, texts)


def test_a_hook_may_not_call_back(isa):
    model = new_model()
    session = model.session(processor=lambda *_: session.step())
    session.join("the", max_new_tokens=3)
    with pytest.raises(RuntimeError, match=r"^Session\.step: the session is in use by another call$"):
        session.step()


def test_bad_input_leaves_the_pool_as_it_was(isa):
    model = new_model()
    session = model.session(capacity=2)
    row_of_id = {session.join(PROMPTS[0], **options_of(0)): 0}
    texts = {0: session.step()[0].text}
    saved = session.save(0)
    for prompt, options, message in [
        ("", {}, "prompt must have at least one char"),
        ("the Q", {}, "character 'Q'"),
        ("the", {"max_new_tokens": 0}, "max_new_tokens >= 1"),
        ("the", {"num_sequences": 2}, "num_sequences 1"),
        ("the", {"top_p": 1.5}, "top_p must be"),
        ("the", {"stop_strings": ""}, "stop_strings must not be empty"),
        ("the", {"banned_tokens": [99]}, "banned_tokens must lie in"),
    ]:
        with pytest.raises(ValueError, match=message):
            session.join(prompt, **options)
    for change, error in [
        ({"tokens": saved.tokens.astype(np.int64)}, ValueError),
        ({"tokens": saved.tokens[:0]}, ValueError),
        ({"tokens": saved.tokens + np.int32(99)}, ValueError),
        ({"prompt_length": 0}, ValueError),
        ({"prompt_length": len(saved.tokens) + 1}, ValueError),
        ({"prompt_length": 1, "tokens": np.zeros(50, np.int32)}, ValueError),
        ({"state": saved.state[:-1]}, ValueError),
        ({"state": saved.state * np.float32(np.nan)}, ValueError),
        ({"logits": saved.logits.astype(np.float64)}, ValueError),
        ({"logits": saved.logits * np.float32(np.inf)}, ValueError),
        ({"logits": None}, TypeError),
    ]:
        with pytest.raises(error, match=r"^GenerationSession\.restore: "):
            session.restore(type(saved)(**{**vars(saved), **change}))
    for name in ("leave", "save", "fork"):
        with pytest.raises(ValueError, match="id must be that of a live sequence, got 7"):
            getattr(session, name)(7)
    row_of_id[session.join(PROMPTS[1], **options_of(1))] = 1
    for call in (lambda: session.join("the"), lambda: session.fork(0), lambda: session.restore(saved)):
        with pytest.raises(ValueError, match="capacity must exceed the 2 sequences in use, got 2"):
            call()
    assert session.ids == (0, 1)
    assert_as_alone(model, session, row_of_id, texts)


def test_a_sequence_with_nothing_to_choose_is_named(isa):
    """It blocks the pool until it leaves; the others then go on."""
    model = new_model()
    session = model.session()
    row_of_id = {session.join(PROMPTS[0], **options_of(0)): 0}
    bad = session.join("the", max_new_tokens=2, banned_tokens=range(len(model.vocabulary)))
    with pytest.raises(ValueError, match=rf"sequence {bad}, new token 0: no token can be chosen"):
        session.step()
    session.leave(bad)
    assert_as_alone(model, session, row_of_id, {})


@pytest.mark.parametrize("capacity", [0, -1, 2**20 + 1])
def test_wrong_capacities(capacity):
    with pytest.raises(ValueError, match=r"^GenerationSession: capacity must lie in 1 \.\. 2\^20"):
        new_model().session(capacity)
