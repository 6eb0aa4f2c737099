"""nn.AttentionDecoder against a plain PyTorch reference, finite differences and itself cut otherwise."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest
import reference_beam
import reference_sampling
import torch
from tolerances import assert_close

import fusedlstm
from fusedlstm import _core, nn

KINDS = [
    {"attention": None},
    {"attention": "dot"},
    {"attention": "general", "output_size": 7},
    {"attention": "general", "input_feeding": False},
    {"attention": "concat", "attention_size": 5},
    {"attention": "concat", "coverage": True, "input_feeding": False, "output_size": 3},
    {"attention": "concat", "coverage": True},
    {"attention": "bahdanau", "attention_size": 9},
    {"attention": "bahdanau", "coverage": True, "output_size": 20},
]
NAMES = ["-".join(str(value) for value in kind.values()) for kind in KINDS]
E, H = 3, 18
LENGTHS, MEMORY_LENGTHS = [6, 0, 4, 1], [5, 3, 1, 19]


def decoder_of(kind, L=1, dtype="float64", hidden_size=H, seed=3, **more):
    memory_size = 0 if kind["attention"] is None else hidden_size if kind["attention"] == "dot" else 4
    return nn.AttentionDecoder(
        E, hidden_size, memory_size, L, dtype=dtype, init=("uniform", 0.6), seed=seed, **kind, **more
    )


class Inputs:
    def __init__(self, decoder, N=4, T=6, longest=19, lengths=LENGTHS, memory_lengths=MEMORY_LENGTHS):
        rng = np.random.default_rng([N, T, longest])

        def draw(*shape):
            return rng.standard_normal(shape).astype(decoder.dtype)

        self.x = draw(N, T, E)
        self.memory = draw(N, longest, decoder.memory_size) if decoder.attention else None
        self.state = (
            draw(decoder.num_layers, N, decoder.hidden_size),
            draw(decoder.num_layers, N, decoder.hidden_size),
        )
        self.dy = draw(N, T, decoder.output_size)
        self.d_state = tuple(draw(*part.shape) for part in self.state)
        self.lengths = lengths
        self.memory_lengths = memory_lengths if decoder.attention else None

    @property
    def arguments(self):
        return {"memory_lengths": self.memory_lengths, "lengths": self.lengths, "state": self.state}


def attend(decoder, p, m, coverage, query):
    """Weights over the rows of m, and the context."""
    key = m if decoder.attention == "dot" else m @ p["weight_memory"].T
    if decoder.attention in ("concat", "bahdanau"):
        u = key + p["weight_query"] @ query
        if decoder.coverage:
            u = u + coverage[:, None] * p["weight_coverage"]
        score = torch.tanh(u) @ p["v"]
    else:
        score = key @ query
    weights = torch.softmax(score, 0)
    return weights, weights @ m


def reference(decoder, inputs, embedding=None, tokens=None):
    """Outputs, weights, final states and the gradients of everything by name, written down once more."""
    p = {
        name: torch.tensor(view.astype(np.float64), requires_grad=True)
        for name, view in decoder.named_parameters().items()
    }
    x = torch.tensor(inputs.x.astype(np.float64), requires_grad=True)
    h0, c0 = (torch.tensor(part.astype(np.float64), requires_grad=True) for part in inputs.state)
    memory = None
    if decoder.attention:
        memory = torch.tensor(inputs.memory.astype(np.float64), requires_grad=True)
    N, T, _ = inputs.x.shape
    outputs, weights_of, h_n, c_n = [], [], [], []
    for n in range(N):
        h, c = list(h0[:, n]), list(c0[:, n])
        if memory is not None:
            m = memory[n, : inputs.memory_lengths[n]]
            coverage = torch.zeros(len(m), dtype=torch.float64)
        a = torch.zeros(decoder.output_size, dtype=torch.float64)
        rows, rows_of_weights = [], []

        for t in range(inputs.lengths[n] if inputs.lengths is not None else T):
            below = x[n, t]
            if tokens is not None and tokens[n, t] >= 0:
                below = embedding[tokens[n, t]]
            if decoder.attention == "bahdanau":
                weights, context = attend(decoder, p, m, coverage, h[-1])
                below = torch.cat([below, context])
            elif decoder.input_feeding:
                below = torch.cat([below, a])
            for k in range(decoder.num_layers):
                gates = p[f"lstm.weight_ih_l{k}"] @ below + p[f"lstm.bias_ih_l{k}"]
                gates = gates + p[f"lstm.weight_hh_l{k}"] @ h[k] + p[f"lstm.bias_hh_l{k}"]
                i, f, g, o = gates.reshape(4, -1)
                c[k] = torch.sigmoid(f) * c[k] + torch.sigmoid(i) * torch.tanh(g)
                h[k] = torch.sigmoid(o) * torch.tanh(c[k])
                below = h[k]
            if decoder.attention in ("dot", "general", "concat"):
                weights, context = attend(decoder, p, m, coverage, h[-1])
            a = h[-1]
            if decoder.attention:
                coverage = coverage + weights
                rows_of_weights.append(weights.detach())
                a = torch.tanh(p["weight_c"] @ torch.cat([context, h[-1]]))
            rows.append(a)
        none = torch.zeros(T - len(rows), decoder.output_size, dtype=torch.float64)
        outputs.append(torch.cat([torch.stack(rows), none]) if rows else none)
        h_n.append(torch.stack(h))
        c_n.append(torch.stack(c))
        weights_of.append(rows_of_weights)
    y, h_n, c_n = torch.stack(outputs), torch.stack(h_n, 1), torch.stack(c_n, 1)
    loss = (y * torch.tensor(inputs.dy)).sum()
    for final, gradient in zip((h_n, c_n), inputs.d_state, strict=True):
        loss = loss + (final * torch.tensor(gradient)).sum()
    loss.backward()
    gradients = {name: value.grad if value.grad is not None else 0 * value for name, value in p.items()}
    gradients |= {"x": x.grad if x.grad is not None else 0 * x, "h0": h0.grad, "c0": c0.grad}
    if memory is not None:
        gradients["memory"] = memory.grad
    weights = None
    if memory is not None:
        weights = np.zeros((N, T, inputs.memory.shape[1]))
        for n, per_step in enumerate(weights_of):
            for t, row in enumerate(per_step):
                weights[n, t, : len(row)] = row
    named = {name: value.detach().numpy() for name, value in gradients.items()}
    return y.detach().numpy(), weights, (h_n.detach().numpy(), c_n.detach().numpy()), named


def run(decoder, inputs, **more):
    """The same from the decoder; gradients by name."""
    decoder.zero_grad()
    y, tape = decoder.forward(inputs.x, inputs.memory, **inputs.arguments, **more)
    weights = tape.weights
    dx, d_memory, (dh0, dc0) = decoder.backward(tape, inputs.dy, d_state=inputs.d_state)
    gradients = {name: view.copy() for name, view in decoder.named_gradients().items()}
    gradients |= {"x": dx, "h0": dh0, "c0": dc0}
    if d_memory is not None:
        gradients["memory"] = d_memory
    return y, weights, tape, gradients


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("L", [1, 2])
def test_against_torch(kind, L, dtype):
    decoder = decoder_of(kind, L, dtype)
    inputs = Inputs(decoder)
    y, weights, tape, gradients = run(decoder, inputs)
    wanted_y, wanted_weights, wanted_state, wanted = reference(decoder, inputs)
    assert_close(y, wanted_y, "attention forward")
    assert (y[0, 6:] == 0).all()
    assert (y[1] == 0).all()
    if kind["attention"]:
        assert_close(weights, wanted_weights, "attention forward")
    else:
        assert weights is None
    for got, final in zip(tape.state, wanted_state, strict=True):
        assert_close(got, final, "attention forward")
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        assert_close(gradient, wanted[name], "attention backward")


@pytest.mark.parametrize("kind", KINDS[1:], ids=NAMES[1:])
def test_finite_differences(kind):
    decoder = decoder_of(kind, 1, hidden_size=3)
    inputs = Inputs(decoder, N=2, T=3, longest=3, lengths=[3, 2], memory_lengths=[2, 3])
    _, _, _, gradients = run(decoder, inputs)

    def loss():
        decoder.mark_updated()
        y, tape = decoder.forward(inputs.x, inputs.memory, **inputs.arguments)
        parts = zip((y, *tape.state), (inputs.dy, *inputs.d_state), strict=True)
        return sum(float((value * gradient).sum()) for value, gradient in parts)

    arrays = decoder.named_parameters() | {"x": inputs.x, "memory": inputs.memory}
    arrays |= {"h0": inputs.state[0], "c0": inputs.state[1]}
    for name, array in arrays.items():
        index = np.unravel_index(np.arange(array.size)[:: max(1, array.size // 12)], array.shape)
        for place in zip(*index, strict=True):
            here = array[place]
            array[place] = here + 1e-5
            above = loss()
            array[place] = here - 1e-5
            below = loss()
            array[place] = here
            assert_close(gradients[name][place], (above - below) / 2e-5, "finite differences")
    decoder.mark_updated()


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_one_order_of_sums(kind, dtype):
    """The same bits for any batch, number of threads and instruction set, and nothing from the padding."""
    decoder = decoder_of(kind, 2, dtype, hidden_size=37, dropout=0.3)
    inputs = Inputs(decoder)
    before = fusedlstm.num_threads(), _core.isa()
    whole = run(decoder, inputs, seed=7)
    try:
        for threads, level in [(1, before[1]), *((2, name) for name in _core.isa_levels())]:
            fusedlstm.set_num_threads(threads)
            _core.set_isa(level)
            decoder.mark_updated()
            inputs.x[2, 4:] = 1e30
            if inputs.memory is not None:
                inputs.memory[1, 3:] = 1e30
            again = run(decoder, inputs, seed=7)
            assert np.array_equal(whole[0], again[0])
            for name, gradient in whole[3].items():
                assert np.array_equal(gradient, again[3][name]), (threads, level, name)
    finally:
        fusedlstm.set_num_threads(before[0])
        _core.set_isa(before[1])
        decoder.mark_updated()
    decoder.dropout = 0.0
    batched = run(decoder, inputs)
    for n in range(4):
        one = Inputs(decoder, N=1, lengths=[LENGTHS[n]], memory_lengths=[MEMORY_LENGTHS[n]])
        one.x, one.dy = inputs.x[n : n + 1], inputs.dy[n : n + 1]
        if one.memory is not None:
            one.memory = inputs.memory[n : n + 1]
        one.state, one.d_state = (
            tuple(part[:, n : n + 1].copy() for part in parts) for parts in (inputs.state, inputs.d_state)
        )
        single = run(decoder, one)
        assert np.array_equal(single[0][0], batched[0][n])
        for name in {"x", "memory"} & single[3].keys():
            assert np.array_equal(single[3][name][0], batched[3][name][n])
        for name in ("h0", "c0"):
            assert np.array_equal(single[3][name][:, 0], batched[3][name][:, n])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize(("N", "hidden_size"), [(7, 64), (30, 37)])  # cut by hidden units, by sequences
def test_threads(kind, N, hidden_size):
    decoder = decoder_of(kind, 2, "float32", hidden_size=hidden_size, dropout=0.2)
    lengths = [6 - n % 3 for n in range(N)]
    inputs = Inputs(decoder, N=N, lengths=lengths, memory_lengths=[19 - n % 7 for n in range(N)])
    table, output = nn.Embedding(11, E), nn.Linear(decoder.output_size, 11)
    scheduled = nn.ScheduledSampling(table, output, np.full(6, 0.5), sample=True)
    before = fusedlstm.num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            fusedlstm.set_num_threads(threads)
            decoder.mark_updated()
            results.append([run(decoder, inputs, seed=5), run(decoder, inputs, seed=5, scheduled=scheduled)])
    finally:
        fusedlstm.set_num_threads(before)
    for result in results[1:]:
        for got, wanted in zip(result, results[0], strict=True):
            assert np.array_equal(got[0], wanted[0])
            for name, gradient in wanted[3].items():
                assert np.array_equal(gradient, got[3][name]), name


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_generation_steps_like_training(kind, dtype):
    """Given the same tokens, rows of a generation give the bits of forward."""
    decoder = decoder_of(kind, 2, dtype)
    table, output = nn.Embedding(11, E, dtype=dtype), nn.Linear(decoder.output_size, 11, dtype=dtype)
    inputs = Inputs(decoder, lengths=None)
    tokens = np.random.default_rng(0).integers(0, 11, (4, 6)).astype(np.int32)
    y, tape = decoder.forward(table(tokens), inputs.memory, **inputs.arguments)
    native = decoder.decoder(table, output)
    lengths = None if inputs.memory is None else np.array(inputs.memory_lengths, np.int32)
    h0, c0 = inputs.state
    logits, weights = native.logits(tokens, inputs.memory, lengths, h0=h0, c0=c0)
    assert np.array_equal(logits, output(y))
    if kind["attention"]:
        assert np.array_equal(weights, tape.weights)
    else:
        assert weights is None
    for n in range(4):  # a single row takes another way through the layers
        part = slice(n, n + 1)
        source = None if inputs.memory is None else inputs.memory[part]
        one, _ = native.logits(
            tokens[part],
            source,
            None if lengths is None else lengths[part],
            h0=np.ascontiguousarray(h0[:, part]),
            c0=np.ascontiguousarray(c0[:, part]),
        )
        assert np.array_equal(one[0], logits[n])


class Writer:
    """Four sources and a decoder in front of them, for the native loops and read from the start each time."""

    START = 1

    def __init__(self, kind):
        self.decoder = decoder_of(kind, 2)
        self.table = nn.Embedding(11, E, dtype="float64", seed=1)
        self.output = nn.Linear(self.decoder.output_size, 11, dtype="float64", init=("uniform", 3.0), seed=2)
        self.inputs = Inputs(self.decoder, lengths=None)
        self.native = self.decoder.decoder(self.table, self.output)

    @property
    def arguments(self):
        inputs, lengths = self.inputs, self.inputs.memory_lengths
        return {
            "h0": inputs.state[0],
            "c0": inputs.state[1],
            "memory": inputs.memory,
            "memory_lengths": None if lengths is None else np.array(lengths, np.int32),
            "start_token": self.START,
        }

    def logits_of(self, n):
        """What follows tokens, of source n: by `AttentionDecoder.forward`, which is checked above."""
        memory, lengths = self.inputs.memory, self.inputs.memory_lengths

        @functools.cache
        def logits(tokens):
            y = self.decoder(
                self.table([[self.START, *tokens]]),
                None if memory is None else memory[n : n + 1],
                memory_lengths=None if memory is None else lengths[n : n + 1],
                state=tuple(part[:, n : n + 1] for part in self.inputs.state),
            )
            return self.output(y)[0, -1]

        return logits


SEARCHES = [
    {"width": 4, "num_return": 4},
    {"width": 3, "num_return": 3, "length_penalty_form": "gnmt", "length_penalty": 0.6, "min_new_tokens": 2},
    {
        "width": 3,
        "num_return": 3,
        "early_stopping": "never",
        "no_repeat_ngram_size": 2,
        "banned_tokens": (1,),
    },
    {"width": 4, "num_return": 4, "groups": 2, "diversity_strength": 0.8, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_beams_carry_their_states(kind):
    """h, c, what is fed back, coverage and source move with a beam: n-best lists are the specification's."""
    writer = Writer(kind)
    lengths_found = set()
    for search in SEARCHES:
        options = reference_beam.Options(**search, max_new_tokens=7, stop_tokens=(2, 5))
        native = _core.BeamOptions(**dataclasses.asdict(options))
        tokens, lengths, scores, log_p = writer.native.beam_search(options=native, **writer.arguments)
        for n in range(4):
            expected, _ = reference_beam.beam_search(writer.logits_of(n), (), options)
            found = [tuple(row[:length]) for row, length in zip(tokens[n], lengths[n], strict=True) if length]
            assert found == [ids for _, ids, _ in expected]
            for rank, (score, ids, by_token) in enumerate(expected):
                assert_close(scores[n, rank], score, "beam score")
                assert_close(log_p[n, rank, : len(ids)], by_token, "log probabilities")
                lengths_found.add(len(ids))
    assert len(lengths_found) > 2


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_draws_carry_their_states(kind):
    """The same of sequences that are drawn: several of a source, some of which end early."""
    writer = Writer(kind)
    seeds = np.arange(12, dtype=np.uint64) + 5
    options = {
        "max_new_tokens": 7,
        "num_sequences": 3,
        "temperature": 1.5,
        "top_p": 0.95,
        "repetition_penalty": 1.2,
        "stop_tokens": [2, 5],
    }
    native = _core.SamplingOptions(**options)
    made = writer.native.generate(options=native, seeds=seeds, **writer.arguments)
    for r, seed in enumerate(seeds):
        logits = writer.logits_of(r // 3)
        tokens, log_p, _, finish, _ = reference_sampling.generate(
            lambda prompt, logits=logits: (logits(()), ()),
            lambda token, before, logits=logits: (logits((*before, token)), (*before, token)),
            [writer.START],
            seed,
            options,
        )
        assert (made.tokens[r, : made.lengths[r]].tolist(), made.finish[r]) == (tokens, finish)
        assert_close(made.log_probabilities[r, : len(tokens)], log_p, "log probabilities")
    assert len(set(made.lengths)) > 2


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]], ids=[NAMES[0], NAMES[2]])
def test_output_layers_in_low_precision(kind, compute_dtype):
    """Generation, and the logits of own tokens, have the bits of the layer."""
    decoder = decoder_of(kind, 2, "float32")
    table, output = nn.Embedding(11, E), nn.Linear(decoder.output_size, 11, compute_dtype=compute_dtype)
    inputs = Inputs(decoder, lengths=None)
    tokens = np.random.default_rng(0).integers(0, 11, (4, 6)).astype(np.int32)
    lengths = None if inputs.memory is None else np.array(inputs.memory_lengths, np.int32)
    arguments = {"memory_lengths": inputs.memory_lengths}
    logits, _ = decoder.decoder(table, output).logits(tokens, inputs.memory, lengths)
    assert np.array_equal(logits, output(decoder(table(tokens), inputs.memory, **arguments)))
    own = nn.ScheduledSampling(table, output, np.ones(6))
    y, tape = decoder.forward(table(tokens), inputs.memory, seed=1, scheduled=own, **arguments)
    assert np.array_equal(tape.tokens[:, 1:], output(y)[:, :-1].argmax(-1))


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], KINDS[3], KINDS[8]])
@pytest.mark.parametrize("sample", [False, True])
def test_scheduled_sampling(kind, sample):
    decoder = decoder_of(kind)
    table = nn.Embedding(5, E, dtype="float64", seed=1)
    output = nn.Linear(decoder.output_size, 5, dtype="float64", init=("uniform", 2.0))
    inputs = Inputs(decoder)
    probability = np.full((4, 6), 0.5)
    probability[0] = 1.0
    scheduled = nn.ScheduledSampling(table, output, probability, sample)
    y, _, tape, gradients = run(decoder, inputs, seed=11, scheduled=scheduled)
    tokens = tape.tokens
    wanted_y, _, _, wanted = reference(
        decoder, inputs, torch.tensor(table.weight), tokens
    )  # given the choices, all else must follow
    assert_close(y, wanted_y, "attention forward")
    for name, gradient in gradients.items():
        if name != "x":
            assert_close(gradient, wanted[name], "attention backward")
    own = tokens >= 0
    assert_close(np.where(own[..., None], 0, gradients["x"]), wanted["x"], "attention backward")
    assert own[0].tolist() == [False, *[True] * 5]
    assert (tokens[1] == -1).all()
    assert not own[2, 4:].any()
    logits = output(y)
    if not sample:
        previous = logits[:, :-1].argmax(-1)
        assert np.array_equal(tokens[:, 1:][own[:, 1:]], previous[own[:, 1:]])
        return
    for n, t in zip(*np.nonzero(own), strict=True):
        high, low = (int(word) for word in _core.philox(11, 0x73636864, n, t, 0)[2:])
        u = ((high >> 5) * 2**26 + (low >> 6)) / 2**53
        weights = np.exp(logits[n, t - 1] - logits[n, t - 1].max())
        assert tokens[n, t] == np.searchsorted(np.cumsum(weights / weights.sum()), u, side="right")


