"""What this machine can do at most, measured when it is asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from fusedlstm import _core

DTYPES = ("float32", "float64", "bfloat16", "int8")
MEMORY_BYTES = 1 << 28  # read by all threads together: more than caches hold


@dataclass(frozen=True)
class Bandwidth:
    """How fast one thread reads from one level of memory while all others do too.

    Attributes
    ----------
    level : str
        ``"L1"``, ``"L2"``, ``"L3"`` or ``"memory"``.
    capacity : float
        Bytes that a thread has there to itself; infinite for memory.
    rate : float
        Bytes per second and thread.

    Examples
    --------
    >>> from fusedlstm.profiling import Bandwidth
    >>> Bandwidth("L2", 1 << 20, 60e9).capacity
    1048576
    """

    level: str
    capacity: float
    rate: float


@dataclass(frozen=True)
class Ceilings:
    """Peak of arithmetic and of reading, per thread, with all threads busy.

    Attributes
    ----------
    isa : str
        Instruction set.
    threads : int
        How many threads ran.
    dtype : str
        Of the products.
    flops : float
        Additions and multiplications per second and thread: float32 and float64 as fused multiply-adds out of
        registers, bfloat16 and int8 as the package's own product out of the first-level cache.
    bandwidths : tuple of Bandwidth
        From the nearest level of memory to the farthest.

    Examples
    --------
    >>> from fusedlstm.profiling import Bandwidth, Ceilings
    >>> levels = Bandwidth("L2", 1 << 20, 50e9), Bandwidth("memory", float("inf"), 10e9)
    >>> ceilings = Ceilings("avx2", 2, "float32", 100e9, levels)
    >>> ceilings.bandwidth(5e6).level
    'memory'
    >>> ceilings.attainable(flops=4e6, bytes_moved=1e6, calls=1) / 1e9  # 4 FLOPs per byte, from L2: the peak
    100.0
    """

    isa: str
    threads: int
    dtype: str
    flops: float
    bandwidths: tuple[Bandwidth, ...]

    def bandwidth(self, bytes_at_once: float) -> Bandwidth:
        """Of the nearest level that holds so many bytes."""
        return next(level for level in self.bandwidths if bytes_at_once <= level.capacity)

    def attainable(self, *, flops: float, bytes_moved: float, calls: int) -> float:
        """FLOP/s that such work can reach: the peak, or what reading its bytes allows, if that is less.

        Parameters
        ----------
        flops, bytes_moved : float
            Of all calls together.
        calls : int
            Each moves its part of the bytes; the level that holds a part gives the bandwidth.
        """
        if bytes_moved == 0.0:
            return self.flops
        rate = self.bandwidth(bytes_moved / calls).rate
        return min(self.flops, flops / bytes_moved * rate)


def measure_ceilings(dtype: str = "float32") -> Ceilings:
    """Measure with the present instruction set and number of threads; half a second, then remembered.

    Parameters
    ----------
    dtype : str
        ``"float32"``, ``"float64"``, ``"bfloat16"`` or ``"int8"``.

    Raises
    ------
    ValueError
        Another dtype.

    Examples
    --------
    >>> from fusedlstm.profiling import measure_ceilings
    >>> ceilings = measure_ceilings("float32")
    >>> ceilings.flops > 1e8, ceilings.bandwidths[-1].level
    (True, 'memory')
    """
    if dtype not in DTYPES:
        raise ValueError(f"measure_ceilings: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return _measured(dtype, _core.isa(), _core.num_threads())


@functools.cache
def _measured(dtype: str, isa: str, threads: int) -> Ceilings:
    return Ceilings(isa, threads, dtype, _core.peak_flops(dtype) / threads, _bandwidths(isa, threads))


@functools.cache
def _bandwidths(isa: str, threads: int) -> tuple[Bandwidth, ...]:
    sizes: list[int] = [*_core.cpu_info()["cache_bytes"], 0, 0, 0][:3]
    capacities = {"L1": sizes[0], "L2": sizes[1], "L3": sizes[2] // threads}
    levels = []
    below = 0
    for level, capacity in capacities.items():
        if capacity < max(4 * below, 1 << 13):  # unknown, or no larger than the level before
            continue
        # half of it, or of a shared one a few times the level before: others use it too
        size = capacity // 2 if level != "L3" else min(capacity // 2, max(4 * below, 1 << 20))
        levels.append(Bandwidth(level, capacity, _core.read_bandwidth(size) / threads))
        below = capacity
    size = max(1 << 20, max(MEMORY_BYTES, 2 * sizes[2]) // threads)
    levels.append(Bandwidth("memory", float("inf"), _core.read_bandwidth(min(size, 1 << 30)) / threads))
    return tuple(levels)
