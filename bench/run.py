"""make bench: utsuwa beside podman, docker and runc. Prints a table, writes bench/results.json. Root only.

Everything happens in mount, network and process id namespaces made for it, beneath one directory: what an engine leaves there, rules and
bridges included, is gone with them, and nobody else's containers disturb the figures. Runs are interleaved, so that what slows the machine
slows all. Each is timed until its command has returned and its control groups, mounts, links and leases are gone. Between runs the bench
waits until no process is alive that was not there before the first.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE) + "/tests"]

import report
import world
from engines import Docker, Podman, Runc, Utsuwa, call, missing

from support.registry import Registry, busybox_image

INSIDE = "UTSUWA_BENCH_DIRECTORY"
NULL = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
PATIENCE = 20.0
IDLE_SECONDS = 10


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of each engine and kind (default: 20)")
    parser.add_argument("--peers-only", action="store_true", help="leave utsuwa out")
    parser.add_argument("--only", action="append", choices=["none", "bridge", "exec", "api", "monitor"], help="only this measure; may be given again")
    return parser.parse_args()


# ---- outside: a directory, the namespaces, and that nothing stays


def main():
    if INSIDE in os.environ:
        inside(options(), os.environ[INSIDE])
        return 0
    options()
    if os.geteuid() != 0:
        raise SystemExit("bench: needs root: dockerd and podman's bridge do")
    if absent := missing():
        raise SystemExit(f"bench: not installed: {', '.join(absent)}; `make bench` installs them")
    directory = tempfile.mkdtemp(prefix="utsuwa-bench-", dir="/var/tmp")
    # The shell is process 1 of the namespace: it reaps orphans, and when it ends the kernel kills whatever is left.
    wrapper = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@" & wait $!', "sh"]
    try:
        return subprocess.run([*wrapper, sys.executable, *sys.argv], env={**os.environ, INSIDE: directory}).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        clean(directory)


def clean(directory):
    """Remove the control groups that bear the bench's name, which are empty by now, and its directory."""
    for hierarchy in world.HIERARCHIES:
        for name in os.listdir(hierarchy):
            if name.startswith("bench-" + tag(directory)):
                for path, _, _ in os.walk(f"{hierarchy}/{name}", topdown=False):
                    os.rmdir(path)
    subprocess.run(["rm", "-rf", "--one-file-system", directory])


def tag(directory):
    return os.path.basename(directory).rpartition("-")[2]


# ---- inside


def inside(wanted, directory):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    tempfile.tempdir = directory
    with Registry() as registry:
        image = registry.push("busybox", busybox_image())
        docker, podman = Docker(directory, image, tag(directory)), Podman(directory, image, tag(directory))
        engines = [docker, podman] if wanted.peers_only else [Utsuwa(directory, image, tag(directory)), docker, podman]
        samples, monitor = {}, {}
        try:
            for engine in engines:
                engine.set_up()
            docker.start_sleeper()
            engines.append(Runc(directory, image, tag(directory), docker))
            engines[-1].set_up()
            docker.stop_sleeper()
            samples, monitor = measure(engines, wanted)
        finally:
            for engine in engines:
                engine.tear_down()
        show(engines, samples, monitor)


def measure(engines, wanted):
    kinds = wanted.only or ["none", "bridge", "exec", "api", "monitor"]
    samples, monitor = {}, {}
    for kind in ("none", "bridge"):
        if kind in kinds:
            samples[kind] = interleave([e for e in engines if kind in e.networks], lambda e, kind=kind: e.run(kind), wanted.runs, kind)
    if "exec" in kinds:
        for engine in engines:
            engine.start_sleeper()
        samples["exec"] = interleave(engines, lambda e: e.exec(), wanted.runs, "exec")
        for engine in engines:
            engine.stop_sleeper()
    if engines[0].name == "utsuwa":
        if "api" in kinds:
            samples["api"] = {"utsuwa": api(engines[0], wanted.runs)}
        if "monitor" in kinds:
            monitor = idle_monitor(engines[0])
    return samples, monitor


