"""Newer interpreters than the one the lanes run: the same code compiles there without a warning and runs a container."""

import glob
import os
import shutil
import subprocess

import pytest

from support.house import CHECKOUT

NEWER = ("3.12", "3.13", "3.14")
COMPILE = """
import os, sys
for directory, _, names in os.walk(sys.argv[1]):
    for name in names:
        if name.endswith(".py"):
            with open(f"{directory}/{name}") as file:
                compile(file.read(), f"{directory}/{name}", "exec")
"""
RUN = "import sys; sys.path.append(sys.argv[1]); from utsuwa.cli.main import main; main(sys.argv[2:])"


def interpreter(version):
    """Return a path that answers with that version, or "". pyenv's shims lie first on PATH and answer for none but its chosen ones."""
    for path in (shutil.which("python" + version), *sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python3")))):
        if path and subprocess.run([path, "-V"], capture_output=True, text=True).stdout.startswith(f"Python {version}."):
            return path
    return ""


@pytest.fixture
def python(request):
    path = interpreter(request.param)
    if not path:
        pytest.skip(f"no python{request.param} on this machine")
    return path


def versions(function):
    return pytest.mark.parametrize("python", NEWER, indirect=True)(function)


@versions
def test_every_module_compiles_without_a_warning(python):
    done = subprocess.run([python, "-I", "-W", "error", "-c", COMPILE, CHECKOUT + "/src"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@versions
@pytest.mark.root_only("they lie where an ordinary user cannot run them")
def test_a_container_runs(python, utsuwa):
    done = utsuwa.execute([python, "-I", "-W", "error", "-c", RUN, os.path.dirname(utsuwa.package), "run", "--rm", "--network", "none", "hello"], check=True)
    assert done.out
    assert done.err == ""
