"""The states of an LSTM: ``return_state=True``.

With them a sequence can be cut anywhere: the second part goes on where the first one stopped.
"""

import numpy as np

from fusedlstm import nn

lstm = nn.LSTM(4, 16, num_layers=2, return_state=True, seed=1)
x = np.random.default_rng(0).standard_normal((3, 10, 4), dtype=np.float32)

y, (h, c) = lstm(x)
print("y", y.shape, "h", h.shape, "c", c.shape)  # (N, T, H), (L, N, H), (L, N, H)
print("h of the last layer is the last output:", np.array_equal(h[-1], y[:, -1]))

first, state = lstm(x[:, :6])
rest, state = lstm(x[:, 6:], state=state)
print("two parts equal the whole:", np.array_equal(np.concatenate([first, rest], axis=1), y))
print("and so do the states:", np.array_equal(state[0], h), np.array_equal(state[1], c))

_, (h, _) = lstm(x, lengths=[10, 4, 0])
print("state of a shorter sequence is that of its last step:", np.array_equal(h[-1, 1], y[1, 3]))
print("and of an empty one the initial state:", not h[:, 2].any())
