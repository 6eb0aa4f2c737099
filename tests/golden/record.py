"""Record values from PyTorch for the specification to be checked without it: python tests/golden/record.py"""

import json
from pathlib import Path

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FOLDER = Path(__file__).parent
CASES = {  # name: (N, T, I, H, L, D, bias, lengths)
    "one_layer": (2, 3, 3, 2, 1, 1, True, None),
    "no_bias": (1, 2, 1, 3, 1, 1, False, None),
    "two_layers_ragged": (3, 4, 2, 2, 2, 1, True, [2, 4, 1]),
    "bidirectional_two_layers_ragged": (3, 3, 2, 2, 2, 2, True, [3, 1, 2]),
}


def lists(tensors):
    return {name: tensor.detach().tolist() for name, tensor in tensors.items()}


def lstm_case(N, T, I, H, L, D, bias, lengths):
    lstm = torch.nn.LSTM(I, H, L, bias=bias, batch_first=True, bidirectional=D == 2).double()
    inputs = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in
              {"x": (N, T, I), "h0": (L * D, N, H), "c0": (L * D, N, H)}.items()}  # fmt: skip
    x = inputs["x"]
    if lengths is not None:
        x = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    y, (h_n, c_n) = lstm(x, (inputs["h0"], inputs["c0"]))
    if lengths is not None:
        y = pad_packed_sequence(y, batch_first=True, total_length=T)[0]
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    upstream = {"d" + name: torch.randn_like(tensor) for name, tensor in outputs.items()}
    sum((outputs[name] * upstream["d" + name]).sum() for name in outputs).backward()
    return {
        "lengths": lengths,
        "parameters": lists(dict(lstm.named_parameters())),
        "inputs": lists(inputs),
        "outputs": lists(outputs),
        "upstream": lists(upstream),
        "input_gradients": lists({"d" + name: tensor.grad for name, tensor in inputs.items()}),
        "parameter_gradients": lists({name: p.grad for name, p in lstm.named_parameters()}),
    }


def cross_entropy_case():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, -1, 0, 4])
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    loss.backward()
    return {
        "logits": logits.tolist(),
        "targets": targets.tolist(),
        "loss": loss.item(),
        "dlogits": logits.grad.tolist(),
    }


def optimiser_case(make, steps=3):
    p = torch.nn.Parameter(torch.randn(4, dtype=torch.float64))
    start, gradients, optimiser = p.tolist(), torch.randn(steps, 4, dtype=torch.float64), make([p])
    path = []
    for gradient in gradients:
        p.grad = gradient.clone()
        optimiser.step()
        path.append(p.tolist())
    return {"start": start, "gradients": gradients.tolist(), "path": path}


def main():
    torch.manual_seed(1)
    lstm = {name: lstm_case(*case) for name, case in CASES.items()}
    (FOLDER / "lstm.json").write_text(json.dumps(lstm, indent=None) + "\n")
    optim = torch.optim
    others = {
        "torch": torch.__version__,
        "cross_entropy": cross_entropy_case(),
        "sgd": optimiser_case(lambda p: optim.SGD(p, lr=0.1)),
        "sgd_momentum": optimiser_case(lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01)),
        "sgd_nesterov": optimiser_case(lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
        "adam": optimiser_case(lambda p: optim.Adam(p, lr=0.1, weight_decay=0.01)),
        "adamw": optimiser_case(lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.01)),
    }
    (FOLDER / "ops.json").write_text(json.dumps(others, indent=None) + "\n")


if __name__ == "__main__":
    main()
