"""oneDNN and libxsmm by themselves, where their headers are installed (Debian: libdnnl-dev, libxsmm-dev).

Small drivers in benchmarks/native are compiled when they are first asked for, and loaded into this process.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fusedlstm import _core

from .harness import BUILD, compiled

NAMES = {  # and how they are built
    "onednn": ["-fopenmp", "-ldnnl"],
    "libxsmm": ["-fopenmp", "-DNDEBUG", "-D__BLAS=0", "-O2", "-ldl"],  # all of it is compiled: takes minutes
}
Weights = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class CannotDo(Exception):
    """The library refuses this shape; says which."""


def headers_of_libxsmm() -> Path:
    """A folder from which ../src is where Debian has the sources that libxsmm_source.h includes."""
    folder = BUILD / "libxsmm"
    (folder / "include").mkdir(parents=True, exist_ok=True)
    if not (folder / "src").is_symlink():
        (folder / "src").symlink_to("/usr/include/libxsmm")
    return folder / "include"


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    flags = ["-shared", "-fPIC", *NAMES[name]]
    if name == "libxsmm":
        flags.append(f"-I{headers_of_libxsmm()}")
    path = compiled(f"native/{name}.cpp", *flags)
    if path is None:
        return None
    loaded = ctypes.CDLL(path)
    loaded.peer_version.restype = ctypes.c_char_p
    loaded.peer_new.restype = ctypes.c_void_p
    return loaded


def version(name: str) -> str | None:
    """None where the driver cannot be built."""
    loaded = library(name)
    return None if loaded is None else loaded.peer_version().decode()


class Layer:
    """The layer of one library, which its calls keep alive."""

    def __init__(
        self, name: str, weights: Weights, shape: tuple[int, int, int], threads: int, training: bool
    ) -> None:
        loaded = library(name)
        assert loaded is not None, "chosen only where it is"
        self.native = loaded
        w_ih, w_hh, b_ih, b_hh = weights
        bias = b_ih + b_hh
        n, t, i = shape
        self.pointer = loaded.peer_new(
            ctypes.c_int(threads),
            *(ctypes.c_long(size) for size in (n, t, i, w_hh.shape[1])),
            ctypes.c_int(training),
            *map(address, (w_ih, w_hh, bias)),
        )
        if not self.pointer:
            raise CannotDo("sizes are not multiples of 16" if name == "libxsmm" else "it refuses the shape")

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.native.peer_delete(ctypes.c_void_p(self.pointer))

    def __call__(self, function: str, *arrays: np.ndarray) -> None:
        getattr(self.native, function)(ctypes.c_void_p(self.pointer), *map(address, arrays))


def address(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    assert array.dtype == np.float32
    return ctypes.c_void_p(array.ctypes.data)


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros; libxsmm's stores of whole cache lines need the alignment."""
    return _core.aligned_zeros(math.prod(shape)).reshape(shape)


def time_first(array: np.ndarray) -> np.ndarray:
    """Their layout; not timed, as for ONNX Runtime."""
    copy = aligned(array.swapaxes(0, 1).shape)
    copy[...] = array.swapaxes(0, 1)
    return copy


def inference(name: str, weights: Weights, x: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    layer = Layer(name, weights, x.shape, threads, training=False)
    x_peer = time_first(x)
    y = aligned((*x_peer.shape[:2], weights[1].shape[1]))

    def work() -> np.ndarray:
        layer("peer_infer", x_peer, y)
        return y.swapaxes(0, 1)

    return work


def training(
    name: str, weights: Weights, x: np.ndarray, dy: np.ndarray, threads: int
) -> Callable[[], np.ndarray]:
    """dx; the gradients of the weights are made in the same call, and its weights are packed anew."""
    layer = Layer(name, weights, x.shape, threads, training=True)
    x_peer, dy_peer = time_first(x), time_first(dy)
    y, dx = aligned(dy_peer.shape), aligned(x_peer.shape)

    def work() -> np.ndarray:
        layer("peer_train", x_peer, dy_peer, y, dx)
        return dx.swapaxes(0, 1)

    return work
