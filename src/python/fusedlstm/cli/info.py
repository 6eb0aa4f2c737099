"""``fusedlstm info``: what this installation is and which machine it sees."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

PACKAGES = ("safetensors", "tqdm", "matplotlib", "tokenizers", "sacrebleu")  # needed, and those of extras
VARIABLES = ("FUSEDLSTM_ISA", "FUSEDLSTM_NUM_THREADS", "OMP_NUM_THREADS")


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="show version, CPU, instruction sets and threads",
        description="Show version, build, CPU, available and chosen instruction sets, and threads.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="as one JSON object, for bug reports")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _usable_cpus() -> int | None:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def facts() -> dict[str, Any]:
    """Everything that is shown."""
    import numpy as np

    import fusedlstm
    from fusedlstm import _core

    return {
        "version": fusedlstm.__version__,
        "path": str(fusedlstm.__path__[0]),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "isa": _core.isa(),
        "isa_available": _core.isa_levels(),
        "isa_compiled": _core.isa_compiled(),
        "threads": _core.num_threads(),
        "usable_cpus": _usable_cpus(),
        "cpu": _core.cpu_info(),
        "build": _core.build_info(),
        "packages": {name: _version(name) for name in PACKAGES},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def run(options: argparse.Namespace) -> int:
    """Print the facts."""
    found = facts()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        if isinstance(value, dict):
            for key, part in value.items():
                print(f"{name + ' ' + key:24s} {_show(part)}".replace("_", " "))
        else:
            print(f"{name.replace('_', ' '):24s} {_show(value)}")
    return 0
