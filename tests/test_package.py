"""What importing the package loads and says: no heavy module, one version, readable errors."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fusedlstm
from fusedlstm import _core

HEAVY = ["argparse", "matplotlib", "safetensors", "torch", "tqdm"]


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_import_leaves_heavy_modules_out():
    # NumPy may import some of them itself, so only what fusedlstm adds counts.
    run = run_python(
        "import sys, numpy; before = set(sys.modules); import fusedlstm;"
        "print(fusedlstm.__file__); print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    assert run.returncode == 0, run.stderr
    path, imported = run.stdout.splitlines()
    assert path == fusedlstm.__file__  # the subprocess saw the package that this suite tests
    assert not set(HEAVY) & set(imported.split())


def test_lazy_parts_are_found():
    run = run_python("import fusedlstm; print(fusedlstm.nn.LSTM.__name__, fusedlstm.LanguageModel.__name__)")
    assert run.stdout.split() == ["LSTM", "LanguageModel"], run.stderr


def test_version_is_one():
    assert fusedlstm.__version__ == _core.__version__ == importlib.metadata.version("fusedlstm")


def test_unknown_instruction_set_is_an_error_that_names_the_available_ones():
    run = run_python("import fusedlstm; fusedlstm.isa()", FUSEDLSTM_ISA="sse9")
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert "sse9" in last
    assert all(level in last for level in _core.isa_levels())


@pytest.mark.parametrize("level", _core.isa_levels())
def test_environment_chooses_the_instruction_set(level):
    run = run_python("import fusedlstm; print(fusedlstm.isa())", FUSEDLSTM_ISA=level)
    assert run.stdout.strip() == level, run.stderr


@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5"])
def test_bad_number_of_threads_in_the_environment_is_an_error(threads):
    run = run_python("import fusedlstm; fusedlstm.num_threads()", FUSEDLSTM_NUM_THREADS=threads)
    assert run.returncode != 0
    assert "FUSEDLSTM_NUM_THREADS" in run.stderr.strip().splitlines()[-1]


def test_threads_from_the_environment():
    run = run_python(
        "import fusedlstm; print(fusedlstm.num_threads())", FUSEDLSTM_NUM_THREADS="3", OMP_NUM_THREADS="2"
    )
    assert run.stdout.strip() == "3", run.stderr
    environment = {name: value for name, value in os.environ.items() if name != "FUSEDLSTM_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", "import fusedlstm; print(fusedlstm.num_threads())"],
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "2"},
        check=False,
    )
    assert run.stdout.strip() == "2", run.stderr


@pytest.mark.parametrize("threads", [0, -1])
def test_set_num_threads_refuses(threads):
    before = fusedlstm.num_threads()
    with pytest.raises(ValueError, match="thread"):
        fusedlstm.set_num_threads(threads)
    assert fusedlstm.num_threads() == before


def test_pre_commit_has_the_tools_that_ci_pins():
    root = Path(__file__).resolve().parent.parent
    pinned = dict(re.findall(r'"(ruff|mypy|clang-format)==([\d.]+)"', (root / "pyproject.toml").read_text()))
    hooks = re.findall(
        r"/(?:mirrors-)?([a-z-]+?)(?:-pre-commit)?\n +rev: v([\d.]+)",
        (root / ".pre-commit-config.yaml").read_text(),
    )
    assert dict(hooks) == pinned
    assert len(pinned) == 3
