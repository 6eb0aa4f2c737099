"""Milliseconds that ``import`` costs a fresh process that has imported NumPy already; peers beside it."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from .harness import Plan

BENCHMARK = "import time"

PROGRAM = """
import time
import numpy
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""


def seconds_for(statement: str) -> float:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement=statement)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(run.stdout)


def run(plan: Plan) -> Iterator[dict[str, Any]]:
    if plan.wants(BENCHMARK, "import fusedlstm"):
        yield from measure(3 if plan.quick else 11)


def measure(repetitions: int = 11) -> list[dict[str, Any]]:
    # The package loads its parts when they are first used: the second statement pays for all of them.
    statements = ["import fusedlstm", "from fusedlstm import LanguageModel"]
    statements += [f"import {peer}" for peer in ("onnxruntime", "torch") if importlib.util.find_spec(peer)]
    for statement in statements:  # the first import reads the files from disk
        seconds_for(statement)
    seconds: dict[str, list[float]] = {statement: [] for statement in statements}
    for _ in range(repetitions):
        for statement in statements:
            seconds[statement].append(seconds_for(statement))
    records = []
    for statement in statements:
        lower, median, upper = statistics.quantiles(seconds[statement], n=4, method="inclusive")
        records.append(
            {
                "benchmark": BENCHMARK,
                "case": statement,
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
        print(f"{record['case']:<36} {1e3 * record['seconds']['median']:8.1f} ms beyond numpy")
