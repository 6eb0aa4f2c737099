"""One value to thirty steps of a sine: a phase to the wave that begins there.

The LSTM is given the phase as its initial state and nothing else: each value it puts out is its next input.
"""

import numpy as np

from fusedlstm import OneToMany


def wave(phase):
    """Phases (N, 1), and thirty steps of 0.2 radians of the sine from there, (N, 30, 1)."""
    values = np.sin(phase[:, None] + 0.2 * np.arange(30))[..., None].astype(np.float32)
    return phase[:, None].astype(np.float32), values


rng = np.random.default_rng(0)
phase, sine = wave(rng.uniform(-np.pi, np.pi, 256))
model = OneToMany(output_size=1, input_size=1, hidden_size=48)
model.fit(phase, sine, feedback="output", epochs=60, batch_size=32, lr=0.01, progress=False)

new_phase, wanted = wave(rng.uniform(-np.pi, np.pi, 100))
got = model.generate(new_phase, steps=30)
error = np.sqrt(((got - wanted) ** 2).mean())
print(f"100 new phases, 30 steps each: root mean squared error {error:.3f}")

got = model.generate([np.pi / 4], steps=30).ravel()
for step in range(0, 30, 2):
    print(f"{step:2d} {got[step]:6.2f} " + " " * round(20 + 18 * got[step]) + "*")
