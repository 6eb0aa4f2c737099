"""Every way to choose a token, against the NumPy specification: exact ids."""

from __future__ import annotations

import numpy as np
import pytest
import reference_sampling as spec
from cases import assert_same_bits
from test_decode import PROMPTS, fixed_logits, joined, language_model, seeds
from tolerances import assert_close

from fusedlstm import _core

TEXTS = [b"a", b"b", b"c", b"ab", b"bc", b"ca", b"abc", b" ", b"\xc3", b"\xa9", b"b ", b"cab", b""]


def call(g, prompts, options, row_seeds=None, **rest):
    """The native loop; `options` may have stop strings without texts."""
    ids, lengths = joined(prompts)
    count = len(prompts) * options.get("num_sequences", 1)
    if "stop_strings" in options:
        options = {"token_texts": _core.TokenTexts(TEXTS), **options}
    row_seeds = seeds(count) if row_seeds is None else row_seeds
    return g.decoder.generate(ids, lengths, _core.SamplingOptions(**options), seeds=row_seeds, **rest)


SPECIFIED = {}  # what the specification makes of a call: the same on every instruction set


def assert_is_specified(g, options, prompts=PROMPTS, may_follow=None, changed=None, **rest):
    options = {"max_new_tokens": 12, **options}
    got = call(g, prompts, options, **rest)
    n = options.get("num_sequences", 1)

    def start(prompt):
        logits, h, c = g.state(prompt)
        return logits, (h, c)

    def step(token, state):
        logits, h, c = g.state([token], *state)
        return logits, (h, c)

    key = (str(got.states.dtype), *map(repr, (options, prompts, may_follow, changed)))
    if key not in SPECIFIED:
        SPECIFIED[key] = [
            spec.generate(start, step, prompts[r // n], seed, options, TEXTS, may_follow, changed)
            for r, seed in enumerate(seeds(len(prompts) * n))
        ]
    for r, (tokens, logprobs, rows, finish, behind) in enumerate(SPECIFIED[key]):
        T = len(tokens)
        assert got.tokens[r, :T].tolist() == tokens
        assert (got.tokens[r, T:] == -1).all()
        assert (got.lengths[r], got.finish[r], got.behind[r]) == (T, finish, behind)
        assert_close(got.log_probabilities[r, :T], logprobs, "log probabilities")
        assert not got.log_probabilities[r, T:].any()
        k = options.get("top_log_probabilities", 0)
        order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        assert got.top_tokens.shape == (len(prompts) * n, options["max_new_tokens"], k)
        if T:
            np.testing.assert_array_equal(got.top_tokens[r, :T, : order.shape[1]], order)
            top = got.top_log_probabilities[r, :T, : order.shape[1]]
            assert_close(top, np.take_along_axis(rows, order, 1), "log probabilities")
    return got


STRATEGIES = [
    {"greedy": True, "repetition_penalty": 1.7},
    {"greedy": True, "no_repeat_ngram_size": 2},
    {"greedy": True, "banned_tokens": [3, 7, 3], "top_log_probabilities": 13},
    {"min_p": 0.02},
    {"min_p": 0.6},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"typical_p": 0.95, "temperature": 3.0},
    {"top_k": 5, "typical_p": 0.6, "temperature": 2.0},
    {"top_p": 0.8, "min_p": 0.1, "temperature": 2.5},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5},
    {"no_repeat_ngram_size": 2, "temperature": 0.3},
    {"no_repeat_ngram_size": 3, "temperature": 0.3},
    {"banned_tokens": [0, 12, 4]},
    {"forced_tokens": {0: 5, 3: 7, 11: 0}},
    {"stop_tokens": [1, 4, 12]},
    {"stop_tokens": [1, 4, 12], "min_new_tokens": 6, "temperature": 2.0},
    {"stop_tokens": [4], "min_new_tokens": 3, "forced_tokens": {1: 4}},
    {"top_log_probabilities": 3, "num_sequences": 3, "temperature": 2.0},
    {"stop_strings": [b"ab"], "temperature": 4.0},
    {"stop_strings": [b"a c", b"bcab", b"\xc3\xa9", b"bb"], "temperature": 4.0},
    {"stop_strings": [b"abc", b"a", b"c"], "min_new_tokens": 4, "temperature": 4.0},
    {
        "temperature": 1.8,
        "top_k": 9,
        "top_p": 0.97,
        "min_p": 0.01,
        "typical_p": 0.97,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "banned_tokens": [2],
        "forced_tokens": {2: 8},
        "min_new_tokens": 4,
        "stop_tokens": [6],
        "stop_strings": [b"cc", b" a"],
        "num_sequences": 2,
        "top_log_probabilities": 2,
    },
]


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_strategies(isa, dtype, options):
    assert_is_specified(language_model(dtype=dtype), options)


