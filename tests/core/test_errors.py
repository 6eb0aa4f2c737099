"""Bad calls: each is refused before any work, and says function, argument, what was wanted and what came."""

import re
import subprocess
import sys

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedlstm import _core

F32, F64 = np.float32, np.float64
N, T, I, H, V, R = 3, 4, 5, 6, 7, 8


def ones(*shape, dtype=F32):
    return np.ones(shape, dtype)


def integers(*shape):
    return np.ones(shape, np.int32)


def good(function):
    """Arguments of a call that works, by name; `self` for methods."""
    m = cases.model(I, H, L=2, D=2)
    cell = cases.model(I, H)
    state = {"h0": ones(4, N, H), "c0": ones(4, N, H), "lengths": integers(N)}
    linear = _core.linear_pack(ones(V, I), ones(V))
    flat = {"parameters": ones(20), "gradients": ones(20)}
    decoder = _core.LanguageModelDecoder(cell.packed, ones(V, I), _core.linear_pack(ones(V, H)))
    table = {
        "LSTM.pack": lambda: {"self": m.lstm, "parameters": m.flat},
        "lstm_forward": lambda: {"packed": m.packed, "x": ones(N, T, I), **state},
        "lstm_forward_tape": lambda: {"packed": m.packed, "x": ones(N, T, I), **state},
        "lstm_backward": lambda: {
            "packed": m.packed,
            "tape": _core.lstm_forward_tape(m.packed, ones(N, T, I))[3],
            "dy": ones(N, T, 2 * H),
            "dh_n": ones(4, N, H),
            "dc_n": ones(4, N, H),
            "gradients": m.zeros(),
        },
        "lstm_cell_forward": lambda: {
            "packed": cell.packed,
            "x": ones(N, I),
            "h": ones(N, H),
            "c": ones(N, H),
        },
        "lstm_cell_backward": lambda: {
            "packed": cell.packed,
            **{name: ones(N, I if name == "x" else H) for name in ("x", "h", "c", "c_next", "dh", "dc")},
            "gates": ones(N, 4, H),
            "gradients": cell.zeros(),
        },
        "linear_pack": lambda: {"weight": ones(V, I), "bias": ones(V)},
        "linear_forward": lambda: {"packed": linear, "x": ones(R, I)},
        "linear_backward": lambda: {
            "packed": linear,
            "x": ones(R, I),
            "dy": ones(R, V),
            "d_weight": ones(V, I),
            "d_bias": ones(V),
        },
        "embedding_forward": lambda: {"weight": ones(V, I), "ids": integers(R)},
        "embedding_backward": lambda: {"ids": integers(R), "dy": ones(R, I), "d_weight": ones(V, I)},
        "dropout": lambda: {"x": ones(R, I), "rate": 0.5, "seed": 1},
        "linear_cross_entropy": lambda: {
            "packed": linear,
            "x": ones(R, I),
            "targets": integers(R),
            "d_weight": ones(V, I),
            "d_bias": ones(V),
        },
        "cross_entropy": lambda: {"logits": ones(R, V), "targets": integers(R)},
        "mean_squared_error": lambda: {"y": ones(R, V), "target": ones(R, V)},
        "gradient_norm": lambda: {"gradients": ones(20)},
        "zero_gradients": lambda: {"gradients": ones(20)},
        "sgd_step": lambda: {**flat, "velocity": ones(20), "lr": 0.1, "momentum": 0.9},
        "adam_step": lambda: {**flat, "m": ones(20), "v": ones(20), "step": 1, "lr": 0.1},
        "exp": lambda: {"x": ones(5)},
        "log": lambda: {"x": ones(5)},
        "sigmoid": lambda: {"x": ones(5)},
        "tanh": lambda: {"x": ones(5)},
        "LanguageModelDecoder": lambda: {
            "lstm": cell.packed,
            "embedding": ones(V, I),
            "output": _core.linear_pack(ones(V, H)),
        },
        "SamplingOptions": lambda: {
            "max_new_tokens": 5,
            "banned_tokens": [3],
            "stop_strings": [b"a"],
            "token_texts": _core.TokenTexts([b"a", b"b"]),
        },
        "TokenTexts": lambda: {"texts": [b"a", b"b"]},
        "generate": lambda: {
            "self": decoder,
            "prompts": integers(5),
            "prompt_lengths": np.array([1, 3, 1], np.int32),
            "options": _core.SamplingOptions(max_new_tokens=2),
            "seeds": np.zeros(3, np.uint64),
            "h0": ones(1, 3, H),
            "c0": ones(1, 3, H),
        },
    }
    return table[function]()


