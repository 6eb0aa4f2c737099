"""Shared by the reproductions: the command line as a user runs it, its results beside published ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

Reference = tuple[str, float]


def check_file(path: Path, md5: str, what: str) -> None:
    """Published figures are for exactly one file; refuse another."""
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != md5:
        sys.exit(f"{path} is not {what}: its MD5 is {found}, wanted {md5}")


def fusedlstm(*arguments: str | Path) -> None:
    """One command, its output on this terminal."""
    words = [str(argument) for argument in arguments]
    print("$ fusedlstm", *words, flush=True)
    subprocess.run([sys.executable, "-m", "fusedlstm", *words], check=True)


def train(*arguments: str | Path, log: Path, command: str = "train") -> tuple[list[dict[str, float]], float]:
    """Run a command that trains; what the log says about each epoch, and the wall time in seconds."""
    start = time.perf_counter()
    fusedlstm(command, *arguments, "--log", log)
    seconds = time.perf_counter() - start
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event for event in events if event["event"] == "epoch"], seconds


def table(title: str, rows: list[Reference], unit: str, *, highest_first: bool = False) -> None:
    """Sorted, best first."""
    print(f"\n{title}")
    for name, value in sorted(rows, key=lambda row: row[1], reverse=highest_first):
        print(f"  {value:8.4f} {unit}  {name}")
