"""Times several ways of doing the same work beside each other.

Rules, so that a figure can be trusted: the results are compared before anything is timed; all sides run in
one process with the same number of threads; repetitions alternate A B C A B C after a warm-up; a record holds
medians and quartiles, and the machine, commit, instruction set, threads and shape they were measured with.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fusedlstm
from fusedlstm import _core

from .shapes import Shape

Record = dict[str, Any]

SETTLE = 0.06  # seconds before a sample: threads of the side before spin in wait for more work, 10 to 50 ms
ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"  # programs that were compiled for this machine
# Seconds; shorter calls are repeated, after some that are not counted: the first after the pause are slower.
SHORTEST_SAMPLE = 0.02
# A round counts as disturbed where a cache line took so many times the shortest round trip of the run between
# the CPUs (they share no last-level cache), or all CPUs at once made less than this part of the most
# multiply-adds (they share a core, or somebody else's thread does with one of them).
FAR, SLOW = 2.0, 0.75
FEWEST_ROUNDS = 5
seconds_per_case = 60.0  # for all samples of a case: the slowest contestants get fewer, at least 5
LIMITED = os.environ.get("FUSEDLSTM_ISA") == "avx2"  # then the ceilings are those of AVX2 too


@dataclass(frozen=True)
class Plan:
    """What one child process is to measure."""

    threads: int
    quick: bool = False
    real_shapes: Mapping[str, list[Shape]] = field(default_factory=dict)  # by "infer", "train"
    pairs: tuple[Path, Path] | None = None  # files of sentence pairs
    measured: frozenset[tuple[str, str]] = frozenset()  # benchmark and case of earlier runs

    def wants(self, benchmark: str, case: str) -> bool:
        return (benchmark, case) not in self.measured


def use_threads(threads: int) -> None:
    """Give fusedlstm and torch the same number of threads."""
    fusedlstm.set_num_threads(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def assert_close(name: str, ours: np.ndarray, peer: np.ndarray, bound: float) -> float:
    """Largest difference relative to the largest magnitude of ``peer``; an error if it exceeds ``bound``."""
    if ours.shape != peer.shape:
        raise AssertionError(f"{name}: shape {ours.shape}, peer has {peer.shape}")
    scale = max(float(np.max(np.abs(peer), initial=0.0)), 1e-30)
    difference = float(np.max(np.abs(ours.astype(np.float64) - peer), initial=0.0)) / scale
    if not difference <= bound:  # also true for NaN
        raise AssertionError(
            f"{name}: differs from the peer by {difference:.2e} of its largest value, bound {bound:.0e}"
        )
    return difference


def _calls_per_sample(work: Callable[[], object]) -> int:
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        if time.perf_counter() - start > SHORTEST_SAMPLE:
            return calls
        calls *= 2


def _sample(work: Callable[[], object], calls: int) -> float:
    time.sleep(SETTLE)
    for _ in range(calls // 8):
        work()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def _summary(samples: list[float]) -> Record:
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "median": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
        "least": min(samples),
        "samples": len(samples),
    }


def alternate(ours: Callable[[], object], peer: Callable[[], object], *, repetitions: int = 15) -> Record:
    """Seconds per call of both, measured in turn; see `alternate_all`."""
    return alternate_all(ours, {"peer": peer}, repetitions=repetitions)["peer"]


def alternate_all(
    ours: Callable[[], object], peers: Mapping[str, Callable[[], object]], *, repetitions: int = 15
) -> dict[str, Record]:
    """Seconds per call, all measured in turn, by peer: ``ratio`` > 1 means that fusedlstm is faster.

    ``ratio`` is the ratio of the medians; its quartiles are those of the ratios of neighbouring samples, and
    ``ratio_of_least`` is that of the shortest samples. Rounds in which the machine disturbed the CPUs are
    left out where enough others are left; their number and the ratio of their medians are ``disturbed``.
    """
    works = [ours, *peers.values()]
    for work in works:
        work()
    start = time.perf_counter()
    calls = [_calls_per_sample(work) for work in works]
    round_seconds = time.perf_counter() - start
    if round_seconds < 1:  # else this was warm-up enough
        for work in works:
            work()
    repetitions = min(repetitions, max(FEWEST_ROUNDS, int(seconds_per_case / round_seconds)))
    quiet, disturbed = _rounds(works, calls, repetitions)
    chosen = quiet if len(quiet) >= min(FEWEST_ROUNDS, repetitions) else quiet + disturbed
    our_seconds, *peer_seconds = (list(column) for column in zip(*chosen, strict=True))
    mine = _summary(our_seconds)
    records = {}
    for column, (name, samples) in enumerate(zip(peers, peer_seconds, strict=True), start=1):
        theirs = _summary(samples)
        spread = _summary([peer / our for our, peer in zip(our_seconds, samples, strict=True)])
        records[name] = {
            "ours_seconds": mine,
            "peer_seconds": theirs,
            "ratio": theirs["median"] / mine["median"],
            "ratio_lower_quartile": spread["lower_quartile"],
            "ratio_upper_quartile": spread["upper_quartile"],
            "ratio_of_least": theirs["least"] / mine["least"],
            "disturbed": {
                "rounds": len(disturbed),
                "left_out": chosen is quiet,
                "ratio": statistics.median(one[column] for one in disturbed)
                / statistics.median(one[0] for one in disturbed)
                if disturbed
                else None,
            },
        }
    return records


def _rounds(
    works: list[Callable[[], object]], calls: list[int], repetitions: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Samples of all works in turn: rounds that the machine did not disturb, and others.

    Ends with ``repetitions`` of either. Virtual CPUs are moved between cores, for some seconds at a time: two
    may share a core, and do half the arithmetic, or be far apart, and pass data to each other slowly.
    """
    quiet: list[list[float]] = []
    disturbed: list[list[float]] = []
    after = _cpus().undisturbed()
    while len(quiet) < repetitions and len(disturbed) < repetitions:
        before = after
        samples = [_sample(work, count) for work, count in zip(works, calls, strict=True)]
        after = _cpus().undisturbed()
        (quiet if before and after else disturbed).append(samples)
    return quiet, disturbed


