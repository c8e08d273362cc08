"""Imports go strictly downward (design.md, section 3): the contract of pyproject.toml, checked here too so that a plain pytest run sees it."""

import os
import subprocess
import sys

from support.house import CHECKOUT


def test_imports_go_strictly_downward():
    done = subprocess.run([os.path.dirname(sys.executable) + "/lint-imports", "--no-cache"], cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout
