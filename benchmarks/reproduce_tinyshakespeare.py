"""Validation loss on tiny Shakespeare, characters, beside published figures.

``python -m benchmarks.reproduce_tinyshakespeare input.txt FOLDER [option of fusedlstm train …]``

The file is data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn: 1,115,394 characters, of which the
first 90 % are trained on and the last 10 % validated on, as nanoGPT does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .reproduction import Reference, check_file, fusedlstm, table, train

REFERENCES: list[Reference] = [
    ("nanoGPT, character GPT of 10.65 M parameters, 3 minutes on an A100 (its README)", 1.4697),
    ("minLSTM, 3 layers x 384 (Feng et al. 2024, arXiv 2410.01201)", 1.555),
    ("nanoGPT, small GPT, about 3 minutes on a laptop's CPU (its README)", 1.88),
]
SETTINGS = (
    "--validation 0.1 --layers 2 --hidden 512 --dropout 0.2 --batch 32 --window 64 --epochs 4 --lr 0.002 "
    "--schedule cosine --warmup 100 --seed 1"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", type=Path, help="input.txt")
    parser.add_argument("folder", type=Path, help="where model, checkpoint and log go")
    arguments, options = parser.parse_known_args()
    check_file(arguments.text, "6fb458f1232090904fb40fe944165e91", "tiny Shakespeare")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model, log = arguments.folder / "tinyshakespeare.safetensors", arguments.folder / "tinyshakespeare.jsonl"
    epochs, seconds = train(arguments.text, "-o", model, *SETTINGS, *options, log=log)
    fusedlstm("generate", model, "--prompt", "\n", "--length", "500", "--temperature", "0.8", "--stats")
    for epoch in epochs:
        losses = f"train {epoch['train_loss']:.4f}, validation {epoch['validation_loss']:.4f}"
        print(f"epoch {epoch['epoch']}: {losses}")
    best = min(epoch["validation_loss"] for epoch in epochs)
    ours = (f"fusedlstm, {len(epochs)} epochs in {seconds:.0f} s: {' '.join([*SETTINGS, *options])}", best)
    table("validation loss", [*REFERENCES, ours], "nats per character")


if __name__ == "__main__":
    main()