FUNCTIONS = [
    "LSTM.pack",
    "lstm_forward",
    "lstm_forward_tape",
    "lstm_backward",
    "lstm_cell_forward",
    "lstm_cell_backward",
    "linear_pack",
    "linear_forward",
    "linear_backward",
    "embedding_forward",
    "embedding_backward",
    "dropout",
    "linear_cross_entropy",
    "cross_entropy",
    "mean_squared_error",
    "gradient_norm",
    "zero_gradients",
    "sgd_step",
    "adam_step",
    "exp",
    "log",
    "sigmoid",
    "tanh",
    "LanguageModelDecoder",
    "TokenTexts",
    "SamplingOptions",
    "generate",
]
FREE_SIZE = {  # any size fits: the other arguments are measured against it
    ("linear_pack", "weight"),
    ("embedding_forward", "weight"),
    ("embedding_forward", "ids"),
    ("dropout", "x"),
    ("cross_entropy", "logits"),
    ("mean_squared_error", "y"),
    ("gradient_norm", "gradients"),
    ("zero_gradients", "gradients"),
    ("sgd_step", "parameters"),
    ("adam_step", "parameters"),
    ("exp", "x"),
    ("log", "x"),
    ("sigmoid", "x"),
    ("tanh", "x"),
    ("embedding_backward", "ids"),
    ("generate", "prompt_lengths"),
}
FREE_DIMENSIONS = {("mean_squared_error", "y")}  # any number of dimensions fits
FREE_DTYPE = {  # float32 or float64 decides for the other arguments
    ("linear_pack", "weight"),
    ("embedding_forward", "weight"),
    ("embedding_backward", "d_weight"),
    ("dropout", "x"),
    ("cross_entropy", "logits"),
    ("mean_squared_error", "y"),
    ("gradient_norm", "gradients"),
    ("zero_gradients", "gradients"),
    ("sgd_step", "parameters"),
    ("adam_step", "parameters"),
    ("exp", "x"),
    ("log", "x"),
    ("sigmoid", "x"),
    ("tanh", "x"),
}
WRITTEN = {
    "gradients": ("lstm_backward", "lstm_cell_backward", "zero_gradients"),
    "d_weight": ("linear_backward", "linear_cross_entropy", "embedding_backward"),
    "d_bias": ("linear_backward", "linear_cross_entropy"),
    "parameters": ("sgd_step", "adam_step"),
    "velocity": ("sgd_step",),
    "m": ("adam_step",),
    "v": ("adam_step",),
}
ARRAYS = [(f, name) for f in FUNCTIONS for name, value in good(f).items() if isinstance(value, np.ndarray)]


def call(function, **changes):
    arguments = good(function) | changes
    if "self" in arguments:
        return getattr(arguments.pop("self"), function.split(".")[-1])(**arguments)
    return getattr(_core, function)(**arguments)


def refused(function, argument, bad, wanted=r".+", got=r".+", error=ValueError, **others):
    with pytest.raises(error) as caught:
        call(function, **{argument: bad}, **others)
    message = str(caught.value)
    assert re.search(rf"^{re.escape(function)}: {argument} must {wanted}, got {got}$", message), message


def wrong_kind(function, argument, bad):
    """A TypeError that names function and argument: pybind11 lists the signature and what it was given."""
    with pytest.raises(TypeError) as caught:
        call(function, **{argument: bad})
    for name in (function.split(".")[-1], argument):
        assert re.search(rf"\b{name}\b", str(caught.value)), str(caught.value)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_good_call_is_good(function):
    call(function)


