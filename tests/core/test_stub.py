"""The committed stub says what the extension has: names, members and arguments."""

import ast
import re
from pathlib import Path

import pytest

import fusedlstm
from fusedlstm import _core

STUB = ast.parse((Path(fusedlstm.__file__).parent / "_core.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
METHODS = {
    (name, member.name): member
    for name, node in CLASSES.items()
    for member in node.body
    if isinstance(member, ast.FunctionDef) and not member.decorator_list
}


def arguments(node):
    """Argument names of a stub function in order, with `*` before those that are keyword-only."""
    names = [argument.arg for argument in node.args.args if argument.arg != "self"]
    keyword_only = [argument.arg for argument in node.args.kwonlyargs]
    return names + (["*", *keyword_only] if keyword_only else [])


def documented_arguments(function):
    """The same from the signature pybind11 puts first in the docstring."""
    signature = re.match(r"\w+\((.*?)\) -> ", function.__doc__.splitlines()[0]).group(1)
    while "[" in signature:  # the commas inside list[...] separate no arguments
        signature = re.sub(r"\[[^\[\]]*\]", "", signature)
    names = re.findall(r"(?:^|, )(\*|\w+(?=:|,|$))", signature)
    return [name for name in names if name != "self"]


def public(names):
    return {name for name in names if not name.startswith("_")}


def test_names():
    wanted = set(CLASSES) | set(FUNCTIONS)
    assert public(vars(_core)) == wanted
    assert _core.__version__ == fusedlstm.__version__


@pytest.mark.parametrize("name", CLASSES)
def test_members(name):
    wanted = {member.name for member in CLASSES[name].body if isinstance(member, ast.FunctionDef)}
    assert public(vars(getattr(_core, name))) == public(wanted)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments(name):
    assert documented_arguments(getattr(_core, name)) == arguments(FUNCTIONS[name])


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_method_arguments(owner, name):
    assert documented_arguments(getattr(getattr(_core, owner), name)) == arguments(METHODS[owner, name])
