"""Does torch.compile change torch's own LSTM? Eager beside compiled, inference and training, at two shapes.

Compiled twice: as it is by default, where Dynamo leaves an LSTM to eager code, and with ``allow_rnn``, which
lets it trace one. "ours" of these records is the compiled layer and the peer the eager one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .harness import Plan, Record, alternate, assert_close, use_threads
from .layer_inference import pair, random_input
from .shapes import QUICK_SHAPES, square

BENCHMARK = "torch.compile"
SHAPES = [square(1, 100, 512), square(16, 100, 256)]


def run(plan: Plan) -> Iterator[Record]:
    for shape in QUICK_SHAPES[-1:] if plan.quick else SHAPES:
        for allow_rnn in (False, True):
            case = f"{shape.case}, allow_rnn={allow_rnn}"
            if not all(plan.wants(f"{BENCHMARK} {kind}", case) for kind in ("inference", "training")):
                continue
            use_threads(plan.threads)
            torch._dynamo.reset()
            torch._dynamo.config.allow_rnn = allow_rnn
            _, eager = pair(shape)
            compiled = torch.compile(eager)
            x = torch.from_numpy(random_input(shape, features=shape.i))
            x_train = x.clone().requires_grad_()

            def inference(layer, x=x) -> torch.Tensor:
                with torch.inference_mode():
                    return layer(x)[0]

            def training(layer, x=x_train, eager=eager) -> torch.Tensor:
                eager.zero_grad()
                x.grad = None
                y, _ = layer(x)
                y.sum().backward()
                return x.grad

            for kind, work, bound in (("inference", inference, 1e-5), ("training", training, 1e-4)):
                difference = assert_close(case, work(compiled).numpy(), work(eager).numpy(), bound)
                record = alternate(
                    lambda work=work, compiled=compiled: work(compiled),
                    lambda work=work, eager=eager: work(eager),
                    repetitions=5 if plan.quick else 11,
                )
                yield record | {
                    "benchmark": f"{BENCHMARK} {kind}",
                    "case": case,
                    "shape": shape.record(),
                    "peer": "torch eager",
                    "largest_difference": difference,
                }
