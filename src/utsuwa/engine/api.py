"""The engine as a Python library: `from utsuwa import Engine`. A door, like the command line; no daemon and no command-line process behind it.

    engine = Engine()
    code, output = engine.run("127.0.0.1:5000/busybox", ["echo", "hi"])[:2]

May be used from any thread. As an ordinary user the use cases run in one worker process inside the user's namespaces (worker.py), since a program with
threads cannot join them; the calls and their results are the same.
"""

from __future__ import annotations

import os
from _thread import _local
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context
    from utsuwa.engine.worker import Remote


class RunResult(NamedTuple):
    """What became of a container: its exit code (None: it runs on), its output as text in the order it came, both streams as bytes, its id."""

    exit_code: int | None
    output: str
    stdout: bytes
    stderr: bytes
    id: str


class ExecResult(NamedTuple):
    """What became of a command in a container."""

    exit_code: int
    output: str
    stdout: bytes
    stderr: bytes


class Engine:
    """One engine. `root` and `runroot` move its state, as UTSUWA_ROOT and UTSUWA_RUNROOT do."""

    def __init__(self, root: str = "", runroot: str = "") -> None:
        from utsuwa.state.paths import Paths

        self._paths = Paths(root, runroot)
        self._local = _local()
        self._remote: Remote | None = None
        if os.geteuid() != 0:
            from utsuwa.engine.worker import Remote

            self._remote = Remote(self._paths)

    def _context(self) -> Context:
        """Return this thread's context: a database connection belongs to one thread, and does not survive a fork (SQLite, "How to corrupt", 2.6)."""
        kept: dict[int, Context] | None = getattr(self._local, "contexts", None)
        if kept is None:
            kept = self._local.contexts = {}
        context = kept.get(os.getpid())
        if context is None:
            from utsuwa.engine.context import open_context

            # A parent's connection stays in `kept`, unused: closing it here would let go of locks and files that are the parent's.
            context = kept[os.getpid()] = open_context(self._paths)
        return context

    def close(self) -> None:
        """End the worker, where there is one, and what it is doing. Containers stay. Idempotent."""
        if self._remote is not None:
            self._remote.close()

    def run(self, image: str, args: list[str] | None = None, *, remove: bool = True, detach: bool = False, **options: object) -> RunResult:
        """Run a container: to its end, or with `detach` until it runs. `options` are those of `utsuwa.engine.options.RunOptions`.

        Raises UtsuwaError with everything undone; CommandError (exit_code 126 or 127) for a command that cannot run.
        """
        if self._remote is not None:
            return self._remote.call("run", image=image, args=args, remove=remove, detach=detach, **options)  # type: ignore[return-value]
        from utsuwa.engine.options import RunOptions
        from utsuwa.engine.run import run
        from utsuwa.engine.seed import Seed

        seed = Seed()
        collected = _Collected()
        result = run(self._context(), RunOptions(image, args, remove=remove and not detach, detach=detach, **options), seed, output=collected.take)
        return RunResult(result.code, *collected.result(), result.id)

    def exec(self, container: str, args: list[str], *, user: str = "", workdir: str = "", env: list[str] | None = None) -> ExecResult:
        """Run a command in a running container and return its exit code and output. Raises NotFound, Conflict, CommandError."""
        if self._remote is not None:
            return self._remote.call("exec", container=container, args=args, user=user, workdir=workdir, env=env)  # type: ignore[return-value]
        from utsuwa.engine.exec import Exec, run

        collected = _Collected()
        code = run(self._context(), Exec(container, args, user=user, workdir=workdir, env=env), output=collected.take)
        return ExecResult(code, *collected.result())

    def pull(self, image: str, platform: str = "") -> str:
        """Pull an image; return its id. Raises ImageError and its kind."""
        if self._remote is not None:
            return self._remote.call("pull", image=image, platform=platform)  # type: ignore[return-value]
        from utsuwa.engine import images

        return images.pull(self._context(), image, platform=platform).id

    def containers(self) -> list[dict[str, object]]:
        """Return all containers, newest first, as plain data: id, name, image_name, created (ns since the epoch), state …"""
        if self._remote is not None:
            return self._remote.call("containers")  # type: ignore[return-value]
        from utsuwa.engine import containers

        context = self._context()
        return [containers.details(context, row.id) for row in containers.every(context)]

    def stop(self, container: str, seconds: int = 10) -> None:
        """Stop a container: its stop signal, `seconds` of grace, SIGKILL. Idempotent."""
        self._control("stop", container, seconds=seconds)

    def kill(self, container: str, signal: int = 9) -> None:
        """Signal a container. Raises Conflict when it does not run."""
        self._control("kill", container, signal=signal)

    def wait(self, container: str) -> int:
        """Wait for a container's end and return its exit code."""
        return self._control("wait", container)  # type: ignore[return-value]

    def remove(self, container: str, *, force: bool = False) -> None:
        """Remove a container. Raises Conflict for one that runs, unless `force` kills it first."""
        self._control("remove", container, force=force)

    def _control(self, name: str, container: str, **arguments: object) -> object:
        if self._remote is not None:
            return self._remote.call(name, container=container, **arguments)
        from utsuwa.engine import containers, control

        context = self._context()
        return getattr(control, name)(context, containers.find(context, container).id, **arguments)


class _Collected:
    """Output as it comes."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []

    def take(self, stream: str, data: bytes) -> None:
        self.parts.append((stream, data))

    def result(self) -> tuple[str, bytes, bytes]:
        """Return (text in order, standard output, standard error)."""
        text = b"".join(data for _, data in self.parts).decode(errors="replace")
        return text, *(b"".join(data for stream, data in self.parts if stream == name) for name in ("stdout", "stderr"))  # type: ignore[return-value]
