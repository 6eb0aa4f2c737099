"""LSTM layers computing in bfloat16 and int8 beside peers that do, and beside torch in float32.

Inference in both types, training in bfloat16. Results are compared with those in float32. On a processor
without bfloat16 instructions both sides emulate them: such rows say what the smaller weights bring.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import layer_inference, layer_training
from .harness import Plan, Record
from .shapes import BATCH_1_SHAPES, QUICK_SHAPES, TABLE_SHAPES, Shape

BENCHMARKS = {  # and how they are measured, in which type, at which shapes
    "inference, bfloat16": (layer_inference.measure, "bfloat16"),
    "training, bfloat16": (layer_training.measure, "bfloat16"),
    "inference, int8": (layer_inference.measure, "int8"),
}


def shapes_of(benchmark: str, quick: bool) -> list[Shape]:
    if quick:
        return QUICK_SHAPES[-1:]
    many = [shape for shape in TABLE_SHAPES if shape.n >= 16]
    if benchmark == "training, bfloat16":
        return many
    return BATCH_1_SHAPES + (many if benchmark == "inference, bfloat16" else [])


def run(plan: Plan) -> Iterator[Record]:
    for benchmark, (measure, dtype) in BENCHMARKS.items():
        for shape in shapes_of(benchmark, plan.quick):
            if plan.wants(benchmark, shape.case):
                yield from measure(shape, plan, benchmark, dtype, beside=("torch",))
