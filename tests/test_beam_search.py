"""Beam search seen from Python: texts, streams, and what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fusedlstm import LanguageModel
from fusedlstm.data import Vocabulary
from fusedlstm.generation import BeamSearch, prefix_steps

TEXT = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Untrained, with large weights: far from uniform, and every prompt matters."""
    return LanguageModel(Vocabulary.from_text(TEXT), hidden_size=24, init=("uniform", 1.0), seed=4)


@pytest.fixture(scope="module")
def byte_model() -> LanguageModel:
    return LanguageModel(Vocabulary.byte(), hidden_size=8, seed=4)


@pytest.fixture(scope="module")
def word_model() -> LanguageModel:
    return LanguageModel(Vocabulary.from_text(TEXT * 2, "word"), hidden_size=8, init=("uniform", 1.0), seed=4)


def log_probabilities(model: LanguageModel, prompt: str, text: str) -> np.ndarray:
    """Of the tokens of ``text`` after ``prompt``, by the layers' own forward and NumPy."""
    tokens = model.vocabulary.encode(prompt + text)
    y, _ = model.lstm(tokens[None, :-1], embedding=model.embedding)
    parameters = model.named_parameters()
    z = y[0].astype(np.float64) @ parameters["output.weight"].T + parameters["output.bias"]
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return log_p[np.arange(len(z)), tokens[1:]][-len(text) :]


def test_hypotheses_are_scored_by_the_models_own_forward(model):
    options = {"width": 6, "num_return": 6, "max_new_tokens": 30, "length_penalty": 0.7, "stop": "o"}
    for prompt, found in zip(["the", "lazy "], model.beam_search(["the", "lazy "], **options), strict=True):
        assert len({one.text for one in found}) == 6
        for one in found:
            log_p = log_probabilities(model, prompt, one.text)
            np.testing.assert_allclose(one.log_probabilities, log_p, atol=2e-5)
            assert one.score == pytest.approx(log_p.sum() / len(one.text) ** 0.7, rel=1e-5)
            assert one.text == model.vocabulary.decode(one.tokens)
            assert "o" not in one.text[:-1]
            assert len(one.text) == 30 or one.text[-1] == "o"
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_wider_search_finds_more_probable_text(model):
    scores = [
        model.beam_search("the", width=width, max_new_tokens=20, length_penalty=0.0)[0].score
        for width in (1, 4, 64)
    ]
    assert scores[0] < scores[1] <= scores[2]
    greedy = model.generate("the", max_new_tokens=20, greedy=True)
    assert model.beam_search("the", width=1, max_new_tokens=20)[0].text == greedy


def test_one_prompt_several_and_none(model):
    options = {"width": 3, "num_return": 2, "max_new_tokens": 12}
    prompts = ["the", "q", "lazy dog"]
    together = model.beam_search(prompts, **options)
    for prompt, found in zip(prompts, together, strict=True):
        alone = model.beam_search(prompt, **options)
        assert [(one.text, one.score) for one in alone] == [(one.text, one.score) for one in found]
    assert model.beam_search([]) == []
    assert model.beam_search("the", banned_tokens=range(len(model.vocabulary))) == []


def test_words_and_several_stops(word_model):
    options = {"width": 4, "num_return": 4, "max_new_tokens": 8}
    found = word_model.beam_search("the quick", stop=["lazy", "dog"], **options)
    assert all(one.text[0] in " \n" for one in found)
    ids = [int(word_model.vocabulary.encode(word)[0]) for word in ("lazy", "dog")]
    same = word_model.beam_search("the quick", stop_tokens=ids, **options)
    assert [one.text for one in found] == [one.text for one in same]
    assert any(one.tokens[-1] in ids for one in found)


# streams
@pytest.mark.parametrize("name", ["model", "byte_model", "word_model"])
def test_stream_is_the_best_hypothesis(name, request):
    model = request.getfixturevalue(name)
    for options in ({}, {"width": 4, "groups": 2, "diversity_strength": 1.0}, {"repetition_penalty": 1.3}):
        options |= {"max_new_tokens": 40}
        pieces = list(model.stream_beam_search("the quick", **options))
        assert all(pieces)
        best = model.beam_search("the quick", **options)[0]
        assert "".join(pieces) == best.text
        assert len(best.tokens) == 40


