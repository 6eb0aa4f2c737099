"""The one-to-many model: every gradient, generation against a NumPy loop, what it learns, its file."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import reference
import safetensors
from cases import central_differences
from tolerances import assert_close

from fusedlstm import OneToMany
from fusedlstm.data import Vocabulary
from fusedlstm.io import FormatError, write_tensors
from fusedlstm.training import InverseSigmoidDecay, LinearDecay

KINDS = {
    "vector": {"output_size": 2, "input_size": 3},
    "value first": {"output_size": 2, "condition": "first_step"},
    "label": {"output_size": 2, "input_tokens": 4, "start": "token"},
    "vector to tokens": {"vocabulary": 5, "input_size": 3, "start": "token", "embedding_size": 4},
    "label to tokens": {"vocabulary": 5, "input_tokens": 4},
    "token to tokens": {"vocabulary": 5, "start": "zero"},
    "token first": {"vocabulary": 5, "condition": "first_step"},
}


def tiny(kind, **options):
    return OneToMany(**KINDS[kind], **{"hidden_size": 6, "num_layers": 2, "dtype": "float64", **options})


def data(model, rng, N=4, T=4):
    sizes = model._sizes
    if sizes.tokens:
        x = rng.integers(0, sizes.tokens, N).astype(np.int32)
    else:
        x = rng.standard_normal((N, sizes.vector)).astype(model.dtype)
    if sizes.values:
        return x, rng.standard_normal((N, T, sizes.outputs)).astype(model.dtype)
    return x, rng.integers(0, sizes.outputs, (N, T)).astype(np.int32)


def feedback_of(model):
    return ("teacher", "output") if model.embedding is None else ("teacher", "token", "soft")


@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient(kind, rng):
    model = tiny(kind, hidden_size=2, num_layers=2 if kind == "vector" else 1, dropout=0.3)
    x, targets = data(model, rng, N=3, T=3)
    lengths = np.array([3, 0, 2])
    for feedback in feedback_of(model):

        def loss(feedback=feedback):
            model.mark_updated()
            return model.training_step(
                x, targets, lengths, feedback=feedback, teacher_probability=0.4, seed=7
            )[0]

        model.zero_grad()
        loss()
        got = {name: view.copy() for name, view in model.named_gradients().items()}
        for name, view in model.named_parameters().items():
            assert_close(got[name], central_differences(view, loss), "finite differences")


def numpy_steps(model, x, steps, choose):
    """The generation loop in NumPy float64; choose(z) is the index that a row of logits gives, for tokens."""
    p = {name: value.astype(np.float64) for name, value in model.state_dict().items()}
    lstm = {name[5:]: value for name, value in p.items() if name.startswith("lstm.")}
    L, H, I = model.lstm.num_layers, model.lstm.hidden_size, model.lstm.input_size
    rows = []
    for item in x:
        h = c = np.zeros((L, 1, H))
        if "initial.weight" in p:
            if "initial.bias" in p:
                a = p["initial.weight"] @ item + p["initial.bias"]
            else:
                a = p["initial.weight"][item]
            a_h, c = a.reshape(2, L, 1, H)
            h, step = np.tanh(a_h), p.get("start", np.zeros(I))
        else:
            step = p["embedding.weight"][item] if choose else item
        row = []
        for _ in range(steps):
            y, h, c, _ = reference.lstm_forward(lstm, step.reshape(1, 1, I), h, c)
            z = p["output.weight"] @ y[0, 0] + p["output.bias"]
            row.append(choose(z) if choose else z)
            step = p["embedding.weight"][row[-1]] if choose else z
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_generate_against_numpy(kind, dtype, rng):
    model = tiny(kind, dtype=dtype, init=("uniform", 0.7))
    x, _ = data(model, rng, N=7)
    if model.embedding is None:
        wanted = numpy_steps(model, x, 6, None)
        got = model.generate(x, 6)
        assert_close(got, wanted, "one-to-many forward")
        np.testing.assert_array_equal(model.generate(x[3], 6), got[3])
        return
    wanted = numpy_steps(model, x, 9, np.argmax)
    got = model.generate(x, 9, greedy=True)
    np.testing.assert_array_equal(np.stack(got), wanted)
    assert all(row.dtype == np.int32 for row in got)
    np.testing.assert_array_equal(model.generate(x[3], 9, greedy=True), wanted[3])


def test_sampled_tokens(rng):
    """Drawn by the seed of the row alone; one stop token ends a row, and is in it."""
    model = tiny("vector to tokens", init=("uniform", 0.5))
    x, _ = data(model, rng, N=5)
    rows = model.generate(x, 30, temperature=1.5, seed=3)
    assert len({tuple(row) for row in rows}) == 5
    np.testing.assert_array_equal(model.generate(x[4], 30, temperature=1.5, seed=7), rows[4])
    stopped = model.generate(x, 30, temperature=1.5, seed=3, stop=2)
    by_id = model.generate(x, 30, temperature=1.5, seed=3, stop_tokens=[2])
    assert all(map(np.array_equal, by_id, stopped))
    for row, whole in zip(stopped, rows, strict=True):
        end = [*whole, 2].index(2) + 1
        np.testing.assert_array_equal(row, whole[:end])


def test_initial_states_matter(rng):
    for kind in ("vector", "vector to tokens", "label to tokens"):
        model = tiny(kind, init=("uniform", 1.0))
        x, _ = data(model, rng, N=2)
        x[0], x[1] = 0, 1
        one, other = model.generate(x, 5, **({} if model.embedding is None else {"seed": 1}))
        assert not np.array_equal(one, other)


def test_batches_do_not_change_the_loss(rng):
    model = tiny("vector to tokens")
    x, targets = data(model, rng, N=9)
    lengths = rng.integers(0, 5, 9)
    for feedback in feedback_of(model):
        whole = model.evaluate(x, targets, lengths, feedback=feedback)
        parts = model.evaluate(x, targets, lengths, feedback=feedback, batch_size=2)
        assert parts == pytest.approx(whole, rel=1e-14)
        ragged = [row[:length] for row, length in zip(targets, lengths, strict=True)]
        assert model.evaluate(x, ragged, feedback=feedback) == whole


# learning
def test_learns_a_wave_through_its_own_outputs():
    phase = np.linspace(-3, 3, 64, dtype=np.float32)[:, None]
    wave = np.sin(phase + 0.4 * np.arange(10, dtype=np.float32))[..., None]
    model = OneToMany(output_size=1, input_size=1, hidden_size=24)
    history = model.fit(phase, wave, feedback="output", epochs=60, batch_size=16, lr=0.02, progress=False)
    assert history.epochs[-1]["train_loss"] < 0.01 < 0.2 < history.epochs[0]["train_loss"]
    got = model.generate(phase, 10)
    assert ((got - wave) ** 2).mean() == pytest.approx(
        model.evaluate(phase, wave, feedback="output"), rel=1e-4
    )
    assert ((got - wave) ** 2).mean() < 0.01


TEXTS = {"a": "bcd.", "b": "aab.", "c": "ddd.", "d": "cab."}


@pytest.mark.parametrize(
    "options",
    [
        {"feedback": "teacher"},
        {"feedback": "token", "teacher": LinearDecay(60, final=0.25), "sample": True},
        {"feedback": "soft", "teacher": InverseSigmoidDecay(20), "temperature": 0.8},
    ],
    ids=lambda options: options["feedback"],
)
def test_memorises_texts(options):
    model = OneToMany(vocabulary=Vocabulary.from_text("abcd."), condition="first_step", hidden_size=24)
    history = model.fit([*TEXTS], [*TEXTS.values()], epochs=150, lr=0.02, progress=False, **options)
    assert history.steps == 150
    assert model.generate([*TEXTS], 20, greedy=True, stop=".") == [*TEXTS.values()]
    assert model.generate("c", 20, greedy=True, stop=".") == "ddd."


def test_a_resumed_run_has_the_bits_of_one(tmp_path, rng):
    x, targets = data(tiny("vector to tokens"), rng, N=20)
    options = {"feedback": "token", "sample": True, "teacher": LinearDecay(12), "batch_size": 6, "seed": 5}
    options |= {"validation": (x[:5], targets[:5]), "progress": False}
    whole = tiny("vector to tokens", dropout=0.2)
    history = whole.fit(x, targets, epochs=3, **options)
    path = tmp_path / "run"
    part = tiny("vector to tokens", dropout=0.2)
    part.fit(x, targets, epochs=2, checkpoint=path, **options)
    resumed = tiny("vector to tokens", dropout=0.2)
    again = resumed.fit(x, targets, epochs=3, checkpoint=path, resume=True, **options)
    assert again.epochs == history.epochs
    np.testing.assert_array_equal(resumed.parameters, whole.parameters)
    options |= {"feedback": "soft", "sample": False}
    with pytest.raises(ValueError, match="feedback was 'token', now 'soft'"):
        tiny("vector to tokens").fit(x, targets, epochs=3, checkpoint=path, resume=True, **options)


def test_empty_sequences_are_left_out(rng):
    model, same = tiny("vector"), tiny("vector")
    x, targets = data(model, rng, N=6)
    lengths = np.array([4, 0, 2, 0, 0, 3])
    options = {"feedback": "output", "epochs": 2, "batch_size": 1, "progress": False}
    history = model.fit(x, targets, lengths=lengths, **options)
    assert history.steps == 2 * 3
    same.fit(x[lengths > 0], targets[lengths > 0], lengths=lengths[lengths > 0], **options)
    np.testing.assert_array_equal(model.parameters, same.parameters)


# files
@pytest.mark.parametrize("kind", [*KINDS, "text"])
def test_file(kind, tmp_path, dtype, rng):
    if kind == "text":
        model = OneToMany(vocabulary=Vocabulary.from_text("abc d"), hidden_size=5, dtype=dtype)
        x, options = ["a", "d"], {"greedy": True}
    else:
        model = tiny(kind, dtype=dtype)
        x, _ = data(model, rng)
        options = {} if model.embedding is None else {"seed": 2}
    path = tmp_path / "model.safetensors"
    model.save(path)
    for other in (OneToMany.load(path), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config() == model.config()
        assert other.vocabulary == model.vocabulary
        assert other.state_dict().keys() == model.state_dict().keys()
        for one, same in zip(model.generate(x, 6, **options), other.generate(x, 6, **options), strict=True):
            np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_size": 2}, "either output_size or vocabulary must be given"),
        ({"num_tokens": None}, "either output_size or vocabulary must be given"),
        ({"num_tokens": 6}, r"tensor embedding.weight must be float64 \(6, 4\)"),
        ({"condition": "last_step"}, "condition must be one of"),
        ({"condition": "first_step"}, "input_size, input_tokens and start are for condition='initial_state'"),
        ({"input_tokens": 3}, "only one of input_size and input_tokens"),
        ({"start": "zero"}, "tensor start does not belong to the model"),
        ({"hidden_size": 10**12}, "tensor initial.weight must be float64"),
    ],
    ids=str,
)
def test_inconsistent_files_are_refused(change, message, tmp_path):
    path = tmp_path / "model.safetensors"
    model = tiny("vector to tokens")
    model.save(path)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), **change})
    del metadata["checksum"]
    write_tensors(path, model.named_parameters(), metadata)
    with pytest.raises(FormatError, match=message):
        OneToMany.load(path)


# what is refused
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either output_size or vocabulary must be given"),
        ({"output_size": 1, "vocabulary": 3}, "either output_size or vocabulary must be given"),
        ({"output_size": 1, "embedding_size": 3}, "embedding_size is for a vocabulary"),
        ({"output_size": 1, "input_size": 1, "input_tokens": 2}, "only one of input_size and input_tokens"),
        ({"output_size": 1, "condition": "first_step", "start": "zero"}, "are for condition='initial_state'"),
        ({"output_size": 1, "condition": "repeat"}, "condition must be 'initial_state' or 'first_step'"),
        ({"output_size": 1, "start": "learned"}, "start must be 'token' or 'zero'"),
        ({"output_size": 0}, "output_size must be at least 1"),
        ({"vocabulary": 0}, "vocabulary must be at least 1"),
        ({"output_size": 1.5}, "output_size must be an int"),
        ({"output_size": 1, "dropout": 1.0}, "dropout must be at least 0 and less than 1"),
    ],
    ids=str,
)
def test_options_that_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        OneToMany(hidden_size=4, **options)


def test_bad_input(rng):
    values, tokens = tiny("vector"), tiny("vector to tokens")
    text = OneToMany(vocabulary=Vocabulary.from_text("abc"), hidden_size=4)
    x, y = data(values, rng)
    ids = data(tokens, rng)[1]
    for call, message in [
        (lambda: values.fit(x, y, feedback="token"), "feedback of values must be 'teacher' or 'output'"),
        (lambda: tokens.fit(x, ids, feedback="output"), "must be 'teacher', 'token' or 'soft', got 'output'"),
        (lambda: values.fit(x[:, :2], y), r"x must be \(N, X\) or \(X,\) with X=3, got \(4, 2\)"),
        (lambda: values.fit(x.astype(np.float32), y), "x must be float64"),
        (lambda: values.fit(x * np.nan, y), "x must be finite"),
        (lambda: values.fit(x, y * np.inf), "targets must be finite"),
        (lambda: values.fit(x, y[:3]), r"targets must be \(N=4, T, O=2\), got \(3, 4, 2\)"),
        (lambda: values.fit(x, [row[:, :1] for row in y]), r"each of targets must be \(T, O=2\)"),
        (lambda: values.fit(x, [*y], lengths=[1, 1, 1, 1]), "give only one"),
        (lambda: values.fit(x, y, lengths=[1, 2, 3, 5]), "lengths must be between 0 and T = 4"),
        (lambda: values.fit(x, y, lengths=[0, 0, 0, 0]), "targets must have at least one step"),
        (lambda: values.fit(x, y, teacher=0.5), "teacher is for another feedback"),
        (lambda: values.fit(x, y, feedback="output", teacher=1.5), r"teacher must be in \[0, 1\]"),
        (lambda: values.fit(x, y, validation=(x,)), r"validation must be \(x, targets\)"),
        (lambda: values.fit(x, y, batch_size=0), "batch_size must be at least 1"),
        (lambda: values.evaluate(x[:0], y[:0]), "targets must have at least one step"),
        (lambda: tokens.fit(x, ids + 1), "targets must be between 0 and 4, got 5"),
        (lambda: tokens.fit(x, [[1 << 32]] * 4), "between 0 and 4, got 4294967296"),
        (lambda: tokens.fit(x, [1, 2, 3, 4]), r"each of targets must be \(T,\), got \(\)"),
        (lambda: tokens.fit(x, ids * 1.0), "targets must be ints"),
        (lambda: tokens.fit(x, ids, feedback="soft", temperature=0.0), "temperature must be positive"),
        (lambda: tokens.fit(x, ids, feedback="soft", sample=True), "sample needs feedback 'token'"),
        (lambda: tokens.fit(x, ["ab", "c", "a", "b"]), "text only for a model with a Vocabulary"),
        (lambda: values.generate(x, 3, seed=1), "seed cannot be given: it is for tokens"),
        (lambda: values.generate(x, 3, stop=1), "stop cannot be given"),
        (lambda: values.generate(x, -1), "steps must be at least 0"),
        (lambda: tokens.generate(x, 3, stop=5), "stop must be between 0 and 4"),
        (lambda: tokens.generate(x, 3, stop="a"), "stop can be text only for a model with a Vocabulary"),
        (lambda: tokens.generate(x, 3, temperature=0), "temperature must be a finite number > 0"),
        (lambda: tokens.generate(x, 3, beams=2), "unexpected keyword argument 'beams'"),
        (lambda: text.generate("ab", 3), r"x must be one char, got 'ab' \(2 tokens\)"),
        (lambda: text.generate("", 3), r"x must be one char, got '' \(0 tokens\)"),
        (lambda: text.generate("x", 3), "character 'x'"),
        (lambda: text.generate(3, 3), "x must be between 0 and 2, got 3"),
        (lambda: text.generate(1.0, 3), "x must be ints"),
        (lambda: text.generate("a", 3, stop="bc"), "stop must be one char"),
    ]:  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_stream_is_generate(rng):
    tokens = tiny("label to tokens")
    text = OneToMany(vocabulary=Vocabulary.from_text("abc d"), hidden_size=5, init=("uniform", 1.0))
    assert list(tokens.stream(1, 6, seed=2)) == tokens.generate(1, 6, seed=2).tolist()
    for options in ({}, {"stop": " "}, {"stop_strings": ["ab", "d "]}):
        for seed in range(4):
            made = text.generate("a", 30, seed=seed, **options)
            assert "".join(text.stream("a", 30, seed=seed, **options)) == made
    stream = tokens.stream(1, 1 << 20)
    next(stream)
    stream.close()  # and so the native loop ends
    for call, message in (
        (lambda: tokens.stream([1, 2], 3), "x must be one input of a model with tokens"),
        (lambda: tiny("vector").stream(np.zeros(3), 3), "x must be one input of a model with tokens"),
        (lambda: tokens.stream(1, 3, top_p=1.5), "top_p must be"),
        (lambda: tokens.stream(1, -1), "steps must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()  # not at the first token


def test_hooks(rng):
    model = tiny("vector to tokens")
    x, _ = data(model, rng)
    seen = []

    def even(rows, so_far):
        seen.append((rows.tolist(), [len(ids) for ids in so_far]))
        return np.tile([True, False, True, False, True], (len(rows), 1))

    def not_zero(rows, so_far, logits):
        logits[:, 0] = -np.inf

    made = np.concatenate(model.generate(x, 8, token_mask=even, processor=not_zero))
    assert set(made.tolist()) == {2, 4}
    assert seen[:2] == [([0, 1, 2, 3], [0] * 4), ([0, 1, 2, 3], [1] * 4)]
    assert set(model.stream(x[0], 30, token_mask=even, processor=not_zero)) == {2, 4}
    values = tiny("vector")
    with pytest.raises(ValueError, match="token_mask, seed cannot be given: it is for tokens"):
        values.generate(data(values, rng)[0], 3, token_mask=even, seed=1)


def test_nothing_to_generate(rng):
    values, tokens = tiny("vector"), tiny("label to tokens")
    assert values.generate(np.zeros((0, 3)), 5).shape == (0, 5, 2)
    assert values.generate(np.zeros(3), 0).shape == (0, 2)
    assert tokens.generate([], 5) == []
    assert tokens.generate(1, 0).shape == (0,)
