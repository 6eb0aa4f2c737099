"""Beam search against the specification in plain Python, which is checked against Hugging Face's values."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import cases
import numpy as np
import pytest
import reference_beam
from cases import assert_same_bits
from reference_beam import Options
from tolerances import assert_close

from fusedlstm import _core


@dataclass
class Generator:
    """A small language model: layers, embedding (V, E), output layer."""

    m: cases.Model
    embedding: np.ndarray
    output: _core.PackedLinear

    def __post_init__(self):
        self.decoder = _core.LanguageModelDecoder(self.m.packed, self.embedding, self.output)
        self.known = {}

    def logits_of(self, ids):
        """Logits after these tokens, by the public operations."""
        if ids not in self.known:
            tokens = np.array([ids], np.int32)
            y, _, _ = _core.lstm_forward(self.m.packed, tokens, embedding=self.embedding)
            self.known[ids] = _core.linear_forward(self.output, y[:, -1].copy())[0]
        return self.known[ids]


STOP = 0


def language_model(V=11, E=5, H=18, L=2, dtype="float32", seed=1, compute_dtype=None):
    rng = np.random.default_rng(seed)
    m = cases.model(E, H, L, dtype=dtype, seed=seed)
    if compute_dtype:
        packed = m.lstm.pack(m.flat, backward=False, compute_dtype=compute_dtype)
        m = dataclasses.replace(m, packed=packed)
    weight, bias = (2 * rng.standard_normal(shape).astype(dtype) for shape in ((V, H), (V,)))
    bias[STOP] += 3.3
    return Generator(m, rng.standard_normal((V, E)).astype(dtype), _core.linear_pack(weight, bias))


def fixed_logits(logits, dtype="float32"):
    """A model whose logits are always the given ones."""
    V = len(logits)
    output = _core.linear_pack(np.zeros((V, 1), dtype), np.asarray(logits, dtype))
    return Generator(cases.model(1, 1, dtype=dtype), np.zeros((V, 1), dtype), output)


def search(g, prompts, options, **more):
    """tokens, lengths, scores and log-probabilities of the native search."""
    ids = np.concatenate([np.array(prompt, np.int32) for prompt in prompts])
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    core = _core.BeamOptions(**dataclasses.asdict(options))
    return g.decoder.beam_search(ids, lengths, core, **more)


def assert_as_specified(g, prompts, options):
    found = search(g, prompts, options)
    scores, log_p = found[2:]
    assert found[0].dtype == found[1].dtype == np.int32
    assert found[0].shape == log_p.shape == (len(prompts), options.num_return, found[1].max())
    for n, prompt in enumerate(prompts):
        expected, _ = reference_beam.beam_search(g.logits_of, tuple(prompt), options)
        lengths = found[1][n]
        assert list(lengths) == [len(tokens) for _, tokens, _ in expected] + [0] * (
            options.num_return - len(expected)
        )
        for rank, (score, tokens, token_log_p) in enumerate(expected):
            assert tuple(found[0][n, rank, : lengths[rank]]) == tokens, (n, rank)
            assert_close(scores[n, rank], score, "beam score")
            assert_close(log_p[n, rank, : lengths[rank]], token_log_p, "log probabilities")
        past = np.arange(found[0].shape[-1]) >= lengths[:, None]
        assert (found[0][n][past] == -1).all()
        assert not log_p[n][past].any()
        assert (scores[n, len(expected) :] == -np.inf).all()
    return found


PROMPTS = [[1], [3, 4, 10, 2, 2], [7, 7], [9, 1, 5], [1, 2, 3, 4, 5, 6, 7, 8]]

OPTIONS = [
    {},
    {"width": 1},
    {"width": 2, "length_penalty": 0.0},
    {"width": 7, "num_return": 7, "length_penalty": 2.0},
    {"length_penalty": -1.0},
    {"length_penalty": 0.9, "length_penalty_form": "gnmt"},
    {"early_stopping": True},
    {"early_stopping": True, "width": 3, "num_return": 2},
    {"early_stopping": "never"},
    {"early_stopping": "never", "length_penalty": 2.0},
    {"early_stopping": "never", "length_penalty": -0.5},
    {"early_stopping": "never", "length_penalty": 1.5, "length_penalty_form": "gnmt"},
    {"min_new_tokens": 5},
    {"min_new_tokens": 9},
    {"max_new_tokens": 1},
    {"stop_tokens": ()},
    {"stop_tokens": (0, 3, 7)},
    {"stop_tokens": (0, 3, 7), "width": 2, "num_return": 2, "early_stopping": True},
    {"banned_tokens": (2, 9)},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "width": 3, "num_return": 3},
    {"repetition_penalty": 1.7},
    {"forced_tokens": {0: 4, 3: 9, 4: 0}},
    {"forced_tokens": {8: 2}, "groups": 5, "diversity_strength": 1.0, "stop_tokens": (5,)},
    {"repetition_penalty": 0.6, "no_repeat_ngram_size": 2, "banned_tokens": (4,), "min_new_tokens": 2},
    {"width": 6, "num_return": 6, "groups": 3, "diversity_strength": 0.7},
    {"width": 6, "num_return": 6, "groups": 6, "diversity_strength": 50.0},
    {"width": 6, "num_return": 6, "groups": 2},
    {"width": 8, "num_return": 8, "groups": 2, "diversity_strength": 1.1, "early_stopping": True},
    {"width": 4, "groups": 2, "diversity_strength": 2.0, "stop_tokens": (0, 5), "early_stopping": "never"},
]


def options_of(changes):
    options = {"width": 5, "num_return": 5, "max_new_tokens": 9, "stop_tokens": (STOP,)} | changes
    return Options(**options | {"num_return": min(options["num_return"], options["width"])})


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_n_best(dtype, changes):
    assert_as_specified(language_model(dtype=dtype), PROMPTS, options_of(changes))


def test_hypotheses_end_at_different_steps():
    """The cases above are not all alike: sources and hypotheses of different lengths, in different orders."""
    _, lengths, _, _ = search(language_model(), PROMPTS, options_of({}))
    assert len(set(lengths[:, 0])) > 1
    assert len(set(lengths.flat)) > 3
    assert (np.diff(lengths) < 0).any()
    assert (np.diff(lengths) > 0).any()


def test_wide_vocabulary(isa, dtype):
    """More candidates than a block of the scan, in rising, falling and random order of probability."""
    options = options_of({"width": 6, "num_return": 6, "max_new_tokens": 4})
    assert_as_specified(language_model(V=301, seed=3, dtype=dtype), PROMPTS[:2], options)
    for logits in (np.linspace(-2, 2, 200), np.linspace(2, -2, 200)):
        assert_as_specified(fixed_logits(logits, dtype), [[1]], dataclasses.replace(options, groups=2))


def test_specification_is_that_of_hugging_face():
    """Recorded n-best lists of transformers' `generate`: same ids, scores up to its float32."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "beam.json").read_text())
    table = np.array(golden["table"], np.float32)
    names = {"num_beams": "width", "num_return_sequences": "num_return"}
    assert len(golden["results"]) == 38
    for result in golden["results"]:
        options = {names.get(name, name): value for name, value in result["options"].items()}
        stop = options.pop("eos_token_id")
        options["stop_tokens"] = () if stop is None else tuple(np.atleast_1d(stop))
        options["banned_tokens"] = tuple(word[0] for word in options.pop("bad_words_ids", []))
        n_best, _ = reference_beam.beam_search(
            lambda ids: table[ids[-2], ids[-1]], tuple(result["prompt"]), Options(**options)
        )
        assert [list(tokens) for _, tokens, _ in n_best] == result["tokens"], result["options"]
        if result["scores"] is not None:  # greedy search gives none
            scores = np.array([score for score, _, _ in n_best])
            assert_close(scores, result["scores"], "beam score of transformers")


