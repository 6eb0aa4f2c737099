"""The specification: LSTM, losses, optimisers, samplers and Philox in NumPy float64, one line per equation.

N sequences, T steps, I inputs, H hidden units, L layers, D directions, V vocabulary, R rows. Gates i f g o.
Nothing here is fast and nothing is shared with the package. `test_reference.py` checks it against values
recorded from PyTorch and against the vectors published with Random123.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Weights = dict[str, np.ndarray]


def sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def suffix(layer, direction):
    return f"_l{layer}" + ("_reverse" if direction else "")


def reverse_valid(x, lengths):
    """Reverse each row of x (N, T, ...) within its length; zeros past the length."""
    reversed_x = np.zeros_like(x)
    for n, length in enumerate(lengths):
        reversed_x[n, :length] = x[n, :length][::-1]
    return reversed_x


# one direction of one layer
@dataclass
class DirectionTape:
    x: np.ndarray  # (N, T, I)
    gates: np.ndarray  # (N, T, 4, H): i, f, g, o after activation
    c: np.ndarray  # (N, T + 1, H)
    h: np.ndarray  # (N, T + 1, H)
    lengths: np.ndarray  # (N,)
    weight_ih: np.ndarray  # (4H, I)
    weight_hh: np.ndarray  # (4H, H)


def direction_forward(x, h0, c0, weight_ih, weight_hh, bias, lengths):
    """y (N, T, H), h_n (N, H), c_n (N, H) and the tape. Hochreiter & Schmidhuber 1997; Gers et al. 2000."""
    N, T, _ = x.shape
    H = weight_hh.shape[1]
    h, c = np.zeros((N, T + 1, H)), np.zeros((N, T + 1, H))
    y, gates = np.zeros((N, T, H)), np.zeros((N, T, 4, H))
    h[:, 0], c[:, 0] = h0, c0
    for t in range(T):
        live = (t < lengths)[:, None]
        a = (bias + x[:, t] @ weight_ih.T + h[:, t] @ weight_hh.T).reshape(N, 4, H)
        i, f, g, o = sigmoid(a[:, 0]), sigmoid(a[:, 1]), np.tanh(a[:, 2]), sigmoid(a[:, 3])
        c[:, t + 1] = np.where(live, f * c[:, t] + i * g, c[:, t])
        h[:, t + 1] = np.where(live, o * np.tanh(c[:, t + 1]), h[:, t])
        y[:, t] = np.where(live, h[:, t + 1], 0.0)
        gates[:, t] = np.stack([i, f, g, o], axis=1)
    return y, h[:, T], c[:, T], DirectionTape(x, gates, c, h, lengths, weight_ih, weight_hh)


def direction_backward(tape, dy, dh_n, dc_n):
    """dx, dh0, dc0, d_weight_ih, d_weight_hh, d_bias of one direction."""
    T, H = tape.x.shape[1], tape.weight_hh.shape[1]
    dx, d_weight_ih, d_weight_hh = (
        np.zeros_like(tape.x),
        np.zeros_like(tape.weight_ih),
        np.zeros_like(tape.weight_hh),
    )
    d_bias = np.zeros(4 * H)
    dh, dc = dh_n.copy(), dc_n.copy()
    for t in reversed(range(T)):
        live = (t < tape.lengths)[:, None]
        i, f, g, o = np.moveaxis(tape.gates[:, t], 1, 0)
        tanh_c = np.tanh(tape.c[:, t + 1])
        dh_t = dh + dy[:, t]
        dc_t = dc + dh_t * o * (1 - tanh_c**2)
        da_i = dc_t * g * i * (1 - i)
        da_f = dc_t * tape.c[:, t] * f * (1 - f)
        da_g = dc_t * i * (1 - g**2)
        da_o = dh_t * tanh_c * o * (1 - o)
        da = np.where(live, np.concatenate([da_i, da_f, da_g, da_o], axis=1), 0.0)
        dx[:, t] = da @ tape.weight_ih
        dh = np.where(live, da @ tape.weight_hh, dh)
        dc = np.where(live, dc_t * f, dc)
        d_weight_ih += da.T @ tape.x[:, t]
        d_weight_hh += da.T @ tape.h[:, t]
        d_bias += da.sum(axis=0)
    return dx, dh, dc, d_weight_ih, d_weight_hh, d_bias


# the stack
@dataclass
class Tape:
    directions: list[list[DirectionTape]]  # [layer][direction]
    masks: list[np.ndarray]  # per layer but the last: (N, T, D*H), 0 or 1 / (1 - rate)
    lengths: np.ndarray


def lstm_forward(parameters, x, h0=None, c0=None, lengths=None, masks=None):
    """y (N, T, D*H), h_n (L*D, N, H), c_n and the tape, with PyTorch's parameter names."""
    N, T, _ = x.shape
    L = sum(name.startswith("weight_hh") and not name.endswith("_reverse") for name in parameters)
    D = 2 if "weight_hh_l0_reverse" in parameters else 1
    H = parameters["weight_hh_l0"].shape[1]
    lengths = np.full(N, T) if lengths is None else np.asarray(lengths)
    h0 = np.zeros((L * D, N, H)) if h0 is None else h0
    c0 = np.zeros((L * D, N, H)) if c0 is None else c0
    masks = [np.ones((N, T, D * H))] * (L - 1) if masks is None else masks
    h_n, c_n, tapes = np.zeros((L * D, N, H)), np.zeros((L * D, N, H)), []
    y = x.astype(np.float64)
    for layer in range(L):
        outputs, layer_tapes = [], []
        for direction in range(D):
            s, k = suffix(layer, direction), layer * D + direction
            bias = parameters.get("bias_ih" + s, 0.0) + parameters.get("bias_hh" + s, np.zeros(4 * H))
            x_d = reverse_valid(y, lengths) if direction else y
            y_d, h_n[k], c_n[k], tape = direction_forward(
                x_d, h0[k], c0[k], parameters["weight_ih" + s], parameters["weight_hh" + s], bias, lengths
            )
            outputs.append(reverse_valid(y_d, lengths) if direction else y_d)
            layer_tapes.append(tape)
        y = np.concatenate(outputs, axis=2)
        if layer < L - 1:
            y = y * masks[layer]
        tapes.append(layer_tapes)
    return y, h_n, c_n, Tape(tapes, masks, lengths)


