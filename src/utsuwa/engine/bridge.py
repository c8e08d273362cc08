"""A sandbox on a bridge: address, published ports and namespace, reserved in the database and made by `network/`."""

from __future__ import annotations

from utsuwa.engine.network import Sandbox
from utsuwa.network import bridge, files, ports, sandbox
from utsuwa.spec.network import Binding, address_text
from utsuwa.state import leases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context
    from utsuwa.state.db import Database

    Spec = dict[str, object]


class BridgeSandbox(Sandbox):
    """A namespace of its own, plugged into the default bridge. Published ports are held by bound sockets until the monitor has them."""

    __slots__ = ("_held", "address", "bindings", "handle", "network", "requests")

    def __init__(self, context: Context, container: str, publish: list[str]) -> None:
        super().__init__(context, container, "bridge")
        self.requests = ports.parse(publish)
        self.network = bridge.default(context.db)
        self.netns = sandbox.netns_path(context.paths.run, container)
        self.address = 0
        self.bindings: list[Binding] = []
        self._held: list[int] = []
        self.handle: sandbox.Sandbox | None = None

    def prepare(self) -> None:
        """Bind the published ports. Raises Conflict naming who has one."""
        if self.requests:
            self.bindings, self._held = ports.reserve(self.context.db, self.requests)

    def reserve(self, db: Database) -> None:
        super().reserve(db)
        self.address = leases.take(db, self.network, self.id)
        leases.claim(db, self.id, self.bindings)

    def plan(self) -> None:
        self.bindings, self._held = ports.reserve(self.context.db, self.requests)
        self.address = self.network.gateway + 1
        self.begin()
        self.release()

    def begin(self) -> None:
        self.handle = sandbox.begin(self.network, self.id, self.address, self.context.paths.run, self.bindings)

    def wait(self) -> None:
        if self.handle is not None:
            self.handle.wait()

    def held(self) -> tuple[int, ...]:
        return tuple(self._held)

    def release(self) -> None:
        ports.release(self._held)
        self._held = []

    def files(self, hostname: str) -> dict[str, str]:
        return {"hostname": files.hostname(hostname), "hosts": files.hosts(hostname, address_text(self.address)), "resolv.conf": files.resolv(files.host_resolv(), bridge=True)}

    def as_dict(self) -> Spec:
        return {
            "mode": self.mode, "netns": self.netns, "address": address_text(self.address), "prefix": self.network.prefix, "gateway": address_text(self.network.gateway),
            "mac": sandbox.mac_of(self.address), "ports": [binding.plain() for binding in self.bindings],
        }


def release(context: Context, container: str, record: Spec) -> None:
    """Take down a sandbox and give its address and ports back. Idempotent."""
    from utsuwa.spec.network import address_number

    bindings = [Binding(*plain) for plain in record.get("ports") or ()]  # type: ignore[attr-defined]
    address = address_number(str(record["address"])) if record.get("address") else 0
    sandbox.destroy(container, context.paths.run, bindings, address)
    if leases.address_of(context.db, container) is not None:
        with context.db.write():
            leases.release(context.db, container)


def leftovers(context: Context, known: set[str], *, repair: bool) -> list[str]:
    """Return network objects of this engine that belong to no container; with `repair` remove them. Addresses in the database too."""
    find = sandbox.sweep if repair else sandbox.leftovers
    found = find(context.paths.run, known)
    for (owner,) in context.db.read("SELECT DISTINCT sandbox FROM lease UNION SELECT DISTINCT sandbox FROM port UNION SELECT id FROM sandbox"):
        if owner not in known:
            found.append(f"lease of {owner!s}")
            if repair:
                with context.db.write():
                    leases.release(context.db, str(owner))
                    context.db.do("DELETE FROM sandbox WHERE id=?", owner)
    return found
