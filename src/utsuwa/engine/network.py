"""The sandbox of a container: its network mode, what is reserved for it, made for it, and given back. Bridges `network/` and the database.

`none` and `host` need nothing made here: init is born in an empty network namespace, or in none.
"""

from __future__ import annotations

from utsuwa.errors import NotSupported, PermissionDenied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context
    from utsuwa.engine.options import RunOptions
    from utsuwa.state.db import Database

    Spec = dict[str, object]


class Sandbox:
    """`mode` none, host or bridge; `netns` the path of the pinned namespace, "" where none is made beforehand."""

    __slots__ = ("context", "id", "mode", "netns")

    def __init__(self, context: Context, container: str, mode: str) -> None:
        self.context, self.id, self.mode, self.netns = context, container, mode, ""

    def reserve(self, db: Database) -> None:
        """Take what must be this container's alone. Inside a write transaction."""
        db.do("INSERT INTO sandbox VALUES (?,?,?,1)", self.id, "host", self.mode)

    def prepare(self) -> None:
        """Take what only the kernel can give: bound ports. Before the database hears of them."""

    def plan(self) -> None:
        """Record what `begin` and `wait` would do, where the kernel's door does nothing."""

    def begin(self) -> None:
        """Begin to make the network; returns at once."""

    def wait(self) -> None:
        """Return when the network is ready. Raises what went wrong."""

    def held(self) -> tuple[int, ...]:
        """Return the descriptors that the monitor keeps open for the container's life."""
        return ()

    def release(self) -> None:
        """Close our copies of them. Idempotent."""

    def files(self, hostname: str) -> dict[str, str]:
        """Return name → text of the three files that are bound into /etc."""
        from utsuwa.network import files

        host = self.mode == "host"
        hosts = files.read_host(files.HOST_HOSTS) if host else files.hosts(hostname)
        return {"hostname": files.hostname(hostname), "hosts": hosts, "resolv.conf": files.resolv(files.host_resolv(), bridge=False)}

    def as_dict(self) -> Spec:
        """Return the sandbox as plain data, for the container's row."""
        return {"mode": self.mode, "netns": self.netns}


def plan(context: Context, container: str, options: RunOptions) -> Sandbox:
    """Decide the network of a container; fills in `options.network`, and drops published ports where asked-for none or host has no use for them.

    Raises NotSupported, PermissionDenied.
    """
    asked = options.network
    mode = options.network = options.network or ("none" if context.rootless else "bridge")
    if mode not in ("none", "host", "bridge", "default"):
        raise NotSupported(f"not yet supported: --network {mode}; use bridge, host or none")
    if options.publish and mode in ("none", "host"):
        if not asked:
            raise PermissionDenied("cannot publish ports: an ordinary user's containers have no network of their own yet; use --network host, where they listen on this machine's ports")
        options.publish = []
        options.warnings.append(f"WARNING: Published ports are discarded when using {mode} network mode")
    if mode in ("none", "host"):
        return Sandbox(context, container, mode)
    if context.rootless:
        raise PermissionDenied("cannot use --network bridge: an ordinary user may not connect to the host's network here yet; use --network none or host")
    options.network = "bridge"
    from utsuwa.engine.bridge import BridgeSandbox

    return BridgeSandbox(context, container, options.publish)


def release(context: Context, container: str, record: Spec) -> None:
    """Give back a container's network, from its id and record alone. Idempotent."""
    if record.get("mode") == "bridge":
        from utsuwa.engine import bridge

        bridge.release(context, container, record)
    if context.db.read("SELECT 1 FROM sandbox WHERE id=?", container):
        with context.db.write():
            context.db.do("DELETE FROM sandbox WHERE id=?", container)


def leftovers(context: Context, known: set[str], *, repair: bool) -> list[str]:
    """Return network objects of ours that belong to no container; with `repair` remove them."""
    if context.rootless:
        return []
    from utsuwa.engine import bridge

    return bridge.leftovers(context, known, repair=repair)
