"""One integer to the sequence of its multiples: 2 to 2 4 6 8.

The integer sets the initial state of the LSTM; every output is the next input, in training too, and the
gradient runs back through all four of them.
"""

import numpy as np

from fusedlstm import OneToMany

integers = np.array([[1], [3], [4], [5], [6], [7], [8], [9], [10]], np.float32)  # 2 is left for the test
multiples = integers[:, None] * np.array([[1], [2], [3], [4]], np.float32)  # (N, 4, 1)
scale = 40  # so that all numbers lie in [0, 1]

model = OneToMany(output_size=1, input_size=1, hidden_size=32)
history = model.fit(integers / 10, multiples / scale, feedback="output", epochs=1500, lr=0.01, progress=False)
print(f"mean squared error {history.epochs[0]['train_loss']:.4f} -> {history.epochs[-1]['train_loss']:.1e}")

for integer in (2, 5, 9):
    sequence = scale * model.generate([integer / 10], steps=4).ravel()
    print(integer, "->", *(f"{value:.0f}" for value in sequence), " from", np.round(sequence, 2))
