"""The loop of LSTM and output layer in which every output is the next input: against PyTorch's autograd, a
NumPy loop and finite differences."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cases
import numpy as np
import pytest
import reference
import torch
from cases import assert_same_bits, central_differences
from tolerances import assert_close

from fusedlstm import _core

FEEDBACK_STREAM = 0x66656564  # decode/one_to_many.h
MODES = ["output", "token", "sampled", "soft"]


@dataclass
class Case:
    m: cases.Model
    weight: np.ndarray  # (O, H)
    bias: np.ndarray  # (O,)
    first: np.ndarray  # (N, I)
    targets: np.ndarray  # (N, T, O), or ids (N, T)
    h0: np.ndarray
    c0: np.ndarray
    lengths: np.ndarray | None
    embedding: np.ndarray | None
    options: dict

    def arguments(self):
        return self.m.packed, _core.linear_pack(self.weight, self.bias), self.first

    def run(self, **more):
        return _core.one_to_many(
            *self.arguments(), self.targets, self.h0, self.c0, self.lengths,
            embedding=self.embedding, **self.options, **more,
        )  # fmt: skip

    def train(self):
        """Loss, outputs, and every gradient by name."""
        flat = self.m.zeros()
        d_weight, d_bias = np.zeros_like(self.weight), np.zeros_like(self.bias)
        d_embedding = None if self.embedding is None else np.zeros_like(self.embedding)
        loss, y, d_first, dh0, dc0 = self.run(
            need_outputs=True, gradients=flat, d_weight=d_weight, d_bias=d_bias, d_embedding=d_embedding
        )
        gradients = {"first": d_first, "h0": dh0, "c0": dc0, "weight": d_weight, "bias": d_bias}
        if d_embedding is not None:
            gradients["embedding"] = d_embedding
        return loss, y, gradients | self.m.views(flat)

    def leaves(self):
        """The arrays that those gradients belong to."""
        found = {name: getattr(self, name) for name in ("first", "h0", "c0", "weight", "bias")}
        if self.embedding is not None:
            found["embedding"] = self.embedding
        return found | self.m.views(self.m.flat)

    def repacked(self):
        return replace(self, m=self.m.repack())


def case(mode, N=4, T=5, I=3, H=7, L=2, V=6, dtype="float32", ragged=True, p=0.0, dropout=0.0, seed=3):
    rng = np.random.default_rng([seed, N, T, I, H])
    m = cases.model(I, H, L, dtype=dtype, seed=seed)
    values = mode == "output"
    O = I if values else V

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    targets = normal(N, T, O) if values else rng.integers(0, V, (N, T)).astype(np.int32)
    lengths = rng.integers(0, T + 1, N).astype(np.int32) if ragged else None
    if ragged and N:
        lengths[-1] = T
        for n, length in enumerate(lengths):
            targets[n, length:] = np.nan if values else -7  # never read
    options = {"feedback": "token" if mode == "sampled" else mode, "teacher_probability": p, "seed": 11}
    if mode in ("sampled", "soft"):
        options["temperature"] = 0.7
    if mode == "sampled":
        options["sample"] = True
    if dropout:
        options["dropout"] = dropout
    return Case(
        m, normal(O, H), normal(O), normal(N, I), targets, normal(L, N, H), normal(L, N, H), lengths,
        None if values else normal(V, I), options,
    )  # fmt: skip


def draws(seed, row, step):
    """The uniform numbers for the coin and for the token."""
    words = reference.philox4x32((0, step, row, FEEDBACK_STREAM), (seed & 0xFFFFFFFF, seed >> 32))
    return words[0] / 2**32, ((words[1] >> 5) * 2**26 + (words[2] >> 6)) / 2**53


def torch_loop(c: Case):
    """The same in float64 by PyTorch: loss, outputs, gradients of the leaves."""
    leaves = {
        name: torch.tensor(value.astype(np.float64), requires_grad=True) for name, value in c.leaves().items()
    }
    N, T = c.targets.shape[:2]
    L, H = c.m.lstm.num_layers, c.m.lstm.hidden_size
    O = len(c.bias)
    o, lengths = c.options, np.full(N, T) if c.lengths is None else c.lengths
    values, tau = o["feedback"] == "output", o.get("temperature", 1.0)
    rate = o.get("dropout", 0.0)
    masks = cases.dropout_masks(c.m, N, T, rate, o["seed"], c.lengths) if rate else None
    y, losses = torch.zeros(N, T, O, dtype=torch.float64), []
    for n in range(N):
        x = leaves["first"][n]
        h, state = [leaves["h0"][k, n] for k in range(L)], [leaves["c0"][k, n] for k in range(L)]
        for t in range(lengths[n]):
            for k in range(L):
                a = (
                    leaves[f"weight_ih_l{k}"] @ x + leaves[f"bias_ih_l{k}"]
                    + leaves[f"weight_hh_l{k}"] @ h[k] + leaves[f"bias_hh_l{k}"]
                )  # fmt: skip
                i, f, g, out = a.reshape(4, H)
                state[k] = torch.sigmoid(f) * state[k] + torch.sigmoid(i) * torch.tanh(g)
                h[k] = x = torch.sigmoid(out) * torch.tanh(state[k])
                if rate and k + 1 < L:
                    x = x * torch.tensor(masks[k][n, t] / (1 - rate))
            z = leaves["weight"] @ x + leaves["bias"]
            y[n, t] = z.detach()
            if values:
                target = torch.tensor(c.targets[n, t].astype(np.float64))
                losses.append(((z - target) ** 2).mean())
            else:
                losses.append(-torch.log_softmax(z, 0)[c.targets[n, t]])
            coin, u = draws(o["seed"], n, t)
            if coin < o["teacher_probability"]:
                x = target if values else leaves["embedding"][c.targets[n, t]]
            elif values:
                x = z
            elif o["feedback"] == "soft":
                x = torch.softmax(z / tau, 0) @ leaves["embedding"]
            elif o.get("sample"):
                mass = torch.cumsum(torch.softmax(z.detach() / tau, 0), 0)
                x = leaves["embedding"][int(torch.searchsorted(mass, u * mass[-1], right=True))]
            else:
                x = leaves["embedding"][int(torch.argmax(z))]
    loss = torch.stack(losses).mean()
    loss.backward()
    gradients = {
        name: np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        for name, leaf in leaves.items()
    }
    return loss.item(), y.numpy(), gradients


def assert_equals_torch(c):
    loss, y, gradients = c.train()
    wanted_loss, wanted_y, wanted = torch_loop(c)
    dtype = c.m.lstm.dtype
    assert_close(np.array(loss), wanted_loss, "one-to-many forward", dtype)
    assert_close(y, wanted_y, "one-to-many forward")
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        assert_close(gradient, wanted[name], "one-to-many backward")
    without = c.run(need_outputs=True)
    assert without[0] == loss
    assert_same_bits(without[1], y)
    assert without[2:] == (None, None, None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("p", "ragged"), [(0.0, True), (0.5, True), (1.0, True), (0.5, False)])
def test_against_torch(isa, dtype, mode, p, ragged):
    assert_equals_torch(case(mode, dtype=dtype, p=p, ragged=ragged))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("L", [1, 3])
def test_stacks_and_dropout(dtype, mode, L):
    assert_equals_torch(case(mode, L=L, dtype=dtype, p=0.3, dropout=0.4))


@pytest.mark.parametrize("mode", MODES)
def test_sizes_of_whole_and_part_vectors(isa, dtype, mode):
    assert_equals_torch(case(mode, N=3, T=3, I=17, H=16, V=33, dtype=dtype, p=0.2))


def test_both_kinds_are_fed(dtype):
    """The mixture is one: with p = 0.5 outputs differ from those of either pure mode."""
    y = [case("output", dtype=dtype, ragged=False, p=p).run(need_outputs=True)[1] for p in (0.0, 0.5, 1.0)]
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(y[1], y[2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_finite_differences(isa, mode, p):
    c = case(mode, N=2, T=3, I=2, H=2, V=3, dtype="float64", p=p, dropout=0.3)
    gradients = c.train()[2]
    for name, array in c.leaves().items():
        wanted = central_differences(array, lambda: c.repacked().run()[0])
        assert_close(gradients[name], wanted, "finite differences")


def test_gradients_are_added(dtype):
    c = case("soft", dtype=dtype, p=0.5)
    once = c.train()[2]
    flat, d_weight, d_bias = c.m.zeros(), np.zeros_like(c.weight), np.zeros_like(c.bias)
    d_embedding = np.zeros_like(c.embedding)
    for _ in range(2):
        c.run(gradients=flat, d_weight=d_weight, d_bias=d_bias, d_embedding=d_embedding)
    twice = {"weight": d_weight, "bias": d_bias, "embedding": d_embedding} | c.m.views(flat)
    for name, gradient in twice.items():
        assert_close(gradient, 2 * once[name].astype(np.float64), "one-to-many backward")


def test_taught_is_the_sequence(isa, dtype):
    """With the teacher alone, the bits of the layer and of the linear layer over the whole sequence."""
    c = case("token", dtype=dtype, p=1.0)
    packed, output, first = c.arguments()
    T, I, H = c.targets.shape[1], c.first.shape[1], c.m.lstm.hidden_size
    x = np.zeros((len(first), T, I), dtype)
    x[:, 0], x[:, 1:] = first, c.embedding[np.maximum(c.targets[:, :-1], 0)]
    h = _core.lstm_forward(packed, x, c.h0, c.c0, c.lengths)[0]
    wanted = _core.linear_forward(output, h.reshape(-1, H)).reshape(len(first), T, -1)
    wanted[np.arange(T) >= c.lengths[:, None]] = 0
    assert_same_bits(c.run(need_outputs=True)[1], wanted)


# bits
# enough work for threads; cut by hidden units with few sequences, by sequences with many
SIZES = [{"N": 9, "I": 40, "H": 60, "T": 8, "V": 23}, {"N": 26, "I": 20, "H": 45, "T": 5, "V": 40}]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", SIZES, ids=["few", "many"])
def test_same_bits_on_every_level_and_thread_count(dtype, threads, mode, sizes):
    results = []
    before = _core.isa()
    for level in _core.isa_levels():
        for count in (1, 2, 5):
            threads(count)
            _core.set_isa(level)
            loss, y, gradients = case(
                mode, **sizes, L=2, dtype=dtype, ragged=False, p=0.4, dropout=0.2
            ).train()
            results.append((np.array(loss), y, *gradients.values()))
            _core.set_isa(before)
    for arrays in zip(*results, strict=True):
        assert_same_bits(*arrays)


@pytest.mark.parametrize("mode", ["output", "token", "soft"])
def test_rows_do_not_see_their_batch_mates(isa, dtype, mode):
    c = case(mode, N=14, I=5, H=37, V=23, dtype=dtype)
    whole = c.run(need_outputs=True)[1]
    for rows in ([0], [13], [3, 1, 12], list(range(13, -1, -1))):
        state = (np.ascontiguousarray(s[:, rows]) for s in (c.h0, c.c0))
        part = replace(
            c, first=c.first[rows], targets=c.targets[rows], lengths=c.lengths[rows],
            **dict(zip(("h0", "c0"), state, strict=True)),
        )  # fmt: skip
        assert_same_bits(part.run(need_outputs=True)[1], whole[rows])


# generation
def numpy_generate(c: Case, steps):
    x, h, state, y = c.first.astype(np.float64), c.h0, c.c0, []
    for _ in range(steps):
        out, h, state, _ = reference.lstm_forward(c.m.exact, x[:, None], h, state)
        x = out[:, 0] @ c.weight.astype(np.float64).T + c.bias
        y.append(x)
    return np.stack(y, axis=1), h, state


@pytest.mark.parametrize("N", [1, 2, 3, 20])
def test_generate_against_numpy(isa, dtype, N):
    c = case("output", N=N, I=3, H=18, dtype=dtype, ragged=False)
    c.weight *= 0.5  # a loop that contracts, so that rounding errors do not grow
    got = _core.one_to_many_generate(*c.arguments(), 8, c.h0, c.c0)
    for actual, expected in zip(got, numpy_generate(c, 8), strict=True):
        assert_close(actual, expected, "one-to-many forward")


@pytest.mark.parametrize("N", [1, 2, 7, 20])
def test_generate_is_the_loop_of_training(isa, dtype, threads, N):
    """Bit for bit, on any number of threads, in one call or continued from the states."""
    c = case("output", N=N, T=9, I=5, H=21, dtype=dtype, ragged=False)
    loop = c.run(need_outputs=True)[1]
    for count in (1, 2, 5):
        threads(count)
        y, h, state = _core.one_to_many_generate(*c.arguments(), 9, c.h0, c.c0)
        assert_same_bits(y, loop)
    packed, output, first = c.arguments()
    start, h_4, c_4 = _core.one_to_many_generate(packed, output, first, 4, c.h0, c.c0)
    end, h_9, c_9 = _core.one_to_many_generate(packed, output, start[:, -1].copy(), 5, h_4, c_4)
    assert_same_bits(np.concatenate([start, end], axis=1), y)
    assert_same_bits(h_9, h)
    assert_same_bits(c_9, state)


@pytest.mark.parametrize(
    "options",
    [
        {"greedy": True},
        {"temperature": 1.5, "top_k": 9, "repetition_penalty": 1.7, "stop_tokens": [3, 8]},
        {"temperature": 1.2, "no_repeat_ngram_size": 2, "num_sequences": 3},
    ],
    ids=["greedy", "sampled", "several"],
)
def test_tokens_are_those_of_a_language_model(isa, dtype, threads, options):
    """A first input that is a token's row of the embedding is a prompt of one token."""
    c = case("token", N=5, I=5, H=21, V=20, dtype=dtype, ragged=False)
    packed, output, _ = c.arguments()
    ids = np.array([3, 0, 19, 3, 7], np.int32)
    wanted_options = _core.SamplingOptions(max_new_tokens=12, **options)
    rows = {"h0": c.h0, "c0": c.c0, "seeds": np.arange(5 * options.get("num_sequences", 1), dtype=np.uint64)}
    language_model = _core.LanguageModelDecoder(packed, c.embedding, output)
    wanted = language_model.generate(ids, np.ones(5, np.int32), wanted_options, **rows)
    decoder = _core.OneToManyDecoder(packed, c.embedding, output)
    for count in (1, 3):
        threads(count)
        got = decoder.generate(c.embedding[ids], wanted_options, inputs=ids, **rows)
        for name in ("tokens", "lengths", "log_probabilities", "states"):
            assert_same_bits(getattr(got, name), getattr(wanted, name))
    unseen = decoder.generate(c.embedding[ids], wanted_options, **rows)
    if "greedy" in options:
        assert_same_bits(unseen.tokens, wanted.tokens)
    elif "repetition_penalty" in options:
        assert not np.array_equal(unseen.tokens, wanted.tokens)  # the input is not penalised


