"""utsuwa ps."""

from __future__ import annotations

import time

from utsuwa.cli.flags import BOOL, INT, TEXT, Flag, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context

    Spec = dict[str, object]

FLAGS = (
    Flag("all", "a", BOOL, "Show all containers (default shows just running)"),
    Flag("format", kind=TEXT, help="Format output using a Go template, 'table TEMPLATE', or 'json'"),
    Flag("last", "n", INT, "Show n last created containers (includes all states)", default=-1),
    Flag("latest", "l", BOOL, "Show the latest created container (includes all states)"),
    Flag("no-trunc", kind=BOOL, help="Don't truncate output"),
    Flag("quiet", "q", BOOL, "Only display container IDs"),
)
HEADERS = {
    "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED", "Status": "STATUS", "Ports": "PORTS", "Names": "NAMES",
    "State": "STATE", "Networks": "NETWORKS", "Mounts": "MOUNTS", "Size": "SIZE", "Labels": "LABELS", "LocalVolumes": "LOCAL VOLUMES",
}
DEFAULT = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"


def main(argv: list[str]) -> int:
    """List containers."""
    given, _ = parse("ps", "utsuwa ps [OPTIONS]", FLAGS, argv, most=0, unsupported=frozenset({"filter", "f", "size", "s"}), summary="List containers")
    from utsuwa.cli import template
    from utsuwa.cli.main import context
    from utsuwa.engine import containers, recover

    where = context()
    recover.recover(where)
    most = 1 if given.on("latest") else given.number("last")
    every = given.on("all") or most >= 0
    rows: list[dict[str, str]] = []
    for row in containers.every(where):
        if 0 <= most <= len(rows):
            break
        known = containers.details(where, row.id)
        status = str(known["state"]["status"])  # type: ignore[index]
        if every or status == "running":
            rows.append(describe(where, known, full=given.on("no-trunc")))
    if given.on("quiet") and not given.text("format"):
        for item in rows:
            print(item["ID"])
        return 0
    print(template.table(given.text("format") or DEFAULT, rows, DEFAULT, HEADERS), end="")
    return 0


def describe(_where: Context, known: Spec, *, full: bool) -> dict[str, str]:
    """Return the columns of one container as Docker's formatter names them."""
    from utsuwa.cli import gofmt, units

    state: Spec = known["state"]  # type: ignore[assignment]
    config: Spec = known["config"] or {"process": {"args": []}}  # type: ignore[assignment]
    command = command_text(config["process"]["args"])  # type: ignore[index]
    created = int(known["created"]) // 1_000_000_000  # type: ignore[call-overload]
    options: Spec = known["options"]  # type: ignore[assignment]
    points: list[Spec] = known["volumes"]  # type: ignore[assignment]
    mounts = [shorten(str(point.get("name") or point.get("source") or ""), 0 if full else 15) for point in points]
    return {
        "ID": str(known["id"]) if full else str(known["id"])[:12], "Image": str(known["image_name"]),
        "Command": gofmt.quote(shorten(command, 0 if full else 20)),
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(created)), "RunningFor": units.duration(time.time() - created) + " ago",
        "Status": status_text(state), "State": {"stopped": "exited", "creating": "created"}.get(str(state["status"]), str(state["status"])),
        "Ports": ports_text(known["network"]), "Names": str(known["name"]),  # type: ignore[arg-type]
        "Networks": str(options.get("network") or ""), "Mounts": ",".join(mounts), "Size": "0B", "Labels": "", "LocalVolumes": str(sum(point.get("type") == "volume" for point in points)),
    }


def shorten(text: str, most: int) -> str:
    """Return text of at most so many characters, 0 for all, the last one `…` where there were more."""
    return text if not most or len(text) <= most else text[:most - 1] + "…"


def command_text(args: list[str]) -> str:
    """Return the command in one line: arguments with a space are in single quotes, as dockerd's view of containers has them."""
    return " ".join([*args[:1], *(f"'{word}'" if " " in word else word for word in args[1:])])


def status_text(state: Spec) -> str:
    """Return `Up 3 minutes`, `Exited (0) 2 hours ago` or `Created`."""
    from utsuwa.cli import units

    now = time.time()
    if state["status"] == "running":
        return "Up " + units.duration(now - int(state["started"]) / 1e9)  # type: ignore[call-overload]
    if state["status"] == "stopped":
        return f"Exited ({state['exit_code']}) {units.duration(now - int(state['finished']) / 1e9)} ago"  # type: ignore[call-overload]
    return "Created"


def ports_text(network: Spec) -> str:
    """Return `0.0.0.0:8080->80/tcp, …`."""
    ports: list[tuple[str, str, int, int]] = network.get("ports") or []  # type: ignore[assignment]
    return ", ".join(f"{address or '0.0.0.0'}:{port}->{inner}/{protocol}" for protocol, address, port, inner in ports)  # noqa: S104 - shown, not bound
