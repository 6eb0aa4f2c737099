"""BLEU on Multi30k, German to English: plain encoder–decoder, reversed source, attention; greedy and beam.

``python -m benchmarks.reproduce_multi30k MULTI30K FOLDER [--model plain reversed attention] [option …]``

The first folder holds train, val and test_2016_flickr in .de and .en, lower-cased and tokenised
(github.com/multi30k/dataset, data/task1/tok). Other options are passed on to ``fusedlstm train-pairs``. Needs
sacrebleu; with matplotlib it also draws an alignment.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from pathlib import Path

from fusedlstm import Seq2Seq
from fusedlstm.data import read_pairs
from fusedlstm.models import corpus_bleu

from .reproduction import table, train

# test perplexity and BLEU of github.com/bentrevett/pytorch-seq2seq, as its notebooks show them; its own
# tokeniser and its own BLEU
PUBLISHED = [
    ("LSTM encoder-decoder, 2 x 512 (pytorch-seq2seq 1)", 43.83, 13.76),
    ("GRU, context to every step (pytorch-seq2seq 2)", 37.46, 20.61),
    ("bidirectional GRU, additive attention (pytorch-seq2seq 3)", 25.57, 28.30),
    ("the same, packed sequences (pytorch-seq2seq, old 4)", 23.18, 28.11),
]
_COMMON = [
    "--min-count", "2", "--embedding", "256", "--batch", "64", "--schedule", "cosine",
    "--label-smoothing", "0.1", "--seed", "1",
]  # fmt: skip
_PLAIN = [
    "--layers", "1", "--hidden", "512", "--dropout", "0.2", "--epochs", "10", "--lr", "0.002",
    "--warmup", "200", "--clip", "1", *_COMMON,
]  # fmt: skip
MODELS = {
    "plain": _PLAIN,
    "reversed": [*_PLAIN, "--reverse-source"],
    "attention": [
        "--layers", "1", "--hidden", "384", "--bidirectional", "--attention", "general", "--dropout", "0.3",
        "--epochs", "8", "--lr", "0.001", "--clip", "5", *_COMMON,
    ],
}  # fmt: skip
BEAM = {"beam": 5, "length_penalty": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of train.de, train.en, …")
    parser.add_argument("folder", type=Path, help="where models, checkpoints, logs and pictures go")
    parser.add_argument("--model", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--pairs", type=int, help="train on the first N pairs only")
    arguments, options = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    def files(part: str) -> list[Path]:
        return [arguments.data / f"{part}.{language}" for language in ("de", "en")]

    training = files("train")
    if arguments.pairs is not None:
        training = [arguments.folder / f"first.{language}" for language in ("de", "en")]
        for whole, part in zip(files("train"), training, strict=True):
            lines = whole.read_text(encoding="utf-8").split("\n")[: arguments.pairs]
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    test = read_pairs(*files("test_2016_flickr"))
    sources, references = [source for source, _ in test], [target for _, target in test]
    perplexities = [(name, perplexity) for name, perplexity, _ in PUBLISHED]
    scores = [(name, score) for name, _, score in PUBLISHED]
    signature = ""
    for name in arguments.model:
        path, log = (arguments.folder / f"{name}{ending}" for ending in (".safetensors", ".jsonl"))
        epochs, seconds = train(
            *training, "--validation-files", *files("val"), "-o", path, *MODELS[name], *options,
            log=log, command="train-pairs",
        )  # fmt: skip
        model = Seq2Seq.load(path)
        trained = f"fusedlstm {name}, {len(epochs)} epochs in {seconds:.0f} s"
        perplexities.append((trained, math.exp(model.evaluate(test))))
        translations = []
        for how, search in (("greedy", {"beam": 1}), (f"beam {BEAM['beam']}", BEAM)):
            started = time.perf_counter()
            translations = model.translate(sources, **search)
            rate = len(sources) / (time.perf_counter() - started)
            bleu, signature = corpus_bleu(translations, references, tokenize="none")
            scores.append((f"{trained}, {how}", bleu))
            print(f"{name}, {how}: BLEU {bleu:.2f}, {rate:.0f} sentences/s")
            output = arguments.folder / f"{name}.{how.replace(' ', '')}.en"
            output.write_text("\n".join(translations) + "\n", encoding="utf-8")
        for number in range(0, len(test), len(test) // 10)[:10]:
            source, reference = test[number]
            print(f"\n  source       {source}\n  reference    {reference}")
            print(f"  translation  {translations[number]}")
        if model.decoder.layers.attention is not None and importlib.util.find_spec("matplotlib"):
            picture = arguments.folder / f"{name}.alignment.png"
            model.alignment(sources[0]).plot(picture)
            print(f"\nwrote {picture}")
    print(f"\nsacrebleu {signature}")
    table("test perplexity", perplexities, "")
    table("BLEU on test_2016_flickr", scores, "", highest_first=True)


if __name__ == "__main__":
    main()
