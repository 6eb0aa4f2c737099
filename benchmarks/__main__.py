"""Times fusedlstm beside its peers; docs/benchmarks.md says how, and what the columns mean.

``targets`` measures what the table of the kernels' targets needs, and writes that table;
``generation_targets`` the same for generation, beam search and translation.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NAMES = [
    "ceilings",
    "layer_inference",
    "layer_training",
    "low_precision",
    "ragged",
    "language_model_step",
    "generation",
    "prefill",
    "beam_search",
    "seq2seq_training",
    "streaming",
    "threads",
    "growth",
    "memory",
    "import_time",
    "torch_compile",
]
OF_TARGETS = {
    "targets": [
        "ceilings",
        "layer_training",
        "layer_inference",
        "low_precision",
        "streaming",
        "language_model_step",
        "ragged",
        "threads",
        "growth",
    ],
    "generation_targets": ["ceilings", "generation", "prefill", "beam_search", "seq2seq_training"],
}
PEERS = ["torch", "onnxruntime", "openvino", "jax", "onednn", "libxsmm"]
AVX2 = {  # read when the libraries are loaded
    "FUSEDLSTM_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # also read by the oneDNN that is part of torch and of OpenVINO
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
SAME = ["cpu", "cpus", "isa", "quick"]  # what all records of one file have in common


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"{', '.join(OF_TARGETS)}, or of {', '.join(NAMES)} (default: all of these)",
    )
    parser.add_argument("--quick", action="store_true", help="few shapes and repetitions: shows that it runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="thread counts to measure with")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help="for the samples of a case; 15 at most, 5 at least (default: 60)",
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="these only (default: all)")
    parser.add_argument(
        "--isa", choices=["avx2"], help="limit all to it; peers that cannot be limited are left out"
    )
    parser.add_argument(
        "--real-shapes",
        type=Path,
        metavar="FILE",
        help="also these layers: a JSON list of objects name, N, T, I, H, layers, mode ('infer' or 'train')",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        nargs=2,
        metavar="FILE",
        help="sentence pairs, source and target: lengths of the training of translation",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all records there; what the file holds already is not measured again",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="write a Markdown table there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG) there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - {*NAMES, *OF_TARGETS})
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join([*OF_TARGETS, *NAMES])}")
    cpus = len(available_cpus())
    if not all(1 <= threads <= cpus for threads in arguments.threads):
        parser.error(f"--threads: from 1 to the {cpus} CPUs of this process, got {arguments.threads}")
    return arguments


def available_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def names_of(arguments: argparse.Namespace) -> list[str]:
    wanted = set(arguments.names or NAMES)
    for group, names in OF_TARGETS.items():
        if group in wanted:
            wanted.update(names)
    return [name for name in NAMES if name in wanted]


def measure(arguments: argparse.Namespace) -> None:
    """Every record for one number of threads, into the file; the process may then use that many CPUs only."""
    threads, path = arguments.threads[0], arguments.json
    cpus = available_cpus()
    if hasattr(os, "sched_setaffinity"):  # before the import: JAX sizes its pool by it
        os.sched_setaffinity(0, cpus[:threads])
    from . import harness, peers, shapes

    harness.seconds_per_case = arguments.seconds
    skipped = peers.choose(arguments.peers)
    for name, reason in skipped.items():
        print(f"skipped: {name} ({reason})", flush=True)
    print("peers:", ", ".join(f"{name} {version}" for name, version in peers.versions().items()), flush=True)
    machine = harness.machine() | {
        "peers": peers.versions(),
        "skipped": skipped,
        "cpus": len(cpus),
        "quick": arguments.quick,
    }
    contents: dict[str, Any] = {"machine": machine, "records": []}
    if path.exists():
        earlier = json.loads(path.read_text())
        for key in SAME:
            if earlier["machine"][key] != machine[key]:
                there, here = earlier["machine"][key], machine[key]
                sys.exit(f"{path} has {key} {there!r}, this run {here!r}: use another file")
        contents["records"] = earlier["records"]
    plan = harness.Plan(
        threads,
        arguments.quick,
        shapes.read_real_shapes(arguments.real_shapes) if arguments.real_shapes else {},
        tuple(arguments.pairs) if arguments.pairs else None,
        frozenset((r["benchmark"], r["case"]) for r in contents["records"] if r["threads"] == threads),
    )
    for name in names_of(arguments):
        for record in importlib.import_module(f".{name}", __package__).run(plan):
            record |= {"threads": threads, "commit": machine["commit"], "time": harness.now()}
            contents["records"].append(record)
            harness.write_json(path, contents)
            print(harness.line_of(record), flush=True)
    harness.write_json(path, contents)


def main() -> int:
    arguments = parse()
    if arguments.isa:
        os.environ.update(AVX2)
    if arguments.child:
        measure(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.json or Path(folder) / "records.json"
        for threads in arguments.threads:
            # the last of an option counts
            child = [*sys.argv[1:], "--threads", str(threads), "--json", str(path), "--child"]
            subprocess.run([sys.executable, "-m", "benchmarks", *child], check=True)
        contents = json.loads(path.read_text())
    from . import harness, report, targets

    machine, records = contents["machine"], contents["records"]
    machine["command"] = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    text = report.head(machine, records)
    groups = [group for group in OF_TARGETS if group in arguments.names]
    results = [result for group in groups for result in targets.results(group, records, machine)]
    if groups:
        text += targets.table(results) + "\n"
        contents["targets"] = [vars(result) for result in results]
        print("\n" + targets.table(results))
    text += report.table(records)
    if arguments.json:
        harness.write_json(arguments.json, contents)
    if arguments.table:
        arguments.table.write_text(text)
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        if groups:
            targets.plot(results, arguments.plot)
        else:
            report.plot(records, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
