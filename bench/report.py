"""What was measured, as JSON and as the table of the README: medians in milliseconds, ratios, and the budget of design.md, section 6."""

import json
import os
import statistics

LABELS = {
    "none": "`run --rm --network none IMAGE true`",
    "bridge": "the same on the default bridge",
    "exec": "`exec` in a running container",
    "api": "from a running Python program, start to exit",
}
BUDGETS = {
    "none": {"docker": 1 / 4, "podman": 2 / 5},
    "bridge": {"docker": 1 / 4, "podman": 1 / 4},
    "exec": {"docker": 1 / 2},
}
"""At most this part of that engine's time."""
API_MS = 25.0
MONITOR_MB = 8.0
COLUMNS = ("utsuwa", "podman", "docker", "runc")


def medians(samples):
    """`samples` is {measure: {engine: [seconds]}}; return the same with medians in milliseconds."""
    return {measure: {name: statistics.median(values) * 1000 for name, values in engines.items() if values} for measure, engines in samples.items()}


def table(samples, monitor):
    """Return the Markdown table. `monitor` is {"pss_kib": …, "cpu_ticks": …}, or empty."""
    rows = ["| milliseconds, median | " + " | ".join(COLUMNS) + " | budget | here |", "| --- |" + " ---: |" * len(COLUMNS) + " --- | --- |"]
    for measure, row in medians(samples).items():
        cells = [f"{row[name]:.1f}" if name in row else "" for name in COLUMNS]
        budget, here = _verdict(measure, row)
        rows.append(f"| {LABELS[measure]} | {' | '.join(cells)} | {budget} | {here} |")
    if monitor:
        megabytes = monitor["pss_kib"] / 1024
        rows.append(f"| monitor, alone and idle for 10 s, MB | {megabytes:.2f} | | | | ≤ {MONITOR_MB:g} MB, no CPU | {_mark(megabytes <= MONITOR_MB)}, {monitor['cpu_ticks']} ticks of CPU |")
    return "\n".join(rows)


def _verdict(measure, row):
    ours = row.get("utsuwa")
    if measure == "api":
        return f"≤ {API_MS:g} ms", "" if ours is None else _mark(ours <= API_MS)
    limits = BUDGETS[measure]
    budget = ", ".join(f"≤ {part:g} of {name}" for name, part in limits.items())
    if ours is None:
        return budget, ""
    return budget, ", ".join(f"{ours / row[name]:.3f} of {name} {_mark(ours / row[name] <= part)}" for name, part in limits.items() if name in row)


def _mark(met):
    return "✓" if met else "✗ missed"


def write(path, document):
    with open(path + ".tmp", "w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
    os.rename(path + ".tmp", path)
