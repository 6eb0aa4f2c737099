"""How the next token is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SEEDS = 1 << 64


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the model's distribution: temperature, then top-k, then top-p.

    Parameters
    ----------
    max_new_tokens : int
        Tokens to generate, >= 0.
    temperature : float
        Logits are divided by it; > 0. Below 1 sharper, above 1 more varied.
    top_k : int
        Keep the k most probable tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of most probable tokens whose probabilities sum to at least this; in (0, 1].
    greedy : bool
        Take the most probable token; temperature, top_k, top_p and seed then have no effect.
    seed : int
        Row b of a batch draws from the stream of ``seed + b``, whatever the other rows are.
    stop_token : int
        A row ends after this token; -1: none.

    Raises
    ------
    ValueError
        An option out of its range.

    Examples
    --------
    >>> Sampling(max_new_tokens=10, temperature=0.8, top_k=5).core()["top_k"]
    5
    >>> Sampling(max_new_tokens=10, temperature=0)
    Traceback (most recent call last):
    ...
    ValueError: generate: temperature must be a finite number > 0 (greedy=True is the limit at 0), got 0
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    seed: int = 0
    stop_token: int = -1

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                "generate: temperature must be a finite number > 0 (greedy=True is the limit at 0), "
                f"got {self.temperature!r}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p must be in (0, 1], got {self.top_p!r}")
        if self.top_k < 0:
            raise ValueError(f"generate: top_k must be >= 0 (0 keeps all), got {self.top_k!r}")
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f"generate: seed must be in [0, 2**64), got {self.seed!r}")
        if self.max_new_tokens < 0:
            raise ValueError(f"generate: max_new_tokens must be >= 0, got {self.max_new_tokens!r}")

    def seeds(self, rows: int) -> NDArray[np.uint64]:
        """Seed of every row of a batch, uint64 (N,)."""
        return np.array([(self.seed + row) % _SEEDS for row in range(rows)], np.uint64)

    def core(self) -> dict[str, Any]:
        """The options as the native loop names them."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "greedy": self.greedy,
            "temperature": float(self.temperature),
            "top_k": self.top_k,
            "top_p": float(self.top_p),
            "stop_token": self.stop_token,
        }
