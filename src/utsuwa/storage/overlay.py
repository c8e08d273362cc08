"""The root file system of a container: the image's layers under one writable layer of its own. overlayfs.

Only where things lie; the mount itself is made by the runtime (runtime/create.py), detached, so that nothing is attached on the host.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.paths import Paths


def layout(paths: Paths, container: str, layers: list[str], *, host: bool) -> dict[str, object]:
    """Return `lower` (directories, top first), `upper` and `work`. `layers` are chain ids, bottom first; `host` puts this machine's own root below."""
    lower = ["/"] if host else [paths.layer(chain) for chain in reversed(layers)]
    directory = paths.container(container)
    return {"lower": lower or [directory + "/empty"], "upper": directory + "/upper", "work": directory + "/work"}


def make(overlay: dict[str, object]) -> None:
    """Make the container's own directories, beneath a directory that exists. The upper one is the root of the container: mode 0755."""
    os.mkdir(str(overlay["upper"]), 0o755)
    os.mkdir(str(overlay["work"]), 0o700)
    if str(overlay["lower"][-1]).endswith("/empty"):  # type: ignore[index] # an image without layers
        os.mkdir(str(overlay["lower"][-1]), 0o755)  # type: ignore[index]
