"""Growth of the cost with T and with N: times of a training step, the least-squares line, its residual."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

import fusedlstm

from .harness import Plan, Record, use_threads

BENCHMARK = "growth of training"
SIZE = 256
BASE = {"N": 32, "T": 64}
FACTORS = [1, 2, 3, 4, 6, 8]


def run(plan: Plan) -> Iterator[Record]:
    use_threads(plan.threads)
    layer = fusedlstm.nn.LSTM(SIZE, SIZE)
    random = np.random.default_rng(0)
    for letter in BASE:
        case = f"in {letter}, I=H={SIZE}"
        if not plan.wants(BENCHMARK, case):
            continue
        sizes = [
            BASE | {letter: BASE[letter] * factor} for factor in (FACTORS[:3] if plan.quick else FACTORS)
        ]
        inputs = [random.standard_normal((s["N"], s["T"], SIZE), dtype=np.float32) for s in sizes]
        samples: list[list[float]] = []
        for _ in range(3 if plan.quick else 9):  # in turn, so that a slow spell meets all sizes
            samples.append([])
            for x in inputs:
                start = time.perf_counter()
                _, tape = layer.forward(x)
                layer.backward(tape, x)
                samples[-1].append(time.perf_counter() - start)
        seconds = np.median(samples, axis=0)
        counts = np.array([size[letter] for size in sizes], float)
        slope, start_cost = np.polyfit(counts, seconds, 1)
        residual = float(np.max(np.abs(start_cost + slope * counts - seconds) / seconds))
        yield {
            "benchmark": BENCHMARK,
            "case": case,
            "points": dict(zip(counts.tolist(), seconds.tolist(), strict=True)),
            "seconds_per_unit": float(slope),
            "seconds_at_zero": float(start_cost),
            "largest_residual": residual,
        }