def test_probability_is_met():
    decoder = nn.AttentionDecoder(E, 4, 0, attention=None)
    table, output = nn.Embedding(5, E), nn.Linear(4, 5)
    ramp = np.linspace(0, 1, 9)
    _, tape = decoder.forward(
        np.zeros((400, 9, E), np.float32),
        None,
        seed=3,
        scheduled=nn.ScheduledSampling(table, output, ramp),
    )
    share = (tape.tokens >= 0).mean(0)
    assert share[0] == 0
    assert share[-1] == 1
    assert np.abs(share - ramp).max() < 0.08  # three standard deviations of 400 draws


def test_dropout_masks_are_those_of_the_lstm():
    decoder = nn.AttentionDecoder(E, 8, 0, 3, attention=None, dropout=0.5, dtype="float64")
    x = np.random.default_rng(0).standard_normal((5, 4, E))
    decoder.lstm.dropout = 0.5
    y, _ = decoder.forward(x, None, seed=9, lengths=[4, 1, 0, 2, 3])
    wanted, _ = decoder.lstm.forward(x, seed=9, lengths=[4, 1, 0, 2, 3])
    assert np.array_equal(y, wanted)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_bfloat16(kind):
    decoder = decoder_of(kind, 2, "float32", hidden_size=48, compute_dtype="bfloat16")
    inputs = Inputs(decoder)
    y, _, _, gradients = run(decoder, inputs)
    wanted_y, _, _, wanted = reference(decoder, inputs)
    assert_close(y, wanted_y, "attention bfloat16")
    for name, gradient in gradients.items():
        assert_close(gradient, wanted[name], "attention bfloat16")


