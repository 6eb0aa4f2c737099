"""The generation loop against a NumPy loop over the public operations: same tokens and log-probabilities."""

from dataclasses import dataclass

import cases
import numpy as np
import pytest
import reference
from cases import assert_same_bits
from tolerances import assert_close

from fusedlstm import _core


@dataclass
class Generator:
    """A small language model: layers, embedding (V, E), output layer."""

    m: cases.Model
    embedding: np.ndarray
    output: _core.PackedLinear

    @property
    def decoder(self):
        return _core.LanguageModelDecoder(self.m.packed, self.embedding, self.output)

    def state(self, tokens, h=None, c=None):
        """Logits after the last of `tokens` and the state there, by the public operations."""
        y, h, c = _core.lstm_forward(
            self.m.packed, np.array([list(tokens)], dtype=np.int32), h, c, embedding=self.embedding
        )
        return _core.linear_forward(self.output, y[:, -1].copy())[0], h, c


def language_model(V=13, E=5, H=18, L=2, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    m = cases.model(E, H, L, dtype=dtype, seed=seed)
    weight, bias = (3 * rng.standard_normal(shape).astype(dtype) for shape in ((V, H), (V,)))
    return Generator(m, rng.standard_normal((V, E)).astype(dtype), _core.linear_pack(weight, bias))


def fixed_logits(logits, dtype="float32"):
    """A decoder whose logits are always the given ones: output weight zero, bias = logits."""
    V = len(logits)
    m = cases.model(1, 1, dtype=dtype)
    output = _core.linear_pack(np.zeros((V, 1), dtype), np.asarray(logits, dtype))
    return _core.LanguageModelDecoder(m.packed, np.zeros((V, 1), dtype), output)


def joined(prompts):
    return np.concatenate([np.array(p, np.int32) for p in prompts]), np.array(
        [len(p) for p in prompts], np.int32
    )


def generate(decoder, prompts, prompt_lengths, *, seeds, h0=None, c0=None, on_tokens=None, **options):
    """tokens, lengths, log-probabilities, h and c (L, N, H)."""
    options.setdefault("max_new_tokens", 12)
    made = decoder.generate(
        prompts,
        prompt_lengths,
        _core.SamplingOptions(**options),
        seeds=seeds,
        h0=h0,
        c0=c0,
        on_tokens=on_tokens and (lambda tokens, ended: on_tokens(tokens)),
    )
    h, c = np.split(made.states, 2, axis=1)
    return made.tokens, made.lengths, made.log_probabilities, h, c


def layers_first(states, L):
    """(N, L H) -> (L, N, H)."""
    return np.ascontiguousarray(states.reshape(len(states), L, -1).swapaxes(0, 1))


def seeds(N, start=(7 << 32) + 100):
    return np.arange(start, start + N, dtype=np.uint64)


PROMPTS = [[1], [3, 4, 0, 2, 2], [7, 7], [12, 0, 5], [1, 2, 3, 4, 5, 6, 7, 8]]


def uniform(seed, index):
    """The number in [0, 1) that draws new token `index` of the sequence with `seed`: 53 bits of one block."""
    counter, key = (
        (0, index, 0, 0x73616D70),
        (int(seed) & 0xFFFFFFFF, int(seed) >> 32),
    )  # "samp" is the stream
    words = reference.philox4x32(counter, key)
    return ((words[0] >> 5) * 2**26 + (words[1] >> 6)) * 2.0**-53


def draw(logits, u, temperature, top_k, top_p):
    """The kept token, in order of id, at which the running mass first exceeds u."""
    kept = reference.kept_tokens(logits.astype(np.float64), temperature, top_k, top_p)
    scaled = np.where(kept, logits.astype(np.float64) / temperature, -np.inf)
    cumulative = np.cumsum(np.exp(reference.log_softmax(scaled)))
    return int(np.argmax(cumulative > u * cumulative[-1]))


def specification(g, prompts, seeds, max_new_tokens, choose, stop_token=-1):
    """tokens, lengths and logprobs as `generate` returns them, one row and one token at a time."""
    N = len(prompts)
    tokens, logprobs = np.full((N, max_new_tokens), -1, np.int32), np.zeros((N, max_new_tokens))
    lengths = np.zeros(N, np.int32)
    for n, prompt in enumerate(prompts):
        logits, h, c = g.state(prompt)
        for index in range(max_new_tokens):
            token = choose(logits, seeds[n], index)
            tokens[n, index] = token
            logprobs[n, index] = reference.log_softmax(logits.astype(np.float64))[token]
            lengths[n] = index + 1
            if token == stop_token:
                break
            logits, h, c = g.state([token], h, c)
    return tokens, lengths, logprobs


def assert_generates(g, prompts, choose, max_new_tokens=12, **options):
    ids, prompt_lengths = joined(prompts)
    stop_token = options.get("stop_tokens", [-1])[0]
    tokens, lengths, logprobs = specification(
        g, prompts, seeds(len(prompts)), max_new_tokens, choose, stop_token
    )
    got = generate(
        g.decoder, ids, prompt_lengths, max_new_tokens=max_new_tokens, seeds=seeds(len(prompts)), **options
    )
    np.testing.assert_array_equal(got[0], tokens)
    np.testing.assert_array_equal(got[1], lengths)
    assert got[0].dtype == got[1].dtype == np.int32
    valid = tokens >= 0
    assert_close(got[2][valid], logprobs[valid], "log probabilities")
    return got


@pytest.mark.parametrize("L", [1, 2])
def test_greedy(isa, dtype, L):
    g = language_model(L=L, dtype=dtype)
    assert g.decoder.vocabulary_size == 13
    assert g.decoder.nbytes > 0
    assert_generates(g, PROMPTS, lambda logits, seed, index: int(np.argmax(logits)), greedy=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 4},
        {"top_k": 100},
        {"top_p": 0.6},
        {"top_p": 0.05},
        {"temperature": 1.3, "top_k": 6, "top_p": 0.8},
    ],
    ids=str,
)
def test_sampling(isa, dtype, options):
    g = language_model(dtype=dtype)

    def choose(logits, seed, index):
        whole = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
        return draw(logits, uniform(seed, index), **whole)

    assert_generates(g, PROMPTS, choose, **options)


