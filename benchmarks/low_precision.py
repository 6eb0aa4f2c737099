"""One LSTM layer in bfloat16 and int8 beside torch in float32 and in bfloat16 autocast.

Inference in both types, training in bfloat16. Outputs are compared with torch's float32. On a processor
without bfloat16 instructions both sides emulate them: such rows say what the smaller weights bring.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .harness import Record, add_rates, alternate_all, assert_close, use_threads
from .layer_inference import pair
from .shapes import forward_flops

SHAPES = [(1, 100, 512), (1, 100, 1024), (16, 100, 256), (64, 128, 512)]
QUICK_SHAPES = [(1, 100, 512)]
BOUNDS = {"bfloat16": 0.05, "int8": 0.1}  # of the largest output


def run(threads: int, quick: bool) -> Iterator[Record]:
    for n, t, size in QUICK_SHAPES if quick else SHAPES:
        for compute_dtype in ("bfloat16", "int8"):
            use_threads(threads)
            ours, peer = pair(size)
            ours.compute_dtype = compute_dtype
            random = np.random.default_rng(0)
            x, dy = (random.standard_normal((n, t, size), dtype=np.float32) for _ in range(2))
            x_peer, dy_peer = torch.from_numpy(x), torch.from_numpy(dy)

            def infer(bf16: bool, peer=peer, x_peer=x_peer) -> np.ndarray:
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    return peer(x_peer)[0].float().numpy()

            def train(bf16: bool, peer=peer, x_peer=x_peer, dy_peer=dy_peer) -> None:
                peer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    y, _ = peer(x_peer.detach().requires_grad_())
                y.backward(dy_peer.to(y.dtype))

            def our_training(ours=ours, x=x, dy=dy) -> None:
                ours.mark_updated()
                ours.zero_grad()
                _, tape = ours.forward(x)
                ours.backward(tape, dy)

            difference = assert_close("y", ours(x)[0], infer(False), BOUNDS[compute_dtype])
            kinds = {"inference": (lambda ours=ours, x=x: ours(x), infer)}
            if compute_dtype == "bfloat16":
                kinds["training"] = (our_training, train)
            for kind, (our_work, peer_work) in kinds.items():
                works = {
                    "torch": lambda work=peer_work: work(False),
                    "torch bf16": lambda work=peer_work: work(True),
                }
                repetitions = 3 if quick or n * t * size > 1 << 21 else 11
                for name, record in alternate_all(our_work, works, repetitions=repetitions).items():
                    record |= {
                        "benchmark": f"{kind}, {compute_dtype}",
                        "case": f"N={n} T={t} I=H={size}",
                        "shape": {"N": n, "T": t, "I": size, "H": size, "dtype": compute_dtype},
                        "peer": name,
                        "threads": threads,
                        "largest_difference": difference,
                    }
                    flops = forward_flops(n, t, size, size)
                    yield add_rates(record, flops if kind == "inference" else 3 * flops, threads)
