"""What ``import`` costs a fresh process that has NumPy already, and the space on disk; peers beside it.

Milliseconds, resident memory that is there afterwards and was not before, and the size of the installed files
of the package itself, without those of what it depends on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .harness import Plan

BENCHMARK = "import"

PROGRAM = """
import json, time
from pathlib import Path
import numpy

def resident():
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        return None
    return 1024 * int(status.read_text().split("VmRSS:")[1].split()[0])

before, start = resident(), time.perf_counter()
{statement}
seconds, after = time.perf_counter() - start, resident()
print(json.dumps([seconds, None if after is None else after - before]))
"""


def cost(statement: str) -> tuple[float, int | None]:
    """Seconds, and bytes of resident memory."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement=statement)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, resident = json.loads(run.stdout)
    return seconds, resident


def installed_bytes(name: str) -> int:
    """Of the files of a distribution; of a source tree on the path, of its package."""
    try:
        files = importlib.metadata.files(name) or []
        return sum(Path(file.locate()).stat().st_size for file in files if Path(file.locate()).exists())
    except importlib.metadata.PackageNotFoundError:
        specification = importlib.util.find_spec(name)
        if specification is None or specification.origin is None:
            raise
        folder = Path(specification.origin).parent
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(plan: Plan) -> Iterator[dict[str, Any]]:
    if plan.wants(BENCHMARK, "import fusedlstm"):
        yield from measure(3 if plan.quick else 11)


def measure(repetitions: int = 11) -> list[dict[str, Any]]:
    # The package loads its parts when they are first used: the second statement pays for all of them.
    statements = {"import fusedlstm": "fusedlstm", "from fusedlstm import LanguageModel": "fusedlstm"}
    peers = [peer for peer in ("onnxruntime", "openvino", "jax", "torch") if importlib.util.find_spec(peer)]
    statements |= {f"import {peer}": peer for peer in peers}
    for statement in statements:  # the first import reads the files from disk
        cost(statement)
    costs: dict[str, list[tuple[float, int | None]]] = {statement: [] for statement in statements}
    for _ in range(repetitions):
        for statement in statements:
            costs[statement].append(cost(statement))
    records = []
    for statement, package in statements.items():
        lower, median, upper = statistics.quantiles(
            [seconds for seconds, _ in costs[statement]], n=4, method="inclusive"
        )
        resident = [number for _, number in costs[statement] if number is not None]
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
                "resident_bytes": statistics.median(resident) if resident else None,
                "installed_bytes": installed_bytes(package),
            }
        )
    return records