class _Cpus:
    """What `native/cpus.cpp` says of the CPUs of this process; without it they are taken for undisturbed."""

    def __init__(self) -> None:
        library = compiled("native/cpus.cpp", "-shared", "-fPIC") if sys.platform == "linux" else None
        self.library = ctypes.CDLL(library) if library is not None else None
        self.shortest_trip, self.highest_rate = math.inf, 0.0
        if self.library is not None:
            for function in (self.library.round_trip_ns, self.library.fma_rate):
                function.restype = ctypes.c_double
            self.library.fma_rate.argtypes = [ctypes.c_int]

    def undisturbed(self) -> bool:
        """Whether they are now as near each other and as fast as they have been at best."""
        if self.library is None:
            return True
        time.sleep(SETTLE)
        trip, alone, rate = (
            float(value)
            for value in (self.library.round_trip_ns(), self.library.fma_rate(0), self.library.fma_rate(1))
        )
        self.shortest_trip = min(self.shortest_trip, trip)
        self.highest_rate = max(self.highest_rate, alone, rate)
        return trip <= FAR * self.shortest_trip and rate >= SLOW * self.highest_rate


@functools.cache
def _cpus() -> _Cpus:
    return _Cpus()


def beside_itself(records: dict[str, Record], own: Iterable[str]) -> dict[str, Record]:
    """Takes our own other ways out of the records of `alternate_all`: what is left has foreign peers only.

    Their times over those of the way that the records are of, with quartiles, by name.
    """
    keys = ("ratio", "ratio_lower_quartile", "ratio_upper_quartile")
    taken = {name: records.pop(name) for name in own}
    return {name: {key: record[key] for key in keys} for name, record in taken.items()}


# The instructions that a type's products may use, best first; `float32` ones where there are no others.
INSTRUCTIONS = {
    "float32": ["fma32"],
    "float64": ["fma64"],
    "bfloat16": ["amx_bf16", "avx512_bf16", "fma32"],
    "int8": ["avx512_vnni", "fma32"],
}


def add_rates(
    record: Record, flops: float, threads: int, dtype: str = "float32", ours: float | None = None
) -> Record:
    """GF/s of both sides and, where a C++ compiler is at hand, the fraction of the measured peak.

    ``ours``: FLOPs of our side, where it needs fewer.
    """
    best = peak(dtype, threads)
    record["peak_instructions"], record["peak_gflops"] = best if best is not None else (None, None)
    for side, made in (("ours", flops if ours is None else ours), ("peer", flops)):
        record[f"{side}_gflops"] = made / record[f"{side}_seconds"]["median"] * 1e-9
        if best is not None:
            record[f"{side}_fraction_of_peak"] = record[f"{side}_gflops"] / best[1]
    return record


