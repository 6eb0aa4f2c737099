"""LSTM layers over whole sequences, no gradients, float32: fusedlstm beside its peers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

import fusedlstm

from . import peers
from .harness import Plan, Record, add_bandwidth, add_rates, alternate_all, assert_close, use_threads
from .shapes import OTHER_SHAPES, QUICK_SHAPES, TABLE_SHAPES, Shape

BENCHMARK = "layer inference"
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of a weight


def pair(shape: Shape) -> tuple[fusedlstm.nn.LSTM, torch.nn.LSTM]:
    """A layer of each with the same weights."""
    torch.manual_seed(0)
    peer = torch.nn.LSTM(shape.i, shape.h, shape.layers, bidirectional=shape.bidirectional, batch_first=True)
    ours = fusedlstm.nn.LSTM(shape.i, shape.h, shape.layers, bidirectional=shape.bidirectional)
    ours.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    return ours, peer


def random_input(shape: Shape, *, features: int) -> np.ndarray:
    """(N, T, features), standard normal, zero past a sequence's length."""
    x = np.random.default_rng(0).standard_normal((shape.n, shape.t, features), dtype=np.float32)
    if shape.lengths is not None:
        x[np.arange(shape.t) >= shape.lengths[:, None]] = 0
    return x


def measure(
    shape: Shape, plan: Plan, benchmark: str = BENCHMARK, dtype: str = "float32", beside: tuple[str, ...] = ()
) -> Iterator[Record]:
    """Ours computing in ``dtype`` beside peers that do, and beside these in float32."""
    use_threads(plan.threads)
    ours, peer = pair(shape)
    x, lengths = random_input(shape, features=shape.i), shape.lengths
    exact = ours(x, lengths=lengths)
    ours.compute_dtype = dtype
    y = ours(x, lengths=lengths)
    if dtype != "float32":
        assert_close(
            f"{shape.case}, y in {dtype}", y, exact, peers.bound_of("ours" + peers.SUFFIX[dtype], 0.0)
        )
    works = peers.inference(peer, shape, x, plan.threads, dtype)
    if beside:
        in_float32 = peers.inference(peer, shape, x, plan.threads)
        works |= {name: work for name, work in in_float32.items() if name in beside}
    differences = {
        name: assert_close(f"{shape.case}, y of {name}", exact, work(), peers.bound_of(name, 1e-5))
        for name, work in works.items()
    }
    if not works:
        return
    repetitions = 5 if plan.quick else 15
    for name, record in alternate_all(
        lambda: ours(x, lengths=lengths), works, repetitions=repetitions
    ).items():
        record |= {
            "benchmark": benchmark,
            "case": shape.case,
            "shape": shape.record(dtype),
            "peer": name,
            "largest_difference": differences[name],
        }
        if shape.n == 1 and shape.t > 1:
            # only W_hh is needed anew at every step: x W_ih can be made for all steps together
            add_bandwidth(record, BYTES[dtype] * shape.recurrent_weights, shape.t, plan.threads)
        yield add_rates(record, shape.forward_flops, plan.threads, dtype)


def run(plan: Plan) -> Iterator[Record]:
    shapes = QUICK_SHAPES if plan.quick else TABLE_SHAPES + OTHER_SHAPES
    for shape in [*shapes, *plan.real_shapes.get("infer", [])]:
        if plan.wants(BENCHMARK, shape.case):
            yield from measure(shape, plan)
