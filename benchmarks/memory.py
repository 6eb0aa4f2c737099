"""Peak resident memory that one float32 training step adds, per tape mode, beside torch: a process each.

The peak is the kernel's (VmHWM, reset before the step), minus what was resident before the step. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from .harness import Plan, Record

BENCHMARK = "memory of training"
STEP = """
import json, sys
import numpy as np
side, n, t, size, layers, threads = sys.argv[1], *map(int, sys.argv[2:])
x = np.random.default_rng(0).standard_normal((n, t, size), dtype=np.float32)
if side == "torch":
    import torch
    torch.set_num_threads(threads)
    layer = torch.nn.LSTM(size, size, layers, batch_first=True)
    def step(x):
        y, _ = layer(torch.from_numpy(x).requires_grad_())
        y.backward(torch.from_numpy(x))
else:
    import fusedlstm
    fusedlstm.set_num_threads(threads)
    layer = fusedlstm.nn.LSTM(size, size, layers, tape=side)
    def step(x):
        y, tape = layer.forward(x)
        layer.backward(tape, x)
def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))
step(x[:1, :1])  # libraries, weights and gradients are there
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
step(x)
print(json.dumps({"added": resident("VmHWM") - before}))
"""
SHAPES = [(64, 128, 512, 1), (64, 128, 512, 2)]


def run(plan: Plan) -> Iterator[Record]:
    for n, t, size, layers in SHAPES[:1] if plan.quick else SHAPES:
        for side in ("full", "half", "lean", "torch"):
            name = "torch" if side == "torch" else f"tape {side}"
            case = f"N={n} T={t} I=H={size} L={layers}, {name}"
            if not plan.wants(BENCHMARK, case):
                continue
            arguments = [side, *map(str, (n, t, size, layers, plan.threads))]
            run = subprocess.run(
                [sys.executable, "-c", STEP, *arguments], check=True, capture_output=True, text=True
            )
            added = json.loads(run.stdout)["added"]
            yield {
                "benchmark": BENCHMARK,
                "case": case,
                "added_bytes": added,
                "bytes_per_step_and_unit": added / (n * t * size * layers),
            }