def interleave(engines, argv, runs, kind):
    """Time `runs` rounds in which each engine has its turn; return {engine: [seconds]}. Two before them warm the caches and make the bridges."""
    for engine in engines:
        for _ in range(2):
            call(argv(engine), engine.environ)
            settle(None)
    at_rest = world.processes()
    samples = {engine.name: [] for engine in engines}
    for number in range(runs):
        for engine in engines:
            samples[engine.name].append(timed(engine, argv(engine)))
            settle(at_rest)
        if sys.stderr.isatty():
            print(f"\r{kind} {number + 1}/{runs} ", end="", file=sys.stderr, flush=True)
    return samples


def timed(engine, argv):
    """Run once; return the seconds until nothing of the container is left in the kernel."""
    before = traces(engine)
    program = shutil.which(argv[0], path=engine.environ["PATH"])
    began = time.perf_counter()
    pid = os.posix_spawn(program, argv, engine.environ, file_actions=NULL)
    _, status = os.waitpid(pid, 0)
    returned = time.perf_counter()
    while (now := traces(engine)) != before:
        if time.perf_counter() > returned + PATIENCE:
            raise SystemExit(f"bench: {' '.join(argv)} leaves something behind: {[pair for pair in zip(before, now, strict=True) if pair[0] != pair[1]]}")
        time.sleep(0.0002)
    gone = time.perf_counter()
    if status:
        raise SystemExit(f"bench: {' '.join(argv)}: exit code {os.waitstatus_to_exitcode(status)}")
    return gone - began


def traces(engine):
    """Return what a container of the engine has in the kernel and in its books, as something to compare."""
    return engine.groups(), world.mounts(), world.links(), engine.leases()


def settle(at_rest):
    """Wait until no helper of an engine is alive: no process that is not in `at_rest`; without it, until none comes or goes."""
    deadline = time.monotonic() + PATIENCE
    while True:
        now = world.processes()
        time.sleep(0.02)
        extra = set(now) - set(at_rest if at_rest is not None else world.processes())
        if not extra:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: still alive after a run: {[now[pid] for pid in extra]}")


def api(engine, runs):
    """Return seconds of runs from one Python program, which stays."""
    argv = [sys.executable, HERE + "/worker.py", engine.image]
    with subprocess.Popen(argv, env=engine.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        values = []
        for _ in range(runs + 2):
            worker.stdin.write("\n")
            worker.stdin.flush()
            values.append(float(worker.stdout.readline()))
        worker.stdin.close()
    return values[2:]


def idle_monitor(engine):
    """Return the proportional set size and the processor time of a monitor that has been idle for 10 s, alone on its interpreter.

    Pages are shared among all who run the same file, and their size divided by the number of them. So that other Python programs on the
    machine, this one among them, do not make the monitor look small, it runs from a copy of the interpreter.
    """
    python = engine.directory + "/python3"
    shutil.copy(os.path.realpath(sys.executable), python)
    site = call([sys.executable, "-c", "import utsuwa, os; print(os.path.dirname(os.path.dirname(utsuwa.__file__)))"], engine.environ)
    code = "import sys; sys.path.append(sys.argv.pop(1)); from utsuwa.cli.main import main; main()"
    call([python, "-I", "-c", code, site, *engine.sleeper()[1:]], engine.environ)
    [pid] = [pid for pid, words in world.processes().items() if "utsuwa.monitor.main" in words]
    before = _ticks(pid)
    time.sleep(IDLE_SECONDS)
    with open(f"/proc/{pid}/smaps_rollup") as file:
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith(" kB\n")}
    result = {"pss_kib": sizes["Pss"], "rss_kib": sizes["Rss"], "cpu_ticks": _ticks(pid) - before}
    engine.stop_sleeper()
    return result


def _ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def show(engines, samples, monitor):
    versions = {engine.name: engine.version() for engine in engines}
    machine = {"kernel": platform.release(), "python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    text = report.table(samples, monitor)
    report.write(HERE + "/results.json", {"machine": machine, "versions": versions, "seconds": samples, "medians_ms": report.medians(samples), "monitor": monitor})
    print("\r" + text)
    print("\n" + "; ".join(versions.values()) + f"; Linux {machine['kernel']}, CPython {machine['python']}, {machine['cores']} cores; samples in bench/results.json")


if __name__ == "__main__":
    raise SystemExit(main())
