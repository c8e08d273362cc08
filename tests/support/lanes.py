"""A lane: one user who runs the installed engine on a state of its own."""

import glob
import os
import signal
import subprocess
from typing import NamedTuple

SECONDS = 60
"""Patience with one command; a hanging one is killed and fails its test."""


class Result(NamedTuple):
    """What a command left behind: exit code, standard output, standard error; `raw` is the output as bytes."""

    code: int
    out: str
    err: str
    raw: bytes

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Lane:
    """Callable: run one utsuwa command as the lane's user.

    `name` is "root" or "rootless"; `root` and `run` are its UTSUWA_ROOT and UTSUWA_RUNROOT; `home` is a directory of its user;
    `program`, `python` and `package` are the installed command, its interpreter, and the package's directory.
    """

    def __init__(self, name: str, home: str, venv: str, uid: int, gid: int) -> None:
        self.name, self.home, self.uid, self.gid = name, home, uid, gid
        self.program, self.python = venv + "/bin/utsuwa", venv + "/bin/python"
        self.root, self.run = home + "/root", home + "/run"
        [self.package] = glob.glob(venv + "/lib/python3.*/site-packages/utsuwa")
        os.makedirs(home, exist_ok=True)
        os.chmod(home, 0o700)
        if os.geteuid() == 0:
            os.chown(home, uid, gid)

    @property
    def rootless(self) -> bool:
        return self.name == "rootless"

    def environ(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        """Return the environment of its commands: nothing of the tester's own but the path."""
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": self.home, "LANG": "C.UTF-8",
            "UTSUWA_ROOT": self.root, "UTSUWA_RUNROOT": self.run, **(extra or {}),
        }

    def __call__(self, *args: str, check: bool = False, input: str | bytes | None = None, env: dict[str, str] | None = None, timeout: float = SECONDS) -> Result:  # noqa: A002
        """Run `utsuwa ARGS` to its end. `check` asserts exit code 0; `env` is added to the lane's; standard input is empty unless given."""
        return self.execute([self.program, *args], check=check, input=input, env=env, timeout=timeout)

    def execute(self, argv: list[str], *, check: bool = False, input: str | bytes | None = None, env: dict[str, str] | None = None, timeout: float = SECONDS) -> Result:  # noqa: A002
        """Run any program as the lane's user, as a call does."""
        process = self._popen(argv, env, {"stdin": subprocess.DEVNULL if input is None else subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE})
        with process:
            try:
                raw, err = process.communicate(input.encode() if isinstance(input, str) else input, timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                raise
        result = Result(process.returncode, raw.decode(errors="replace"), err.decode(errors="replace"), raw)
        assert not check or result.code == 0, f"{' '.join(argv)} ended with {result.code}\n{result.err}{result.out}"
        return result

    def popen(self, *args: str, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
        """Start `utsuwa ARGS`; its streams are pipes of bytes unless `options` say otherwise. Use it as a context manager."""
        return self._popen([self.program, *args], env, {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})

    def _popen(self, argv: list[str], env: dict[str, str] | None, options: dict) -> subprocess.Popen:
        if self.uid != os.geteuid():
            options = {"user": self.uid, "group": self.gid, "extra_groups": [], **options}
        return subprocess.Popen(argv, env=self.environ(env), cwd=options.pop("cwd", self.home), **options)
