"""Inference on sequences of lengths uniform in 1…T: fusedlstm beside torch's pack_padded_sequence.

The same call on all T steps stands beside both: its cost times the share of valid steps is what the lengths
should cost.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import peers
from .harness import Plan, Record, add_rates, alternate_all, assert_close, use_threads
from .layer_inference import pair, random_input
from .shapes import RAGGED_SHAPES

BENCHMARK = "ragged inference"


def run(plan: Plan) -> Iterator[Record]:
    for shape in RAGGED_SHAPES[:1] if plan.quick else RAGGED_SHAPES:
        if not plan.wants(BENCHMARK, shape.case):
            continue
        use_threads(plan.threads)
        ours, peer = pair(shape)
        x, lengths = random_input(shape, features=shape.i), shape.lengths
        packed = peers.torch_inference(peer, shape, x, plan.threads, "float32")
        difference = assert_close("y", ours(x, lengths=lengths), packed(), 1e-5)
        records = alternate_all(
            lambda ours=ours, x=x, lengths=lengths: ours(x, lengths=lengths),
            {"torch packed": packed, "ours, all T steps": lambda ours=ours, x=x: ours(x)},
            repetitions=3 if plan.quick else 15,
        )
        dense = records.pop("ours, all T steps")
        record = records["torch packed"] | {
            "benchmark": BENCHMARK,
            "case": shape.case,
            "shape": shape.record(),
            "peer": "torch packed",
            "largest_difference": difference,
            "share_of_valid_steps": shape.steps / (shape.n * shape.t),
            "share_of_dense_cost": 1 / dense["ratio"],
            "share_of_dense_cost_lower_quartile": 1 / dense["ratio_upper_quartile"],
            "share_of_dense_cost_upper_quartile": 1 / dense["ratio_lower_quartile"],
        }
        yield add_rates(record, shape.forward_flops, plan.threads)
