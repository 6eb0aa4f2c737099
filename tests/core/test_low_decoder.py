"""Generation by a decoder whose LSTM computes in bfloat16 or int8: against specifications, and one result.

The attention is chosen so that outputs show h: with W_c = [0 ; 1] an output is tanh(h), to the last bit.
"""

import dataclasses
import functools

import numpy as np
import pytest
import reference_beam
import reference_sampling
from cases import assert_same_bits
from test_int8 import STEPS, F, fma, of_kernels, quantise, row_scales
from tolerances import assert_close

from fusedlstm import _core, nn

V = 11
KINDS = [
    {"attention": None},
    {"attention": "general", "input_feeding": False},
    {"attention": "general"},
    {"attention": "concat", "coverage": True},
    {"attention": "bahdanau"},
]
NAMES = ["-".join(str(value) for value in kind.values()) for kind in KINDS]


class Case:
    """A decoder in front of four sources, of one position each if it shows its states."""

    def __init__(self, kind, compute_dtype, E=5, H=18, L=2, shows_states=False, large=1.0):
        rng = np.random.default_rng([E, H, L])
        M = 0 if kind["attention"] is None else 4
        self.kind = kind
        self.decoder = nn.AttentionDecoder(E, H, M, L, init=("uniform", 0.6), seed=3, **kind)
        self.table, self.output = nn.Embedding(V, E, seed=1), nn.Linear(H, V, init=("uniform", 2.0), seed=2)
        longest = 1 if shows_states else 7
        self.lengths = None if M == 0 else np.minimum([longest, 3, 1, 5], longest).astype(np.int32)
        self.memory = None if M == 0 else rng.standard_normal((4, longest, M)).astype(F)
        if shows_states and M:
            self.decoder.named_parameters()["weight_c"][:] = np.eye(H, M + H, M)
            self.decoder.mark_updated()
        self.state = tuple((large * np.tanh(rng.standard_normal((L, 4, H)))).astype(F) for _ in range(2))
        self.tokens = rng.integers(0, V, (4, 6)).astype(np.int32)
        self.decoder.compute_dtype = self.output.compute_dtype = compute_dtype

    def steps(self, rows=slice(None), what="outputs"):
        native = self.decoder.decoder(self.table, self.output)
        h0, c0 = (np.ascontiguousarray(part[:, rows]) for part in self.state)
        memory, lengths = (None if part is None else part[rows] for part in (self.memory, self.lengths))
        return getattr(native, what)(self.tokens[rows], memory, lengths, h0=h0, c0=c0)[0]


def specification(case):
    """tanh(h) of the last layer after every step, (N, T, H); h itself without attention."""
    p = case.decoder.lstm.named_parameters()
    E, H = case.table.embedding_dim, case.decoder.hidden_size
    unit = F(1) / STEPS
    h, c = (list(part) for part in case.state)
    kind = case.kind["attention"]
    fed = None
    if kind == "bahdanau":
        fed = case.memory[:, 0]  # the context of one position
    elif case.decoder.input_feeding:
        fed = np.zeros((4, H), F)
    rows = []
    for t in range(case.tokens.shape[1]):
        for k in range(case.decoder.num_layers):
            W, R = p[f"weight_ih_l{k}"], p[f"weight_hh_l{k}"]
            s_w, s_r = row_scales(W), row_scales(R)
            w8, r8 = quantise(W, s_w), quantise(R, s_r)
            a = p[f"bias_ih_l{k}"] + p[f"bias_hh_l{k}"]
            if k == 0:
                parts = [(case.table.weight[case.tokens[:, t]], w8[:, :E])]
                parts += [] if fed is None else [(fed, w8[:, E:])]
                for x, weight in parts:
                    s_x = row_scales(x)
                    a = a + s_w.T * (s_x * (quantise(x, s_x) @ weight.T).astype(F))
            else:
                a = a + (s_w.T * unit) * (quantise(h[k - 1], unit) @ w8.T).astype(F)
            largest = np.maximum(np.abs(h[k]).max(-1, keepdims=True), F(1))
            a = a + (s_r.T * unit) * (largest * (quantise(h[k] / largest, unit) @ r8.T).astype(F))
            i, f, g, o = np.moveaxis(a.reshape(-1, 4, H), 1, 0)
            i, f, o = (of_kernels(_core.sigmoid, gate) for gate in (i, f, o))
            c[k] = fma(f, c[k], i * of_kernels(_core.tanh, g))
            h[k] = o * of_kernels(_core.tanh, c[k])
        rows.append(h[-1] if kind is None else of_kernels(_core.tanh, h[-1]))
        if case.decoder.input_feeding:
            fed = rows[-1]
    return np.stack(rows, 1)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize(("E", "H"), [(5, 18), (40, 64)])
