"""Records as Markdown tables and as a picture of the ratios to the best peer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .harness import Record


def head(machine: Record, records: list[Record]) -> str:
    """What the figures were measured with."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
    skipped = ", ".join(f"{name} ({reason})" for name, reason in machine["skipped"].items()) or "none"
    times = sorted(record["time"] for record in records) or [machine["time"]]
    commits = sorted({record["commit"][:10] for record in records}) or [machine["commit"][:10]]
    changed = ", with uncommitted changes" if machine["uncommitted_changes"] else ""
    return (
        f"{times[0]} to {times[-1]}, {machine['cpu']}, {machine['cpus']} CPUs, ours {machine['isa']} at "
        f"{', '.join(commits)}{changed}; {versions}.\n"
        f"Skipped: {skipped}. Command: `{machine['command']}`\n\n"
    )


def markdown(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(lines) + "\n"


def fraction_of(record: Record) -> tuple[float | None, str]:
    """Ours, of the ceiling that bounds this case, and which that is."""
    if record.get("ours_fraction_of_bandwidth") is not None:
        return record["ours_fraction_of_bandwidth"], "read bandwidth"
    return record.get("ours_fraction_of_peak"), record.get("peak_instructions") or ""


def percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"


def table(records: list[Record]) -> str:
    """The ceilings, and one row per record that has a peer; docs/benchmarks.md explains the columns."""
    text = ""
    ceilings = [record for record in records if "ceiling" in record]
    if ceilings:
        text += markdown(
            ["ceiling", "threads", "measured"],
            [
                [
                    record["case"],
                    str(record["threads"]),
                    "not on this machine"
                    if record["ceiling"] is None
                    else f"{record['ceiling']:.1f} {record['unit']}",
                ]
                for record in ceilings
            ],
        )
        text += "\n"
    rows = [
        [
            record["benchmark"],
            record["case"],
            str(record["threads"]),
            record["peer"],
            f"{1e3 * record['ours_seconds']['median']:.4g}",
            f"{1e3 * record['peer_seconds']['median']:.4g}",
            f"{record['ratio']:.2f}",
            f"{record['ratio_lower_quartile']:.2f}–{record['ratio_upper_quartile']:.2f}",
            f"{record['ratio_of_least']:.2f}" if "ratio_of_least" in record else "",
            _disturbed(record),
            percent(fraction_of(record)[0]),
        ]
        for record in records
        if "ratio" in record
    ]
    heads = ["benchmark", "case", "threads", "peer", "ours ms", "peer ms", "ratio", "quartiles", "of least"]
    heads += ["disturbed", "of ceiling"]
    return text + markdown(heads, rows)


def _disturbed(record: Record) -> str:
    """The ratio in rounds that the machine disturbed, and how many of them there were."""
    disturbed = record.get("disturbed", {"rounds": 0})
    return f"{disturbed['ratio']:.2f} ({disturbed['rounds']})" if disturbed["rounds"] else ""


def best_peers(records: list[Record]) -> dict[str, list[Record]]:
    """By benchmark: for every case and number of threads, the record of the fastest peer."""
    best: dict[tuple[str, str, int], Record] = {}
    for record in records:
        if "ratio" not in record:
            continue
        key = (record["benchmark"], record["case"], record["threads"])
        if key not in best or record["ratio"] < best[key]["ratio"]:
            best[key] = record
    panels: dict[str, list[Record]] = {}
    for (benchmark, _, _), record in best.items():
        panels.setdefault(benchmark, []).append(record)
    return panels


def plot(records: list[Record], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    panels = best_peers(records)
    heights = [len(panel) + 1.5 for panel in panels.values()]
    figure, axes = pyplot.subplots(
        max(len(panels), 1),
        squeeze=False,
        figsize=(10, 0.34 * sum(heights) + 1),
        height_ratios=heights or [1],
        layout="constrained",
    )
    for axis, (benchmark, panel) in zip(axes[:, 0], panels.items(), strict=False):
        labels = [f"{record['case']}, {record['threads']} thr." for record in panel]
        ratios = [record["ratio"] for record in panel]
        axis.barh(labels, [ratio - 1 for ratio in ratios], left=1, color="tab:blue")
        for row, record in enumerate(panel):
            fraction, ceiling = fraction_of(record)
            of_ceiling = "" if fraction is None else f", {fraction:.0%} of {ceiling}"
            text = f" {record['ratio']:.2f}× {record['peer']}{of_ceiling}"
            axis.text(max(record["ratio"], 1), row, text, va="center", fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min(0.8, *ratios) * 0.9, max(2, *ratios) * 6)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(benchmark, loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("time of the best peer / time of fusedlstm")
    figure.savefig(path, dpi=130)