# what must be found
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.7])
def test_a_beam_as_wide_as_the_tree_finds_every_sequence_in_order(dtype, length_penalty):
    g = language_model(V=4, seed=2, dtype=dtype)
    options = Options(width=400, max_new_tokens=5, length_penalty=length_penalty, stop_tokens=(0,))
    every = reference_beam.all_sequences(g.logits_of, (1, 2), 4, options)
    assert len(every) == 1 + 3 + 9 + 27 + 81 * 4
    tokens, lengths, scores, _ = search(g, [[1, 2]], dataclasses.replace(options, num_return=len(every)))
    assert_close(scores[0], [score for score, _ in every], "beam score")
    found = [tuple(row[:length]) for row, length in zip(tokens[0], lengths[0], strict=True)]
    assert found == [one for _, one in every]


def test_width_one_is_greedy(isa, dtype):
    g = language_model(dtype=dtype)
    ids = np.concatenate([np.array(prompt, np.int32) for prompt in PROMPTS])
    prompt_lengths = np.array([len(prompt) for prompt in PROMPTS], np.int32)
    greedy = _core.SamplingOptions(max_new_tokens=20, greedy=True, stop_tokens=[STOP])
    made = g.decoder.generate(ids, prompt_lengths, greedy, seeds=np.zeros(5, np.uint64))
    tokens, lengths, log_p = made.tokens, made.lengths, made.log_probabilities
    found = search(g, PROMPTS, Options(width=1, max_new_tokens=20, stop_tokens=(STOP,)))
    assert lengths.min() < lengths.max()
    np.testing.assert_array_equal(found[1][:, 0], lengths)
    np.testing.assert_array_equal(found[0][:, 0], tokens[:, : lengths.max()])
    assert_same_bits(found[3][:, 0], np.ascontiguousarray(log_p[:, : lengths.max()]))


