"""Forward and backward of one float32 LSTM layer, all gradients: fusedlstm beside ``torch.nn.LSTM``.

A real training has new weights at every step, so fusedlstm's packing of the weights is part of what is timed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .harness import Record, add_rates, alternate, assert_close, use_threads
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

        def peer_step(peer=peer, x_peer=x_peer, dy_peer=dy_peer) -> np.ndarray:
            peer.zero_grad()
            x_peer.grad = None
            y, _ = peer(x_peer)
            y.backward(dy_peer)
            return x_peer.grad.numpy()

        difference = assert_close("dx", our_step(), peer_step(), 1e-4)
        gradients = {name: value.grad.numpy() for name, value in peer.named_parameters()}
        for name, gradient in ours.named_gradients().items():
            difference = max(difference, assert_close(name, gradient, gradients[name], 1e-4))
        record = alternate(our_step, peer_step, repetitions=5 if quick else 15)
        record |= {
            "benchmark": "layer training",
            "case": f"N={n} T={t} I=H={size}",
            "shape": {"N": n, "T": t, "I": size, "H": size, "dtype": "float32"},
            "peer": "torch",
            "threads": threads,
            "largest_difference": difference,
        }
        yield add_rates(record, 3 * forward_flops(n, t, size, size), threads)