def test_errors_of_token_generation():
    c = case("token", ragged=False)
    packed, output, first = c.arguments()
    options, seeds = _core.SamplingOptions(max_new_tokens=3), np.arange(4, dtype=np.uint64)
    with pytest.raises(ValueError, match=r"OneToManyDecoder: embedding must be float32 \(V=6, I=3\)"):
        _core.OneToManyDecoder(packed, c.embedding[:5].copy(), output)
    decoder = _core.OneToManyDecoder(packed, c.embedding, output)
    for change, message in [
        ({"first": first[:, :2].copy()}, r"first must be float32 \(N, I=3\)"),
        ({"seeds": seeds[:3]}, "seeds must be uint64"),
        ({"h0": c.h0[:1]}, "h0 must be float32"),
        ({"inputs": np.full(4, 6, np.int32)}, "inputs must lie in 0 .. 5, got 6"),
    ]:
        arguments = {"first": first, "options": options, "seeds": seeds, **change}
        with pytest.raises(ValueError, match=f"OneToManyDecoder.generate: {message}"):
            decoder.generate(**arguments)


def test_zero_states_are_the_default(dtype):
    c = case("output", dtype=dtype)
    zero = replace(c, h0=np.zeros_like(c.h0), c0=np.zeros_like(c.c0))
    none = replace(c, h0=None, c0=None)
    assert_same_bits(none.run(need_outputs=True)[1], zero.run(need_outputs=True)[1])
    one, other = (_core.one_to_many_generate(*c.arguments(), 3, *s) for s in ((), (zero.h0, zero.c0)))
    assert_same_bits(one[0], other[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("N", "T"), [(0, 3), (2, 0), (3, 2)])
def test_nothing_to_learn(isa, dtype, mode, N, T):
    c = case(mode, N=N, T=T, dtype=dtype, ragged=False)
    c.lengths = np.zeros(N, np.int32)
    loss, y, gradients = c.train()
    assert loss == 0
    assert y.shape == (N, T, len(c.bias))
    assert not y.any()
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feedback": "echo"}, "feedback must be 'output', 'token' or 'soft', got 'echo'"),
        ({"teacher_probability": 1.5}, r"teacher_probability must lie in \[0, 1\]"),
        ({"teacher_probability": np.nan}, r"teacher_probability must lie in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": np.inf}, "temperature must be positive"),
        ({"temperature": 1e300}, "temperature must be positive"),  # infinite in float32
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"feedback": "soft", "sample": True}, "sample needs feedback 'token'"),
        ({"embedding": None}, "embedding must be float32"),
        ({"embedding": np.zeros((5, 3), np.float32)}, "embedding must be float32"),
        ({"targets": np.zeros((4, 5), np.int64)}, "targets must be int32"),
        ({"targets": np.full((4, 5), 6, np.int32)}, r"targets must lie in 0 .. 5, got 6 at \(0, 0\)"),
        ({"lengths": np.full(4, 6, np.int32)}, "lengths must lie in 0 .. 5"),
        ({"first": np.zeros((4, 2), np.float32)}, "first must be float32"),
        ({"h0": np.zeros((2, 3, 7), np.float32)}, "h0 must be float32"),
        ({"weight": np.zeros((6, 8), np.float32)}, "output must take H=7 inputs, got 8"),
        ({"weight": np.zeros((6, 7)), "bias": np.zeros(6)}, "output must be float32 as packed, got float64"),
    ],
    ids=str,
)
def test_errors_of_tokens(change, message):
    c = case("token", ragged=False)
    for name, value in change.items():
        if hasattr(c, name):
            setattr(c, name, value)
        else:
            c.options[name] = value
    with pytest.raises((ValueError, TypeError), match=f"one_to_many: .*{message}"):
        c.run()


