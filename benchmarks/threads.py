"""What further threads bring: one layer with all threads beside the same with one, in turn in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import fusedlstm

from .harness import Plan, Record, add_rates, alternate
from .layer_inference import pair, random_input
from .shapes import QUICK_SHAPES, TABLE_SHAPES

SHAPES = [shape for shape in TABLE_SHAPES if shape.n >= 32 and shape.h >= 256]


def run(plan: Plan) -> Iterator[Record]:
    if plan.threads == 1:
        return
    for shape in QUICK_SHAPES[-1:] if plan.quick else SHAPES:
        ours, _ = pair(shape)
        x = random_input(shape, features=shape.i)

        def training(ours=ours, x=x) -> None:
            ours.mark_updated()
            ours.zero_grad()
            y, tape = ours.forward(x)
            ours.backward(tape, y)

        works: dict[str, Callable[[], object]] = {
            "inference": lambda ours=ours, x=x: ours(x),
            "training": training,
        }
        for kind, work in works.items():
            benchmark = f"threads, {kind}"
            if not plan.wants(benchmark, shape.case):
                continue

            def on(threads: int, work=work) -> Callable[[], object]:
                def call() -> None:
                    fusedlstm.set_num_threads(threads)
                    work()

                return call

            record = alternate(on(plan.threads), on(1), repetitions=5 if plan.quick else 15)
            record |= {
                "benchmark": benchmark,
                "case": shape.case,
                "shape": shape.record(),
                "peer": "ours, one thread",
            }
            flops = shape.forward_flops * (1 if kind == "inference" else 3)
            yield add_rates(record, flops, plan.threads)