@pytest.mark.parametrize(("function", "argument"), ARRAYS)
def test_wrong_dtype(function, argument):
    array = good(function)[argument]
    dtype = str(array.dtype)
    wanted = f"(.*{dtype}.*)" if (function, argument) not in FREE_DTYPE else "(.*float32.*float64.*)"
    bad = [np.int64, np.complex64, np.float16, np.bool_]
    if (function, argument) not in FREE_DTYPE and dtype != "float64":
        bad.append(np.float64)
    if dtype != "int32" and argument != "x":
        bad.append(np.int32)
    for other in bad:
        refused(function, argument, array.astype(other), wanted, rf"{np.dtype(other)}\b.*")


@pytest.mark.parametrize(("function", "argument"), ARRAYS)
def test_wrong_size(function, argument):
    """One too many and one too few along every axis whose size another argument fixes."""
    array = good(function)[argument]
    axes = range(array.ndim)
    if (function, argument) in FREE_SIZE:
        axes = []
    elif argument == "x" and function.startswith(("lstm", "linear")):
        axes = [array.ndim - 1]  # rows and steps are free
    elif function == "embedding_backward":
        axes = [0, 1] if argument == "dy" else []
    elif (function, argument) == ("LanguageModelDecoder", "embedding"):
        axes = [0, 1]
    for axis in axes:
        for size in (array.shape[axis] + 1, array.shape[axis] - 1):
            bad = np.ones([size if k == axis else n for k, n in enumerate(array.shape)], array.dtype)
            refused(function, argument, bad, got=rf".*\b{size}\b.*")


@pytest.mark.parametrize(("function", "argument"), [pair for pair in ARRAYS if pair not in FREE_DIMENSIONS])
def test_wrong_number_of_dimensions(function, argument):
    array = good(function)[argument]
    refused(function, argument, array[None])
    refused(function, argument, np.array(1, array.dtype))
    if array.ndim > 1:
        refused(function, argument, array[0].copy())


