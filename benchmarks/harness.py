"""Times several ways of doing the same work beside each other.

Rules, so that a figure can be trusted: the results are compared before anything is timed; all sides run in
one process with the same number of threads; repetitions alternate A B C A B C after a warm-up; a record holds
medians and quartiles, and the machine, commit, instruction set, threads and shape they were measured with.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import fusedlstm

Record = dict[str, Any]

SETTLE = 0.01  # seconds before a sample: the threads of the side before may still spin in wait for more work
ROOT = Path(__file__).resolve().parent.parent
SHORTEST_SAMPLE = (
    0.01  # seconds; shorter calls are repeated within one sample, far above the clock's resolution
)


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
    start = time.perf_counter()
    work()
    once = time.perf_counter() - start
    return max(1, int(SHORTEST_SAMPLE / max(once, 1e-9)))


def _sample(work: Callable[[], object], calls: int) -> float:
    time.sleep(SETTLE)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def _summary(samples: list[float]) -> Record:
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper, "samples": len(samples)}


def alternate(
    ours: Callable[[], object], peer: Callable[[], object], *, repetitions: int = 15, warm_up: int = 2
) -> Record:
    """Seconds per call of both, measured in turn; see `alternate_all`."""
    return alternate_all(ours, {"peer": peer}, repetitions=repetitions, warm_up=warm_up)["peer"]


def alternate_all(
    ours: Callable[[], object],
    peers: Mapping[str, Callable[[], object]],
    *,
    repetitions: int = 15,
    warm_up: int = 2,
) -> dict[str, Record]:
    """Seconds per call, all measured in turn, by peer: ``ratio`` > 1 means that fusedlstm is faster.

    ``ratio`` is the ratio of the medians; its quartiles are those of the ratios of neighbouring samples.
    """
    works = [ours, *peers.values()]
    for _ in range(warm_up):
        for work in works:
            work()
    calls = [_calls_per_sample(work) for work in works]
    rounds = [
        [_sample(work, count) for work, count in zip(works, calls, strict=True)] for _ in range(repetitions)
    ]
    our_seconds, *peer_seconds = (list(column) for column in zip(*rounds, strict=True))
    mine = _summary(our_seconds)
    records = {}
    for name, samples in zip(peers, peer_seconds, strict=True):
        theirs = _summary(samples)
        spread = _summary([peer / our for our, peer in zip(our_seconds, samples, strict=True)])
        records[name] = {
            "ours_seconds": mine,
            "peer_seconds": theirs,
            "ratio": theirs["median"] / mine["median"],
            "ratio_lower_quartile": spread["lower_quartile"],
            "ratio_upper_quartile": spread["upper_quartile"],
        }
    return records


def add_rates(record: Record, flops: float, threads: int) -> Record:
    """GF/s of both sides and, where a C++ compiler is at hand, the fraction of the measured FMA peak."""
    peak = fma_peak(threads)
    for side in ("ours", "peer"):
        record[f"{side}_gflops"] = flops / record[f"{side}_seconds"]["median"] * 1e-9
        if peak is not None:
            record[f"{side}_fraction_of_peak"] = record[f"{side}_gflops"] / peak
    record["fma_peak_gflops"] = peak
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


def fma_peak(threads: int) -> float | None:
    """GF/s of register-only float32 multiply-adds on ``threads`` cores, or None without a C++ compiler.

    Measured once per process and number of threads, like `read_bandwidth`.
    """
    return _native("native/fma_peak.cpp", str(threads), "f32")


def read_bandwidth(threads: int, bytes_per_thread: int) -> float | None:
    """GB/s that ``threads`` cores read together, each from its own buffer of that size; None as above."""
    return _native("native/ceilings.cpp", str(threads), str(bytes_per_thread))


@functools.cache
def _native(source: str, *arguments: str) -> float | None:
    program = _compiled(source)
    if program is None:
        return None
    run = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
    return float(run.stdout)


@functools.cache
def _compiled(source: str) -> str | None:
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    folder = tempfile.mkdtemp(prefix="fusedlstm-benchmarks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = str(Path(folder) / Path(source).stem)
    command = [os.environ.get("CXX", "c++"), *flags, str(Path(__file__).parent / source), "-o", program]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        print(f"no ceiling from {source}: {reason}", file=sys.stderr)
        return None
    return program


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
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
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
    }


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
    if "largest_residual" in record:
        return f"{head}  line through the times: largest residual {record['largest_residual']:.1%}"
    if "added_bytes" in record:
        added, each = record["added_bytes"] / 2**20, record["bytes_per_step_and_unit"]
        return f"{head}  {added:.0f} MiB, {each:.1f} bytes per sequence, step and unit"
    ours, peer = record["ours_seconds"]["median"], record["peer_seconds"]["median"]
    parts = [head]
    parts.append(f"ours {_duration(ours)}  {record['peer']} {_duration(peer)}  ratio {record['ratio']:.2f}")
    parts.append(f"[{record['ratio_lower_quartile']:.2f}, {record['ratio_upper_quartile']:.2f}]")
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
    if "parts_seconds" in record:
        whole = sum(record["parts_seconds"].values())
        parts.append(", ".join(f"{name} {x / whole:.0%}" for name, x in record["parts_seconds"].items()))
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    for unit, factor in (("s ", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:7.2f} {unit}"
    return f"{seconds * 1e9:7.0f} ns"


def write_json(path: str, contents: Record) -> None:
    Path(path).write_text(json.dumps(contents, indent=2) + "\n")