def lstm_backward(tape, dy, dh_n=None, dc_n=None):
    """dx, dh0, dc0 and a dict of the gradients of every weight."""
    L, D = len(tape.directions), len(tape.directions[0])
    N, _, H = tape.directions[0][0].h.shape
    dh_n = np.zeros((L * D, N, H)) if dh_n is None else dh_n
    dc_n = np.zeros((L * D, N, H)) if dc_n is None else dc_n
    dh0, dc0, gradients = np.zeros((L * D, N, H)), np.zeros((L * D, N, H)), {}
    for layer in reversed(range(L)):
        if layer < L - 1:
            dy = dy * tape.masks[layer]
        dx = np.zeros_like(tape.directions[layer][0].x)
        for direction in range(D):
            s, k = suffix(layer, direction), layer * D + direction
            dy_d = dy[:, :, direction * H : (direction + 1) * H]
            dy_d = reverse_valid(dy_d, tape.lengths) if direction else dy_d
            dx_d, dh0[k], dc0[k], d_weight_ih, d_weight_hh, d_bias = direction_backward(
                tape.directions[layer][direction], dy_d, dh_n[k], dc_n[k]
            )
            dx += reverse_valid(dx_d, tape.lengths) if direction else dx_d
            gradients |= {"weight_ih" + s: d_weight_ih, "weight_hh" + s: d_weight_hh}
            gradients |= {"bias_ih" + s: d_bias, "bias_hh" + s: d_bias}
        dy = dx
    return dy, dh0, dc0, gradients


def embedding_backward(ids, dx, vocabulary_size):
    d_embedding = np.zeros((vocabulary_size, dx.shape[-1]))
    np.add.at(d_embedding, ids, dx)
    return d_embedding


# losses
def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits, targets, ignore_index=-1):
    """Sum of the negative log-likelihoods (nats) over counted rows, their number, and d(sum)/dlogits."""
    counted = targets != ignore_index
    log_p = log_softmax(logits)
    rows = np.flatnonzero(counted)
    dlogits = np.where(counted[:, None], np.exp(log_p), 0.0)
    dlogits[rows, targets[rows]] -= 1.0
    return -log_p[rows, targets[rows]].sum(), int(counted.sum()), dlogits


def mean_squared_error(y, target):
    return ((y - target) ** 2).mean(), 2.0 * (y - target) / y.size


# optimisers: parameters and state are changed in place, as in torch.optim
def sgd_step(p, g, velocity, lr, momentum=0.0, weight_decay=0.0, nesterov=False, gradient_scale=1.0):
    g = gradient_scale * g + weight_decay * p
    if momentum:
        velocity[:] = momentum * velocity + g
        g = g + momentum * velocity if nesterov else velocity
    p -= lr * g


def adam_step(
    p,
    g,
    m,
    v,
    step,
    lr,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    decoupled=False,
    gradient_scale=1.0,
):
    """Kingma & Ba 2015; decoupled weight decay: Loshchilov & Hutter 2019."""
    g = gradient_scale * g + (0.0 if decoupled else weight_decay) * p
    if decoupled:
        p *= 1 - lr * weight_decay
    m[:] = beta1 * m + (1 - beta1) * g
    v[:] = beta2 * v + (1 - beta2) * g**2
    p -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)


# random numbers
def philox4x32(counter, key, rounds=10):
    """Four 32-bit words of Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    c0, c1, c2, c3 = (int(word) for word in counter)
    k0, k1 = (int(word) for word in key)
    for _ in range(rounds):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


# sampling
def kept_tokens(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Which of logits (V,) may be drawn: temperature, then top_k, then the smallest set of mass >= top_p."""
    scaled = logits / temperature
    order = np.argsort(-scaled, kind="stable")  # equal logits: the lower id goes first
    if top_k:
        order = order[:top_k]
    p = np.exp(log_softmax(scaled[order]))
    before = np.cumsum(p) - p  # mass of everything more probable
    kept = np.zeros(len(logits), dtype=bool)
    kept[order[(before < top_p) | (np.arange(len(order)) == 0)]] = True
    return kept
