"""A profile as text, and as a trace for the viewers of Chrome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusedlstm.profiling.times import PhaseTime, Profile

HEADS = ("phase", "layer", "calls", "ms", "share", "GFLOP", "MB", "GF/s", "GB/s", "FLOP/B", "ceiling")
WIDTHS = (20, 5, 8, 10, 6, 9, 9, 7, 7, 7, 7)


def _line(cells: Sequence[str]) -> str:
    first, *others = [
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    ]
    return " ".join([first, *others]).rstrip()


def _number(value: float, scale: float = 1.0) -> str:
    if not value:
        return ""
    value *= scale
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _cells(one: PhaseTime, total: float, profile: Profile) -> list[str]:
    fraction = one.fraction_of(profile.ceilings)
    return [
        one.phase,
        "" if one.layer is None else str(one.layer),
        str(one.calls),
        f"{'~' if one.timed < one.calls else ''}{1e3 * one.seconds:.2f}",
        f"{one.seconds / total:.1%}",
        _number(one.flops, 1e-9),
        _number(one.bytes, 1e-6),
        _number(one.flops_per_second, 1e-9),
        _number(one.bytes_per_second, 1e-9),
        _number(one.intensity),
        "" if fraction is None else f"{fraction:.0%}",
    ]


def table(profile: Profile) -> str:
    """Phases, threads and ceilings, in columns."""
    ceilings, threads = profile.ceilings, profile.threads
    total = profile.seconds * len(threads) or 1.0
    lines = [
        f"{profile.seconds:.3f} s on {len(threads)} thread{'s' if len(threads) > 1 else ''}, {ceilings.isa}, "
        f"{ceilings.dtype}; rates and ceilings are of one thread",
        "",
        _line(HEADS),
    ]
    lines += [_line(_cells(one, total, profile)) for one in profile.phases]
    python = profile.python_seconds
    lines.append(_line(["Python", "", "", f"{1e3 * python:.2f}", f"{python / total:.1%}", *[""] * 6]))
    if any(one.timed < one.calls for one in profile.phases):
        lines.append("~ from a sample of the calls")
    lines += ["", f"{'thread':20s} {'busy':>8s} {'waiting':>8s} {'idle':>8s}"]
    wall = profile.seconds or 1.0
    for one in threads:
        parts = " ".join(f"{part / wall:8.1%}" for part in (one.busy, one.waiting, one.idle))
        lines.append(f"{one.thread:20s} {parts}")
    rates = ", ".join(f"{level.level} {level.rate / 1e9:.1f}" for level in ceilings.bandwidths)
    lines += ["", f"ceilings: {ceilings.flops / 1e9:.1f} GF/s; reading GB/s: {rates}"]
    return "\n".join(lines)


def trace(intervals: Mapping[str, Sequence[tuple[str, int, float, float]]], left_out: int) -> dict[str, Any]:
    """The trace event format of Chrome: complete events in microseconds, one track for each thread."""
    events: list[dict[str, Any]] = []
    for track, (thread, of_thread) in enumerate(intervals.items()):
        common = {"pid": 1, "tid": track}
        events.append({"name": "thread_name", "ph": "M", **common, "args": {"name": thread}})
        events.append({"name": "thread_sort_index", "ph": "M", **common, "args": {"sort_index": track}})
        for phase, layer, begin, end in of_thread:
            event = {"name": phase, "ph": "X", **common, "ts": 1e6 * begin, "dur": 1e6 * (end - begin)}
            if layer >= 0:
                event |= {"name": f"{phase}, layer {layer}", "args": {"layer": layer}}
            events.append(event)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"intervals left out": str(left_out)},
    }
