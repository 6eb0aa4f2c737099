"""Native core of fusedlstm: what the Python package may call.

Letters: N batch, T time, I inputs, H hidden units, L layers, D directions (1 or 2), V vocabulary, R rows.
All arrays are C-contiguous NumPy arrays of the dtype of the packed weights (float32 or float64) unless said
otherwise. A strided or wrongly typed array is refused with a ``ValueError`` that names function, argument,
what was wanted and what came; nothing is converted here.
"""

from collections.abc import Callable
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
    *,
    embedding: Float | None = None,
) -> tuple[Float, Float, Float]: ...
def lstm_forward_tape(
    packed: PackedLSTM,
    x: Float | Int,
    h0: Float | None = None,
    c0: Float | None = None,
    lengths: Int | None = None,
    *,
    embedding: Float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    tape: str = "full",
) -> tuple[Float, Float, Float, LSTMTape]: ...
def lstm_backward(
    packed: PackedLSTM,
    tape: LSTMTape,
    dy: Float | None,
    dh_n: Float | None = None,
    dc_n: Float | None = None,
    *,
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
    def nbytes(self) -> int: ...

def linear_pack(weight: Float, bias: Float | None = None) -> PackedLinear: ...
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
    d_weight: Float | None = None,
    d_bias: Float | None = None,
    need_dx: bool = False,
) -> tuple[float, int, Float | None]: ...
def cross_entropy(
    logits: Float, targets: Int, *, scale: float = 1.0, ignore_index: int = -1, need_gradient: bool = True
) -> tuple[float, int, Float | None]: ...
def mean_squared_error(
    y: Float, target: Float, *, need_gradient: bool = True
) -> tuple[float, Float | None]: ...
def gradient_norm(gradients: Float) -> float: ...
def scale_gradients(gradients: Float, factor: float) -> None: ...
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

# generation ---------------------------------------------------------------------------------------------
class LanguageModelDecoder:
    """What a generation loop needs, prepared once: layers, the table embedding @ W_ih^T + b, output layer."""

    def __init__(self, lstm: PackedLSTM, embedding: Float, output: PackedLinear) -> None: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def generate(
        self,
        prompts: Int,
        prompt_lengths: Int,
        *,
        max_new_tokens: int,
        seeds: NDArray[np.uint64],
        greedy: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_token: int = -1,
        h0: Float | None = None,
        c0: Float | None = None,
        on_tokens: Callable[[Int], object] | None = None,
    ) -> tuple[Int, Int, Float, Float, Float]: ...