def test_one_prompt_and_one_token(isa, dtype):
    g = language_model(dtype=dtype)
    assert_generates(
        g, [[5]], lambda logits, seed, index: int(np.argmax(logits)), max_new_tokens=1, greedy=True
    )


def test_stop_token(isa, dtype):
    """A row ends with the stop token, which is included; the others go on."""
    g = language_model(dtype=dtype)
    free = assert_generates(
        g, PROMPTS, lambda logits, seed, index: draw(logits, uniform(seed, index), 1, 0, 1)
    )
    stop_token = int(free[0][1, 4])
    got = assert_generates(
        g,
        PROMPTS,
        lambda logits, seed, index: draw(logits, uniform(seed, index), 1, 0, 1),
        stop_tokens=[stop_token],
    )
    assert (got[1] < 12).any()
    for n in range(len(PROMPTS)):
        np.testing.assert_array_equal(got[0][n, : got[1][n]], free[0][n, : got[1][n]])
        assert (got[0][n, got[1][n] :] == -1).all()
        assert stop_token not in got[0][n, : got[1][n] - 1]


def test_final_state_continues(isa, dtype):
    """Generation goes on from the returned state and the last token with the same bits."""
    g = language_model(dtype=dtype)
    ids, prompt_lengths = joined(PROMPTS)
    tokens, _, _, h_n, c_n = generate(
        g.decoder, ids, prompt_lengths, max_new_tokens=6, seeds=seeds(5), greedy=True
    )
    h_n, c_n = layers_first(h_n, 2), layers_first(c_n, 2)
    for n, prompt in enumerate(PROMPTS):
        _, h, c = g.state([*prompt, *tokens[n, :-1]])
        assert_same_bits(h[:, 0], h_n[:, n])
        assert_same_bits(c[:, 0], c_n[:, n])
    more = generate(g.decoder, ids, prompt_lengths, max_new_tokens=11, seeds=seeds(5), greedy=True)[0]
    last = tokens[:, -1].copy()
    on = generate(
        g.decoder, last, np.ones(5, np.int32), max_new_tokens=5, seeds=seeds(5), greedy=True, h0=h_n, c0=c_n
    )[0]
    np.testing.assert_array_equal(on, more[:, 6:])