def add_bandwidth(record: Record, weight_bytes: int, steps: int, threads: int) -> Record:
    """For batch 1: the weights are read once per step; fraction of the bandwidth of the level they fit in."""
    bandwidth = read_bandwidth(threads, weight_bytes // threads)
    record["read_bandwidth_gbs"] = bandwidth
    if bandwidth is not None:
        for side in ("ours", "peer"):
            rate = weight_bytes * steps / record[f"{side}_seconds"]["median"] * 1e-9
            record[f"{side}_fraction_of_bandwidth"] = rate / bandwidth
    return record


def peak(dtype: str, threads: int) -> tuple[str, float] | None:
    """The best instructions there are for products of a type, and their GF/s; None without a C++ compiler."""
    for instructions in INSTRUCTIONS[dtype]:
        rate = peak_of(instructions, threads)
        if rate is not None:
            return instructions, rate
    return None


def peak_of(instructions: str, threads: int) -> float | None:
    """GF/s of register-only products on ``threads`` cores; None if the machine has no such instructions.

    Measured once per process and number of threads, like `read_bandwidth`.
    """
    if LIMITED and not instructions.startswith("fma"):
        return None
    return _native("native/peak.cpp", str(threads), instructions)


def read_bandwidth(threads: int, bytes_per_thread: int) -> float | None:
    """GB/s that ``threads`` cores read together, each from its own buffer of that size; None as above."""
    return _native("native/read_bandwidth.cpp", str(threads), str(max(bytes_per_thread, 512)))


@functools.cache
def _native(source: str, *arguments: str) -> float | None:
    program = compiled(source)
    if program is None:
        return None
    best = 0.0
    for _ in range(5):  # or until the machine lets it
        before = _cpus().undisturbed()
        run = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
        if run.stdout.strip() == "absent":
            return None
        best = max(best, float(run.stdout))
        if before and _cpus().undisturbed():
            break
    return best


@functools.cache
def compiled(source: str, *flags: str) -> str | None:
    """The program or, with ``-shared`` among the flags, the library built from a file of this folder.

    None where that fails; the reason is printed.
    """
    path = Path(__file__).parent / source
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O3", "-ffp-contract=fast", "-pthread"]
    if platform.machine() == "x86_64":
        command += ["-march=haswell"] if LIMITED else ["-march=native", "-mprefer-vector-width=512"]
    else:
        command += ["-march=native"]
    command += [str(path), *flags]
    texts = [one.read_text() for one in (path, *sorted(path.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join([_cpu_name(), *texts, *command]).encode()).hexdigest()[:12]
    program = BUILD / f"{path.stem}-{key}"
    if program.exists():
        return str(program)
    BUILD.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run([*command, "-o", str(unfinished)], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"not built: {source}: {reason.splitlines()[0]}", file=sys.stderr)
        return None
    unfinished.replace(program)
    return str(program)


def machine() -> Record:
    """What a figure depends on besides the code: processor, versions, commit, instruction set."""

    def git(*arguments: str) -> str:
        try:
            run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return run.stdout.strip()

    torch = sys.modules.get("torch")
    return {
        "time": now(),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__ if torch is not None else None,
        "fusedlstm": fusedlstm.__version__,
        "isa": fusedlstm.isa(),
        "cpu_features": _core.cpu_info()["features"],
    }


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def line_of(record: Record) -> str:
    """One line for the terminal."""
    head = f"{record['benchmark']:<22} {record['case']:<26} threads {record['threads']}"
    if "ceiling" in record:
        value = record["ceiling"]
        return f"{head}  " + ("not on this machine" if value is None else f"{value:.1f} {record['unit']}")
    if "seconds" in record:
        resident = record["resident_bytes"]
        memory = "" if resident is None else f", {resident / 2**20:.1f} MiB resident"
        return (
            f"{head}  {1e3 * record['seconds']['median']:.1f} ms{memory} beyond numpy, "
            f"{record['installed_bytes'] / 2**20:.1f} MiB installed"
        )
    if "largest_residual" in record:
        return f"{head}  line through the times: largest residual {record['largest_residual']:.1%}"
    if "added_bytes" in record:
        added, each = record["added_bytes"] / 2**20, record["bytes_per_step_and_unit"]
        return f"{head}  {added:.0f} MiB, {each:.1f} bytes per sequence, step and unit"
    ours, peer = record["ours_seconds"]["median"], record["peer_seconds"]["median"]
    parts = [head]
    parts.append(f"ours {_duration(ours)}  {record['peer']} {_duration(peer)}  ratio {record['ratio']:.2f}")
    parts.append(f"[{record['ratio_lower_quartile']:.2f}, {record['ratio_upper_quartile']:.2f}]")
    if record["disturbed"]["rounds"]:
        parts.append(f"{record['disturbed']['rounds']} rounds disturbed: {record['disturbed']['ratio']:.2f}")
    if "ours_gflops" in record:
        parts.append(f"{record['ours_gflops']:.0f} and {record['peer_gflops']:.0f} GF/s")
    if "ours_fraction_of_peak" in record:
        parts.append(f"{record['ours_fraction_of_peak']:.0%} of peak")
    if "ours_tokens_per_second" in record:
        parts.append(
            f"{record['ours_tokens_per_second']:.0f} and {record['peer_tokens_per_second']:.0f} tokens/s"
        )
    if "share_of_dense_cost" in record:
        parts.append(
            f"{record['share_of_valid_steps']:.0%} valid, {record['share_of_dense_cost']:.0%} of cost"
        )
    for name, other in record.get("beside_itself", {}).items():
        parts.append(f"{name} {other['ratio']:.2f} of its time")
    if "parts_seconds" in record:
        whole = sum(record["parts_seconds"].values())
        parts.append(", ".join(f"{name} {x / whole:.0%}" for name, x in record["parts_seconds"].items()))
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    for unit, factor in (("s ", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:7.2f} {unit}"
    return f"{seconds * 1e9:7.0f} ns"


def write_json(path: Path, contents: Record) -> None:
    """All or nothing: a run may be stopped at any time and go on from the file."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(contents, indent=1) + "\n")
    unfinished.replace(path)
