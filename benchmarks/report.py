"""Records as a Markdown table and as a picture of the ratios to the best peer."""

from __future__ import annotations

from pathlib import Path

from .harness import Record


def table(records: list[Record], machine: Record) -> str:
    """One row per record that has a peer; the columns are explained in docs/benchmarks.md."""
    heads = ["benchmark", "case", "threads", "peer", "ours ms", "peer ms", "ratio", "quartiles", "of peak"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
    skipped = ", ".join(f"{name} ({reason})" for name, reason in machine["skipped"].items()) or "none"
    lines = [
        f"{machine['time']}, {machine['cpu']}, {machine['cpus']} CPUs, ours {machine['isa']}; {versions}.",
        f"Skipped: {skipped}. Command: `{machine['command']}`",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for record in records:
        if "ratio" not in record:
            continue
        fraction = record.get("ours_fraction_of_bandwidth", record.get("ours_fraction_of_peak"))
        cells = [
            record["benchmark"],
            record["case"],
            str(record["threads"]),
            record["peer"],
            f"{1e3 * record['ours_seconds']['median']:.3f}",
            f"{1e3 * record['peer_seconds']['median']:.3f}",
            f"{record['ratio']:.2f}",
            f"{record['ratio_lower_quartile']:.2f}–{record['ratio_upper_quartile']:.2f}",
            "" if fraction is None else f"{fraction:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def best_peers(records: list[Record]) -> dict[str, list[Record]]:
    """By benchmark: for every case and number of threads, the record of the fastest float32 peer."""
    best: dict[tuple[str, str, int], Record] = {}
    for record in records:
        if "ratio" not in record or record["peer"].endswith("bf16"):
            continue
        key = (record["benchmark"], record["case"], record["threads"])
        if key not in best or record["ratio"] < best[key]["ratio"]:
            best[key] = record
    panels: dict[str, list[Record]] = {}
    for (benchmark, _, _), record in best.items():
        panels.setdefault(benchmark, []).append(record)
    return panels


def plot(records: list[Record], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    panels = best_peers(records)
    heights = [len(panel) + 1.5 for panel in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels),
        squeeze=False,
        figsize=(9, 0.34 * sum(heights) + 1),
        height_ratios=heights,
        layout="constrained",
    )
    for axis, (benchmark, panel) in zip(axes[:, 0], panels.items(), strict=True):
        labels = [f"{record['case']}, {record['threads']} thr." for record in panel]
        ratios = [record["ratio"] for record in panel]
        axis.barh(labels, [ratio - 1 for ratio in ratios], left=1, color="tab:blue")
        for row, record in enumerate(panel):
            fraction = record.get("ours_fraction_of_bandwidth", record.get("ours_fraction_of_peak"))
            of_peak = "" if fraction is None else f", {fraction:.0%} of peak"
            text = f" {record['ratio']:.2f}× {record['peer']}{of_peak}"
            axis.text(max(record["ratio"], 1), row, text, va="center", fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min(0.8, *ratios) * 0.9 if ratios else 0.8, max(ratios) * 6)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(benchmark, loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("time of the best float32 peer / time of fusedlstm")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