@pytest.mark.parametrize("options", [STRATEGIES[-1], STRATEGIES[7], STRATEGIES[20]], ids=str)
def test_more_steps_and_rows(isa, options):
    prompts = [list(np.random.default_rng(n).integers(0, 13, 1 + n % 4)) for n in range(12)]
    got = assert_is_specified(language_model(), {**options, "max_new_tokens": 40}, prompts)
    if "stop_strings" in options:
        assert {"stop_string"} <= set(got.finish)


# one draw of many seeds from given logits: large vocabularies, ties, distributions of every shape
V = 3000
SHAPES = {
    "normal": 2.0 * np.random.default_rng(0).standard_normal(V),
    "peaked": np.where(np.arange(V) % 97 == 5, 9.0, -3.0) + np.random.default_rng(1).standard_normal(V),
    "nearly flat": 0.01 * np.random.default_rng(2).standard_normal(V),
    "tied": np.repeat([0.0, 1.0, 2.0], V // 3),
    "far apart": np.linspace(-300, 300, V)[::-1].copy(),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 40},
        {"top_k": 2500},
        {"top_p": 0.9},
        {"top_p": 0.3},
        {"min_p": 0.1},
        {"typical_p": 0.7},
        {"temperature": 5.0, "top_k": 1000, "top_p": 0.7995, "typical_p": 0.8995},
    ],
    ids=str,
)
def test_draws_from_large_vocabularies(shape, options):
    logits = SHAPES[shape].astype(np.float64)
    got = many_draws(fixed_logits(logits, "float64"), 150, options)
    u = [spec.uniform(seed, 0) for seed in seeds(150)]
    np.testing.assert_array_equal(got, spec.drawn(spec.filtered(logits.copy(), options), u))


def many_draws(decoder, N, options):
    made = decoder.generate(
        np.zeros(N, np.int32),
        np.ones(N, np.int32),
        _core.SamplingOptions(max_new_tokens=1, **options),
        seeds=seeds(N),
    )
    return made.tokens[:, 0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e300])
def test_extreme_temperatures(isa, dtype, temperature):
    logits = np.array([1.0, 3.0, 2.0])
    counts = np.bincount(
        many_draws(fixed_logits(logits, dtype), 300, {"temperature": temperature}), minlength=3
    )
    if temperature < 1:
        assert counts.tolist() == [0, 300, 0]
    else:
        assert counts.min() > 60


# sequences do not depend on each other
FULL = STRATEGIES[-1] | {"num_sequences": 1, "max_new_tokens": 20}
FIELDS = ("tokens", "lengths", "log_probabilities", "top_tokens", "top_log_probabilities", "behind", "states")


def assert_equal_rows(one, rows, other):
    for name in FIELDS:
        assert_same_bits(np.ascontiguousarray(getattr(one, name)[rows]), getattr(other, name))
    assert [one.finish[row] for row in rows] == list(other.finish)


