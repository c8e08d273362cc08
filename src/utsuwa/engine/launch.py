"""From options to a running container: the steps between a caller and its monitor. `run` is the use case in run.py; this is create and start.

Killed anywhere, the row of phase `creating` tells the next command what to undo (recover.py); the monitor undoes its own part at end of file.
"""

from __future__ import annotations

import os
import time
from marshal import dumps as marshal

import _signal as signal  # `signal` itself imports enum, 2 ms

from utsuwa import ledger
from utsuwa.engine import config as configuration, images, names, network, options as run_options
from utsuwa.errors import Conflict, ImageError, RuntimeFailure, UtsuwaError, carried
from utsuwa.kernel import process
from utsuwa.kernel.door import is_real
from utsuwa.ledger import because
from utsuwa.runtime import handshake
from utsuwa.security import capabilities, seccomp
from utsuwa.state import lifecycle
from utsuwa.state.db import IntegrityError
from utsuwa.storage import overlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from utsuwa.engine.context import Context
    from utsuwa.engine.options import RunOptions
    from utsuwa.engine.seed import Seed
    from utsuwa.spec.image import ImageRecord

    Spec = dict[str, object]

PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CGROUP_PARENT = "/utsuwa"


class Launch:
    """One container on its way up: what is decided (`id` … `bundle`) and what is held (`seed`, `sandbox`)."""

    __slots__ = ("binds", "bundle", "config", "context", "created", "id", "image", "init_pid", "mask", "masks", "name", "options", "sandbox", "seed", "volumes")

    def __init__(self, context: Context, options: RunOptions, seed: Seed) -> None:
        self.context, self.options, self.seed = context, options, seed
        self.id = names.make_id()
        self.created = time.time_ns()
        self.name = ""
        self.config: Spec = {}
        self.bundle: Spec = {}
        self.masks: dict[str, int] = {}
        self.binds: list[Spec] = []
        self.volumes: list[Spec] = []
        self.image: ImageRecord
        self.sandbox: network.Sandbox
        self.init_pid = 0
        self.mask: set[int] | None = None  # of signals, before SIGINT was held back

    @property
    def directory(self) -> str:
        return self.context.paths.container(self.id)


def launch(this: Launch, progress: Callable[[str], None] | None = None) -> None:
    """Make and start a container; returns when its program runs. On any failure everything is undone before the error is raised.

    `progress` takes the lines that tell of a pull, and warnings.
    """
    with ledger.recording(this.seed.book):
        this.image = images.resolve(this.context, this.options.image, progress)
        decide(this)
        for line in this.options.warnings if progress else ():
            progress(line)  # type: ignore[misc]
        try:
            for step in STEPS:
                ledger.fault(step.__name__)
                step(this)
        except BaseException:
            undo(this)
            raise


# ------------------------------------------------------------------------------------------------------------ decisions

def decide(this: Launch) -> None:
    """Fill in all that needs nothing made: name, network mode, config.json, walls. Raises UsageError."""
    options, context, image = this.options, this.context, this.image
    this.name = names.check(options.name) if options.name else ""
    options.env = run_options.environment(options.env, os.environ)
    this.sandbox = network.plan(context, this.id, options)
    hostname = names.check_hostname(options.hostname) if options.hostname else os.uname().nodename if options.network == "host" else this.id[:12]
    this.binds, this.volumes = _volumes(this)
    cgroup = _cgroup(this)
    userns = process.in_user_namespace()
    this.config, kept = configuration.document(
        options, image, directory=this.directory, hostname=hostname, cgroup=cgroup, netns=this.sandbox.netns, binds=this.binds, in_userns=userns,
    )
    spec: Spec = this.config["process"]  # type: ignore[assignment]
    user: dict[str, int] = spec["user"]  # type: ignore[assignment]
    this.masks = configuration.masks(kept, user["uid"])
    program = b"" if options.seccomp == seccomp.UNCONFINED else seccomp.default_program(kept, context.paths.root + "/seccomp")
    this.bundle = {
        "id": this.id, "directory": this.directory, "run_directory": context.paths.container_run(this.id), "place": this.directory + "/merged",
        "in_userns": userns, "masks": this.masks, "filter": program, "filter_text": "Docker's default profile" if program else "",
        "last_capability": capabilities.last(), "boot": process.boot_id(), "root": context.paths.root, "run": context.paths.run, "package": PACKAGE,
        "rootless": str(context.owner) if context.rootless else "", "attached": not options.detach, "interactive": options.interactive,
        "overlay": {**overlay.layout(context.paths, this.id, image.layers, host=image.host, in_userns=userns), "userxattr": userns},
    }
    if image.host and userns:
        from utsuwa.storage import host

        this.config["mounts"] = host.mounts(this.bundle["overlay"]) + this.config["mounts"]  # type: ignore[arg-type,operator]


