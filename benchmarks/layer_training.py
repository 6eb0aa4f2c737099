"""Forward and backward of LSTM layers, all gradients, float32: fusedlstm beside its peers.

A real training has new weights at every step, so the packing of the weights is part of what is timed, here
and for the peers that have one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import peers
from .harness import Plan, Record, add_rates, alternate_all, assert_close, use_threads
from .layer_inference import pair, random_input
from .shapes import OTHER_SHAPES, QUICK_SHAPES, TABLE_SHAPES, Shape

BENCHMARK = "layer training"


def measure(
    shape: Shape, plan: Plan, benchmark: str = BENCHMARK, dtype: str = "float32", beside: tuple[str, ...] = ()
) -> Iterator[Record]:
    """Ours computing in ``dtype`` beside peers that do, and beside these in float32."""
    use_threads(plan.threads)
    ours, peer = pair(shape)
    x, lengths = random_input(shape, features=shape.i), shape.lengths
    dy = random_input(shape, features=shape.directions * shape.h)

    def our_step() -> np.ndarray:
        ours.mark_updated()
        ours.zero_grad()
        _, tape = ours.forward(x, lengths=lengths)
        return ours.backward(tape, dy)

    works = peers.training(peer, shape, x, dy, plan.threads, dtype)
    if beside:
        in_float32 = peers.training(peer, shape, x, dy, plan.threads)
        works |= {name: work for name, work in in_float32.items() if name in beside}
    dx = our_step()
    difference = 0.0
    if "torch" in works:
        works["torch"]()
        for name, value in peer.named_parameters():
            gradient = ours.named_gradients()[name]
            difference = max(difference, assert_close(name, gradient, value.grad.numpy(), 1e-4))
    differences = {
        name: assert_close(f"{shape.case}, dx of {name}", dx, work(), peers.bound_of(name, 1e-4))
        for name, work in works.items()
    }
    if not works:
        return
    differences["torch"] = max(difference, differences.get("torch", 0.0))
    ours.compute_dtype = dtype
    if dtype != "float32":
        bound = peers.bound_of("ours" + peers.SUFFIX[dtype], 0.0)
        assert_close(f"{shape.case}, dx in {dtype}", our_step(), dx, bound)
    repetitions = 5 if plan.quick else 15
    for name, record in alternate_all(our_step, works, repetitions=repetitions).items():
        record |= {
            "benchmark": benchmark,
            "case": shape.case,
            "shape": shape.record(dtype),
            "peer": name,
            "largest_difference": differences[name],
        }
        yield add_rates(record, 3 * shape.forward_flops, plan.threads, dtype)


def run(plan: Plan) -> Iterator[Record]:
    shapes = QUICK_SHAPES if plan.quick else TABLE_SHAPES + OTHER_SHAPES
    for shape in [*shapes, *plan.real_shapes.get("train", [])]:
        if plan.wants(BENCHMARK, shape.case):
            yield from measure(shape, plan)