def test_batch_is_single(isa, dtype):
    """In a batch, alone, in any order, whichever rows end earlier (compaction)."""
    g = language_model(H=37, dtype=dtype)
    prompts = [list(np.random.default_rng(n).integers(0, 13, 1 + n % 9)) for n in range(17)]
    whole = call(g, prompts, FULL)
    assert len(set(whole.lengths)) > 3
    for rows in ([0], [16], [3, 4, 5], list(range(16, -1, -1))):
        assert_equal_rows(whole, rows, call(g, [prompts[row] for row in rows], FULL, seeds(17)[rows]))


def test_sequences_of_a_prompt_are_separate_seeds(isa):
    g = language_model()
    whole = call(g, PROMPTS, FULL | {"num_sequences": 4})
    for b, prompt in enumerate(PROMPTS):
        for i in range(4):
            row = 4 * b + i
            assert_equal_rows(whole, [row], call(g, [prompt], FULL, seeds(20)[[row]]))


def test_same_bits_on_every_level_and_thread_count(dtype, threads):
    results = []
    before = _core.isa()
    for level in _core.isa_levels():
        for count in (1, 2, 5):
            threads(count)
            _core.set_isa(level)
            g = language_model(E=19, H=37, dtype=dtype)
            results.append(call(g, PROMPTS, FULL | {"num_sequences": 3}))
            _core.set_isa(before)
    for other in results[1:]:
        assert_equal_rows(results[0], list(range(15)), other)


def test_no_tokens_and_no_prompts(isa):
    g = language_model()
    none = call(g, PROMPTS, {"max_new_tokens": 0, "num_sequences": 2})
    assert none.tokens.shape == (10, 0)
    assert set(none.finish) == {"length"}
    np.testing.assert_array_equal(none.states[0], none.states[1])
    assert call(g, PROMPTS[:1], {"max_new_tokens": 3}).lengths.tolist() == [3]


# hooks
def may_follow(tokens):
    """A grammar: remainders by 3 alternate."""
    return np.arange(13) % 3 != tokens[-1] % 3


def changed(tokens, scores):
    return scores + len(tokens) % 4 * np.linspace(0, 1, 13)


HOOKED = {"stop_tokens": [5, 8, 9, 0], "repetition_penalty": 1.1, "temperature": 1.5, "forced_tokens": {3: 1}}


@pytest.mark.parametrize("in_place", [True, False])
def test_processor_and_mask(isa, dtype, in_place):
    """In the place that they have in the specification's order."""
    g = language_model(dtype=dtype)
    seen = []

    def token_mask(rows, tokens):
        return np.stack([may_follow(row) for row in tokens])

    def processor(rows, tokens, logits):
        seen.append((rows, tokens))
        new = np.stack([changed(*pair) for pair in zip(tokens, logits, strict=True)]).astype(dtype)
        if not in_place:
            return new
        logits[:] = new
        return None

    got = assert_is_specified(
        g, HOOKED, may_follow=may_follow, changed=changed, processor=processor, token_mask=token_mask
    )
    assert len(seen) == got.lengths.max()
    assert len(set(got.lengths)) > 1
    for step, (rows, tokens) in enumerate(seen):  # rows that have not ended, each with what it has so far
        assert rows.tolist() == [row for row in range(5) if got.lengths[row] > step]
        for row, so_far in zip(rows, tokens, strict=True):
            assert so_far.tolist() == PROMPTS[row] + got.tokens[row, :step].tolist()


def test_either_hook_alone(isa):
    g = language_model()

    def token_mask(rows, tokens):
        return np.stack([may_follow(row) for row in tokens])

    def processor(rows, tokens, logits):
        for row, z in zip(tokens, logits, strict=True):
            z[:] = changed(row, z)

    assert_is_specified(g, HOOKED, may_follow=may_follow, token_mask=token_mask)
    assert_is_specified(g, HOOKED, changed=changed, processor=processor)


