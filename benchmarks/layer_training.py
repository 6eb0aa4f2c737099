"""Forward and backward of one float32 LSTM layer, all gradients: fusedlstm beside its peers.

A real training has new weights at every step, so fusedlstm's packing of the weights is part of what is timed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from . import peers
from .harness import Record, add_rates, alternate_all, assert_close, use_threads
from .layer_inference import pair
from .shapes import LAYER_SHAPES, QUICK_LAYER_SHAPES, forward_flops


def run(threads: int, quick: bool) -> Iterator[Record]:
    for n, t, size in QUICK_LAYER_SHAPES if quick else LAYER_SHAPES:
        use_threads(threads)
        ours, peer = pair(size)
        random = np.random.default_rng(0)
        x = random.standard_normal((n, t, size), dtype=np.float32)
        dy = random.standard_normal((n, t, size), dtype=np.float32)
        x_peer = torch.from_numpy(x).requires_grad_()
        dy_peer = torch.from_numpy(dy)

        def our_step(ours=ours, x=x, dy=dy) -> np.ndarray:
            ours.mark_updated()
            ours.zero_grad()
            _, tape = ours.forward(x)
            return ours.backward(tape, dy)

        def peer_step(peer=peer, x_peer=x_peer, dy_peer=dy_peer, bf16=False) -> np.ndarray:
            peer.zero_grad()
            x_peer.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                y, _ = peer(x_peer)
            y.backward(dy_peer.to(y.dtype))
            return x_peer.grad.numpy()

        difference = assert_close("dx", our_step(), peer_step(), 1e-4)
        gradients = {name: value.grad.numpy() for name, value in peer.named_parameters()}
        for name, gradient in ours.named_gradients().items():
            difference = max(difference, assert_close(name, gradient, gradients[name], 1e-4))
        works = {}
        if "torch" in peers.chosen:
            works["torch"] = peer_step
        if "torch bf16" in peers.chosen:
            works["torch bf16"] = lambda step=peer_step: step(bf16=True)
        if "jax" in peers.chosen:
            works["jax"] = peers.jax_training(peer, x, dy)
        dx = our_step()
        differences = {
            name: assert_close(f"dx of {name}", dx, work(), peers.bound_of(name, 1e-4))
            for name, work in works.items()
        }
        differences["torch"] = difference
        for name, record in alternate_all(our_step, works, repetitions=5 if quick else 15).items():
            record |= {
                "benchmark": "layer training",
                "case": f"N={n} T={t} I=H={size}",
                "shape": {"N": n, "T": t, "I": size, "H": size, "dtype": "float32"},
                "peer": name,
                "threads": threads,
                "largest_difference": differences[name],
            }
            yield add_rates(record, 3 * forward_flops(n, t, size, size), threads)