@pytest.mark.parametrize(("function", "argument"), ARRAYS)
def test_strided(function, argument):
    """Views with gaps, transposed, reversed or Fortran-ordered memory are refused, not copied."""
    array = good(function)[argument]
    gaps = np.ones((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
    bad = [gaps, array[..., ::-1]]
    if array.ndim > 1:
        bad += [np.asfortranarray(array), np.broadcast_to(array[:1, ...], array.shape)]
    for view in [view for view in bad if not view.flags.c_contiguous]:
        assert view.shape == array.shape
        refused(function, argument, view, got=r".*contiguous.*")


@pytest.mark.parametrize(("function", "argument"), ARRAYS)
def test_byte_order_and_alignment(function, argument):
    array = good(function)[argument]
    refused(function, argument, array.astype(array.dtype.newbyteorder()))
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    unaligned = memory.view(array.dtype).reshape(array.shape)
    unaligned[...] = array
    assert not unaligned.flags.aligned
    refused(function, argument, unaligned, got=r".*aligned.*")


@pytest.mark.parametrize(("function", "argument"), ARRAYS)
def test_not_an_array(function, argument):
    """Lists, numbers and texts are for the Python layer to convert; here they are the wrong kind of thing."""
    array = good(function)[argument]
    for bad in (array.tolist(), 1.0, "text", b"bytes", np.ma.masked_all_like):
        wrong_kind(function, argument, bad)


@pytest.mark.parametrize(
    ("argument", "function"), [(a, f) for a, functions in WRITTEN.items() for f in functions]
)
def test_read_only_output(function, argument):
    array = good(function)[argument]
    array.flags.writeable = False
    refused(function, argument, array, got=r".*writ.*")


HANDLES = [(f, name) for f in FUNCTIONS for name in good(f) if name in ("packed", "tape", "lstm", "output")]


@pytest.mark.parametrize(("function", "argument"), HANDLES)
def test_wrong_handle(function, argument):
    for bad in (None, ones(3), "packed", cases.model(I, H).lstm):
        wrong_kind(function, argument, bad)


@pytest.mark.parametrize(
    ("function", "argument", "bad", "got"),
    [
        ("lstm_forward", "lengths", [1, -1, 2], r".*-1.*"),
        ("lstm_forward", "lengths", [1, 5, 2], r".*5.*"),
        ("lstm_forward_tape", "lengths", [1, 2, 5], r".*5.*"),
        ("lstm_forward_tape", "lengths", [-2, 2, 4], r".*-2.*"),
        ("embedding_forward", "ids", [0, 7], r".*7.*"),
        ("embedding_forward", "ids", [-1, 0], r".*-1.*"),
        ("embedding_backward", "ids", [0] * 7 + [7], r".*7.*"),
        ("embedding_backward", "ids", [0] * 7 + [-1], r".*-1.*"),
        ("cross_entropy", "targets", [0] * 7 + [7], r".*7.*"),
        ("cross_entropy", "targets", [0] * 7 + [-2], r".*-2.*"),
        ("linear_cross_entropy", "targets", [0] * 7 + [7], r".*7.*"),
        ("linear_cross_entropy", "targets", [0] * 7 + [-2], r".*-2.*"),
        ("generate", "prompts", [0, 1, 7, 1, 1], r".*7.*"),
        ("generate", "prompts", [0, 1, -1, 1, 1], r".*-1.*"),
        ("generate", "prompt_lengths", [1, 4, 0], r".*0.*"),
        ("generate", "prompt_lengths", [1, 5, -1], r".*-1.*"),
    ],
)
def test_integers_out_of_range(function, argument, bad, got):
    refused(function, argument, np.array(bad, np.int32), got=got)


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 3, 1], [2**30, 2**30, 2**30]])
def test_prompt_lengths_must_sum_to_the_prompts(lengths):
    with pytest.raises(ValueError, match=r"^generate: prompt(s|_lengths) must be .*, got .*"):
        call("generate", prompt_lengths=np.array(lengths, np.int32))


@pytest.mark.parametrize(
    ("function", "argument", "bad"),
    [
        *[("lstm_forward_tape", "dropout", rate) for rate in (1.0, 1 - 1e-12, -0.1, np.nan, np.inf)],
        *[("dropout", "rate", rate) for rate in (1.0, 1 - 1e-12, -0.1, np.nan, np.inf)],
        *[("adam_step", "step", step) for step in (0, -1)],
        *[("SamplingOptions", "temperature", value) for value in (0.0, -1.0, np.nan, np.inf)],
        *[("SamplingOptions", "top_p", value) for value in (0.0, -0.5, 1.5, np.nan)],
        *[("SamplingOptions", "typical_p", value) for value in (0.0, -0.5, 1.5, np.nan)],
        *[("SamplingOptions", "min_p", value) for value in (-0.5, 1.0, np.nan)],
        *[("SamplingOptions", "repetition_penalty", value) for value in (0.0, -1.0, np.nan, np.inf)],
        ("SamplingOptions", "top_k", -1),
        *[("SamplingOptions", "max_new_tokens", value) for value in (-1, 2**31)],
        *[("SamplingOptions", "min_new_tokens", value) for value in (-1, 6)],
        ("SamplingOptions", "no_repeat_ngram_size", -1),
        *[("SamplingOptions", "num_sequences", value) for value in (0, 2**20 + 1)],
        ("SamplingOptions", "top_log_probabilities", -1),
        *[("SamplingOptions", "forced_tokens", value) for value in ({-1: 0}, {5: 0}, {0: 3})],
        *[("SamplingOptions", name, [0, -1]) for name in ("stop_tokens", "banned_tokens")],
        ("SamplingOptions", "stop_strings", [b"a", b""]),
        *[("TokenTexts", "line_end", value) for value in (-2, 2)],
    ],
)
def test_options_out_of_range(function, argument, bad):
    refused(function, argument, bad, got=r"\S+")


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        ("lstm_forward_tape", "seed"),
        ("dropout", "seed"),
        ("dropout", "stream"),
        ("adam_step", "lr"),
        ("sgd_step", "momentum"),
    ],
)
def test_options_of_the_wrong_kind(function, argument):
    for bad in ("text", None, [1]):
        wrong_kind(function, argument, bad)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        *[(name, "text") for name in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")],
        *[(name, 2.0) for name in ("max_new_tokens", "min_new_tokens", "top_k", "num_sequences")],
        *[(name, True) for name in ("top_log_probabilities", "no_repeat_ngram_size", "temperature")],
        *[(name, bad) for name in ("stop_tokens", "banned_tokens") for bad in (3, "ab", [1.5])],
        *[("forced_tokens", bad) for bad in ([1], {"a": 1}, {0: "a"})],
    ],
)
def test_sampling_options_of_the_wrong_kind(argument, bad):
    refused("SamplingOptions", argument, bad, error=TypeError)


