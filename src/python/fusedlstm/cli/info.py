"""``fusedlstm info``: what this installation is and which machine it sees."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="show version, CPU, instruction sets and threads",
        description="Show version, build, CPU, available and chosen instruction sets, and threads.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="as one JSON object")


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
        "cpu": _core.cpu_info(),
        "build": _core.build_info(),
    }


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


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
