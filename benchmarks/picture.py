"""The picture of the README: how many times as long the peers take, for one shape of each kind of work.

``python -m benchmarks.picture RECORDS.json … PICTURE.png [--threads N]``

The records are those that ``python -m benchmarks … --json`` writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

# label, benchmark, case
CASES = [
    ("layer, training\nbatch 64, 128 steps, 512 units", "layer training", "N=64 T=128 I=H=512"),
    ("layer, inference\nbatch 64, 128 steps, 512 units", "layer inference", "N=64 T=128 I=H=512"),
    ("layer, training, ragged\nbatch 64, up to 128 steps, 128 units", "layer training", "N=64 T≤128 I=H=128"),
    ("character model, training\n2 × 512, batch 64 × 128", "language model step", "2x512 V=65 N=64 T=128"),
    ("translation, training\n2 × 512, attention, batch 64", "seq2seq training", "2x512 N=64 attention"),
    ("sampling text\n2 × 512, one sequence", "generation", "2x512 V=65 N=1 sampled"),
    ("beam search, attention\n2 × 512, one source", "beam_search", "attention 2x512 N=1"),
    ("one streamed step\n32 units", "streaming", "I=H=32 Python"),
]  # fmt: skip
COLOURS = {
    "torch": "tab:red",
    "onnxruntime": "tab:blue",
    "openvino": "tab:purple",
    "onednn": "tab:orange",
    "jax": "tab:green",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    records = [
        record
        for path in arguments.records
        for record in json.loads(path.read_text())["records"]
        if record["threads"] == arguments.threads and "ratio" in record
    ]

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axis = pyplot.subplots(figsize=(9, 7), layout="constrained")
    row, ticks, labels, shown = 0.0, [], [], set()
    for label, benchmark, case in CASES:
        ratios: dict[str, float] = {}  # of several forms of a peer, the one that loses least
        for record in records:
            peer = record["peer"].split()[0]
            if record["benchmark"] == benchmark and record["case"].split(" (")[0] == case and peer in COLOURS:
                ratios[peer] = min(record["ratio"], ratios.get(peer, record["ratio"]))
        bars = sorted((ratio, peer) for peer, ratio in ratios.items())
        if not bars:
            continue
        for ratio, peer in bars:
            name = None if peer in shown else peer
            shown.add(peer)
            axis.barh(row, ratio - 1, left=1, height=0.9, color=COLOURS[peer], label=name)
            axis.text(
                max(ratio, 1) * 1.04, row, f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×", va="center"
            )
            row += 1
        ticks.append(row - (len(bars) + 1) / 2)
        labels.append(label)
        row += 0.8
    axis.set_yticks(ticks, labels)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g×"))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xlim(0.8, axis.get_xlim()[1] * 1.5)
    axis.grid(axis="x", alpha=0.3)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("float32: time of the peer / time of fusedlstm", loc="left")
    axis.legend(loc="upper right", frameon=False)
    figure.savefig(arguments.picture, dpi=130)


if __name__ == "__main__":
    main()
