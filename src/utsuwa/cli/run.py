"""utsuwa run. The monitor is spawned before anything else is imported or read: its boot is the critical path (design.md, section 6)."""

from __future__ import annotations

import os
import sys

from utsuwa.cli.flags import BOOL, INT, LIST, TEXT, Flag, Options, parse
from utsuwa.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context
    from utsuwa.engine.options import RunOptions
    from utsuwa.engine.seed import Seed

FLAGS = (
    Flag("cap-add", kind=LIST, help="Add Linux capabilities"),
    Flag("cap-drop", kind=LIST, help="Drop Linux capabilities"),
    Flag("cpus", kind=TEXT, help="Number of CPUs", meta="decimal"),
    Flag("detach", "d", BOOL, "Run container in background and print container ID"),
    Flag("detach-keys", kind=TEXT, help="Override the key sequence for detaching a container"),
    Flag("dry-run", kind=BOOL, help="Print every kernel call that would be made, and make none"),
    Flag("entrypoint", kind=TEXT, help="Overwrite the default ENTRYPOINT of the image"),
    Flag("env", "e", LIST, "Set environment variables"),
    Flag("format", kind=TEXT, help="Form of --dry-run: story, json, strace, shell"),
    Flag("hostname", "h", TEXT, "Container host name"),
    Flag("interactive", "i", BOOL, "Keep STDIN open even if not attached"),
    Flag("memory", "m", TEXT, "Memory limit", "bytes"),
    Flag("name", kind=TEXT, help="Assign a name to the container"),
    Flag("network", kind=TEXT, help="Connect a container to a network: bridge, host, none"),
    Flag("net", kind=TEXT, help="The same"),
    Flag("pids-limit", kind=INT, help="Tune container pids limit (set -1 for unlimited)"),
    Flag("publish", "p", LIST, "Publish a container's port(s) to the host"),
    Flag("read-only", kind=BOOL, help="Mount the container's root filesystem as read only"),
    Flag("rm", kind=BOOL, help="Automatically remove the container when it exits"),
    Flag("security-opt", kind=LIST, help="Security options: no-new-privileges, seccomp=unconfined"),
    Flag("tty", "t", BOOL, "Allocate a pseudo-TTY"),
    Flag("user", "u", TEXT, "Username or UID (format: <name|uid>[:<group|gid>])"),
    Flag("volume", "v", LIST, "Bind mount a volume"),
    Flag("workdir", "w", TEXT, "Working directory inside the container"),
)
# Docker's other flags, so that they are refused by name and not as unknown (docker run --help, 28).
UNSUPPORTED = frozenset("""
add-host annotation attach a blkio-weight blkio-weight-device cgroup-parent cgroupns cidfile cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period
cpu-rt-runtime cpu-shares c cpuset-cpus cpuset-mems device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops
disable-content-trust dns dns-opt dns-option dns-search domainname env-file expose gpus group-add health-cmd health-interval health-retries
health-start-interval health-start-period health-timeout init io-maxbandwidth io-maxiops ip ip6 ipc isolation kernel-memory label l label-file link link-local-ip
log-driver log-opt mac-address memory-reservation memory-swap memory-swappiness mount net-alias network-alias no-healthcheck oom-kill-disable
oom-score-adj pid platform privileged publish-all P pull quiet q restart runtime shm-size sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs
ulimit use-api-socket userns uts volume-driver volumes-from
""".split())
NO_NETWORK = "utsuwa: note: it has no network: until rootless networking comes, an ordinary user's default is --network none; --network host shares this machine's"
USAGE = "utsuwa run [OPTIONS] IMAGE [COMMAND] [ARG...]"
SUMMARY = """Create and run a new container from an image. Built in, without any registry: `hello`, which tells what just happened, and `host`, a copy-on-write
view of this machine's own root (other file systems mounted below it appear empty)."""


def main(argv: list[str]) -> int:
    """Run a container; the exit code is its own, or 125 for ours, 126 and 127 for a command that cannot run."""
    if not {"--dry-run", "--help"}.isdisjoint(argv):
        return _main(argv, None)
    if os.geteuid() != 0:
        from utsuwa.engine import holder
        from utsuwa.state.paths import Paths

        holder.enter(Paths())
    from utsuwa.engine.seed import Seed

    seed = Seed()
    try:
        return _main(argv, seed)
    finally:
        seed.drop()


