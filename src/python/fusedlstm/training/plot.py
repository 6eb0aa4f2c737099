"""Loss curves from a training log (extra ``plot``: matplotlib)."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np

from fusedlstm.training.log import read_log


def require_matplotlib() -> None:
    """Raise an ``ImportError`` that says what to install, if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a loss plot needs matplotlib: pip install 'fusedlstm[plot]'")


def plot_log(log: str | os.PathLike[str], picture: str | os.PathLike[str]) -> None:
    """Draw training and validation loss over steps.

    The training loss of every step is drawn faintly, a running mean over 1 % of the steps boldly, the
    validation loss as points at the ends of epochs.

    Parameters
    ----------
    log : path-like
        A training log, finished or not.
    picture : path-like
        File to write; the ending (.png, .svg, .pdf) chooses the format.

    Raises
    ------
    ValueError
        Not a training log, or one without a single step.
    ImportError
        matplotlib is not installed; the message says how to get it.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    events = read_log(log)
    steps = [event for event in events if event["event"] == "step"]
    epochs = [event for event in events if event["event"] == "epoch"]
    if not steps:
        raise ValueError(f"{log}: no training step in the log, nothing to plot")
    x = np.array([event["step"] for event in steps])
    loss = np.array([event["loss"] for event in steps])
    width = max(1, len(loss) // 100)

    # Figure alone, without pyplot: no display, no global state
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.add_subplot()
    smoothed = width > 1
    axes.plot(x, loss, color="tab:blue", alpha=0.25 if smoothed else 1.0, label="training, each step")
    if smoothed:
        smooth = np.convolve(loss, np.full(width, 1.0 / width), mode="valid")
        axes.plot(x[width - 1 :], smooth, color="tab:blue", label=f"training, mean of {width} steps")
    validated = [event for event in epochs if event["validation_loss"] is not None]
    if validated:
        at = [event["step"] for event in validated]
        validation = [event["validation_loss"] for event in validated]
        axes.plot(at, validation, "o-", color="tab:orange", label="validation, each epoch")
        best = int(np.argmin(validation))
        axes.annotate(
            f"{validation[best]:.4f}",
            (at[best], validation[best]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss [nats per token]")
    # the first steps fall from log(V); they would press everything else together
    shown = np.concatenate([loss[len(loss) // 50 :], [event["validation_loss"] for event in validated]])
    margin = 0.08 * (shown.max() - shown.min()) + 1e-6
    axes.set_ylim(shown.min() - margin, shown.max() + margin)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
