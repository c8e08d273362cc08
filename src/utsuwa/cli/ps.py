"""utsuwa ps."""

from __future__ import annotations

import time

from utsuwa.cli.flags import BOOL, INT, TEXT, Flag, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
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
            rows.append(describe(known, full=given.on("no-trunc")))
    if given.on("quiet") and not given.text("format"):
        for item in rows:
            print(item["ID"])
        return 0
    print(template.table(given.text("format") or DEFAULT, rows, DEFAULT, HEADERS), end="")
    return 0


def describe(known: Spec, *, full: bool) -> dict[str, str]:
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
        "Ports": ports_text(known), "Names": str(known["name"]),
        "Networks": str(options.get("network") or ""), "Mounts": ",".join(mounts), "Size": "0B",
        "Labels": ",".join(f"{key}={value}" for key, value in (known["image_config"].get("Labels") or {}).items()),  # type: ignore[attr-defined]
        "LocalVolumes": str(sum(point.get("type") == "volume" for point in points)),
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


def ports_text(known: Spec) -> str:
    """Return `0.0.0.0:8080->80/tcp, 443/tcp`: what is published, and what the image says it listens on. Nothing for a container without a network at work.

    As Docker's DisplayablePorts: neighbours are one range, where the port is the same on both sides.
    """
    network: Spec = known["network"]  # type: ignore[assignment]
    if known["state"]["status"] != "running" or network.get("mode") != "bridge":  # type: ignore[index]
        return ""
    published: list[tuple[str, str, int, int]] = network.get("ports") or []  # type: ignore[assignment]
    mapped = [(inner, address or "0.0.0.0", port, protocol) for protocol, address, port, inner in published]  # noqa: S104 - shown, not bound
    served = {(inner, protocol) for inner, _, _, protocol in mapped}
    exposed = {(int(text.partition("/")[0]), text.partition("/")[2] or "tcp") for text in known["image_config"].get("ExposedPorts") or () if text.partition("/")[0].isdecimal()}  # type: ignore[attr-defined]
    ranges: dict[tuple[str, str], list[list[int]]] = {}
    apart = []
    for inner, address, port, protocol in sorted([*mapped, *((inner, "", 0, protocol) for inner, protocol in exposed - served)]):
        if address and port != inner:
            apart.append(f"{address}:{port}->{inner}/{protocol}")
            continue
        found = ranges.setdefault((address, protocol), [])
        if found and found[-1][1] == inner - 1:
            found[-1][1] = inner
        else:
            found.append([inner, inner])
    return ", ".join([_range(address, protocol, *ends) for (address, protocol), found in sorted(ranges.items()) for ends in found] + apart)


def _range(address: str, protocol: str, first: int, last: int) -> str:
    text = str(first) if first == last else f"{first}-{last}"
    return f"{address}:{text}->{text}/{protocol}" if address else f"{text}/{protocol}"