def _volumes(this: Launch) -> tuple[list[Spec], list[Spec]]:
    if not this.options.volumes and not this.image.config.get("Volumes"):
        return [], []
    from utsuwa.storage import volumes

    return volumes.plan(this.context.paths, this.options.volumes, list(this.image.config.get("Volumes") or ()))  # type: ignore[call-overload]


def _cgroup(this: Launch) -> str:
    """Return the container's cgroup path, "" where this user may not make groups. Raises PermissionDenied when a limit was asked for then."""
    from utsuwa.container import cgroup
    from utsuwa.errors import PermissionDenied

    if not this.context.rootless and cgroup.discover().writable:
        return f"{CGROUP_PARENT}/{this.id}"
    limits = [flag for flag, value in (("--memory", this.options.memory), ("--cpus", this.options.cpus), ("--pids-limit", this.options.pids_limit > 0)) if value]
    if limits:
        raise PermissionDenied(f"cannot limit with {', '.join(limits)}: no control group here may be made by this user; run as root, or without the flag")
    return ""


# ---------------------------------------------------------------------------------------------------------------- steps

def reserve(this: Launch) -> None:
    """Enter the container in the database: from here on its name, address and ports are its own, and whoever comes later can clean up."""
    db, options = this.context.db, this.options
    wanted = this.name
    this.sandbox.prepare()
    for attempt in range(100):
        this.name = wanted or names.make_up(attempt)
        try:
            with db.write():
                db.do(
                    "INSERT INTO container VALUES (?,?,?,?,?,?,?,?,?,?)", this.id, this.name, this.image.id, options.image, this.created, lifecycle.CREATING,
                    os.getpid(), process.start_time(os.getpid()), str(this.bundle["boot"]), b"",
                )
                _claim_layers(this)
                this.sandbox.reserve(db)
                db.do("UPDATE container SET record=? WHERE id=?", marshal(record(this)), this.id)
        except IntegrityError as error:
            if "container.name" not in str(error):
                raise UtsuwaError(f"cannot enter the container in the database: {error}; was its image removed just now?") from None
            if wanted:
                raise _name_taken(db.read("SELECT id FROM container WHERE name=?", wanted), wanted) from None
        else:
            return
    raise Conflict("cannot make up a name that is free; give one with --name")


def _claim_layers(this: Launch) -> None:
    """Refer to the image's layers, so that no removal takes them. Inside the transaction: a removal that came first is seen here."""
    db, chains = this.context.db, set(this.image.layers)
    for chain in chains:
        db.do("INSERT INTO container_layer VALUES (?,?)", this.id, chain)
    if len(db.read("SELECT 1 FROM layer WHERE chain IN (SELECT chain FROM container_layer WHERE container=?)", this.id)) != len(chains):
        raise ImageError(f"cannot run {this.options.image}: the image was removed just now; try again")


def _name_taken(rows: Sequence[tuple[object, ...]], name: str) -> Conflict:
    holder = rows[0][0] if rows else "another"
    return Conflict(f'Conflict. The container name "/{name}" is already in use by container "{holder}". You have to remove (or rename) that container to be able to reuse that name.')


def record(this: Launch) -> Spec:
    """Return what is kept in the container's row: enough to start it again and to inspect it."""
    return {
        "options": this.options.as_dict(), "config": this.config, "bundle": {**this.bundle, "filter": b""}, "image_config": this.image.config,
        "network": this.sandbox.as_dict(), "volumes": this.volumes,
    }