def test_equal_scores_go_to_the_lower_beam_then_the_lower_id():
    g = fixed_logits(np.zeros(6))
    for changes in ({}, {"groups": 5, "diversity_strength": 0.3}, {"stop_tokens": (2, 4)}):
        assert_as_specified(g, [[1]], options_of({"max_new_tokens": 3} | changes))
    tokens, *_ = search(g, [[1]], options_of({"width": 3, "num_return": 3, "max_new_tokens": 2}))
    assert tokens[0].tolist() == [[0, -1], [1, 0], [1, 1]]


def test_groups_choose_different_tokens():
    g = language_model()
    options = options_of({"width": 4, "groups": 4, "stop_tokens": (), "max_new_tokens": 6})
    alike = search(g, [[1]], dataclasses.replace(options, num_return=4))[0][0]
    assert (alike == alike[0]).all()
    far = search(g, [[1]], dataclasses.replace(options, num_return=4, diversity_strength=100.0))[0][0]
    assert all(len(set(column)) == 4 for column in far.T)


# what a source costs and sees
def test_sources_do_not_see_their_batch_mates(isa, dtype):
    g = language_model(V=70, E=19, H=37, dtype=dtype)
    prompts = [list(np.random.default_rng(n).integers(0, 70, 1 + n % 9)) for n in range(7)]
    options = options_of({"width": 4, "repetition_penalty": 1.2, "groups": 2, "diversity_strength": 0.4})
    whole = search(g, prompts, options)
    for sources in ([0], [6], [3, 4, 5], list(range(6, -1, -1))):
        part = search(g, [prompts[n] for n in sources], options)
        longest = part[0].shape[-1]
        assert_same_bits(whole[1][sources], part[1])
        assert_same_bits(whole[2][sources], part[2])
        for one, other in ((whole[0], part[0]), (whole[3], part[3])):
            assert_same_bits(np.ascontiguousarray(one[sources][..., :longest]), other)


def test_same_bits_on_every_level_and_thread_count(dtype, threads):
    results = []
    before = _core.isa()
    for level in _core.isa_levels():
        for count in (1, 3):
            threads(count)
            _core.set_isa(level)
            g = language_model(V=70, E=19, H=37, dtype=dtype)
            results.append(search(g, PROMPTS, options_of({"max_new_tokens": 12})))
            _core.set_isa(before)
    for arrays in zip(*results, strict=True):
        assert_same_bits(*arrays)


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "int8"])
def test_low_precision_states_move_with_their_beams(compute_dtype):
    """A hypothesis has the log-probabilities that greedy search along it, from its own state, gives."""
    g = language_model(H=32, compute_dtype=compute_dtype)
    tokens, lengths, _, log_p = search(g, PROMPTS, options_of({}))
    for n, prompt in enumerate(PROMPTS):
        for rank in range(5):
            ids = [*prompt, *tokens[n, rank, : lengths[n, rank]]]
            for j in range(lengths[n, rank]):
                expected = reference_beam.log_softmax(g.logits_of(tuple(ids[: len(prompt) + j])))
                assert_close(log_p[n, rank, j], expected[tokens[n, rank, j]], "log probabilities")


