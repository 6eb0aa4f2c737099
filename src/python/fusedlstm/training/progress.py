"""What a person sees during training: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any


def describe_loss(loss: float, unit: str) -> str:
    """Mean loss per prediction, in the unit usual for what is predicted.

    Parameters
    ----------
    loss : float
        Nats per token; for values, the mean squared error.
    unit : str
        What is predicted: "char" or "byte" (bits), "value" (mean squared error), else words or parts of
        words (perplexity).

    Examples
    --------
    >>> describe_loss(1.5, "char")
    '2.164 bits per character'
    >>> describe_loss(4.74, "word")
    'perplexity 114.43'
    """
    if unit == "value":
        return f"mean squared error {loss:.4g}"
    if unit in ("char", "byte"):
        return f"{loss / math.log(2):.3f} bits per {'byte' if unit == 'byte' else 'character'}"
    return f"perplexity {math.exp(min(loss, 700.0)):.2f}"


def _count(rate: float) -> str:
    return f"{rate / 1000:.1f}k" if rate >= 1000 else f"{rate:.0f}"


class Progress:
    """Progress of one training run on standard error.

    Parameters
    ----------
    show : bool or None
        True: a bar; None: a bar if standard error is a terminal, else a line per epoch; False: nothing.
    unit : str
        What is predicted: decides between bits, perplexity and squared error, see `describe_loss`.
    epochs : int
        Number of epochs of the run.
    total_tokens : int
        Tokens of the whole run.
    done_tokens : int
        Those already trained on before a resume.
    seconds : float, optional
        Time budget: the bar then runs over time.
    """

    def __init__(
        self,
        show: bool | None,
        *,
        unit: str,
        epochs: int,
        total_tokens: int,
        done_tokens: int = 0,
        seconds: float | None = None,
    ) -> None:
        self._unit, self._epochs, self._seconds = unit, epochs, seconds
        self._lines = show is not False
        self._smooth: float | None = None
        self._started = time.perf_counter()
        self._epoch_started = self._started
        self._tokens = self._epoch_tokens = 0
        self._bar: Any = None
        if show or (show is None and sys.stderr.isatty()):
            from tqdm import tqdm  # here, so that importing the package stays cheap

            if seconds is None:
                # {rate_fmt} is tokens/s, {remaining} the time left
                form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}"
                self._bar = tqdm(
                    total=total_tokens,
                    initial=done_tokens,
                    unit=" tokens",
                    unit_scale=True,
                    bar_format=form,
                    dynamic_ncols=True,
                    file=sys.stderr,
                )
            else:
                form = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
                self._bar = tqdm(total=seconds, bar_format=form, dynamic_ncols=True, file=sys.stderr)

    def note(self, text: str) -> None:
        """Write a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._lines:
            print(text, file=sys.stderr, flush=True)

    def step(self, epoch: int, tokens: int, loss: float) -> None:
        """A training step on ``tokens`` tokens is complete; ``epoch`` counts from 1."""
        self._tokens += tokens
        self._epoch_tokens += tokens
        self._smooth = loss if self._smooth is None else 0.95 * self._smooth + 0.05 * loss
        if self._bar is None:
            return
        elapsed = time.perf_counter() - self._started
        postfix = f"loss {self._smooth:.4f}, {describe_loss(self._smooth, self._unit)}"
        if self._seconds is not None:
            postfix += f", {_count(self._tokens / elapsed)} tokens/s"
        self._bar.set_postfix_str(postfix, refresh=False)
        name = f"epoch {epoch}/{self._epochs}" if self._seconds is None else f"epoch {epoch}"
        self._bar.set_description_str(name, refresh=False)
        if self._seconds is None:
            self._bar.update(tokens)
        else:
            self._bar.update(min(elapsed, self._seconds) - self._bar.n)

    def epoch(self, epoch: int, step: int, train: float, validation: float | None, lr: float) -> None:
        """Epoch ``epoch`` (counted from 1) is complete, validation included."""
        now = time.perf_counter()
        seconds = now - self._epoch_started
        best = train if validation is None else validation
        text = f"epoch {epoch}" + ("" if self._seconds is not None else f"/{self._epochs}")
        text += f"  step {step}  train {train:.4f}"
        text += "" if validation is None else f"  validation {validation:.4f}"
        text += f"  ({describe_loss(best, self._unit)})  lr {lr:.3g}"
        text += f"  {_count(self._epoch_tokens / max(seconds, 1e-9))} tokens/s  {seconds:.1f} s"
        self.note(text)
        self._epoch_started, self._epoch_tokens = now, 0

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._bar.close()