def test_pickle_and_call():
    decoder = decoder_of(KINDS[8], 2, "float32")
    inputs = Inputs(decoder)
    y, _ = decoder.forward(inputs.x, inputs.memory, **inputs.arguments)
    copy = pickle.loads(pickle.dumps(decoder))
    assert np.array_equal(copy(inputs.x, inputs.memory, **inputs.arguments), y)
    assert repr(copy) == repr(decoder)
    copy.parameters[:] = 0
    copy.mark_updated()
    assert not copy(inputs.x, inputs.memory, memory_lengths=MEMORY_LENGTHS).any()


def test_empty_batch_and_no_steps():
    for kind in KINDS:
        decoder = decoder_of(kind)
        inputs = Inputs(decoder, N=0, T=2, lengths=[], memory_lengths=[])
        inputs.memory = None if inputs.memory is None else inputs.memory[:, :1]
        y, _, _, _ = run(decoder, inputs)
        assert y.shape == (0, 2, decoder.output_size)
        assert not decoder.gradients.any()
        inputs = Inputs(decoder, T=0, lengths=None)
        y, _, tape, gradients = run(decoder, inputs)
        assert y.shape == (4, 0, decoder.output_size)
        assert np.array_equal(tape.state[0], inputs.state[0])
        assert np.array_equal(gradients["h0"], inputs.d_state[0])
        assert not decoder.gradients.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "soft"}, "attention must be one of"),
        ({"attention": "dot"}, "memory_size must be hidden_size"),
        ({"attention": "general", "attention_size": 3}, "attention_size is of"),
        ({"attention": "general", "coverage": True}, "coverage is of"),
        ({"attention": "bahdanau", "input_feeding": True}, "input_feeding is of"),
        ({"attention": None}, "memory_size"),
        ({"output_size": 0}, "output_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"init": "he"}, "init"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        nn.AttentionDecoder(E, 4, 5, **arguments)


def test_wrong_arguments():
    decoder = nn.AttentionDecoder(E, 4, 5, 2, dropout=0.1)
    x, memory = np.zeros((2, 3, E), np.float32), np.zeros((2, 6, 5), np.float32)
    table, output = nn.Embedding(7, E), nn.Linear(4, 7)
    for more, message in [
        ({"x": x[0]}, "x must be"),
        ({"memory": memory[:1]}, "memory must be"),
        ({"memory": memory[..., :2]}, "memory must be"),
        ({"memory_lengths": [6, 0]}, "at least one position"),
        ({"memory_lengths": [6, 7]}, "memory_lengths"),
        ({"lengths": [4, 1]}, "lengths must be between"),
        ({"state": (np.zeros((1, 2, 4), np.float32), None)}, "h0 must be"),
        ({"seed": None}, "need seed"),
        ({"x": x + np.nan}, "x must be finite"),
        ({"memory": memory + np.inf}, "memory must be finite"),
        ({"scheduled": nn.ScheduledSampling(table, output, [0.5])}, "probability must be"),
        ({"scheduled": nn.ScheduledSampling(table, output, [0, 0.5, 2])}, r"\[0, 1\]"),
        ({"scheduled": nn.ScheduledSampling(nn.Embedding(8, E), output, np.ones(3))}, "output must map"),
        ({"scheduled": nn.ScheduledSampling(nn.Embedding(7, 2), output, np.ones(3))}, "embedding_dim"),
    ]:
        arguments = {"x": x, "memory": memory, "seed": 1} | more
        with pytest.raises(ValueError, match=message):
            decoder.forward(**arguments)
    with pytest.raises(TypeError, match="state must be a pair"):
        decoder.forward(x, memory, seed=1, state=memory)
    with pytest.raises(ValueError, match="without attention"):
        nn.AttentionDecoder(E, 4, 0, attention=None)(x, memory)
    y, tape = decoder.forward(x, memory, seed=1)
    with pytest.raises(ValueError, match="another AttentionDecoder"):
        nn.AttentionDecoder(E, 4, 5).backward(tape, y)
    with pytest.raises(ValueError, match="dy must be"):
        decoder.backward(tape, y[:1])
    _, tape = decoder.forward(x, memory, seed=1)
    decoder.backward(tape, y)
    with pytest.raises(RuntimeError, match="already used"):
        decoder.backward(tape, y)


def test_core_refuses_parts_that_do_not_fit():
    lstm = _core.LSTM(7, 4)
    packed = lstm.pack(np.zeros(lstm.num_parameters, np.float32))
    with pytest.raises(ValueError, match="kind must be"):
        _core.PackedAttention("soft", 5, 4, dtype="float32")
    with pytest.raises(ValueError, match="output must be given"):
        _core.PackedAttention("dot", 4, 4, dtype="float32")
    weight = np.zeros((4, 8), np.float32)
    with pytest.raises(ValueError, match="key must be None"):
        _core.PackedAttention("dot", 4, 4, dtype="float32", output=weight, key=weight)
    attention = _core.PackedAttention("dot", 4, 4, dtype="float32", output=np.zeros((7, 8), np.float32))
    x, memory, lengths = (
        np.zeros((2, 3, 3), np.float32),
        np.zeros((2, 6, 4), np.float32),
        np.full(2, 6, np.int32),
    )
    with pytest.raises(ValueError, match="7 values fed back"):
        _core.attention_decoder_forward(packed, attention, x, memory, lengths, input_feeding=True)
    with pytest.raises(ValueError, match="x must be"):
        _core.attention_decoder_forward(packed, attention, x, memory, lengths)
    double = _core.PackedAttention("none", 0, 4, dtype="float64")
    with pytest.raises(ValueError, match="attention must be float32"):
        _core.attention_decoder_forward(packed, double, x, None, None)
    none = _core.PackedAttention("none", 0, 4, dtype="float32")
    zeros, rows = np.zeros(lstm.num_parameters, np.float32), np.zeros((2, 3, 7), np.float32)
    int8 = lstm.pack(zeros, backward=False, compute_dtype="int8")
    with pytest.raises(ValueError, match="for training"):
        _core.attention_decoder_forward(int8, none, rows, None, None)
    forward_only = lstm.pack(zeros, backward=False)
    y, _, _, _, tape = _core.attention_decoder_forward(forward_only, none, rows, None, None)
    with pytest.raises(ValueError, match="backward=True"):
        _core.attention_decoder_backward(tape, None, y, None, None, zeros)
    output = _core.linear_pack(np.zeros((5, 4), np.float32), None)
    table = np.zeros((5, 7), np.float32)
    with pytest.raises(ValueError, match="embedding must be"):
        _core.AttentionDecoder(packed, none, table[:, 1:].copy(), output, False)
    decoder = _core.AttentionDecoder(packed, none, table, output, False)
    with pytest.raises(ValueError, match=r"tokens must lie in 0 \.\. 4"):
        decoder.logits(np.full((1, 1), 5, np.int32), None, None)
    with pytest.raises(ValueError, match="without attention"):
        decoder.logits(np.zeros((2, 3), np.int32), memory, lengths)