@pytest.mark.parametrize("tape", ["", "fulll", "none"])
def test_tape_modes_are_named(tape):
    with pytest.raises(
        ValueError, match=rf"^lstm_forward_tape: tape must be 'full', 'half' or 'lean', got '{tape}'$"
    ):
        call("lstm_forward_tape", tape=tape)


@pytest.mark.parametrize("function", ["lstm_forward_tape", "dropout"])
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_are_64_bits(function, seed):
    with pytest.raises((TypeError, ValueError, OverflowError), match=r"(?s)seed"):
        call(function, seed=seed)
    call(function, seed=2**64 - 1)


@pytest.mark.parametrize("argument", ["on_tokens", "processor", "token_mask"])
def test_callback_must_be_callable(argument):
    wrong_kind("generate", argument, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"stop_tokens": [7]},
        {"banned_tokens": [7]},
        {"forced_tokens": {0: 7}},
        {"top_log_probabilities": 8},
        {"stop_strings": [b"a"], "token_texts": _core.TokenTexts([b"a"] * 6)},
    ],
)
def test_options_beyond_the_vocabulary(options):
    with pytest.raises(
        ValueError,
        match=rf"^generate: {('token_texts' if len(options) > 1 else next(iter(options)))} must .*, got .*",
    ):
        call("generate", options=_core.SamplingOptions(max_new_tokens=2, **options))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unknown_and_missing_arguments(function):
    with pytest.raises(TypeError):
        call(function, nonsense=1)
    arguments = good(function)
    owner = arguments.pop("self", _core)
    with pytest.raises(TypeError):
        getattr(owner, function.split(".")[-1])()


def test_momentum_needs_a_velocity():
    refused("sgd_step", "velocity", None, got="None")


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match=r"^sgd_step: (nesterov|momentum) must be .*, got .*"):
        call("sgd_step", nesterov=True, momentum=0.0)


# tokens
@pytest.mark.parametrize("function", ["lstm_forward", "lstm_forward_tape"])
def test_token_input(function):
    ids, table = integers(N, T), ones(V, I)
    call(function, x=ids, embedding=table)
    refused(function, "x", integers(N, T, I), embedding=table)
    refused(function, "x", ones(N, T, I), embedding=table)
    refused(function, "x", ids, error=ValueError)  # int32 without an embedding
    refused(function, "x", ids[:, ::-1], got=r".*contiguous.*", embedding=table)
    for bad in (-1, V, 2**31 - 1, -(2**31)):
        wrong = np.where(np.arange(T) == 2, bad, ids).astype(np.int32)
        for lengths in (None, np.array([0, 1, 3], np.int32)):
            refused(function, "x", wrong, got=rf".*{bad}.*", embedding=table, lengths=lengths)
    for bad in (ones(V, I + 1), ones(V), ones(V, I, dtype=F64), ones(V, 2 * I)[:, ::2]):
        refused(function, "embedding", bad, x=ids)


