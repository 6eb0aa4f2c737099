"""One float32 LSTM layer over whole sequences, no gradients: fusedlstm beside its peers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

import fusedlstm

from . import peers
from .harness import Record, add_bandwidth, add_rates, alternate_all, assert_close, use_threads
from .shapes import LAYER_SHAPES, QUICK_LAYER_SHAPES, forward_flops


def pair(size: int) -> tuple[fusedlstm.nn.LSTM, torch.nn.LSTM]:
    """A layer of each with the same weights."""
    torch.manual_seed(0)
    peer = torch.nn.LSTM(size, size, batch_first=True)
    ours = fusedlstm.nn.LSTM(size, size, return_state=True)
    ours.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    return ours, peer


def run(threads: int, quick: bool) -> Iterator[Record]:
    for n, t, size in QUICK_LAYER_SHAPES if quick else LAYER_SHAPES:
        use_threads(threads)
        ours, peer = pair(size)
        x = np.random.default_rng(0).standard_normal((n, t, size), dtype=np.float32)
        y, _ = ours(x)
        works = peers.inference(peer, x, threads)
        differences = {
            name: assert_close(f"y of {name}", y, work(), peers.bound_of(name, 1e-5))
            for name, work in works.items()
        }
        records = alternate_all(lambda ours=ours, x=x: ours(x), works, repetitions=5 if quick else 15)
        for name, record in records.items():
            record |= {
                "benchmark": "layer inference",
                "case": f"N={n} T={t} I=H={size}",
                "shape": {"N": n, "T": t, "I": size, "H": size, "dtype": "float32"},
                "peer": name,
                "threads": threads,
                "largest_difference": differences[name],
            }
            if n == 1 and t > 1:
                # only W_hh is needed anew at every step: x W_ih can be made for all steps together
                add_bandwidth(record, 4 * 4 * size * size, t, threads)
            yield add_rates(record, forward_flops(n, t, size, size), threads)