def test_initial_states():
    g = language_model()
    prompt = np.array([[3, 4, 10, 2]], np.int32)
    _, h, c = _core.lstm_forward(g.m.packed, prompt, embedding=g.embedding)
    whole = search(g, [[3, 4, 10, 2, 2]], options_of({}))
    for one, other in zip(whole, search(g, [[2]], options_of({}), h0=h, c0=c), strict=True):
        assert_same_bits(one, other)


# the agreed prefix
@pytest.mark.parametrize("changes", [*OPTIONS[:4], *OPTIONS[-4:]], ids=str)
def test_agreed_prefix(changes):
    """After every step what the specification says; together the best hypothesis."""
    g, options = language_model(), options_of(changes)
    seen, ends = [[] for _ in PROMPTS], [[] for _ in PROMPTS]

    def on_prefix(source, ids, ended):
        seen[source].append(tuple(ids.tolist()))
        ends[source].append(ended)

    tokens, lengths, *_ = search(g, PROMPTS, options, on_prefix=on_prefix)
    for n, prompt in enumerate(PROMPTS):
        _, prefixes = reference_beam.beam_search(g.logits_of, tuple(prompt), options)
        so_far = ()
        for piece, prefix in zip(seen[n], prefixes, strict=True):
            so_far += piece
            assert so_far == prefix
        assert so_far == tuple(tokens[n, 0, : lengths[n, 0]])
        assert ends[n] == [False] * (len(prefixes) - 1) + [True]


def test_the_prefix_comes_before_the_end():
    seen = []
    options = options_of({"stop_tokens": (), "max_new_tokens": 60})
    search(language_model(), [[1]], options, on_prefix=lambda source, ids, ended: seen.append(len(ids)))
    assert len(seen) == sum(seen) == 60
    assert sum(seen[:-1]) > 30


def test_exception_in_callback_stops_and_propagates():
    g, calls = language_model(), []

    def on_prefix(source, ids, ended):
        calls.append(source)
        if len(calls) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        search(g, PROMPTS[:1], options_of({}), on_prefix=on_prefix)
    assert calls == [0, 0, 0]
    assert_as_specified(g, PROMPTS, options_of({}))


def test_callback_may_search():
    g, inner = language_model(), []
    options = options_of({})
    outer = search(
        g, [[1]], options, on_prefix=lambda source, ids, ended: inner.append(search(g, [[1]], options))
    )
    for one in inner:
        for array, other in zip(one, outer, strict=True):
            assert_same_bits(array, other)
    assert inner


