"""``python -m benchmarks [name …] [--quick] [--threads 1 2] [--json FILE] [--table FILE] [--plot FILE]``"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NAMES = [
    "layer_inference",
    "layer_training",
    "ragged",
    "low_precision",
    "language_model_step",
    "generation",
    "beam_search",
    "streaming",
    "growth",
    "memory",
    "import_time",
]
PEERS = ["torch", "onnxruntime", "openvino", "jax"]
AVX2 = {  # read when the libraries are loaded
    "FUSEDLSTM_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def in_child(threads: int, json_path: str) -> dict[str, Any]:
    """The same command for one number of threads, in a process of its own; its JSON."""
    argv = [*sys.argv[1:], "--threads", str(threads), "--json", json_path, "--child"]
    subprocess.run([sys.executable, "-m", "benchmarks", *argv], check=True)
    contents: dict[str, Any] = json.loads(Path(json_path).read_text())
    return contents


def measure(names: list[str], threads: int, quick: bool, peer_names: list[str] | None) -> dict[str, Any]:
    """Every record for one number of threads; the process may then use that many CPUs only."""
    if hasattr(os, "sched_setaffinity"):  # before the import: JAX sizes its pool by it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    from . import (
        beam_search,
        generation,
        growth,
        harness,
        import_time,
        language_model_step,
        layer_inference,
        layer_training,
        low_precision,
        memory,
        peers,
        ragged,
        streaming,
    )

    skipped = peers.choose(peer_names)
    for name, reason in skipped.items():
        print(f"skipped: {name} ({reason})", flush=True)
    print("peers:", ", ".join(f"{name} {version}" for name, version in peers.versions().items()), flush=True)
    modules = {
        "layer_inference": layer_inference,
        "layer_training": layer_training,
        "ragged": ragged,
        "low_precision": low_precision,
        "language_model_step": language_model_step,
        "generation": generation,
        "beam_search": beam_search,
        "streaming": streaming,
        "growth": growth,
        "memory": memory,
    }
    records = []
    for name in names:
        if name == "import_time":
            for record in import_time.measure(3 if quick else 11):
                records.append(record | {"threads": threads})
                milliseconds = 1e3 * record["seconds"]["median"]
                print(f"{record['case']:<36} {milliseconds:8.1f} ms beyond numpy", flush=True)
            continue
        for record in modules[name].run(threads, quick):
            records.append(record)
            print(harness.line_of(record), flush=True)
    machine = harness.machine() | {"peers": peers.versions(), "skipped": skipped}
    return {"machine": machine, "records": records}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few shapes and repetitions: shows that it runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="thread counts to measure with")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="layers of these only (default: all)")
    parser.add_argument(
        "--isa", choices=["avx2"], help="limit fusedlstm and torch to it (layers: --peers torch)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all records there")
    parser.add_argument("--table", metavar="FILE", help="write a Markdown table there")
    parser.add_argument("--plot", metavar="FILE", help="write a picture (PNG) there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not all(1 <= threads <= cpus for threads in arguments.threads):
        parser.error(f"--threads: from 1 to the {cpus} CPUs of this process, got {arguments.threads}")
    if arguments.isa and arguments.peers != ["torch"]:
        parser.error("--isa needs --peers torch: the others have no such setting that holds for all of them")
    if arguments.isa:
        os.environ.update(AVX2)

    if arguments.child:
        names = arguments.names or NAMES
        contents = measure(names, arguments.threads[0], arguments.quick, arguments.peers)
        Path(arguments.json).write_text(json.dumps(contents))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        parts = [in_child(threads, str(Path(folder) / f"{threads}.json")) for threads in arguments.threads]
    machine = parts[0]["machine"] | {"command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])}
    machine["cpus"] = cpus
    records = [record for part in parts for record in part["records"]]
    from . import harness, report

    if arguments.json:
        harness.write_json(arguments.json, {"machine": machine, "records": records})
    if arguments.table:
        Path(arguments.table).write_text(report.table(records, machine))
    if arguments.plot:
        report.plot(records, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
