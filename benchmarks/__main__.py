"""``python -m benchmarks [name …] [--quick] [--threads 1 2] [--json FILE]``"""

from __future__ import annotations

import argparse
import sys

from . import (
    generation,
    harness,
    import_time,
    language_model_step,
    layer_inference,
    layer_training,
    streaming,
)

BENCHMARKS = {
    "layer_inference": layer_inference.run,
    "layer_training": layer_training.run,
    "language_model_step": language_model_step.run,
    "generation": generation.run,
    "streaming": streaming.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=harness.__doc__)
    names = [*BENCHMARKS, "import_time"]
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"which of {', '.join(names)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="few shapes and repetitions: shows that it runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="thread counts to measure with")
    parser.add_argument("--json", metavar="FILE", help="write all records there")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(names)}")

    chosen = arguments.names or names
    records = []
    for name in chosen:
        if name == "import_time":
            for record in import_time.measure(3 if arguments.quick else 11):
                records.append(record)
                milliseconds = 1e3 * record["seconds"]["median"]
                print(f"{record['case']:<36} {milliseconds:8.1f} ms beyond numpy", flush=True)
            continue
        for threads in arguments.threads:
            for record in BENCHMARKS[name](threads, arguments.quick):
                records.append(record)
                print(harness.line_of(record), flush=True)
    if arguments.json:
        harness.write_json(arguments.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
