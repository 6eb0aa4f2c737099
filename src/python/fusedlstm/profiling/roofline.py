"""The roofline of a profile (extra ``plot``: matplotlib). Williams, Waterman and Patterson 2009."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedlstm.profiling.times import together

if TYPE_CHECKING:
    from fusedlstm.profiling.times import Profile


def plot_roofline(profile: Profile, path: str | os.PathLike[str]) -> None:
    """See `Profile.plot_roofline`; a phase's layers are one point, its area the share of the time."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a roofline needs matplotlib: pip install 'fusedlstm[plot]'")
    from matplotlib.figure import Figure

    phases = together(replace(one, layer=None) for one in profile.phases)
    points = [one for one in phases if one.flops]
    if not points:
        raise ValueError("plot_roofline: no phase of the profile has FLOPs")
    ceilings = profile.ceilings
    busy = sum(one.busy for one in profile.threads)

    low = min(0.1, *(one.intensity / 2 for one in points))
    high = max(100.0, *(one.intensity * 2 for one in points))
    x = np.geomspace(low, high, 400)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes: Any = figure.add_subplot()
    greys = ("0.8", "0.65", "0.45", "0.2")
    lines = [
        axes.loglog(
            x,
            np.minimum(ceilings.flops, x * level.rate) / 1e9,
            color=grey,
            linewidth=1.2,
            label=f"{level.level}, {level.rate / 1e9:.3g} GB/s",
        )[0]
        for grey, level in zip(greys[-len(ceilings.bandwidths) :], ceilings.bandwidths, strict=True)
    ]
    axes.annotate(
        f"{ceilings.dtype} peak, {ceilings.flops / 1e9:.3g} GF/s",
        (high, ceilings.flops / 1e9),
        textcoords="offset points",
        xytext=(-4, 5),
        ha="right",
        fontsize=8,
    )
    markers = "osD^vP*XhdB"
    drawn = [
        axes.loglog(
            one.intensity,
            one.flops_per_second / 1e9,
            marker=markers[index % 10],
            color=f"C{index % 10}",
            markersize=9 + 14 * (one.seconds / busy) ** 0.5,
            fillstyle="none",  # what lies behind is seen
            markeredgewidth=1.8,
            linestyle="none",
            label=f"{one.phase}: {one.seconds / busy:.1%}, {one.flops_per_second / 1e9:.3g} GF/s",
        )[0]
        for index, one in enumerate(points)
    ]
    axes.set_xlabel("FLOPs per byte of operands and results")
    axes.set_ylabel("GF/s of one thread")
    axes.set_title(f"{ceilings.isa}, threads: {ceilings.threads}", fontsize=10)
    axes.set_ylim(top=3 * ceilings.flops / 1e9)
    axes.grid(alpha=0.3, which="both", linewidth=0.4)
    axes.add_artist(
        axes.legend(handles=lines, loc="upper left", fontsize=8, title="reading", title_fontsize=8)
    )
    axes.legend(handles=drawn, loc="lower right", fontsize=8, markerscale=0.6)
    figure.savefig(path, dpi=120)
