"""A window of features to one value: many to one, ``return_sequences=False``.

Of three noisy features only the first counts: the value is its exponential moving average over the window.
"""

import numpy as np

from fusedlstm import nn
from fusedlstm.training import Adam

T, FEATURES = 20, 3


def examples(count, seed):
    """Windows (N, T, 3) and the moving average after every step (N, T, 1)."""
    x = np.random.default_rng(seed).standard_normal((count, T, FEATURES), dtype=np.float32)
    average = np.zeros((count, T, 1), np.float32)
    for t in range(T):
        average[:, t] = 0.8 * average[:, t - 1] + 0.2 * x[:, t, :1]
    return x, average


def train(model, x, target, epochs):
    """Adam on batches of 64; the mean squared error of the last epoch."""
    loss_function, optimiser = nn.MSELoss(), Adam(lr=0.01)
    for _ in range(epochs):
        total = 0.0
        for begin in range(0, len(x), 64):
            rows = slice(begin, begin + 64)
            model.zero_grad()
            y, tape = model.forward(x[rows])
            loss, dy = loss_function(y, target[rows])
            model.backward(tape, dy, need_dx=False)
            optimiser.step(model.parameters, model.gradients)
            model.mark_updated()
            total += loss * len(y)
    return total / len(x)


if __name__ == "__main__":
    model = nn.Sequential(nn.LSTM(FEATURES, 32, return_sequences=False), nn.Linear(32, 1))
    x, average = examples(1024, seed=0)
    train(model, x, average[:, -1], epochs=15)
    x, average = examples(256, seed=1)
    y, target = model(x), average[:, -1]
    print("windows", x.shape, "-> values", y.shape)
    print(f"mean squared error {((y - target) ** 2).mean():.5f}, of always saying 0 {(target**2).mean():.5f}")
