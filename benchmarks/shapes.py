"""Shapes of the layer benchmarks, from one streamed step to a large training batch.

Letters: N sequences, T steps, I inputs, H hidden units, L layers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Shape:
    """What one call of an LSTM is given."""

    n: int
    t: int
    i: int
    h: int
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False  # lengths uniform in 1..T, the first one T
    name: str = ""  # of the model that it comes from

    @property
    def case(self) -> str:
        sizes = f"I=H={self.h}" if self.i == self.h else f"I={self.i} H={self.h}"
        steps = f"T≤{self.t}" if self.ragged else f"T={self.t}"
        parts = [f"N={self.n} {steps} {sizes}"]
        if self.layers > 1:
            parts.append(f"L={self.layers}")
        if self.bidirectional:
            parts.append("bidirectional")
        if self.name:
            parts.append(f"({self.name})")
        return " ".join(parts)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def lengths(self) -> np.ndarray | None:
        """(N,) int32, the same at every call, or None."""
        if not self.ragged:
            return None
        lengths = np.random.default_rng(0).integers(1, self.t + 1, self.n, dtype=np.int32)
        lengths[0] = self.t
        return lengths

    @property
    def steps(self) -> int:
        """Valid steps of all sequences together."""
        return self.n * self.t if self.lengths is None else int(self.lengths.sum())

    @property
    def forward_flops(self) -> float:
        """Multiply-adds of the matrix products count two; training is three times this."""
        inputs = self.i + (self.layers - 1) * self.directions * self.h
        return 2.0 * self.steps * self.directions * 4 * self.h * (inputs + self.layers * self.h)

    @property
    def recurrent_weights(self) -> int:
        """Numbers in all W_hh: what is read at every step."""
        return self.layers * self.directions * 4 * self.h * self.h

    def record(self, dtype: str = "float32") -> dict[str, object]:
        return {
            "N": self.n,
            "T": self.t,
            "I": self.i,
            "H": self.h,
            "L": self.layers,
            "D": self.directions,
            "ragged": self.ragged,
            "dtype": dtype,
        }


def square(n: int, t: int, size: int) -> Shape:
    """A shape with I = H."""
    return Shape(n, t, size, size)


LARGE = square(64, 128, 512)
TABLE_SHAPES = [  # those that the targets are about
    square(1, 1, 32),
    square(1, 100, 512),
    square(32, 50, 64),
    square(64, 128, 128),
    square(20, 35, 650),
    LARGE,
    square(64, 64, 1024),
    square(16, 100, 256),
    square(256, 50, 256),
]
BATCH_1_SHAPES = [square(1, 100, 512), square(1, 100, 1024)]
RAGGED_SHAPES = [Shape(64, 128, 128, 128, ragged=True), Shape(64, 128, 512, 512, ragged=True)]
OTHER_SHAPES = [
    BATCH_1_SHAPES[1],
    square(32, 50, 48),
    Shape(32, 64, 256, 256, layers=2),
    Shape(32, 64, 256, 256, bidirectional=True),
    RAGGED_SHAPES[0],
]
QUICK_SHAPES = [
    square(1, 1, 32),
    Shape(8, 20, 24, 48, layers=2, bidirectional=True),
    Shape(8, 20, 24, 48, ragged=True),
    square(16, 100, 256),
]


def read_real_shapes(path: Path) -> dict[str, list[Shape]]:
    """``{"infer": [...], "train": [...]}`` from a JSON list of objects name, N, T, I, H, layers, mode."""
    shapes: dict[str, list[Shape]] = {"infer": [], "train": []}
    for entry in json.loads(path.read_text()):
        shape = Shape(*(entry[key] for key in "NTIH"), layers=entry["layers"], name=entry["name"])
        shapes[entry["mode"]].append(shape)
    return shapes