def make_directories(this: Launch) -> None:
    """Make what the container keeps on disk, and write its ledger from now on."""
    paths = this.context.paths
    for path in (this.directory, this.directory + "/merged", paths.container_run(this.id)):
        _make(path)
    overlay.make(this.bundle["overlay"])  # type: ignore[arg-type]
    this.seed.held.open(this.directory + "/ledger.jsonl")
    for name, text in this.sandbox.files(str(this.config["hostname"])).items():
        _write(f"{this.directory}/{name}", text, 0o644)
    if this.volumes:
        from utsuwa.storage import volumes

        user: dict[str, int] = this.config["process"]["user"]  # type: ignore[index]
        volumes.make(this.context.db, this.context.paths, this.volumes, this.image.layers, this.id, (user["uid"], user["gid"]))


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError:
        os.makedirs(path, 0o700)  # the run directory after a reboot


def _write(path: str, text: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)  # whatever the caller's umask
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def make_sandbox(this: Launch) -> None:
    """Begin to make the network, in a thread of its own, while the rest is made."""
    this.sandbox.begin()


def make_groups(this: Launch) -> None:
    """Make the control groups and set their limits: work that the monitor would do otherwise, done while it boots."""
    linux: Spec = this.config["linux"]  # type: ignore[assignment]
    if linux.get("cgroupsPath"):
        from utsuwa.container import cgroup

        this.bundle["groups"] = cgroup.make(cgroup.discover(), str(linux["cgroupsPath"]), linux["resources"])  # type: ignore[arg-type]


def create(this: Launch) -> None:
    """Hand the container to its monitor; write config.json while it is being made."""
    this.sandbox.wait()
    with because("one monitor a container: it makes the container and is its parent for life", "design.md, 2", 2):
        tell(this, handshake.CREATE, (this.config, this.bundle), this.sandbox.held())
    this.sandbox.release()
    write_config(this)
    this.init_pid = expect(this, handshake.CREATED)  # type: ignore[assignment]


def write_config(this: Launch) -> None:
    """Write config.json as any OCI runtime takes it: the document that the monitor has, and the seccomp profile it has compiled."""
    from utsuwa.ledger.encode import dumps

    document = this.config
    if this.bundle["filter"]:
        spec: Spec = this.config["process"]  # type: ignore[assignment]
        linux: Spec = this.config["linux"]  # type: ignore[assignment]
        document = {**this.config, "linux": {**linux, "seccomp": seccomp.linux_seccomp(spec["capabilities"]["bounding"])}}  # type: ignore[index]
    _write(this.directory + "/config.json", dumps(document), 0o600)


def start(this: Launch) -> None:
    """Let the program run."""
    # From here on Ctrl-C is the container's, or too late: held back until its follower takes signals, or its id has been told. run.py lets go of it.
    this.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    tell(this, handshake.START)
    expect(this, handshake.RUNNING)


STEPS = (
    reserve,             # first: what is made later must have an owner
    make_sandbox,        # in a thread of its own, while the rest is made
    make_directories,
    make_groups,
    create,
    start,
)


def tell(this: Launch, kind: str, body: object = None, fds: tuple[int, ...] = ()) -> None:
    """Send to the monitor. One that is gone is heard of by `expect`, which can say more."""
    try:
        handshake.send(this.seed.sock, kind, body, fds)
    except (BrokenPipeError, ConnectionResetError):
        return


def expect(this: Launch, kind: str) -> object:
    """Return the body of the answer of this kind. Raises what the monitor failed with."""
    message = None
    try:
        message = handshake.receive(this.seed.sock)
    except OSError:
        pass
    if message is None:
        raise RuntimeFailure("cannot make the container: its monitor ended unexpectedly; is memory short?")
    if message[0] == handshake.FAILED:
        raise carried(message[1])
    if message[0] != kind:
        raise RuntimeFailure(f"cannot make the container: its monitor answered {message[0]} instead of {kind}")
    return message[1]


def undo(this: Launch) -> None:
    """Undo a launch that failed: the monitor its part, then ours. Never raises: what stays is found by the next command."""
    from utsuwa.engine.remove import remove_all

    if not is_real():
        return
    try:
        handshake.send(this.seed.sock, handshake.SIGNAL, 9)  # its program may run already; before START it ends the monitor as DONE does
        handshake.send(this.seed.sock, handshake.DONE)
        while handshake.receive(this.seed.sock) is not None:
            continue
    except OSError:
        pass
    this.sandbox.release()
    try:
        this.sandbox.wait()  # what its thread still makes must be there before it is removed
    except BaseException:  # noqa: BLE001 - told already, or not what failed first
        pass
    try:
        remove_all(this.context, this.id)
    except (OSError, UtsuwaError):
        return
