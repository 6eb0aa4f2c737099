"""Inputs for the tests of the native core: random weights, arrays and ragged lengths, always from a seed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fusedlstm import _core

LANES = {"float32": 16, "float64": 8}  # of the widest instruction set


@dataclass
class Model:
    lstm: _core.LSTM
    flat: np.ndarray  # (num_parameters,) in the dtype of the kernels
    packed: _core.PackedLSTM

    def views(self, flat) -> dict[str, np.ndarray]:
        """Named views into a flat buffer laid out as the parameters are."""
        table = self.lstm.parameter_table()
        return {
            name: flat[offset : offset + int(np.prod(shape))].reshape(shape) for name, shape, offset in table
        }

    @property
    def exact(self) -> dict[str, np.ndarray]:
        """The weights in float64, for the specification."""
        return {name: view.astype(np.float64) for name, view in self.views(self.flat).items()}

    @property
    def directions(self) -> int:
        return 2 if self.lstm.bidirectional else 1

    def zeros(self) -> np.ndarray:
        return np.zeros_like(self.flat)

    def repack(self) -> Model:
        """The same weights packed for the instruction set chosen now."""
        packed = self.lstm.pack(self.flat, compute_dtype=self.packed.compute_dtype)
        return Model(self.lstm, self.flat, packed)


def model(I, H, L=1, D=1, bias=True, dtype="float32", seed=0, compute_dtype=None) -> Model:
    lstm = _core.LSTM(I, H, num_layers=L, bidirectional=D == 2, bias=bias, dtype=dtype)
    flat = np.zeros(lstm.num_parameters, dtype=dtype)
    rng = np.random.default_rng([seed, I, H, L, D])
    for _, shape, offset in lstm.parameter_table():
        bound = 1.5 / np.sqrt(shape[-1] if len(shape) == 2 else 4)  # gates spread over (0, 1), not saturated
        size = int(np.prod(shape))
        flat[offset : offset + size] = rng.uniform(-bound, bound, size)
    return Model(lstm, flat, lstm.pack(flat, compute_dtype=compute_dtype))


@dataclass
class Batch:
    x: np.ndarray  # (N, T, I)
    h0: np.ndarray  # (L*D, N, H)
    c0: np.ndarray
    dy: np.ndarray  # (N, T, D*H)
    dh_n: np.ndarray
    dc_n: np.ndarray
    lengths: np.ndarray | None

    def rows(self, rows) -> Batch:
        """The sequences `rows` of this batch as a batch of their own."""
        state = [np.ascontiguousarray(a[:, rows]) for a in (self.h0, self.c0, self.dh_n, self.dc_n)]
        lengths = None if self.lengths is None else self.lengths[rows]
        return Batch(self.x[rows], state[0], state[1], self.dy[rows], state[2], state[3], lengths)


def batch(m: Model, N, T, ragged=False, seed=1) -> Batch:
    lstm, dtype = m.lstm, m.lstm.dtype
    D, H = m.directions, lstm.hidden_size
    rng = np.random.default_rng([seed, N, T, lstm.input_size, H])

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    state = (lstm.num_layers * D, N, H)
    lengths = rng.integers(0, T + 1, N).astype(np.int32) if ragged else None
    return Batch(
        normal(N, T, lstm.input_size), normal(*state), normal(*state),
        normal(N, T, D * H), normal(*state), normal(*state), lengths,
    )  # fmt: skip


@dataclass
class Result:
    y: np.ndarray
    h_n: np.ndarray
    c_n: np.ndarray
    dx: np.ndarray | None
    dh0: np.ndarray
    dc0: np.ndarray
    gradients: np.ndarray  # flat

    def row(self, n) -> tuple[np.ndarray, ...]:
        """What belongs to sequence n alone."""
        return (self.y[n], self.h_n[:, n], self.c_n[:, n], self.dx[n], self.dh0[:, n], self.dc0[:, n])

    def everything(self) -> tuple[np.ndarray, ...]:
        return (self.y, self.h_n, self.c_n, self.dx, self.dh0, self.dc0, self.gradients)


def run(m: Model, b: Batch, dropout=0.0, seed=0) -> Result:
    """Forward with tape and backward of the whole batch."""
    y, h_n, c_n, tape = _core.lstm_forward_tape(
        m.packed, b.x, b.h0, b.c0, b.lengths, dropout=dropout, seed=seed
    )
    gradients = m.zeros()
    dx, dh0, dc0 = _core.lstm_backward(m.packed, tape, b.dy, b.dh_n, b.dc_n, gradients=gradients)
    return Result(y, h_n, c_n, dx, dh0, dc0, gradients)


def assert_same_bits(*arrays) -> None:
    """All arrays have the same dtype, shape and bytes."""
    first = arrays[0]
    for other in arrays[1:]:
        assert other.dtype == first.dtype
        assert other.shape == first.shape
        different = np.ascontiguousarray(first).view(np.uint8) != np.ascontiguousarray(other).view(np.uint8)
        assert not different.any(), f"largest difference {np.abs(first - other).max()!r}"


def dropout_masks(m: Model, N, T, rate, seed, lengths=None) -> list[np.ndarray]:
    """The 0/1 masks of `lstm_forward_tape`, read out by a probe: one (N, T, D*H) per layer but the last.

    In the probe every layer up to `layer` puts out tanh(1) whatever it reads; the one above it puts out
    tanh(x) of the unit of the same number, which is zero exactly where the mask is.
    """
    H, D, masks = m.lstm.hidden_size, m.directions, []
    for layer in range(m.lstm.num_layers - 1):
        probe = model(1, H, layer + 2, D, dtype=m.lstm.dtype)
        probe.flat[:] = 0
        for name, view in probe.views(probe.flat).items():
            above = f"_l{layer + 1}" in name
            if name.startswith("bias_ih"):
                view.reshape(4, H)[:] = np.array([50, -50, 0 if above else 50, 50])[:, None]
            if name.startswith("weight_ih") and above:
                first = H if name.endswith("_reverse") else 0
                view.reshape(4, H, D * H)[2, :, first : first + H] = np.eye(H)
        probe.packed = probe.lstm.pack(probe.flat)
        x = np.zeros((N, T, 1), dtype=m.lstm.dtype)
        y = _core.lstm_forward_tape(probe.packed, x, None, None, lengths, dropout=rate, seed=seed)[0]
        masks.append((np.abs(y) > 1e-3).astype(np.float64))
    return masks


def central_differences(array, function):
    """d function() / d array, element by element, changing array in place."""
    step = 1e-5
    gradient = np.zeros_like(array)
    for index in np.ndindex(*array.shape):
        here = array[index]
        array[index] = here + step
        above = function()
        array[index] = here - step
        below = function()
        array[index] = here
        gradient[index] = (above - below) / (2 * step)
    return gradient


def at_once(count, work):
    """What `count` threads that begin at the same moment return, or raise."""
    begin = threading.Barrier(count)

    def run(number):
        begin.wait()
        try:
            return work(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