def test_ids_in_padding_are_not_read():
    """Only valid steps are checked and used: padding may hold anything."""
    ids = np.array([[0, 1, -7, 99], [1, 1, 1, 1], [2, 99, 99, 99]], np.int32)
    lengths = np.array([2, 4, 1], np.int32)
    clean = np.where(np.arange(T) < lengths[:, None], ids, 0).astype(np.int32)
    for function in ("lstm_forward", "lstm_forward_tape"):
        y = call(function, x=ids, embedding=ones(V, I), lengths=lengths)[0]
        cases.assert_same_bits(y, call(function, x=clean, embedding=ones(V, I), lengths=lengths)[0])


def test_backward_of_tokens():
    m = cases.model(I, H, L=2, D=2)
    dense = _core.lstm_forward_tape(m.packed, ones(N, T, I))[3]
    refused("lstm_backward", "d_embedding", ones(V, I), tape=dense)

    def tape():
        return _core.lstm_forward_tape(m.packed, integers(N, T), embedding=ones(V, I))[3]

    for bad in (ones(V + 1, I), ones(V, I + 1), ones(V), ones(V, I, dtype=F64), ones(V, 2 * I)[:, ::2]):
        refused("lstm_backward", "d_embedding", bad, tape=tape())
    call("lstm_backward", d_embedding=ones(V, I), tape=tape())


# tapes
def test_a_tape_is_used_once():
    arguments = good("lstm_backward")
    _core.lstm_backward(**arguments)
    assert arguments["tape"].consumed
    before = arguments["gradients"].copy()
    with pytest.raises(RuntimeError, match=r"^lstm_backward: tape .*"):
        _core.lstm_backward(**arguments)
    cases.assert_same_bits(before, arguments["gradients"])


def test_a_refused_call_does_not_use_up_the_tape():
    arguments = good("lstm_backward")
    refused("lstm_backward", "dy", ones(N, T, H), **{k: v for k, v in arguments.items() if k not in ("dy",)})
    assert not arguments["tape"].consumed
    _core.lstm_backward(**arguments)


@pytest.mark.parametrize(
    "other",
    [
        (I, H, 1, 2),
        (I, H, 2, 1),
        (I + 1, H, 2, 2),
        (I, H + 1, 2, 2),
        (I, H, 2, 2, False),
        (I, H, 2, 2, True, "float64"),
    ],
)
def test_a_tape_belongs_to_its_sizes(other):
    m = cases.model(*other)
    tape = _core.lstm_forward_tape(m.packed, ones(N, T, m.lstm.input_size, dtype=m.flat.dtype))[3]
    refused("lstm_backward", "tape", tape)
    assert not tape.consumed


@pytest.mark.parametrize("member", ["gates", "c", "h"])
def test_tape_layers_out_of_range(member):
    tape = good("lstm_backward")["tape"]
    for layer, direction in ((2, 0), (-1, 0), (0, 2), (0, -1)):
        with pytest.raises((ValueError, IndexError), match=r"layer|direction"):
            getattr(tape, member)(layer, direction)


def test_handles_are_not_made_by_hand():
    for name in ("PackedLSTM", "LSTMTape", "PackedLinear"):
        with pytest.raises(TypeError):
            getattr(_core, name)()


@pytest.mark.parametrize("function", ["lstm_cell_forward", "lstm_cell_backward"])
@pytest.mark.parametrize(("L", "D"), [(2, 1), (1, 2)])
def test_a_cell_has_one_layer_and_direction(function, L, D):
    refused(function, "packed", cases.model(I, H, L, D).packed)


# sizes
@pytest.mark.parametrize("argument", ["input_size", "hidden_size", "num_layers"])
@pytest.mark.parametrize("bad", [0, -1, -(2**31)])
def test_sizes_of_an_lstm(argument, bad):
    sizes = {"input_size": 3, "hidden_size": 4, "num_layers": 1} | {argument: bad}
    with pytest.raises(ValueError, match=rf"^LSTM: {argument} must .*, got {bad}$"):
        _core.LSTM(**sizes)