@pytest.mark.parametrize("large", [1.0, 3.0])  # a linear bridge gives initial states beyond [-1, 1]
def test_int8_exactly_the_specification(isa, kind, E, H, large):
    case = Case(kind, "int8", E, H, shows_states=True, large=large)
    assert_same_bits(case.steps(), specification(case))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("E", [5, 32, 70])  # none, all and some of an embedding in whole blocks
def test_bfloat16_steps_like_training(isa, kind, E):
    case = Case(kind, "bfloat16", E)
    x = case.table(case.tokens)
    y = case.decoder(x, case.memory, memory_lengths=case.lengths, state=case.state)
    assert_same_bits(case.steps(), y)
    assert_same_bits(case.steps(what="logits"), case.output(y))


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_one_result(isa, threads, kind, compute_dtype):
    """Alone, in a batch, by any number of threads; int8 on every level."""
    case = Case(kind, compute_dtype, E=40, large=2.0)
    whole = case.steps(what="logits")
    threads(2)
    assert_same_bits(case.steps(what="logits"), whole)
    threads(1)
    for n in range(4):
        assert_same_bits(case.steps(slice(n, n + 1), "logits")[0], whole[n])
    if compute_dtype == "int8":
        before = _core.isa()
        _core.set_isa("generic")
        other = Case(kind, compute_dtype, E=40, large=2.0).steps(what="logits")
        _core.set_isa(before)
        assert_same_bits(other, whole)


@pytest.mark.parametrize(
    ("compute_dtype", "bound"), [("bfloat16", "bfloat16 forward"), ("int8", "int8 forward")]
)
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_error_against_float32(kind, compute_dtype, bound):
    case, exact = Case(kind, compute_dtype), Case(kind, None)
    assert_close(case.steps(), exact.steps(), bound)


def test_what_has_no_training_is_refused():
    case = Case(KINDS[2], "int8")
    with pytest.raises(ValueError, match="compute_dtype 'int8' is for generation"):
        case.decoder(case.table(case.tokens), case.memory)
    with pytest.raises(ValueError, match="compute_dtype must be 'float32', 'bfloat16' or 'int8', got 'half'"):
        case.decoder.compute_dtype = "half"
    with pytest.raises(ValueError, match="needs dtype 'float32', got 'float64'"):
        nn.AttentionDecoder(3, 4, 5, dtype="float64").compute_dtype = "int8"


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], KINDS[3], KINDS[4]])
def test_beams_and_draws_carry_their_states(kind, compute_dtype):
    """Loops that move, double and drop rows, against specifications that read every prefix from the start."""
    case = Case(kind, compute_dtype, E=40, large=2.0)
    native = case.decoder.decoder(case.table, case.output)
    h0, c0 = case.state
    arguments = {"h0": h0, "c0": c0, "memory": case.memory, "memory_lengths": case.lengths, "start_token": 1}

    def logits_of(n):
        part = slice(n, n + 1)
        memory, lengths = (
            None if part_of is None else part_of[part] for part_of in (case.memory, case.lengths)
        )
        states = {"h0": np.ascontiguousarray(h0[:, part]), "c0": np.ascontiguousarray(c0[:, part])}

        @functools.cache
        def logits(tokens):
            ids = np.array([[1, *tokens]], np.int32)
            return native.logits(ids, memory, lengths, **states)[0][0, -1].astype(float)

        return logits

    options = reference_beam.Options(width=4, num_return=4, max_new_tokens=6, stop_tokens=(2, 5))
    core = _core.BeamOptions(**dataclasses.asdict(options))
    tokens, lengths, _, _ = native.beam_search(options=core, **arguments)
    drawing = {"max_new_tokens": 6, "num_sequences": 3, "temperature": 1.5, "stop_tokens": [2, 5]}
    seeds = np.arange(12, dtype=np.uint64) + 5
    made = native.generate(options=_core.SamplingOptions(**drawing), seeds=seeds, **arguments)
    for n in range(4):
        logits = logits_of(n)
        expected, _ = reference_beam.beam_search(logits, (), options)
        found = [tuple(row[:length]) for row, length in zip(tokens[n], lengths[n], strict=True) if length]
        assert found == [ids for _, ids, _ in expected]
        for r in range(3 * n, 3 * n + 3):
            wanted, *_ = reference_sampling.generate(
                lambda prompt, logits=logits: (logits(()), ()),
                lambda token, before, logits=logits: (logits((*before, token)), (*before, token)),
                [1],
                seeds[r],
                drawing,
            )
            assert made.tokens[r, : made.lengths[r]].tolist() == wanted
    assert len(set(made.lengths)) > 1