def test_same_bits_on_every_level_and_thread_count(dtype, threads):
    results = []
    before = _core.isa()
    for level in _core.isa_levels():
        for count in (1, 2, 5):
            threads(count)
            _core.set_isa(level)
            g = language_model(V=70, E=19, H=37, dtype=dtype)
            ids, prompt_lengths = joined(PROMPTS)
            results.append(
                generate(
                    g.decoder,
                    ids,
                    prompt_lengths,
                    max_new_tokens=20,
                    seeds=seeds(5),
                    temperature=2.0,
                    top_p=0.95,
                )
            )
            _core.set_isa(before)
    for arrays in zip(*results, strict=True):
        assert_same_bits(*map(np.ascontiguousarray, arrays))


def test_rows_do_not_see_their_batch_mates(isa, dtype):
    g = language_model(V=70, E=19, H=37, dtype=dtype)
    prompts = [list(np.random.default_rng(n).integers(0, 70, 1 + n % 9)) for n in range(23)]
    options = {"max_new_tokens": 10, "temperature": 1.5, "top_k": 30, "stop_tokens": [4]}
    ids, prompt_lengths = joined(prompts)
    whole = generate(g.decoder, ids, prompt_lengths, seeds=seeds(23), **options)
    for rows in ([0], [22], [3, 4, 5], list(range(22, -1, -1))):
        ids, prompt_lengths = joined([prompts[n] for n in rows])
        part = generate(g.decoder, ids, prompt_lengths, seeds=seeds(23)[rows], **options)
        for one, other in zip(whole, part, strict=True):
            assert_same_bits(np.ascontiguousarray(one[rows]), np.ascontiguousarray(other))


# what may be drawn
def drawn(logits, N=3000, **options):
    """How often each token is the first new token of N sequences."""
    decoder = fixed_logits(logits)
    ids, ones = np.zeros(N, np.int32), np.ones(N, np.int32)
    tokens = generate(decoder, ids, ones, max_new_tokens=1, seeds=seeds(N), **options)[0]
    return np.bincount(tokens[:, 0], minlength=len(logits))


LOGITS = np.log([0.30, 0.05, 0.25, 0.10, 0.18, 0.12])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 1}, [0]),
        ({"top_k": 3}, [0, 2, 4]),
        ({"top_k": 6}, [0, 1, 2, 3, 4, 5]),
        ({"top_p": 1e-6}, [0]),
        ({"top_p": 0.54}, [0, 2]),
        ({"top_p": 0.56}, [0, 2, 4]),
        ({"top_p": 0.94}, [0, 2, 3, 4, 5]),
        ({"top_p": 0.96}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 3, "top_p": 0.70}, [0, 2]),  # 0.55 / 0.73: the mass is that of what top_k kept
        ({"top_k": 3, "top_p": 0.80}, [0, 2, 4]),
        ({"temperature": 0.5, "top_p": 0.70}, [0, 2]),  # of the squares; without: [0, 2, 4]
        ({"temperature": 4.0, "top_p": 0.70}, [0, 2, 4, 5]),  # of the fourth roots
        ({"greedy": True}, [0]),
    ],
    ids=str,
)
def test_kept_sets(isa, options, kept):
    """Exactly the kept tokens are drawn, each as often as its renormalised probability says (5 sigma)."""
    filters = {key: value for key, value in options.items() if key != "greedy"}
    if "greedy" not in options:
        assert list(np.flatnonzero(reference.kept_tokens(LOGITS, **filters))) == kept
    counts = drawn(LOGITS, **options)
    assert list(np.flatnonzero(counts)) == kept
    p = np.zeros(6)
    p[kept] = np.exp(reference.log_softmax(LOGITS[kept] / options.get("temperature", 1.0)))
    assert (np.abs(counts - counts.sum() * p) <= 5 * np.sqrt(counts.sum() * p * (1 - p)) + 1e-9).all()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.5}, [0, 1]),  # exactly half the mass is enough
        ({"top_p": 0.50001}, [0, 1, 2]),
        ({"top_p": 0.25}, [0]),
        ({"greedy": True}, [0]),
    ],
    ids=str,
)
def test_equal_logits_lower_id_first(isa, options, kept):
    assert list(np.flatnonzero(drawn(np.zeros(4), N=300, **options))) == kept


