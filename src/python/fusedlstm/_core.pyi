"""Native core of fusedlstm: what the Python package may call.

Letters: N batch, T time, I inputs, H hidden units, L layers, D directions (1 or 2), V vocabulary, R rows.
All arrays are C-contiguous NumPy arrays of the dtype of the packed weights (float32 or float64) unless said
otherwise. A strided or wrongly typed array is refused with a ``ValueError`` that names function, argument,
what was wanted and what came; nothing is converted here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[Any]  # float32 or float64
Int = NDArray[np.int32]

__version__: str

# runtime ------------------------------------------------------------------------------------------------
def isa() -> str: ...
def isa_levels() -> list[str]: ...
def isa_compiled() -> list[str]: ...
def set_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def cpu_info() -> dict[str, Any]: ...
def build_info() -> dict[str, Any]: ...
def profile_start(intervals: bool = False) -> None: ...
def profile_stop() -> dict[str, Any]: ...
def peak_flops(dtype: str) -> float: ...
def read_bandwidth(bytes: int) -> float: ...
def aligned_zeros(size: int, dtype: str = "float32") -> Float: ...
def all_finite(x: Float) -> bool: ...

# LSTM ---------------------------------------------------------------------------------------------------
class LSTM:
    """Sizes of a stack of LSTM layers and where each weight lies in one flat parameter buffer."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        bias: bool = True,
        dtype: str = "float32",
    ) -> None: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def bidirectional(self) -> bool: ...
    @property
    def bias(self) -> bool: ...
    @property
    def dtype(self) -> str: ...
    @property
    def num_parameters(self) -> int: ...
    def parameter_table(self) -> list[tuple[str, tuple[int, ...], int]]: ...
    def pack(
        self, parameters: Float, *, backward: bool = True, compute_dtype: str | None = None
    ) -> PackedLSTM: ...

