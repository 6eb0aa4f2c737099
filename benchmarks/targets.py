"""The targets of the kernels and of generation, one result each, from the records of the other benchmarks.

A target over several shapes is decided by the worst of them, or by their geometric mean where it says so.
Where bfloat16 has no instructions both sides emulate it: such a result is shown, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .harness import Record
from .report import fraction_of, markdown, percent
from .shapes import BATCH_1_SHAPES, LARGE, QUICK_SHAPES, TABLE_SHAPES, Shape

SUFFIXES = {"float32": "", "bfloat16": " bf16", "int8": " int8"}
NO_BF16 = "no bfloat16 instructions here: both emulate"


@dataclass
class Result:
    """One target on one number of threads."""

    row: str
    what: str
    threads: int
    unit: str  # "×" a ratio of times, "%" a fraction, "µs"
    target: float | None  # None: to be shown only
    value: float | None = None  # None: not measured
    at_least: bool = True
    lower_quartile: float | None = None
    upper_quartile: float | None = None
    case: str = ""
    peer: str = ""
    ours_seconds: float | None = None
    peer_seconds: float | None = None
    fraction: float | None = None
    ceiling: str = ""
    at_ceiling: float | None = None  # the ratio, if ours were as fast as the ceiling allows
    note: str = ""  # why it decides nothing
    reached: bool | None = None

    def __post_init__(self) -> None:
        if self.value is not None and self.target is not None and not self.note:
            self.reached = self.value >= self.target if self.at_least else self.value <= self.target

    def text(self, value: float) -> str:
        return {"×": f"{value:.2f}×", "%": f"{value:.0%}", "µs": f"{value:.3g} µs"}[self.unit]

    @property
    def wanted(self) -> str:
        if self.target is None:
            return "shown"
        return f"{'≥' if self.at_least else '≤'} {self.text(self.target)}"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return self.note or "not measured"
        if self.reached is None:
            return self.note or "shown"
        return "reached" if self.reached else "missed"


# --- choosing records ---------------------------------------------------------------------------------------


def best_of(records: Iterable[Record]) -> list[Record]:
    """For each case the record of the fastest peer."""
    best: dict[str, Record] = {}
    for record in records:
        if record["case"] not in best or record["ratio"] < best[record["case"]]["ratio"]:
            best[record["case"]] = record
    return list(best.values())


def emulated(record: Record) -> str:
    """Why a record in low precision decides nothing, if so."""
    low = record.get("shape", {}).get("dtype") == "bfloat16"
    return NO_BF16 if low and record.get("peak_instructions") == "fma32" else ""


def ratio_at_ceiling(record: Record) -> float | None:
    """Beside a peer. A call far below its ceiling is bound by other things, and counts as it is."""
    fraction, _ = fraction_of(record)
    if fraction is None or record["peer"].startswith("ours"):
        return None
    return record["ratio"] / (fraction if fraction > 0.05 else 1.0)


def least(records: list[Record], row: str, what: str, threads: int, target: float | None) -> Result:
    """The worst ratio of these."""
    if not records:
        return Result(row, what, threads, "×", target)
    worst = min(records, key=lambda record: record["ratio"])
    fraction, ceiling = fraction_of(worst)
    return Result(
        row,
        what,
        threads,
        "×",
        target,
        worst["ratio"],
        lower_quartile=worst["ratio_lower_quartile"],
        upper_quartile=worst["ratio_upper_quartile"],
        case=worst["case"],
        peer=worst["peer"],
        ours_seconds=worst["ours_seconds"]["median"],
        peer_seconds=worst["peer_seconds"]["median"],
        fraction=fraction,
        ceiling=ceiling,
        at_ceiling=min(filter(None, map(ratio_at_ceiling, records)), default=None),
        note=emulated(worst),
    )


def beside_itself(
    records: list[Record],
    other: str,
    row: str,
    what: str,
    threads: int,
    target: float,
    *,
    at_least: bool = True,
) -> Result:
    """Time of another way of ours over that of the way the first record is of."""
    if not records:
        return Result(row, what, threads, "×", target, at_least=at_least)
    record, ratio = records[0], records[0]["beside_itself"][other]
    return Result(
        row,
        what,
        threads,
        "×",
        target,
        ratio["ratio"],
        at_least=at_least,
        lower_quartile=ratio["ratio_lower_quartile"],
        upper_quartile=ratio["ratio_upper_quartile"],
        case=record["case"],
        peer=f"ours, {other}",
        ours_seconds=record["ours_seconds"]["median"],
        note=emulated(record),
    )


def mean(records: list[Record], row: str, what: str, threads: int, target: float) -> Result:
    """Geometric mean of the ratios of these; its quartiles are the means of theirs."""
    if not records:
        return Result(row, what, threads, "×", target)

    def geometric_mean(values: list[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    def geometric(key: str) -> float:
        return geometric_mean([record[key] for record in records])

    at_ceiling = list(filter(None, map(ratio_at_ceiling, records)))
    return Result(
        row,
        what,
        threads,
        "×",
        target,
        geometric("ratio"),
        lower_quartile=geometric("ratio_lower_quartile"),
        upper_quartile=geometric("ratio_upper_quartile"),
        case=f"{len(records)} shape{'s' if len(records) > 1 else ''}",
        peer=", ".join(sorted({record["peer"] for record in records})),
        at_ceiling=geometric_mean(at_ceiling) if len(at_ceiling) == len(records) else None,
        note=next(filter(None, map(emulated, records)), ""),
    )


def of_ceiling(records: list[Record], row: str, what: str, threads: int, target: float) -> Result:
    """The least fraction of the ceiling among these."""
    measured = [record for record in records if fraction_of(record)[0] is not None]
    if not measured:
        return Result(row, what, threads, "%", target)
    worst = min(measured, key=lambda record: fraction_of(record)[0])
    fraction, ceiling = fraction_of(worst)
    return Result(
        row,
        what,
        threads,
        "%",
        target,
        fraction,
        case=worst["case"],
        ours_seconds=worst["ours_seconds"]["median"],
        fraction=fraction,
        ceiling=ceiling,
        note=emulated(worst),
    )


# --- the table ----------------------------------------------------------------------------------------------


def results(group: str, records: list[Record], machine: Record) -> list[Result]:
    """Of "targets" or "generation_targets"."""
    shapes, large, batch_1 = TABLE_SHAPES, LARGE, BATCH_1_SHAPES
    if machine["quick"]:
        shapes, large, batch_1 = QUICK_SHAPES, QUICK_SHAPES[-1], QUICK_SHAPES[:1]
    found: list[Result] = []
    for threads in sorted({record["threads"] for record in records}):
        of_threads = [record for record in records if record["threads"] == threads]
        if group == "targets":
            found += results_of_kernels(of_threads, threads, shapes, large, batch_1)
        else:
            found += results_of_generation(of_threads, threads)
    return found


def results_of_kernels(
    records: list[Record], threads: int, shapes: list[Shape], large: Shape, batch_1: list[Shape]
) -> Iterator[Result]:
    cases = {shape.case for shape in shapes}

    def chosen(benchmark: str, peer: Callable[[str], bool] = bool, among: set[str] = cases) -> list[Record]:
        found = [r for r in records if r["benchmark"] == benchmark and r["case"] in among]
        return [r for r in found if peer(r["peer"])]

    def named(name: str) -> Callable[[str], bool]:
        return lambda peer: peer == name

    row = "training, float32"
    beside_torch = chosen("layer training", named("torch"))
    yield least(beside_torch, row, "torch, every shape", threads, 1.5)
    yield mean(beside_torch, row, "torch, geometric mean", threads, 2.0)
    yield of_ceiling(chosen("layer training", among={large.case}), row, large.case, threads, 0.75)

    row = "training, bfloat16"
    yield least(
        chosen("training, bfloat16", named("torch bf16")), row, "torch bf16, every shape", threads, 3.0
    )
    at_large = chosen("training, bfloat16", named("torch"), {large.case})
    yield least(at_large, row, f"torch float32 at {large.case}", threads, 8.0)
    on_tiles = of_ceiling(at_large, row, f"of AMX at {large.case}", threads, 0.35)
    if on_tiles.value is not None and on_tiles.ceiling != "amx_bf16":
        on_tiles.note, on_tiles.reached = "no AMX here", None
    yield on_tiles

    row = "inference, float32"
    beside_best = best_of(chosen("layer inference"))
    yield least(beside_best, row, "best peer, every shape", threads, 1.15)
    yield mean(beside_best, row, "best peers, geometric mean", threads, 1.5)

    row = "inference, bfloat16"
    many = {shape.case for shape in shapes if shape.n >= 16}
    in_bf16 = best_of(chosen("inference, bfloat16", lambda peer: peer.endswith(" bf16"), many))
    yield mean(in_bf16, row, "best bf16 peers, geometric mean", threads, 2.0)

    row = "batch 1, T=100"
    single = {shape.case for shape in batch_1}
    for dtype, suffix in SUFFIXES.items():
        benchmark = "layer inference" if dtype == "float32" else f"inference, {dtype}"
        same = [
            record
            for record in chosen(benchmark, among=single)
            if record["peer"].endswith(suffix) and (suffix or record["peer"].count(" ") == 0)
        ]
        yield least(best_of(same), row, f"best {dtype} peer, both sizes", threads, 2.0)
        yield of_ceiling(same, row, f"{dtype}, of the bandwidth", threads, 0.7)

    row = "one streamed step, I=H=32"
    for how, most in (("native", 0.2), ("Python", 1.0)):
        found = best_of(chosen("streaming", among={f"I=H=32 {how}"}))
        result = least(found, row, f"{how}, float32", threads, most)
        if found:
            seconds = found[0]["ours_seconds"]
            result = Result(
                row,
                result.what,
                threads,
                "µs",
                most,
                1e6 * seconds["median"],
                at_least=False,
                lower_quartile=1e6 * seconds["lower_quartile"],
                upper_quartile=1e6 * seconds["upper_quartile"],
                case=result.case,
                peer=result.peer,
                ours_seconds=result.ours_seconds,
                peer_seconds=result.peer_seconds,
                fraction=result.fraction,
                ceiling=result.ceiling,
            )
        yield result

    for row, size, in_float32 in (
        ("language-model step 2×512", "2x512", 1.6),
        ("word model 2×650", "2x650", 1.8),
    ):
        steps = [r for r in records if r["benchmark"] == "language model step" and r["case"].startswith(size)]
        for dtype, target in (("float32", in_float32), ("bfloat16", 3.0)):
            same = [record for record in steps if record["shape"]["dtype"] == dtype]
            yield least(same, row, f"torch, {dtype}", threads, target)

    row = "ragged batch"
    ragged = [record for record in records if record["benchmark"] == "ragged inference"]
    if ragged:
        worst = max(ragged, key=lambda r: r["share_of_dense_cost"] / r["share_of_valid_steps"])
        valid = worst["share_of_valid_steps"]
        yield Result(
            row,
            "cost over the share of valid steps",
            threads,
            "×",
            1.1,
            worst["share_of_dense_cost"] / valid,
            at_least=False,
            lower_quartile=worst["share_of_dense_cost_lower_quartile"] / valid,
            upper_quartile=worst["share_of_dense_cost_upper_quartile"] / valid,
            case=worst["case"],
            peer="ours, all T steps",
            ours_seconds=worst["ours_seconds"]["median"],
        )
    yield least(ragged, row, "torch packed, every shape", threads, 4.0)

    if threads > 1:
        row = "second thread" if threads == 2 else f"{threads} threads"
        for kind in ("inference", "training"):
            alone = [record for record in records if record["benchmark"] == f"threads, {kind}"]
            yield least(alone, row, f"{kind}, every N ≥ 32, H ≥ 256", threads, 0.9 * threads)

    row = "cost growth"
    for record in records:
        if record["benchmark"] == "growth of training":
            yield Result(
                row,
                f"{record['case']}: residual of the line",
                threads,
                "%",
                None,
                record["largest_residual"],
                at_least=False,
            )


def results_of_generation(records: list[Record], threads: int) -> Iterator[Result]:
    def chosen(benchmark: str, start: str = "", end: str = "") -> list[Record]:
        return [
            record
            for record in records
            if record["benchmark"] == benchmark
            and record["case"].startswith(start)
            and record["case"].endswith(end)
        ]

    def beside(found: list[Record], peer: str) -> list[Record]:
        return [record for record in found if record["peer"] == peer]

    for N, over_torch in ((1, 20.0), (64, 5.0)):
        row, start = f"sampling 2×512, batch {N}", f"2x512 V=65 N={N} sampled"
        in_float32 = chosen("generation", start, "sampled")
        yield least(beside(in_float32, "torch"), row, "torch", threads, over_torch)
        yield least(beside(in_float32, "onnxruntime"), row, "ONNX Runtime", threads, 3.0)
        if N == 1:
            yield of_ceiling(in_float32, row, "float32, of the bandwidth of its weights", threads, 0.7)
        for dtype in ("bfloat16", "int8"):
            low = chosen("generation", start, dtype)
            yield beside_itself(low, "float32", row, f"{dtype} over float32", threads, 1.0)

    row = "sampling 2×650, V=10,000, batch 1"
    words = chosen("generation", "2x650")
    yield least(beside(words, "torch"), row, "torch", threads, 10.0)
    yield beside_itself(
        words, "processors", row, "with processors over without", threads, 1.1, at_least=False
    )

    for N in (1, 16):
        found = chosen("beam_search", "attention", f" N={N}")
        yield least(found, "beam 5, attention", f"torch, batch {N}", threads, 5.0)

    for dtype, target in (("float32", 2.0), ("bfloat16", 3.0)):
        found = [r for r in chosen("seq2seq training") if r["shape"]["dtype"] == dtype]
        yield least(found, "training with attention", f"torch, {dtype}", threads, target)

    for record in chosen("prefill"):
        row = f"prefill {record['case']}"
        yield beside_itself([record], "layers", row, "layers over the same steps", threads, 0.95)
        yield least([record], row, "torch", threads, None)


def table(found: list[Result]) -> str:
    heads = [
        "target",
        "what",
        "threads",
        "wanted",
        "measured",
        "quartiles",
        "",
        "at",
        "ours ms",
        "peer",
        "peer ms",
        "of ceiling",
        "at ceiling",
    ]
    rows = []
    for result in found:
        quartiles = ""
        if result.lower_quartile is not None and result.upper_quartile is not None:
            quartiles = f"{result.text(result.lower_quartile)}–{result.text(result.upper_quartile)}"
        of = percent(result.fraction) and f"{percent(result.fraction)} {result.ceiling}"
        rows.append(
            [
                result.row,
                result.what,
                str(result.threads),
                result.wanted,
                "" if result.value is None else result.text(result.value),
                quartiles,
                result.verdict,
                result.case,
                "" if result.ours_seconds is None else f"{1e3 * result.ours_seconds:.4g}",
                result.peer,
                "" if result.peer_seconds is None else f"{1e3 * result.peer_seconds:.4g}",
                of,
                "" if result.at_ceiling is None else result.text(result.at_ceiling),
            ]
        )
    return markdown(heads, rows)


def plot(found: list[Result], path: Path) -> None:
    """Measured over wanted, so that 1 is the target and right of it is better; one panel per thread count."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    shown = [result for result in found if result.value and result.target is not None]
    counts = sorted({result.threads for result in shown})
    labels = list(dict.fromkeys(f"{result.row}: {result.what}" for result in shown))
    figure, axes = pyplot.subplots(
        1,
        max(len(counts), 1),
        squeeze=False,
        sharey=True,
        figsize=(5 + 4.5 * len(counts), 0.34 * len(labels) + 1.6),
        layout="constrained",
    )
    colours = {True: "tab:green", False: "tab:red", None: "tab:gray"}
    for axis, count in zip(axes[0], counts, strict=False):
        for result in shown:
            if result.threads != count:
                continue
            place = labels.index(f"{result.row}: {result.what}")

            def over(value: float, result=result) -> float:
                return value / result.target if result.at_least else result.target / value

            colour = colours[result.reached]
            if result.lower_quartile and result.upper_quartile:
                ends = [over(result.lower_quartile), over(result.upper_quartile)]
                axis.plot(ends, [place, place], color=colour, linewidth=3, alpha=0.4)
            axis.plot([over(result.value)], [place], "o", color=colour)
            axis.annotate(
                f"{result.text(result.value)} ({result.wanted})",
                (over(result.value), place),
                xytext=(7, 4),
                textcoords="offset points",
                fontsize=7,
            )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.set_xlim(min(low, 0.4), max(high, 2) * 4)  # room for the text
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(axis="both", alpha=0.3)
        axis.set_title(f"{count} thread{'s' if count > 1 else ''}", loc="left", fontsize=10)
        axis.set_xlabel(
            "measured / wanted (right is better; green reached, red missed, grey undecided)", fontsize=8
        )
    axes[0, 0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0, 0].invert_yaxis()
    figure.savefig(path, dpi=130)