def _main(argv: list[str], seed: Seed | None) -> int:
    given, words = parse("run", USAGE, FLAGS, argv, stop_at_first=True, least=1, unsupported=UNSUPPORTED, summary=SUMMARY)
    options = translate(given, words)
    if "format" in given.given and not options.dry_run:
        raise UsageError("--format is the form of --dry-run; leave it out, or add --dry-run")
    from utsuwa.cli.main import context

    if options.dry_run:
        return _plan(context(), options, given.text("format") or "story")
    where = context()
    from utsuwa.engine.run import run

    _check_terminal(options)
    if options.terminal and not options.detach:
        from utsuwa.engine import foreground

        options.console = foreground.screen()
    # Whoever sits at a terminal is told first; else last, so that an error stays one line.
    without_network = where.rootless and not options.network
    if without_network and options.terminal:
        _tell(NO_NETWORK)
    result = run(where, options, seed, stdin=0, signals=not options.detach, progress=_tell, started=print)
    if without_network and not options.terminal:
        _tell(NO_NETWORK)
    return result.code or 0


def _tell(line: str) -> None:
    os.write(2, f"{line}\n".encode())


def translate(given: Options, words: list[str]) -> RunOptions:
    """Turn flags into options. Raises UsageError."""
    from utsuwa.engine.options import RunOptions

    options = RunOptions(words[0], words[1:])
    for name in ("detach", "interactive", "read_only", "dry_run"):
        setattr(options, name, given.on(name.replace("_", "-")))
    for name in ("name", "hostname", "workdir", "user"):
        setattr(options, name, given.text(name))
    for name in ("cap_add", "cap_drop", "env"):
        setattr(options, name, given.many(name.replace("_", "-")))
    options.terminal, options.remove = given.on("tty"), given.on("rm")
    options.volumes, options.publish = given.many("volume"), given.many("publish")
    options.network = given.text("network") or given.text("net")
    options.pids_limit = given.number("pids-limit")
    if "entrypoint" in given.given:
        options.entrypoint = [given.text("entrypoint")] if given.text("entrypoint") else []
    _limits(given, options)
    _security(given.many("security-opt"), options)
    if "detach-keys" in given.given:
        options.detach_keys = detach_keys(given.text("detach-keys"))
    return options


def _limits(given: Options, options: RunOptions) -> None:
    if given.text("memory") or given.text("cpus"):
        from utsuwa.cli import units

        if given.text("memory"):
            options.memory = units.parse_memory(given.text("memory"))
        if given.text("cpus"):
            options.cpus = units.parse_cpus(given.text("cpus"))


def _security(words: list[str], options: RunOptions) -> None:
    for word in words:
        key, _, value = word.replace(":", "=", 1).partition("=") if "=" not in word else word.partition("=")
        if key == "no-new-privileges" and value in ("", "true", "false"):
            options.no_new_privs = value != "false"
        elif key == "seccomp" and value == "unconfined":
            options.seccomp = value
        else:
            from utsuwa.errors import NotSupported

            raise NotSupported(f"not yet supported: --security-opt {word}")


def detach_keys(text: str) -> bytes:
    """Return the bytes of `ctrl-p,ctrl-q`: letters, or ctrl- and one of a-z, @, brackets, backslash, ^, _. Raises UsageError."""
    out = bytearray()
    for part in text.split(",") if text else ():
        letter = part.removeprefix("ctrl-")
        if len(letter) != 1 or (part.startswith("ctrl-") and not ("a" <= letter <= "z" or letter in "@[\\]^_")):
            raise UsageError(f"invalid detach keys {text!r}: use single characters or ctrl-<character>, separated by commas")
        out.append(ord(letter.upper()) & 0x1F if part.startswith("ctrl-") else ord(letter))
    return bytes(out)


def _check_terminal(options: RunOptions) -> None:
    if options.terminal and options.interactive and not options.detach and not os.isatty(0):
        raise UsageError("the input device is not a TTY; leave out -t, or -i")


def _plan(where: Context, options: RunOptions, form: str) -> int:
    from utsuwa.engine.plan import plan
    from utsuwa.explain import render

    print(render(plan(where, options), form, color=sys.stdout.isatty()))
    return 0
