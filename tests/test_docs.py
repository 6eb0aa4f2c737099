"""Documentation that runs: doctests of public modules, examples and commands of the README and docs."""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fusedlstm

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fusedlstm.__path__, "fusedlstm.")
    if not any(part.startswith("_") for part in module.name.split(".")[1:])
)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(Line number, text) of every fenced block of that language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 1, match.group(1)) for match in found]


PYTHON_PAGES = [page for page in PAGES if blocks(page, "python")]
COMMANDS = sorted(
    {
        (page.name, command.strip())
        for page in PAGES
        for _, block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        for command in re.split(r"&&|\|", line.split("#", 1)[0])
        if command.strip().startswith(("fusedlstm", "python -m fusedlstm"))
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0, (
        f"{results.failed} of {results.attempted} examples of {name} failed, see above"
    )


def test_public_classes_have_an_example():
    without = []
    for name in MODULES:
        module = importlib.import_module(name)
        for export in getattr(module, "__all__", []):
            value = getattr(module, export)
            if (
                isinstance(value, type)
                and not issubclass(value, Exception)
                and ">>>" not in (value.__doc__ or "")
            ):
                without.append(f"{value.__module__}.{export}")
    assert sorted(set(without)) == []


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_python_examples_run(page, tmp_path):
    """A page's examples run as one program, top to bottom, in an empty folder; its asserts must hold."""
    program = ""
    for line, block in blocks(page, "python"):
        program += "\n" * (line - program.count("\n")) + block  # line numbers of errors are the page's
    script = tmp_path / "example.py"
    script.write_text(program, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"{page.name}:\n{run.stdout}\n{run.stderr}"


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_links_to_files_of_the_tree(page):
    """Those among the pages of the site are Sphinx's business, who sees its own pages only."""
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_names_commands():
    names = [command for page, command in COMMANDS if page == "README.md"]
    assert {shlex.split(name)[1] for name in names} >= {"demo", "train", "generate", "info"}


def test_the_command_is_installed():
    program = Path(sysconfig.get_path("scripts")) / "fusedlstm"
    run = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["fusedlstm", fusedlstm.__version__], run.stderr


@functools.cache
def help_of(command: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "fusedlstm", command, "--help"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_exist(page, command):
    """Every option that the page gives a command is one that its --help describes."""
    name, *words = shlex.split(command.removeprefix("python -m "))[1:]
    described = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_of(name)))
    options = {word.split("=", 1)[0] for word in words if word.startswith("-")}
    assert options <= described, f"{page}: {sorted(options - described)} not in `fusedlstm {name} --help`"