def test_kept_arrays_of_a_processor_stay_valid():
    """What a processor holds on to is its own, whatever the loop does later."""
    kept = []
    g = language_model()
    call(g, PROMPTS, {"max_new_tokens": 3}, processor=lambda rows, tokens, logits: kept.append(logits))
    call(g, PROMPTS, {"max_new_tokens": 3}, processor=lambda rows, tokens, logits: logits.fill(0))
    assert all(np.ptp(logits) > 0 for logits in kept)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (
            np.zeros((5, 12), np.float32),
            ValueError,
            r"processor: .* float32 \(rows=5, V=13\), got float32 \(5, 12\)",
        ),
        (np.zeros((5, 13)), ValueError, r"processor: .* float32 .*, got float64"),
        (np.zeros((5, 26), np.float32)[:, ::2], ValueError, r"processor: .*strided"),
        ([1.0], TypeError, r"processor: .*, got list"),
        (
            np.full((5, 13), np.nan, np.float32),
            ValueError,
            r"generate: sequence [0-4], new token 0: no token .*nan",
        ),
        (
            np.full((5, 13), -np.inf, np.float32),
            ValueError,
            r"generate: sequence [0-4], .* largest logit is -inf",
        ),
        (
            np.full((5, 13), np.inf, np.float32),
            ValueError,
            r"generate: sequence [0-4], .* largest logit is inf",
        ),
        (
            np.array([[0.0] * 6 + [np.nan] + [1.0] * 6] * 5, np.float32),
            ValueError,
            r"largest logit is .*(nan|not a number)",
        ),
    ],
)
def test_wrong_results_of_a_processor(isa, returned, error, message):
    with pytest.raises(error, match=message):
        call(language_model(), PROMPTS, {"max_new_tokens": 3}, processor=lambda *_: returned)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (np.zeros((5, 13), np.uint8), ValueError, r"token_mask: .* bool \(rows=5, V=13\), got uint8"),
        (np.ones((13,), bool), ValueError, r"token_mask: .*got bool \(13,\)"),
        (None, TypeError, r"token_mask: .*got NoneType"),
        (np.zeros((5, 13), bool), ValueError, r"no token can be chosen: the largest logit is -inf"),
    ],
)
def test_wrong_results_of_a_token_mask(isa, returned, error, message):
    with pytest.raises(error, match=message):
        call(language_model(), PROMPTS, {"max_new_tokens": 3}, token_mask=lambda *_: returned)


@pytest.mark.parametrize("hook", ["processor", "token_mask"])
def test_a_hook_that_raises(isa, threads, hook):
    threads(2)
    g = language_model()

    def raises(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call(g, PROMPTS, {"max_new_tokens": 3}, **{hook: raises})
    assert_is_specified(g, {"max_new_tokens": 3})


def test_nothing_left_to_choose(isa):
    with pytest.raises(ValueError, match=r"^generate: sequence 0, new token 0: no token can be chosen"):
        call(language_model(), PROMPTS[:1], {"max_new_tokens": 3, "banned_tokens": list(range(13))})
    with pytest.raises(ValueError, match=r"new token 12: no token can be chosen"):
        call(language_model(), [[1]], {"max_new_tokens": 30, "no_repeat_ngram_size": 1})


def test_steps_are_called_back(isa):
    steps = []
    options = {"max_new_tokens": 30, "stop_strings": [b"ab", b"\xc3"], "temperature": 4.0}
    got = call(language_model(), PROMPTS, options, on_tokens=lambda *step: steps.append(step))
    assert len(set(got.lengths)) > 2
    for row in range(5):
        T = got.lengths[row]
        assert [tokens[row] for tokens, _ in steps] == got.tokens[row, : len(steps)].tolist()
        ended = [ended[row] for _, ended in steps]
        assert ended[: T - 1] == [-1] * (T - 1)
        assert ended[T - 1] == got.behind[row]
