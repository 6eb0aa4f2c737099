"""A window of features to one value per step: ``return_sequences=True``, and Linear at each step.

The task of window_to_value.py with an answer at every step. The last of them is that of
``return_sequences=False``, to the last bit.
"""

import numpy as np
from window_to_value import FEATURES, examples, train

from fusedlstm import nn

model = nn.Sequential(nn.LSTM(FEATURES, 32, return_sequences=True), nn.Linear(32, 1))
x, average = examples(1024, seed=0)
train(model, x, average, epochs=15)

x, average = examples(256, seed=1)
y = model(x)
print("windows", x.shape, "-> values", y.shape)
for step in (0, 9, 19):
    print(f"step {step + 1:2d}: mean squared error {((y - average)[:, step] ** 2).mean():.5f}")

last_only = nn.Sequential(nn.LSTM(FEATURES, 32, return_sequences=False), nn.Linear(32, 1))
last_only.load_state_dict(model.state_dict())
print("last step equals return_sequences=False:", np.array_equal(y[:, -1], last_only(x)))
