"""One layer, model, session or stream in several Python threads: right results or a clear error."""

from __future__ import annotations

import subprocess
import sys
import threading

import cases
import numpy as np
import pytest

from fusedlstm import LanguageModel, OneToMany, nn
from fusedlstm.data import Vocabulary

COUNT = 4
TEXT = "the quick brown fox jumps over the lazy dog\n"


def busy(call):
    """The result of a call, or None if it was refused because of another one."""
    try:
        return call()
    except RuntimeError as error:
        if not str(error).endswith("is in use by another call"):
            raise
        return None


def new_model():
    return LanguageModel(Vocabulary.from_text(TEXT), hidden_size=24, init=("uniform", 1.0), seed=4)


def test_threads_import_the_parts_at_once():
    program = """
import threading
import fusedlstm
begin, found = threading.Barrier(8), []
def look():
    begin.wait()
    found.append((fusedlstm.LanguageModel, fusedlstm.nn.LSTM, fusedlstm.data.Vocabulary, fusedlstm.isa))
threads = [threading.Thread(target=look) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 8 and len(set(found)) == 1, found
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_make_the_first_call_of_a_layer():
    """Each may pack the weights; all compute the same."""
    x = np.random.default_rng(0).standard_normal((3, 5, 6), dtype=np.float32)
    wanted = nn.LSTM(6, 9, seed=1)(x)
    for _ in range(20):
        layer = nn.LSTM(6, 9, seed=1)
        for y in cases.at_once(COUNT, lambda _, layer=layer: layer(x)):
            assert np.array_equal(y, wanted)


def test_threads_train_one_model():
    """Gradients of all come together; batches are equal, so that their order cannot be seen."""

    def new_layers():
        return nn.Sequential(nn.Embedding(11, 8, seed=1), nn.LSTM(8, 16, seed=2), nn.Linear(16, 5, seed=3))

    ids = np.random.default_rng(0).integers(0, 11, (4, 7))

    def step(layers):
        y, tape = layers.forward(ids)
        layers.backward(tape, y)

    alone, together = new_layers(), new_layers()
    for _ in range(COUNT * 10):
        step(alone)
    assert cases.at_once(COUNT, lambda _: [step(together) for _ in range(10)]) == [[None] * 10] * COUNT
    assert np.array_equal(alone.gradients, together.gradients)


@pytest.mark.parametrize(
    "layer", [nn.LSTM(4, 4), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0))], ids=repr
)
def test_a_tape_serves_one_thread(layer):
    x = np.ones((2, 3, 4), np.float32)
    y, tape = layer.forward(x)
    layer.zero_grad()
    layer.backward(tape, y)
    once = layer.gradients.copy()
    for _ in range(20):
        y, tape = layer.forward(x)
        layer.zero_grad()
        results = cases.at_once(COUNT, lambda _, tape=tape, y=y: layer.backward(tape, y))
        refused = [result for result in results if isinstance(result, RuntimeError)]
        assert len(refused) == COUNT - 1, results
        assert all("used" in str(error) for error in refused)
        assert np.array_equal(layer.gradients, once)


def test_threads_generate_with_one_model():
    model = new_model()
    options = [{"max_new_tokens": 40, "seed": seed} for seed in range(COUNT)]
    wanted = [new_model().generate("the", **each) for each in options]
    for _ in range(5):
        model.mark_updated()  # the decoder is made anew by whoever comes first
        assert cases.at_once(COUNT, lambda number: model.generate("the", **options[number])) == wanted
        assert cases.at_once(COUNT, lambda number: "".join(model.stream("the", **options[number]))) == wanted
    beam = new_model().beam_search("the", width=3, max_new_tokens=10)
    assert [[each.text for each in found] for found in cases.at_once(COUNT,
        lambda _: model.beam_search("the", width=3, max_new_tokens=10)
    )] == [[each.text for each in beam]] * COUNT  # fmt: skip


def test_threads_write_with_one_model_of_one_to_many():
    def new():
        return OneToMany(vocabulary=Vocabulary.from_text(TEXT), hidden_size=16, seed=2)

    model = new()
    wanted = new().generate("q", steps=20)
    assert cases.at_once(COUNT, lambda _: model.generate("q", steps=20)) == [wanted] * COUNT


def test_threads_share_a_session():
    """Whatever they do at the same moment is done or refused; every sequence is as alone."""
    model, joined, texts = new_model(), {}, {}
    session = model.session(capacity=8)
    lock = threading.Lock()
    left = list(range(12))

    def join():
        with lock:
            number = left.pop() if left else None
        if number is None:
            return
        options = {"max_new_tokens": 5 + number, "seed": number}
        id = busy(lambda: session.join("the", **options)) if len(session.ids) < 8 else None
        with lock:
            if id is None:
                left.append(number)
            else:
                joined[id] = options

    def step():
        # With the lock held, so that texts are put together in the order of the steps.
        with lock:
            for new in busy(session.step) or []:
                texts[new.id] = texts.get(new.id, "") + new.text

    def look():
        ids = session.ids
        if not ids:
            return
        try:
            saved = busy(lambda: session.save(ids[0]))
        except ValueError:  # it has ended meanwhile
            return
        assert saved is None or len(saved.tokens) >= 3

    def work(number):
        while left or session.ids:
            (join, step, look, step)[number]()

    assert cases.at_once(COUNT, work) == [None] * COUNT
    assert len(joined) == 12
    for id, options in joined.items():
        assert texts[id] == model.generate("the", **options)


def test_threads_share_a_stream_of_text():
    """Every piece, here a character, goes to one of them, or a thread is refused."""
    model = new_model()
    wanted = model.generate("the", max_new_tokens=300, seed=3)
    stream = model.stream("the", max_new_tokens=300, seed=3)

    def read(_):
        end = object()
        pieces = []
        while (piece := busy(lambda: next(stream, end))) is not end:
            pieces.append(piece or "")
        return "".join(pieces)

    assert sorted("".join(cases.at_once(COUNT, read))) == sorted(wanted)