def test_extreme_logits(isa):
    """Logits of -inf are never drawn; huge ones overflow nothing."""
    assert list(np.flatnonzero(drawn(np.array([-np.inf, 1.0, 1.0]), N=200))) == [1, 2]
    assert list(np.flatnonzero(drawn(np.array([3e38, 0.0, -3e38]), N=200, temperature=0.01))) == [0]


def test_draws_of_a_sequence_are_independent(isa):
    """Neighbouring tokens, seeds and steps are unrelated: pairs are as frequent as chance has it."""
    decoder = fixed_logits(np.zeros(2))
    N, T = 300, 200
    tokens = generate(decoder, np.zeros(N, np.int32), np.ones(N, np.int32), max_new_tokens=T, seeds=seeds(N))[
        0
    ]
    for one, other in (
        (tokens[:, 1:], tokens[:, :-1]),
        (tokens[1:], tokens[:-1]),
        (tokens[1:, :-1], tokens[:-1, 1:]),
    ):
        assert abs((one == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(one.size)


# callbacks
def test_callback_sees_every_step(isa):
    g = language_model()
    ids, prompt_lengths = joined(PROMPTS)
    seen = []
    options = {"max_new_tokens": 12, "seeds": seeds(5)}
    free = generate(g.decoder, ids, prompt_lengths, **options)
    options["stop_tokens"] = [int(free[0][1, 4])]
    tokens, lengths, *_ = generate(
        g.decoder, ids, prompt_lengths, on_tokens=lambda step: seen.append(step.copy()), **options
    )
    assert len(seen) == lengths.max()
    assert all(step.dtype == np.int32 and step.shape == (5,) for step in seen)
    np.testing.assert_array_equal(np.stack(seen, axis=1), tokens[:, : len(seen)])
    without = generate(g.decoder, ids, prompt_lengths, **options)
    np.testing.assert_array_equal(tokens, without[0])


def test_exception_in_callback_stops_and_propagates(isa):
    g = language_model()
    calls = []

    def on_tokens(step):
        calls.append(step.copy())
        if len(calls) == 3:
            raise KeyError("enough")

    ids, prompt_lengths = joined(PROMPTS)
    with pytest.raises(KeyError, match="enough"):
        generate(g.decoder, ids, prompt_lengths, max_new_tokens=50, seeds=seeds(5), on_tokens=on_tokens)
    assert len(calls) == 3
    again = generate(g.decoder, ids, prompt_lengths, max_new_tokens=3, seeds=seeds(5))[0]
    np.testing.assert_array_equal(np.stack(calls, axis=1), again)


def test_callback_may_generate(isa):
    """A callback runs with the interpreter's lock held and may call the library, even the same decoder."""
    decoder = language_model().decoder
    inner = []

    def on_tokens(step):
        inner.append(generate(decoder, *joined([[1]]), max_new_tokens=2, seeds=seeds(1), greedy=True)[0])

    outer = generate(
        decoder, *joined([[1]]), max_new_tokens=2, seeds=seeds(1), greedy=True, on_tokens=on_tokens
    )[0]
    assert len(inner) == 2
    np.testing.assert_array_equal(inner[0], outer)


def test_nothing_to_generate(isa):
    g = language_model()
    ids, prompt_lengths = joined(PROMPTS)
    tokens, lengths, logprobs, _, _ = generate(
        g.decoder, ids, prompt_lengths, max_new_tokens=0, seeds=seeds(5)
    )
    assert tokens.shape == logprobs.shape == (5, 0)
    assert not lengths.any()
    nobody = generate(g.decoder, ids[:0], prompt_lengths[:0], max_new_tokens=3, seeds=seeds(0))
    assert nobody[0].shape == (0, 3)
