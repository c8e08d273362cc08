"""The root file system of a container: the image's layers under one writable layer of its own. overlayfs.

Only where things lie; the mount itself is made by the runtime (runtime/create.py), detached, so that nothing is attached on the host.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.paths import Paths


def layout(paths: Paths, container: str, layers: list[str], *, host: bool, in_userns: bool = False) -> dict[str, object]:
    """Return `lower` (directories, top first), `upper` and `work`. `layers` are chain ids, bottom first; `host` puts this machine's own root below.

    In a user namespace the host's root comes in parts (host.py): `skeleton` and `parts` then say which.
    """
    directory = paths.container(container)
    if host and in_userns:
        from utsuwa.storage import host as view

        skeleton, parts = view.parts(view.mounted())
        return {"lower": [directory + "/skeleton"], "upper": directory + "/upper", "work": directory + "/work", "skeleton": skeleton, "parts": parts}
    lower = ["/"] if host else [paths.layer(chain) for chain in reversed(layers)]
    return {"lower": lower or [directory + "/empty"], "upper": directory + "/upper", "work": directory + "/work"}


def make(overlay: dict[str, object]) -> None:
    """Make the container's own directories, beneath a directory that exists. The upper one is the root of the container: mode 0755."""
    os.mkdir(str(overlay["upper"]), 0o755)
    os.chmod(str(overlay["upper"]), 0o755)  # noqa: S103 - whatever the caller's umask
    os.mkdir(str(overlay["work"]), 0o700)
    if "parts" in overlay:
        from utsuwa.storage import host as view

        view.make(overlay)
    if str(overlay["lower"][-1]).endswith("/empty"):  # type: ignore[index] # an image without layers
        os.mkdir(str(overlay["lower"][-1]), 0o755)  # type: ignore[index]