def test_sizes_that_overflow():
    with pytest.raises((ValueError, MemoryError)):
        _core.LSTM(2**40, 2**40, num_layers=2**20)


@pytest.mark.parametrize("bad", ["float16", "double", "", "int8"])
def test_dtype_of_an_lstm(bad):
    with pytest.raises(ValueError, match=rf"^LSTM: dtype must be .*float32.*float64.*, got .*{bad}.*"):
        _core.LSTM(3, 4, dtype=bad)
    with pytest.raises(ValueError, match=rf"^aligned_zeros: dtype must be .*, got .*{bad}.*"):
        _core.aligned_zeros(3, bad)


def test_size_of_aligned_zeros():
    with pytest.raises(ValueError, match=r"^aligned_zeros: size must be .*, got -1"):
        _core.aligned_zeros(-1)
    with pytest.raises((ValueError, MemoryError)):
        _core.aligned_zeros(2**62)


def test_all_finite_wants_a_contiguous_float_array():
    with pytest.raises(
        ValueError, match=r"^all_finite: x must be C-contiguous, got a strided array \(3, 4\)"
    ):
        _core.all_finite(np.zeros((4, 3), np.float32).T)
    with pytest.raises(ValueError, match=r"^all_finite: x must be a float32 or float64 array, got int64"):
        _core.all_finite(np.zeros(3, np.int64))
    with pytest.raises(TypeError, match=r"^all_finite: x must be a float32 or float64 array, got list"):
        _core.all_finite([1.0])


def test_empty():
    refused("mean_squared_error", "y", ones(0), target=ones(0))
    refused("linear_pack", "weight", ones(0, 3), bias=None)
    refused("linear_pack", "weight", ones(3, 0), bias=None)


def test_weights_packed_for_inference_only():
    m = cases.model(I, H, L=2, D=2)
    packed = m.lstm.pack(m.flat, backward=False)
    assert packed.nbytes < 0.7 * m.packed.nbytes
    call("lstm_forward", packed=packed)
    with pytest.raises(ValueError, match=r"^lstm_backward: packed must be packed with backward=True"):
        call("lstm_backward", packed=packed)


def test_mixed_decoder():
    m = cases.model(I, H)
    refused("LanguageModelDecoder", "output", _core.linear_pack(ones(V, H + 1)), lstm=m.packed)
    refused("LanguageModelDecoder", "output", _core.linear_pack(ones(V, H, dtype=F64)), lstm=m.packed)
    refused(
        "LanguageModelDecoder",
        "lstm",
        cases.model(I, H, D=2).packed,
        output=_core.linear_pack(ones(V, 2 * H)),
    )