# what cannot be
def test_nothing_to_find():
    g = language_model()
    nobody = g.decoder.beam_search(
        np.zeros(0, np.int32), np.zeros(0, np.int32), _core.BeamOptions(max_new_tokens=3)
    )
    assert [array.shape for array in nobody] == [(0, 1, 0), (0, 1), (0, 1), (0, 1, 0)]
    tokens, lengths, scores, log_p = search(g, [[1], [2]], options_of({"banned_tokens": range(11)}))
    assert tokens.shape == log_p.shape == (2, 5, 0)
    assert not lengths.any()
    assert (scores == -np.inf).all()
    assert_as_specified(g, PROMPTS, options_of({"banned_tokens": tuple(range(1, 11))}))
    assert_as_specified(fixed_logits([0.0, -np.inf, 0.0, -np.inf]), [[1]], options_of({"stop_tokens": ()}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers(value):
    g = language_model()
    embedding = g.embedding.copy()
    embedding[6] = np.nan
    decoder = _core.LanguageModelDecoder(g.m.packed, embedding, g.output)
    options = _core.BeamOptions(max_new_tokens=9)
    with pytest.raises(FloatingPointError, match=r"beam_search: the logits of source 1 at new token 0 "):
        decoder.beam_search(np.array([1, 6], np.int32), np.ones(2, np.int32), options)
    with pytest.raises(FloatingPointError, match="are not finite"):
        search(fixed_logits([0.0, value]), [[1]], options_of({"stop_tokens": ()}))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be an int in 1 .. 65536, got 0"),
        ({"width": -3}, ValueError, "width must be"),
        ({"width": 10**30}, ValueError, "width must be"),
        ({"width": 2.0}, TypeError, r"width must be an int in 1 .. 65536, got 2\.0"),
        ({"width": True}, TypeError, "width must be an int"),
        ({"width": "5"}, TypeError, "width must be an int .*, got '5'"),
        ({"num_return": 0}, ValueError, "num_return must be an int in 1 .. 5, got 0"),
        ({"num_return": 6}, ValueError, "num_return must be"),
        ({"groups": 0}, ValueError, "groups must be"),
        ({"groups": 2}, ValueError, "groups must divide width=5, got 2"),
        ({"groups": 5, "diversity_strength": -1.0}, ValueError, "diversity_strength must be a finite number"),
        ({"groups": 5, "diversity_strength": np.inf}, ValueError, "diversity_strength must be"),
        ({"diversity_strength": 1.0}, ValueError, "diversity_strength needs more than one group"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be an int in 1 .. 1073741824, got 0"),
        ({"min_new_tokens": 10}, ValueError, "min_new_tokens must be an int in 0 .. 9, got 10"),
        ({"length_penalty": np.nan}, ValueError, "length_penalty must be a number in -30 .. 30, got nan"),
        ({"length_penalty": 31}, ValueError, "length_penalty must be"),
        ({"length_penalty": "1"}, TypeError, "length_penalty must be a number, got '1'"),
        ({"length_penalty": 1j}, TypeError, "length_penalty must be a number"),
        ({"length_penalty_form": "wu"}, ValueError, "length_penalty_form must be 'plain' or 'gnmt', got"),
        ({"length_penalty_form": None}, ValueError, "length_penalty_form must be"),
        ({"early_stopping": "always"}, ValueError, "early_stopping must be True, False or 'never'"),
        ({"early_stopping": 1}, ValueError, "early_stopping must be"),
        ({"stop_tokens": 3}, TypeError, "stop_tokens must be token ids, got 3"),
        ({"stop_tokens": "ab"}, TypeError, "stop_tokens must be token ids"),
        ({"stop_tokens": [1.5]}, TypeError, "stop_tokens must be an int"),
        ({"stop_tokens": [-1]}, ValueError, "stop_tokens must be an int in 0 .. "),
        ({"stop_tokens": [2, 11]}, ValueError, "stop_tokens must lie in 0 .. 10, got 11"),
        ({"banned_tokens": [99]}, ValueError, "banned_tokens must lie in 0 .. 10, got 99"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty must be a finite number > 0, got 0.0"),
        ({"repetition_penalty": np.nan}, ValueError, "repetition_penalty must be"),
        ({"no_repeat_ngram_size": -1}, ValueError, "no_repeat_ngram_size must be"),
        ({"forced_tokens": [1]}, TypeError, r"forced_tokens must be a dict, got \[1\]"),
        (
            {"forced_tokens": {9: 1}},
            ValueError,
            "forced_tokens must have keys that are ints in 0 .. 8, got 9",
        ),
        ({"forced_tokens": {0: 11}}, ValueError, "forced_tokens must lie in 0 .. 10, got 11"),
        ({"forced_tokens": {0: 3}, "banned_tokens": [3]}, ValueError, "forced_tokens must not be banned"),
    ],
    ids=str,
)
def test_refused(options, error, message):
    with pytest.raises(error, match="beam_search: " + message):
        language_model().decoder.beam_search(
            np.ones(1, np.int32), np.ones(1, np.int32), _core.BeamOptions(**{"max_new_tokens": 9} | options)
        )


def test_arrays_are_checked():
    decoder, options = language_model().decoder, _core.BeamOptions(max_new_tokens=3)
    one = np.ones(1, np.int32)
    with pytest.raises(ValueError, match="beam_search: prompt_lengths must be at least 1, got 0"):
        decoder.beam_search(one, np.array([1, 0], np.int32), options)
    with pytest.raises(ValueError, match=r"beam_search: prompts must lie in 0 .. 10, got 11 at position 0"):
        decoder.beam_search(one + 10, one, options)
    with pytest.raises(ValueError, match=r"beam_search: prompts must be int32 \(sum\(prompt_lengths\)=1,\)"):
        decoder.beam_search(np.ones(1), one, options)
    with pytest.raises(ValueError, match="beam_search: h0 must be float32"):
        decoder.beam_search(one, one, options, h0=np.zeros((1, 1, 18), np.float32))
    with pytest.raises(TypeError, match="beam_search: on_prefix must be callable, got int"):
        decoder.beam_search(one, one, options, on_prefix=3)
    with pytest.raises(TypeError):
        decoder.beam_search(one, one, None)