def test_errors_of_values():
    c = case("output", ragged=False)
    with pytest.raises(ValueError, match="embedding must be None with feedback 'output'"):
        replace(c, embedding=np.zeros((3, 3), np.float32)).run()
    wide = replace(c, weight=np.zeros((4, 7), np.float32), bias=np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"output must have I=3 outputs.*got 4"):
        wide.run()
    with pytest.raises(ValueError, match=r"one_to_many_generate: output must have I=3 outputs.*got 4"):
        _core.one_to_many_generate(*wide.arguments(), 3)
    with pytest.raises(ValueError, match=r"steps must lie in 0 .. 2\^30, got -1"):
        _core.one_to_many_generate(*c.arguments(), -1)
    with pytest.raises(ValueError, match="d_weight, d_bias and d_embedding need gradients"):
        c.run(d_weight=np.zeros_like(c.weight))
    with pytest.raises(TypeError, match="d_weight must be float32"):
        c.run(gradients=c.m.zeros())
    inference = replace(c, m=replace(c.m, packed=c.m.lstm.pack(c.m.flat, backward=False)))
    with pytest.raises(ValueError, match="packed must be packed with backward=True"):
        inference.run(gradients=c.m.zeros(), d_weight=np.zeros_like(c.weight))
    both = cases.model(3, 7, D=2)
    with pytest.raises(ValueError, match="packed must have one direction"):
        replace(c, m=both).run()
    low = cases.model(3, 7, compute_dtype="bfloat16")
    with pytest.raises(ValueError, match="packed and output must be packed for the type of their parameters"):
        replace(c, m=low).run()
    output = _core.linear_pack(c.weight, c.bias, compute_dtype="bfloat16")
    with pytest.raises(ValueError, match="packed and output must be packed for the type of their parameters"):
        _core.one_to_many(c.m.packed, output, c.first, c.targets, feedback="output")
