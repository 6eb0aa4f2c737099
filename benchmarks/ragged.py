"""Inference on sequences of lengths uniform in 1…T: fusedlstm beside torch's pack_padded_sequence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .harness import Record, alternate_all, assert_close, use_threads
from .layer_inference import pair

SHAPES = [(64, 128, 128), (64, 128, 512)]


def run(threads: int, quick: bool) -> Iterator[Record]:
    for n, t, size in SHAPES[:1] if quick else SHAPES:
        use_threads(threads)
        ours, peer = pair(size)
        random = np.random.default_rng(0)
        lengths = random.integers(1, t + 1, n, dtype=np.int32)
        lengths[0] = t
        valid = np.arange(t) < lengths[:, None]
        x = random.standard_normal((n, t, size), dtype=np.float32) * valid[..., None].astype(np.float32)
        x_peer, lengths_peer = torch.from_numpy(x), torch.from_numpy(lengths.astype(np.int64))

        def packed(peer=peer, x_peer=x_peer, lengths_peer=lengths_peer) -> np.ndarray:
            with torch.inference_mode():
                y, _ = peer(pack_padded_sequence(x_peer, lengths_peer, True, enforce_sorted=False))
                return pad_packed_sequence(y, batch_first=True)[0].numpy()

        y, _ = ours(x, lengths=lengths)
        difference = assert_close("y of valid steps", y[valid], packed()[valid], 1e-5)
        works = {"torch packed": packed, "ours, all T steps": lambda ours=ours, x=x: ours(x)}
        records = alternate_all(
            lambda ours=ours, x=x, lengths=lengths: ours(x, lengths=lengths),
            works,
            repetitions=3 if quick else 15,
        )
        dense = records.pop("ours, all T steps")
        for name, record in records.items():
            yield record | {
                "benchmark": "ragged inference",
                "case": f"N={n} T≤{t} I=H={size}",
                "shape": {"N": n, "T": t, "I": size, "H": size, "dtype": "float32"},
                "peer": name,
                "threads": threads,
                "largest_difference": difference,
                "share_of_valid_steps": float(valid.mean()),
                "share_of_dense_cost": 1 / dense["ratio"],
            }