def test_pieces_of_several_prompts(model):
    texts = {0: "", 1: ""}

    def on_text(index: int, piece: str) -> None:
        texts[index] += piece

    found = model.beam_search(["the", "fox"], max_new_tokens=30, stop="o", on_text=on_text)
    assert list(texts.values()) == [of_prompt[0].text for of_prompt in found]


def test_pieces_come_while_the_search_runs(model):
    whole = model.beam_search("the", max_new_tokens=2_000)[0].text
    stream = model.stream_beam_search("the", max_new_tokens=1_000_000)  # minutes
    first = next(stream)
    assert "fusedlstm-generate" in [thread.name for thread in threading.enumerate()]
    stream.close()
    assert whole.startswith(first)


def test_closing_a_stream_stops_the_search(model):
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "fusedlstm-generate"]

    stream = model.stream_beam_search("the", max_new_tokens=1_000_000)
    next(stream)
    assert threads()
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 5
    assert not threads()
    assert list(stream) == []


def test_ctrl_c_stops_the_search():
    code = """
from fusedlstm import LanguageModel
from fusedlstm.data import Vocabulary
model = LanguageModel(Vocabulary.from_text("abc"), hidden_size=24)
print("ready", flush=True)
model.beam_search("a", max_new_tokens=10_000_000)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        deadline = threading.Timer(10, process.kill)
        deadline.start()
        errors = process.communicate()[1]
        deadline.cancel()
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors


def test_an_error_in_the_search_reaches_the_reader(model):
    steps = prefix_steps(model.decoder, [np.array([0, 1_000_000], np.int32)], BeamSearch(max_new_tokens=5))
    with pytest.raises(ValueError, match="beam_search: prompts must lie in"):
        next(steps)


# refused
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0}, ValueError, "beam_search: width must be an int in 1 .. 65536, got 0"),
        ({"width": 4, "groups": 3}, ValueError, "beam_search: groups must divide width=4, got 3"),
        ({"length_penalty": float("nan")}, ValueError, "beam_search: length_penalty must be a number"),
        ({"num_return": 9}, ValueError, "beam_search: num_return must be"),
        ({"max_new_tokens": 2.5}, TypeError, "beam_search: max_new_tokens must be an int"),
        ({"early_stopping": "maybe"}, ValueError, "beam_search: early_stopping must be"),
        ({"stop_tokens": [10_000]}, ValueError, "beam_search: stop_tokens must lie in 0 .. "),
        ({"banned_tokens": [10_000]}, ValueError, "beam_search: banned_tokens must lie in 0 .. "),
        ({"forced_tokens": {0: 10_000}}, ValueError, "beam_search: forced_tokens must lie in 0 .. "),
        ({"stop": "ab"}, ValueError, "stop must be one token"),
        ({"beams": 5}, TypeError, "unexpected keyword argument 'beams'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        model.beam_search("the", **options)
    with pytest.raises(error, match=message):
        model.stream_beam_search("the", **options)  # at the call, not at the first piece


def test_wrong_prompts_are_refused(model):
    with pytest.raises(ValueError, match="prompt 1: character 'X'"):
        model.beam_search(["the", "X"])
    with pytest.raises(ValueError, match="prompt must have at least one char"):
        model.beam_search("")


def test_options_do_not_change():
    stops, forced = [3], {0: 1}
    search = BeamSearch(stop_tokens=stops, forced_tokens=forced, banned_tokens=np.array([2]))
    stops.append(4)
    forced[1] = 2
    assert (search.stop_tokens, search.banned_tokens, search.forced_tokens) == ((3,), (2,), {0: 1})
    assert search == BeamSearch(stop_tokens=(3,), forced_tokens={0: 1}, banned_tokens=(2,))
