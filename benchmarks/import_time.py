"""Milliseconds that ``import`` costs a fresh process that has imported NumPy already; peers beside it."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
from typing import Any

PROGRAM = """
import time
import numpy
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def seconds_to_import(module: str) -> float:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)], check=True, capture_output=True, text=True
    )
    return float(run.stdout)


def measure(repetitions: int = 11) -> list[dict[str, Any]]:
    modules = ["fusedlstm", *(peer for peer in ("onnxruntime", "torch") if importlib.util.find_spec(peer))]
    for module in modules:  # the first import reads the files from disk
        seconds_to_import(module)
    seconds: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(repetitions):
        for module in modules:
            seconds[module].append(seconds_to_import(module))
    records = []
    for module in modules:
        lower, median, upper = statistics.quantiles(seconds[module], n=4, method="inclusive")
        records.append(
            {
                "benchmark": "import time",
                "case": module,
                "seconds": {
                    "median": median,
                    "lower_quartile": lower,
                    "upper_quartile": upper,
                    "samples": repetitions,
                },
            }
        )
    return records


if __name__ == "__main__":
    for record in measure():
        print(f"{record['case']:<12} {1e3 * record['seconds']['median']:8.1f} ms beyond numpy")
