"""Generation: the native loop seen from Python. What it must equal, its streams, and what it refuses."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from fusedlstm import LanguageModel
from fusedlstm.data import Vocabulary
from fusedlstm.generation import Sampling, token_stream

TEXT = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Untrained, with large weights: far from uniform, and every prompt matters."""
    return LanguageModel(Vocabulary.from_text(TEXT), hidden_size=24, init=("uniform", 1.0), seed=4)


@pytest.fixture(scope="module")
def byte_model() -> LanguageModel:
    """Writes every byte, so mostly bytes that are not UTF-8."""
    return LanguageModel(Vocabulary.byte(), hidden_size=8, seed=4)


@pytest.fixture(scope="module")
def word_model() -> LanguageModel:
    return LanguageModel(Vocabulary.from_text(TEXT * 2, "word"), hidden_size=8, init=("uniform", 1.0), seed=4)


def logits(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """(V,) after the tokens, by the layers' own forward and NumPy."""
    y, _ = model.lstm(tokens[None], embedding=model.embedding)
    parameters = model.named_parameters()
    return y[0, -1].astype(np.float64) @ parameters["output.weight"].T + parameters["output.bias"]


def test_greedy_takes_the_most_probable_token_of_the_models_own_forward(model):
    tokens = model.vocabulary.encode("the ")
    for _ in range(20):
        tokens = np.append(tokens, np.int32(logits(model, tokens).argmax()))
    assert model.generate("the ", max_new_tokens=20, greedy=True) == model.vocabulary.decode(tokens[4:])


def test_frequencies_are_those_of_the_softmax(model):
    """First token after one prompt, 4000 seeds: within 5 standard deviations of temperature 0.7's softmax."""
    draws = 4000
    texts = model.generate(["fox"] * draws, max_new_tokens=1, temperature=0.7, seed=100)
    scaled = logits(model, model.vocabulary.encode("fox")) / 0.7
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    counts = np.bincount([model.vocabulary.encode(text)[0] for text in texts], minlength=len(p))
    assert (np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p)) + 1).all()


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"greedy": True}]
)
def test_rows_do_not_depend_on_their_batch(model, options):
    prompts = ["the quick ", "fox", "o", "the lazy dog\nthe"]
    together = model.generate(prompts, max_new_tokens=30, seed=9, **options)
    alone = [
        model.generate(prompt, max_new_tokens=30, seed=9 + row, **options)
        for row, prompt in enumerate(prompts)
    ]
    assert together == alone
    assert len(set(together)) == 4


def test_seeds(model):
    one = model.generate("the", max_new_tokens=40, seed=1)
    assert one == model.generate("the", max_new_tokens=40, seed=1)
    assert one != model.generate("the", max_new_tokens=40, seed=2)
    assert one[:25] == model.generate("the", max_new_tokens=25, seed=1)
    assert model.generate("the", max_new_tokens=5, seed=2**64 - 1)


def test_top_k_and_top_p_keep_the_most_probable(model):
    tokens = model.vocabulary.encode("the")
    scores = logits(model, tokens)
    order = np.argsort(-scores)
    first = set(model.generate(["the"] * 300, max_new_tokens=1, top_k=2))
    assert first == {model.vocabulary.decode([index]) for index in order[:2]}
    p = np.exp(scores - scores.max())
    p /= p.sum()
    count = int(np.searchsorted(np.cumsum(p[order]), 0.5)) + 1
    first = set(model.generate(["the"] * 1000, max_new_tokens=1, top_p=0.5))
    assert first == {model.vocabulary.decode([index]) for index in order[:count]}


def test_stop_ends_a_row_after_the_token(model):
    free = model.generate(["the", "fox", "dog"], max_new_tokens=200, seed=5)
    stopped = model.generate(["the", "fox", "dog"], max_new_tokens=200, seed=5, stop="o")
    assert stopped == [text[: text.index("o") + 1] if "o" in text else text for text in free]
    [end] = model.vocabulary.encode("o")
    by_id = model.generate(["the", "fox", "dog"], max_new_tokens=200, seed=5, stop_tokens=[end])
    assert by_id == stopped
    assert any(len(text) < 200 for text in stopped)


