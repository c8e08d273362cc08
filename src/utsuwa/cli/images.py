"""utsuwa pull, images, rmi: Docker's words around engine.images."""

from __future__ import annotations

import sys

from utsuwa.cli.flags import BOOL, TEXT, Flag, parse
from utsuwa.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.images import ImageRow

PULL = (
    Flag("platform", kind=TEXT, help="Pull the image for this platform (OS/ARCHITECTURE[/VARIANT]) instead of this machine's"),
    Flag("quiet", "q", BOOL, "Suppress verbose output"),
)
IMAGES = (
    Flag("all", "a", BOOL, "Show all images (there are no intermediate ones to hide)"),
    Flag("digests", kind=BOOL, help="Show digests"),
    Flag("format", kind=TEXT, help="Format output using a Go template, 'table TEMPLATE', or 'json'"),
    Flag("no-trunc", kind=BOOL, help="Don't truncate output"),
    Flag("quiet", "q", BOOL, "Only show image IDs"),
)
RMI = (
    Flag("force", "f", BOOL, "Force removal of the image"),
)
HEADERS = {
    "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "Size": "SIZE",
    "Containers": "CONTAINERS", "VirtualSize": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
}
_LEFT, _DIGEST, _RIGHT = "table {{.Repository}}\t{{.Tag}}", "\t{{.Digest}}", "\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
NONE = "<none>"


def pull(argv: list[str]) -> int:
    """Download an image; prints Docker's lines, the last one its full name."""
    given, (text,) = parse(
        "pull", "utsuwa pull [OPTIONS] NAME[:TAG|@DIGEST]", PULL, argv, least=1, most=1, unsupported=frozenset({"all-tags", "a", "disable-content-trust"}),
        summary="Download an image from a registry",
    )
    from utsuwa.cli.main import context
    from utsuwa.engine import images
    from utsuwa.spec import reference

    named = reference.parse(text)
    quiet = given.on("quiet")
    if not quiet and not named.digest and ":" not in text.rpartition("/")[2]:
        print("Using default tag: latest")
    try:
        images.pull(context(), text, platform=given.text("platform"), progress=None if quiet else _say)
    except UtsuwaError as error:
        return _failed(error)
    print(named.name)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _failed(error: UtsuwaError) -> int:
    """Docker's command line ends with 1 where the engine refused, and with 125 where it was asked wrongly."""
    from utsuwa.cli.main import tell

    sys.stdout.flush()
    tell(str(error))
    return 1


def images(argv: list[str]) -> int:
    """List images: a line for each name of each."""
    given, rest = parse(
        "images", "utsuwa images [OPTIONS] [REPOSITORY[:TAG]]", IMAGES, argv, most=1, unsupported=frozenset({"filter", "f", "tree"}), summary="List images",
    )
    from utsuwa.cli import template
    from utsuwa.cli.main import context
    from utsuwa.engine import images as engine

    rows = [line for row in engine.listing(context()) for line in _lines(row, rest[0] if rest else "", digests=given.on("digests"), full=given.on("no-trunc"))]
    form = given.text("format")
    if given.on("quiet") and not form:
        for identity in dict.fromkeys(row["ID"] for row in rows):
            print(identity)
        return 0
    default = _LEFT + (_DIGEST if given.on("digests") else "") + _RIGHT
    print(template.table(form or default, rows, default, HEADERS), end="")
    return 0


def _lines(row: ImageRow, wanted: str, *, digests: bool, full: bool) -> list[dict[str, str]]:
    """Return the columns of each name of an image, as Docker's formatter calls them; one line of <none> where there is no name."""
    import time

    from utsuwa.cli import units
    from utsuwa.spec.reference import parse as parse_reference

    created = _nanoseconds(row.created)
    common = {
        "ID": row.id if full else row.id.removeprefix("sha256:")[:12], "Size": units.human_size(row.size, 3), "VirtualSize": units.human_size(row.size, 3),
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(created // 1_000_000_000)), "CreatedSince": units.ago(created, time.time_ns()) if created else "N/A",
        "Containers": "N/A", "SharedSize": "N/A", "UniqueSize": "N/A",
    }
    lines = []
    for name, digest in row.references:
        reference = parse_reference(name)
        if not wanted or _matches(wanted, reference.familiar_base, reference.tag):
            shown = digest if digests or reference.digest else NONE
            lines.append({"Repository": reference.familiar_base, "Tag": reference.tag or NONE, "Digest": shown, **common})
    if not row.references and not wanted:
        lines.append({"Repository": NONE, "Tag": NONE, "Digest": NONE, **common})
    return lines


def _matches(wanted: str, base: str, tag: str) -> bool:
    """Whether a name is the one asked for; `*` and `?` match within a component, as in Docker."""
    from fnmatch import fnmatchcase

    pattern, colon, want_tag = wanted.rpartition(":") if ":" in wanted.rpartition("/")[2] else (wanted, "", "")
    return base.count("/") == pattern.count("/") and fnmatchcase(base, pattern) and (not colon or fnmatchcase(tag, want_tag))


def _nanoseconds(created: str) -> int:
    """Return ns since the epoch of an image's RFC 3339 time, 0 where it has none that can be read."""
    from utsuwa.cli import units
    from utsuwa.errors import UsageError

    try:
        return max(units.parse_time(created, 0), 0) if created else 0
    except UsageError:
        return 0


def rmi(argv: list[str]) -> int:
    """Remove names and images; an error concerns one of them, the others are done."""
    given, texts = parse("rmi", "utsuwa rmi [OPTIONS] IMAGE [IMAGE...]", RMI, argv, least=1, unsupported=frozenset({"no-prune"}), summary="Remove one or more images")
    from utsuwa.cli.main import context
    from utsuwa.engine import images as engine

    where = context()
    code = 0
    for text in texts:
        try:
            for line in engine.remove(where, text, given.on("force")):
                print(line)
        except UtsuwaError as error:
            code = _failed(error)
    return code
