"""What a caller asks of `run`: plain data, the same for every door. Checked here, before anything is made."""

from __future__ import annotations

from utsuwa.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


_KINDS: dict[type, tuple[str, ...]] = {
    str: ("image", "name", "hostname", "workdir", "user", "network", "seccomp"), float: ("cpus",), int: ("memory", "pids_limit"),
    bool: ("detach", "interactive", "terminal", "remove", "read_only", "no_new_privs", "dry_run"), bytes: ("detach_keys",),
}
_WORDS: dict[type, str] = {str: "a string", float: "a number", int: "a whole number", bool: "True or False", bytes: "bytes"}
_LISTS = ("args", "env", "volumes", "publish", "cap_add", "cap_drop", "entrypoint")


class RunOptions:
    """The options of one container.

    args          words after the image
    env           `KEY=value`, or `KEY` for the caller's own value
    entrypoint    None keeps the image's, [] clears it
    network       "" for the default: bridge, or none for an ordinary user
    cpus          processors, 0 for no limit;  memory in bytes, 0;  pids_limit 0 or less for none
    console       (rows, columns) of the caller's terminal, (0, 0) for none
    detach_keys   bytes that let go of an attached terminal
    warnings      filled in by the engine: what it leaves out of what was asked, a line each
    dry_run       plan only: the ledger is what would be done
    """

    __slots__ = (
        "args", "cap_add", "cap_drop", "console", "cpus", "detach", "detach_keys", "dry_run", "entrypoint", "env", "hostname", "image", "interactive", "memory", "name",
        "network", "no_new_privs", "pids_limit", "publish", "read_only", "remove", "seccomp", "terminal", "user", "volumes", "warnings", "workdir",
    )

    def __init__(self, image: str, args: list[str] | None = None, **given: object) -> None:
        self.image, self.args = image, [] if args is None else args
        self.name = self.hostname = self.workdir = self.user = self.network = self.seccomp = ""
        self.detach = self.interactive = self.terminal = self.remove = self.read_only = self.no_new_privs = self.dry_run = False
        self.env: list[str] = []
        self.volumes: list[str] = []
        self.publish: list[str] = []
        self.warnings: list[str] = []
        self.cap_add: list[str] = []
        self.cap_drop: list[str] = []
        self.entrypoint: list[str] | None = None
        self.cpus = 0.0
        self.memory = self.pids_limit = 0
        self.detach_keys = b"\x10\x11"
        self.console = (0, 0)
        for key, value in given.items():
            if key not in self.__slots__:
                raise UsageError(f"unknown option {key!r} of run; known are {', '.join(sorted(self.__slots__))}")
            setattr(self, key, value)
        self._check()

    def _check(self) -> None:
        """Raise UsageError for a value of the wrong kind, whose letters or truth would otherwise be taken for something else."""
        for kind, names in _KINDS.items():
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, (int, float) if kind is float else kind) or (kind in (int, float) and isinstance(value, bool)):
                    raise UsageError(f"option {name} of run: expected {_WORDS[kind]}, got {value!r}")
        for name in _LISTS:
            value = getattr(self, name)
            if name == "entrypoint" and value is None:
                continue
            if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
                raise UsageError(f"option {name} of run: expected a list of strings, got {value!r}")
            setattr(self, name, list(value))

    def as_dict(self) -> dict[str, object]:
        """Return the options as plain data, for the container's row."""
        return {key: getattr(self, key) for key in self.__slots__}


def environment(entries: list[str], own: Mapping[str, str]) -> list[str]:
    """Return `KEY=value` entries; a bare `KEY` takes the caller's own value, and stays bare where there is none: as in Docker it then takes the variable away."""
    found = []
    for entry in entries:
        key, equals, _ = entry.partition("=")
        if not key or "\0" in entry:
            raise UsageError(f"invalid environment variable: {entry!r}")
        found.append(f"{key}={own[key]}" if not equals and key in own else entry)
    return found
