"""Fixtures of the numeric suite: every instruction set of this machine, both dtypes, the bounds."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import tolerances

import fusedlstm
from fusedlstm import _core

# A shell starts jobs in the background with Ctrl-C ignored, which children inherit; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

MISSING = [level for level in _core.isa_compiled() if level not in _core.isa_levels()]


def pytest_addoption(parser):
    parser.addoption("--errors", action="store_true", help="print the largest error seen beside each bound")


def pytest_report_header():
    missing = f"; compiled but not runnable on this machine: {', '.join(MISSING)}" if MISSING else ""
    return [
        f"fusedlstm {fusedlstm.__version__} from {fusedlstm.__file__}",
        f"instruction sets tested: {', '.join(_core.isa_levels())}{missing}",
    ]


def pytest_sessionfinish(session):
    """A worker process of pytest-xdist sends the errors it saw to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["errors"] = [(*key, float(e)) for key, e in tolerances.OBSERVED.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for name, dtype, error in getattr(node, "workeroutput", {}).get("errors", []):
        key = name, dtype
        tolerances.OBSERVED[key] = max(tolerances.OBSERVED.get(key, 0.0), error)


def pytest_terminal_summary(terminalreporter, config):
    if MISSING:
        terminalreporter.write_line(f"not tested, this machine cannot run them: {', '.join(MISSING)}")
    if config.getoption("--errors"):
        terminalreporter.section("largest errors")
        for (name, dtype), error in sorted(tolerances.OBSERVED.items()):
            if name.removesuffix(" ulp") in tolerances.ULP:
                bound = tolerances.ULP[name.removesuffix(" ulp")][0 if dtype == "float32" else 1]
            else:
                bound = tolerances.BOUNDS[name][0 if dtype == "float32" else 1]
            terminalreporter.write_line(f"{name:24s} {dtype}  seen {error:9.3g}  bound {bound:9.3g}")


@pytest.fixture(params=_core.isa_levels())
def isa(request):
    """Run the test once per instruction set; what is packed inside the test is packed for it."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture
def threads():
    """Set the number of threads inside a test; put back afterwards."""
    before = _core.num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)
