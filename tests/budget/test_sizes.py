"""A function fits on a screen and a file in a head (conventions.md, 2); and only the kernel's door crosses into libc."""

import ast
import os

import pytest

from support.house import CHECKOUT

FUNCTION_LINES = 40
FILE_LINES = 500
LIBC_OUTSIDE_KERNEL = {"security/compiler.py": "libseccomp only compiles: its calls change nothing in the kernel"}
CROSSINGS = frozenset({"CDLL", "PyDLL", "LibraryLoader", "cdll", "syscall"})


def sources(*tops):
    return sorted(
        os.path.relpath(f"{directory}/{name}", CHECKOUT)
        for top in tops for directory, _, names in os.walk(f"{CHECKOUT}/{top}") for name in names if name.endswith(".py")
    )


def tree(path):
    with open(f"{CHECKOUT}/{path}") as file:
        return ast.parse(file.read())


def lines(node):
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", sources("src", "tests", "bench"))
def test_functions_and_files_are_short(path):
    module = tree(path)
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {node.name: lines(node) for node in functions if lines(node) > FUNCTION_LINES} == {}
    # Tables of data aside: a constant that is a display of literals is read by looking something up in it.
    tables = sum(lines(node) for node in module.body if isinstance(node, ast.Assign | ast.AnnAssign) and lines(node) > 3)
    total = max((node.end_lineno for node in module.body), default=0)
    assert total - tables <= FILE_LINES


@pytest.mark.parametrize("path", [path for path in sources("src") if "/kernel/" not in path and path.removeprefix("src/utsuwa/") not in LIBC_OUTSIDE_KERNEL])
def test_only_the_kernel_package_crosses_into_libc(path):
    names = {node.attr if isinstance(node, ast.Attribute) else node.name for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute | ast.alias)}
    assert names & CROSSINGS == set()
