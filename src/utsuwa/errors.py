"""Every error that the engine raises on purpose, in one tree.

An error says what was attempted, on what, why it failed and what to do; lower case, no full stop. Doors map the classes:
the command line to exit codes, the HTTP API to statuses. Kernel errors stay OSError until an orchestrator knows what they mean.

    UtsuwaError                125
    ├── UsageError             125   the command line or an argument is wrong
    │   └── NotSupported       125   a flag or property of Docker's that is not built yet
    ├── NotFound               125 (1 for commands that look things up)
    ├── Conflict               125   a name, port or state stands in the way
    ├── ImageError             125   a reference, registry answer, layer or configuration is bad
    │   ├── RegistryError            the registry cannot be reached or refuses
    │   └── IntegrityError           digest, size or media type is not what was promised
    ├── SpecError              125   a config.json breaks the specification; names the JSON path
    ├── DependencyMissing      125   a library or helper program is not installed; names the package
    ├── PermissionDenied       125   the kernel or a policy refuses; names the wall
    ├── RuntimeFailure         125   a step of making the container failed
    └── CommandError           126 / 127   the container's program cannot be executed / is not there
"""


class UtsuwaError(Exception):
    """Base class. `str(error)` is the one line a user reads."""

    exit_code = 125


class UsageError(UtsuwaError):
    """The caller asked for something malformed."""


class NotSupported(UsageError):
    """Docker has it, utsuwa does not yet."""


class NotFound(UtsuwaError):
    """No such container, image, network or volume."""


class Conflict(UtsuwaError):
    """Something that exists, or a state, stands in the way."""


class ImageError(UtsuwaError):
    """An image, layer or image configuration cannot be used."""


class RegistryError(ImageError):
    """A registry cannot be reached, or answers with a refusal."""


class IntegrityError(ImageError):
    """Bytes differ from the descriptor that promised them."""


class SpecError(UtsuwaError):
    """A document breaks its specification."""


class DependencyMissing(UtsuwaError):
    """A library or program of the host is missing."""


class PermissionDenied(UtsuwaError):
    """The kernel or a policy refused."""


class RuntimeFailure(UtsuwaError):
    """A step of making a container failed."""


class CommandError(UtsuwaError):
    """The container's program could not be executed: 127 when it is not there, 126 when it cannot run."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


BY_NAME: dict[str, type[UtsuwaError]] = {
    cls.__name__: cls
    for cls in (
        UtsuwaError, UsageError, NotSupported, NotFound, Conflict, ImageError, RegistryError, IntegrityError,
        SpecError, DependencyMissing, PermissionDenied, RuntimeFailure,
    )
}
"""What crosses a process boundary by name (the worker's and the monitor's answers)."""


def carried(answer: object) -> UtsuwaError:
    """Return the error that crossed a process boundary as (class name, text, exit code)."""
    parts: tuple[str, str, int] = answer  # type: ignore[assignment]
    name, text, code = parts
    error: UtsuwaError = CommandError(text, code) if name == "CommandError" else BY_NAME.get(name, UtsuwaError)(text)
    error.exit_code = code
    return error