def test_stop_strings_of_characters(model):
    free = model.generate("the", max_new_tokens=200, seed=5)
    stops = [free[50:52], free[60:63], free[40:45]]
    stopped = model.sample("the", max_new_tokens=200, seed=5, stop_strings=stops)[0]
    end = min(free.index(stop) + len(stop) for stop in stops)
    assert stopped.text == free[:end]
    assert stopped.finish == "stop_string"
    assert len(stopped.tokens) == end


def test_stop_strings_of_words(word_model):
    """They may begin and end within words; the text is cut where they end, the tokens are whole."""
    free = word_model.generate("the quick", max_new_tokens=200, seed=5, temperature=2.0)
    for stop in (free[9:16], free[30:42], free[3:5], "\n" + free.split("\n")[1][:3]):
        options = {"max_new_tokens": 200, "seed": 5, "temperature": 2.0, "stop_strings": stop}
        stopped = word_model.sample("the quick", **options)[0]
        assert stopped.text == free[: free.index(stop) + len(stop)]
        whole = word_model.vocabulary.decode(
            [*word_model.vocabulary.encode("the quick"), *stopped.tokens.tolist()]
        )
        assert whole.startswith("the quick" + stopped.text)
        assert "".join(word_model.stream("the quick", **options)) == stopped.text


def test_stop_strings_of_bytes(byte_model):
    free = byte_model.sample("a", max_new_tokens=3000, seed=1)[0].tokens.tolist()
    ascii_pairs = [at for at in range(20, 3000) if free[at] < 128 and free[at - 1] < 128]
    at = ascii_pairs[0]
    stop = bytes(free[at - 1 : at + 1]).decode()
    stopped = byte_model.sample("a", max_new_tokens=3000, seed=1, stop_strings=[stop])[0]
    end = bytes(free).index(stop.encode()) + 2
    assert stopped.tokens.tolist() == free[:end]
    assert stopped.text.endswith(stop)


def test_the_prompt_is_no_part_of_a_stop_string(model):
    first = model.generate("fo", max_new_tokens=1, seed=3)
    assert len(model.generate("fo", max_new_tokens=30, seed=3, stop_strings="o" + first)) > 1


def test_no_tokens_and_no_prompts(model):
    assert model.generate("the", max_new_tokens=0) == ""
    assert model.generate([]) == []
    assert "".join(model.stream("the", max_new_tokens=0)) == ""


# streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "byte_model", "word_model"])
def test_stream_is_generate(name, request):
    model = request.getfixturevalue(name)
    for options in (
        {"seed": 3},
        {"greedy": True},
        {"stop": "the", "seed": 8} if name == "word_model" else {},
    ):
        stream = model.stream("the quick", max_new_tokens=120, **options)
        pieces = list(stream)
        assert "".join(pieces) == model.generate("the quick", max_new_tokens=120, **options)
        assert all(pieces)
        assert 0 < stream.tokens <= 120


def test_bytes_are_streamed_as_whole_characters(byte_model):
    """What is not UTF-8 is replaced as Python's decoder does, however it is cut."""
    sampling = Sampling(max_new_tokens=500)
    ids = list(token_stream(byte_model.decoder, byte_model.vocabulary.encode("a"), sampling))
    expected = bytes(ids).decode("utf-8", "replace")
    assert "".join(byte_model.stream("a", max_new_tokens=500)) == expected
    assert "\ufffd" in expected


def test_words_are_separated(word_model):
    text = word_model.generate("the quick", max_new_tokens=60, temperature=2.0)
    assert text[0] in " \n"
    assert word_model.generate("the quick\n", max_new_tokens=60, temperature=2.0)[0] not in " "
    whole = word_model.vocabulary.encode("the quick" + text)
    assert len(whole) == 62


def test_pieces_come_while_the_loop_runs(model):
    whole = model.generate("the", max_new_tokens=2_000)
    stream = model.stream("the", max_new_tokens=10_000_000)  # minutes
    first = next(stream)
    assert "fusedlstm-generate" in [thread.name for thread in threading.enumerate()]
    stream.close()
    assert whole.startswith(first)


def test_streams_of_several_prompts(model, byte_model):
    """Rows as they come, each what it is alone; stop strings end them, and closing ends all."""
    prompts = ["the", "fox", "lazy dog"]
    for one, options in [
        (model, {"temperature": 2.0, "stop_strings": ["a", "e "], "seed": 5}),
        (byte_model, {"max_new_tokens": 60}),
    ]:
        stream = one.stream(prompts, **options)
        texts = ["", "", ""]
        for row, piece in stream:
            assert piece
            texts[row] += piece
        assert texts == one.generate(prompts, **options)
        assert stream.tokens == sum(len(made.tokens) for made in one.sample(prompts, **options))
    stream = model.stream(prompts, max_new_tokens=1_000_000)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "fusedlstm-generate"]