# runtime
def python(code, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


UNAVAILABLE = [
    "bogus",
    "AVX2 ",
    "amx9000",
    *(level for level in _core.isa_compiled() if level not in _core.isa_levels()),
]


@pytest.mark.parametrize("level", UNAVAILABLE)
def test_unavailable_instruction_set(monkeypatch, level):
    done = python("import fusedlstm._core", {"FUSEDLSTM_ISA": level}, monkeypatch)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert level in last
    assert "FUSEDLSTM_ISA" in last
    assert all(available in last for available in _core.isa_levels()), last
    with pytest.raises(ValueError, match=re.escape(level)) as caught:
        _core.set_isa(level)
    assert all(available in str(caught.value) for available in _core.isa_levels())


@pytest.mark.parametrize("count", [0, -1, -(2**31)])
def test_number_of_threads(count):
    before = _core.num_threads()
    with pytest.raises(ValueError, match=rf"^set_num_threads: wanted .*, got '{count}'$"):
        _core.set_num_threads(count)
    assert _core.num_threads() == before


def test_absurd_number_of_threads():
    before = _core.num_threads()
    with pytest.raises(ValueError, match=r"^set_num_threads: wanted .*, got '1000000000'$"):
        _core.set_num_threads(1_000_000_000)
    assert _core.num_threads() == before


@pytest.mark.parametrize("text", ["0", "-1", "two", "2x", "1.5", "99999999999999999999"])
def test_number_of_threads_in_the_environment(monkeypatch, text):
    done = python(
        "from fusedlstm import _core; _core.num_threads()", {"FUSEDLSTM_NUM_THREADS": text}, monkeypatch
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "FUSEDLSTM_NUM_THREADS" in last
    assert text in last


# values
def test_nan_shows_where_it_came_in(isa, dtype):
    """NaN in one row spoils that row from that step on, backward its earlier gradients, and no other row."""
    m = cases.model(I=3, H=19, L=2, dtype=dtype)
    b = cases.batch(m, N=9, T=5)
    clean = cases.run(m, b)
    b.x[4, 2, 1] = np.nan
    got = cases.run(m, b)
    assert np.isnan(got.y[4, 2:]).all()
    assert np.isnan(got.h_n[:, 4]).all()
    assert np.isnan(got.dx[4]).all()
    assert np.isnan(m.views(got.gradients)["weight_hh_l0"]).all()
    cases.assert_same_bits(got.y[4, :2], clean.y[4, :2])
    for n in (0, 3, 5, 8):
        for one, other in zip(got.row(n), clean.row(n), strict=True):
            cases.assert_same_bits(one, other)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", ["lstm_forward", "lstm_forward_tape"])
@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((1, 7, 3), None), ((9, 1, 3), None), ((9, 40, 3), None), ((3, 40, 3), [40, 1, 17])],
)
def test_check_x_finds_any_value_that_is_not_finite(dtype, threads, function, shape, lengths, value):
    """The first value, the last and one between, of rows that are read in place, step by step or gathered."""
    threads(2)
    m = cases.model(I=3, H=19, L=2, D=2 if lengths else 1, dtype=dtype)
    x = np.ones(shape, dtype)
    counts = np.full(shape[0], shape[1]) if lengths is None else np.array(lengths)
    arguments = {"lengths": None if lengths is None else counts.astype(np.int32), "check_x": True}
    call = getattr(_core, function)
    call(m.packed, x, **arguments)
    for place in [(0, 0, 0), (-1, counts[-1] - 1, 2), (shape[0] // 2, counts[shape[0] // 2] - 1, 1)]:
        before, x[place] = x[place], value
        with pytest.raises(FloatingPointError, match=rf"^{function}: x must be finite$"):
            call(m.packed, x, **arguments)
        x[place] = before
    if lengths is not None:
        x[1, 1:] = value  # padding is not read
        call(m.packed, x, **arguments)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, -1e30])
def test_huge_inputs_saturate(isa, dtype, value):
    """Without NaN in the sums the gates saturate: outputs stay within [-1, 1]."""
    m = cases.model(I=1, H=19, dtype=dtype)
    y, _, c_n = _core.lstm_forward(m.packed, np.full((3, 4, 1), value, dtype))
    assert (np.abs(y) <= 1).all()
    assert (np.abs(c_n) <= 4).all()


def test_subnormal_mode_is_put_back(isa):
    """Kernels flush subnormals to zero; the caller's arithmetic does not."""
    m = cases.model(I=3, H=19)
    cases.run(m, cases.batch(m, N=9, T=5))
    tiny = np.finfo(np.float32).tiny
    assert np.float32(tiny) / np.float32(2) > 0
    assert np.float64(5e-324) * 2 > 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_property_strided_input_is_refused(data):
    """Any view that is not C-contiguous is refused, and nothing is computed from it."""
    function, argument = data.draw(st.sampled_from(ARRAYS))
    array = good(function)[argument]
    axis = data.draw(st.integers(0, array.ndim - 1))
    step = data.draw(st.sampled_from([-1, 2, 3]))
    shape = [n * abs(step) if k == axis else n for k, n in enumerate(array.shape)]
    whole = np.ones(shape, array.dtype)
    view = whole[tuple(slice(None, None, step) if k == axis else slice(None) for k in range(array.ndim))]
    assert view.shape == array.shape
    if not view.flags.c_contiguous:
        refused(function, argument, view, got=r".*contiguous.*")