class PackedLSTM:
    """Weights laid out for the kernels: an immutable snapshot of the parameters at the time of packing."""

    @property
    def lstm(self) -> LSTM: ...
    @property
    def isa(self) -> str: ...
    @property
    def compute_dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class LSTMTape:
    """What a training forward keeps for backward. ``backward`` consumes it: a second use is an error."""

    @property
    def consumed(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def row_of(self) -> tuple[Int, Int]: ...
    def gates(self, layer: int, direction: int = 0) -> Float: ...
    def c(self, layer: int, direction: int = 0) -> Float: ...
    def h(self, layer: int, direction: int = 0) -> Float: ...

def lstm_forward(
    packed: PackedLSTM,
    x: Float | Int,
    h0: Float | None = None,
    c0: Float | None = None,
    lengths: Int | None = None,
    embedding: Float | None = None,
    check_x: bool = False,
) -> tuple[Float, Float, Float]: ...
def lstm_forward_tape(
    packed: PackedLSTM,
    x: Float | Int,
    h0: Float | None = None,
    c0: Float | None = None,
    lengths: Int | None = None,
    embedding: Float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    tape: str = "full",
    check_x: bool = False,
) -> tuple[Float, Float, Float, LSTMTape]: ...
def lstm_backward(
    packed: PackedLSTM,
    tape: LSTMTape,
    dy: Float | None,
    dh_n: Float | None,
    dc_n: Float | None,
    gradients: Float,
    d_embedding: Float | None = None,
    need_dx: bool = True,
) -> tuple[Float | None, Float, Float]: ...
def lstm_cell_forward(packed: PackedLSTM, x: Float, h: Float, c: Float) -> tuple[Float, Float, Float]: ...
def lstm_cell_backward(
    packed: PackedLSTM,
    x: Float,
    h: Float,
    c: Float,
    c_next: Float,
    gates: Float,
    dh: Float,
    dc: Float | None = None,
    *,
    gradients: Float | None = None,
) -> tuple[Float, Float, Float]: ...

class Stream:
    """Rows of states stepped one time step at a time, all memory taken once; see `fusedlstm.Stream`.

    ``step`` takes x (rows, I), or (I,) with one row, and returns y (rows, H) or (H,), a view of the stream's
    memory that the next step overwrites.
    """

    def __init__(self, packed: PackedLSTM, capacity: int) -> None: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def capacity(self) -> int: ...
    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def capsule(self) -> object: ...
    def step(self, x: Float) -> Float: ...
    def run(self, block: Float) -> Float: ...
    def join(self, state: tuple[Float, Float] | None = None) -> int: ...
    def leave(self, id: int) -> None: ...
    def reset(self, id: int | None = None) -> None: ...
    def save(self, id: int | None = None) -> tuple[Float, Float]: ...
    def restore(self, state: tuple[Float, Float] | None, id: int | None = None) -> None: ...
    def fork(self, id: int) -> int: ...

# operations ---------------------------------------------------------------------------------------------
class PackedLinear:
    """Weight (O, I) and bias (O,) of y = x W^T + b laid out for the kernels; immutable."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def compute_dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

def linear_pack(
    weight: Float, bias: Float | None = None, *, compute_dtype: str | None = None
) -> PackedLinear: ...
def linear_forward(packed: PackedLinear, x: Float) -> Float: ...
def linear_backward(
    packed: PackedLinear,
    x: Float,
    dy: Float,
    *,
    d_weight: Float | None = None,
    d_bias: Float | None = None,
    need_dx: bool = True,
) -> Float | None: ...
def embedding_forward(weight: Float, ids: Int) -> Float: ...
def embedding_backward(ids: Int, dy: Float, d_weight: Float) -> None: ...
def dropout(x: Float, rate: float, seed: int, stream: int = 0) -> Float: ...
def linear_cross_entropy(
    packed: PackedLinear,
    x: Float,
    targets: Int,
    *,
    scale: float = 1.0,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
    d_weight: Float | None = None,
    d_bias: Float | None = None,
    need_dx: bool = False,
) -> tuple[float, int, Float | None]: ...
def cross_entropy(
    logits: Float,
    targets: Int,
    *,
    scale: float = 1.0,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
    need_gradient: bool = True,
) -> tuple[float, int, Float | None]: ...
def mean_squared_error(
    y: Float, target: Float, *, need_gradient: bool = True
) -> tuple[float, Float | None]: ...
def gradient_norm(gradients: Float) -> float: ...
def zero_gradients(gradients: Float) -> None: ...
def sgd_step(
    parameters: Float,
    gradients: Float,
    velocity: Float | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    gradient_scale: float = 1.0,
) -> None: ...
def adam_step(
    parameters: Float,
    gradients: Float,
    m: Float,
    v: Float,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    gradient_scale: float = 1.0,
) -> None: ...

# elementary functions of the kernels, for tests and for reading their error -------------------------------
def exp(x: Float) -> Float: ...
def log(x: Float) -> Float: ...
def sigmoid(x: Float) -> Float: ...
def tanh(x: Float) -> Float: ...
def philox(seed: int, stream: int, row: int, step: int, block: int) -> NDArray[np.uint32]: ...

# attention ----------------------------------------------------------------------------------------------
class PackedAttention:
    """Weights of an attention laid out for the kernels; immutable.

    Shapes: output (O, M+H), key (A, M), query (A, H), v and coverage (A,), as far as `kind` has them.
    """

    def __init__(
        self,
        kind: str,
        memory_size: int,
        hidden_size: int,
        *,
        dtype: str,
        output: Float | None = None,
        key: Float | None = None,
        query: Float | None = None,
        v: Float | None = None,
        coverage: Float | None = None,
    ) -> None: ...

class AttentionTape:
    """What `attention_decoder_forward` keeps for one `attention_decoder_backward`."""

    @property
    def weights(self) -> Float | None: ...
    @property
    def nbytes(self) -> int: ...

class AttentionDecoder:
    """What generation needs, prepared once: layers, embedding @ W_ih^T + b, attention, output layer."""

    def __init__(
        self,
        lstm: PackedLSTM,
        attention: PackedAttention,
        embedding: Float,
        output: PackedLinear,
        input_feeding: bool,
    ) -> None: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def logits(
        self,
        tokens: Int,
        memory: Float | None,
        memory_lengths: Int | None,
        *,
        h0: Float | None = None,
        c0: Float | None = None,
    ) -> tuple[Float, Float | None]: ...
    # what the output layer reads, instead of the logits
    def outputs(
        self,
        tokens: Int,
        memory: Float | None,
        memory_lengths: Int | None,
        *,
        h0: Float | None = None,
        c0: Float | None = None,
    ) -> tuple[Float, Float | None]: ...
    def generate(
        self,
        *,
        h0: Float,
        c0: Float | None,
        start_token: int,
        options: SamplingOptions,
        seeds: NDArray[np.uint64],
        memory: Float | None = None,
        memory_lengths: Int | None = None,
        on_tokens: Callable[[Int, Int], object] | None = None,
        processor: Processor | None = None,
        token_mask: TokenMask | None = None,
    ) -> Generation: ...
    # tokens (N, R, T), lengths (N, R), scores (N, R), log-probabilities (N, R, T), R = num_return
    def beam_search(
        self,
        *,
        h0: Float,
        c0: Float | None,
        start_token: int,
        options: BeamOptions,
        memory: Float | None = None,
        memory_lengths: Int | None = None,
        on_prefix: Callable[[int, Int, bool], object] | None = None,
    ) -> tuple[Int, Int, Float, Float]: ...

def attention_decoder_forward(
    lstm: PackedLSTM,
    attention: PackedAttention,
    x: Float,
    memory: Float | None,
    memory_lengths: Int | None,
    *,
    lengths: Int | None = None,
    h0: Float | None = None,
    c0: Float | None = None,
    input_feeding: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    embedding: Float | None = None,
    output: PackedLinear | None = None,
    probability: NDArray[np.float64] | None = None,
    sample: bool = False,
) -> tuple[Float, Float, Float, Int | None, AttentionTape]: ...
def attention_decoder_backward(
    tape: AttentionTape,
    memory: Float | None,
    dy: Float,
    dh_n: Float | None,
    dc_n: Float | None,
    lstm: Float,
    *,
    output: Float | None = None,
    key: Float | None = None,
    query: Float | None = None,
    v: Float | None = None,
    coverage: Float | None = None,
) -> tuple[Float, Float | None, Float, Float]: ...

# generation ---------------------------------------------------------------------------------------------
class TokenTexts:
    """Bytes of each token's text, for stop strings.

    `separator` goes before every token but `line_end`, unless that came just before.
    """

    def __init__(self, texts: Sequence[bytes], *, separator: bytes = b"", line_end: int = -1) -> None: ...

class SamplingOptions:
    """How tokens are chosen, checked; `fusedlstm.generation.Sampling` says what each option means."""

    def __init__(
        self,
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        greedy: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
        banned_tokens: Sequence[int] | Int = (),
        forced_tokens: Mapping[int, int] = {},
        stop_tokens: Sequence[int] | Int = (),
        stop_strings: Sequence[bytes] = (),
        token_texts: TokenTexts | None = None,
        num_sequences: int = 1,
        top_log_probabilities: int = 0,
    ) -> None: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def num_sequences(self) -> int: ...

# ids (rows,) int64 and the tokens so far, prompt included, of every live row -> allowed, bool (rows, V)
TokenMask = Callable[[NDArray[np.int64], tuple[Int, ...]], NDArray[np.bool_]]
# the same and logits (rows, V) to change in place or return anew
Processor = Callable[[NDArray[np.int64], tuple[Int, ...], Float], Float | None]

class Generation:
    """What a loop made: R = N num_sequences rows, sequence r of prompt r // num_sequences."""

    @property
    def tokens(self) -> Int: ...  # (R, max_new_tokens), -1 past the end
    @property
    def lengths(self) -> Int: ...  # (R,)
    @property
    def log_probabilities(self) -> Float: ...  # (R, max_new_tokens) of softmax(logits), 0 past the end
    @property
    def top_tokens(self) -> Int: ...  # (R, max_new_tokens, top_log_probabilities), most probable first
    @property
    def top_log_probabilities(self) -> Float: ...
    @property
    def finish(self) -> tuple[str, ...]: ...  # "length", "stop_token" or "stop_string"
    @property
    def behind(self) -> Int: ...  # (R,): bytes of the last token's text behind the stop string
    @property
    def states(self) -> Float: ...  # (R, S): before each sequence's last token was fed

class BeamOptions:
    """How a beam search goes, checked; `fusedlstm.generation.BeamSearch` says what each option means."""

    def __init__(
        self,
        *,
        width: int = 5,
        num_return: int = 1,
        groups: int = 1,
        diversity_strength: float = 0.0,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        length_penalty: float = 1.0,
        length_penalty_form: str = "plain",
        early_stopping: bool | str = False,
        stop_tokens: Sequence[int] | Int = (),
        banned_tokens: Sequence[int] | Int = (),
        forced_tokens: Mapping[int, int] = {},
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
    ) -> None: ...

class LanguageModelDecoder:
    """What a generation loop needs, prepared once: layers, the table embedding @ W_ih^T + b, output layer.

    A row's state is h (L, H), then c (L, H): S = 2 L H.
    """

    def __init__(self, lstm: PackedLSTM, embedding: Float, output: PackedLinear) -> None: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def generate(
        self,
        prompts: Int,
        prompt_lengths: Int,
        options: SamplingOptions,
        *,
        seeds: NDArray[np.uint64],
        h0: Float | None = None,
        c0: Float | None = None,
        on_tokens: Callable[[Int, Int], object] | None = None,
        processor: Processor | None = None,
        token_mask: TokenMask | None = None,
    ) -> Generation: ...
    # tokens (N, R, T), lengths (N, R), scores (N, R), log-probabilities (N, R, T) of the R = num_return best
    def beam_search(
        self,
        prompts: Int,
        prompt_lengths: Int,
        options: BeamOptions,
        *,
        h0: Float | None = None,
        c0: Float | None = None,
        on_prefix: Callable[[int, Int, bool], object] | None = None,
    ) -> tuple[Int, Int, Float, Float]: ...

class GenerationSession:
    """Sequences of one model, stepped together; `fusedlstm.generation.Session` says what each method does."""

    def __init__(self, decoder: LanguageModelDecoder | AttentionDecoder, capacity: int) -> None: ...
    @property
    def capacity(self) -> int: ...
    @property
    def ids(self) -> list[int]: ...
    # states h0, c0 (L, H) and, with attention, memory (S, M)
    def join(
        self,
        prompt: Int,
        options: SamplingOptions,
        seed: int,
        *,
        h0: Float | None = None,
        c0: Float | None = None,
        memory: Float | None = None,
    ) -> int: ...
    # (id, token, log-probability, finish, behind, top) of every live sequence
    def step(
        self, *, processor: Processor | None = None, token_mask: TokenMask | None = None
    ) -> list[tuple[int, int, float, str | None, int, list[tuple[int, float]]]]: ...
    def leave(self, id: int) -> None: ...
    # tokens (T,), prompt_length, state (S,), logits (V,)
    def save(self, id: int) -> tuple[Int, int, Float, Float]: ...
    def restore(
        self,
        tokens: Int,
        prompt_length: int,
        state: Float,
        logits: Float,
        options: SamplingOptions,
        seed: int,
        *,
        memory: Float | None = None,
    ) -> int: ...

# one to many --------------------------------------------------------------------------------------------
def one_to_many(
    packed: PackedLSTM,
    output: PackedLinear,
    first: Float,
    targets: Float | Int,
    h0: Float | None = None,
    c0: Float | None = None,
    lengths: Int | None = None,
    *,
    feedback: str,
    teacher_probability: float = 0.0,
    embedding: Float | None = None,
    temperature: float = 1.0,
    sample: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    need_outputs: bool = False,
    gradients: Float | None = None,
    d_weight: Float | None = None,
    d_bias: Float | None = None,
    d_embedding: Float | None = None,
) -> tuple[float, Float | None, Float | None, Float | None, Float | None]: ...
def one_to_many_generate(
    packed: PackedLSTM,
    output: PackedLinear,
    first: Float,
    steps: int,
    h0: Float | None = None,
    c0: Float | None = None,
) -> tuple[Float, Float, Float]: ...

class OneToManyDecoder:
    """Generation of tokens after a first input (N, I): `LanguageModelDecoder` without prompts."""

    def __init__(self, packed: PackedLSTM, embedding: Float, output: PackedLinear) -> None: ...
    def generate(
        self,
        first: Float,
        options: SamplingOptions,
        *,
        seeds: NDArray[np.uint64],
        h0: Float | None = None,
        c0: Float | None = None,
        inputs: Int | None = None,
        on_tokens: Callable[[Int, Int], object] | None = None,
        processor: Processor | None = None,
        token_mask: TokenMask | None = None,
    ) -> Generation: ...