def test_a_text_comes_back_in_pieces(model):
    texts = {}

    def on_text(row, piece):
        texts[row] = texts.get(row, "") + piece

    options = {"num_sequences": 2, "stop_strings": "e ", "temperature": 2.0}
    made = model.sample(["the", "fox"], on_text=on_text, **options)
    assert [texts[row] for row in range(4)] == [one.text for one in made]
    assert "stop_string" in {one.finish for one in made}


def test_closing_a_stream_stops_the_loop(model):
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "fusedlstm-generate"]

    stream = model.stream("the", max_new_tokens=1_000_000)
    next(stream)
    assert threads()
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 5
    assert not threads()
    assert list(stream) == []


def test_an_error_in_the_loop_reaches_the_reader(model):
    tokens = token_stream(model.decoder, np.array([0, 1_000_000], np.int32), Sampling(max_new_tokens=5))
    with pytest.raises(ValueError, match=r"1000000|prompt"):
        next(tokens)


def test_many_streams_at_once_are_each_their_own(model):
    prompts = ["the", "fox", "dog", "lazy"]
    streams = [model.stream(prompt, max_new_tokens=50, seed=row) for row, prompt in enumerate(prompts)]
    texts = ["" for _ in prompts]
    for _ in range(50):
        for row, stream in enumerate(streams):
            texts[row] += next(stream)
    assert texts == model.generate(prompts, max_new_tokens=50, seed=0)


# refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"max_new_tokens": -1}, "max_new_tokens must be"),
        ({"stop": "ab"}, "stop must be one token"),
        ({"stop": ""}, "stop must be one token"),
        ({"stop": "X"}, "character 'X'"),
        ({"stop": ["o", "X"]}, "character 'X'"),
        ({"stop_strings": ""}, "stop_strings must not be empty"),
        ({"stop_strings": ["ok", ""]}, "stop_strings must not be empty"),
        ({"min_p": 1.0}, "min_p must be"),
        ({"typical_p": 0.0}, "typical_p must be"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be"),
        ({"min_new_tokens": 501}, "min_new_tokens must be"),
        ({"banned_tokens": [1000]}, "banned_tokens must lie in"),
        ({"forced_tokens": {0: -1}}, "forced_tokens must be an int in"),
        ({"forced_tokens": {500: 1}}, "forced_tokens must have keys"),
        ({"forced_tokens": {0: 1}, "banned_tokens": [1]}, "forced_tokens must not be banned"),
    ],
)
def test_wrong_options_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate("the", **options)
    with pytest.raises(ValueError, match=message):
        model.stream("the", **options)  # at the call, not at the first piece


def test_options_of_the_wrong_kind_are_refused(model):
    for options in (
        {"top_k": 2.5},
        {"temperature": "hot"},
        {"banned_tokens": 3},
        {"forced_tokens": [3]},
        {"stop_strings": 3},
        {"stop_strings": ["a", 3]},
        {"seed": 1.5},
        {"beams": 3},
        {"processor": 1},
    ):
        with pytest.raises(TypeError, match=next(iter(options))):
            model.generate("the", **options)


def test_sampling_copies_what_may_change():
    stops = [3]
    sampling = Sampling(max_new_tokens=2, stop_tokens=stops, banned_tokens=(k for k in (1, 2)))
    stops.append(4)
    assert (sampling.stop_tokens, sampling.banned_tokens) == ((3,), (1, 2))
    assert sampling == Sampling(max_new_tokens=2, stop_tokens=np.array([3]), banned_tokens=(1, 2))


def test_wrong_prompts_are_refused(model, word_model):
    with pytest.raises(ValueError, match=r"character 'é' \(U\+00E9\) at position 4"):
        model.generate("the é")
    with pytest.raises(ValueError, match="prompt 1: character 'X'"):
        model.generate(["the", "X"])
    with pytest.raises(ValueError, match="prompt must have at least one char"):
        model.generate("")
    with pytest.raises(ValueError, match="stop must be a word of the vocabulary"):
        word_model.generate("the", stop="cat")
