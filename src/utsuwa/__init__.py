"""utsuwa: a container engine. `from utsuwa import Engine` is the door for Python programs."""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.api import Engine as Engine


def __getattr__(name: str) -> object:
    # Lazy (PEP 562): the command line and the monitor import this package too, and must not pay for the engine.
    if name == "Engine":
        from utsuwa.engine.api import Engine

        return Engine
    raise AttributeError(f"module 'utsuwa' has no attribute {name!r}")
