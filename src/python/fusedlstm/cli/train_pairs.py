"""``fusedlstm train-pairs``: an encoder–decoder from pairs of sentences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedlstm.cli.options import fraction, positive, positive_int, use_threads
from fusedlstm.cli.training import (
    add_files,
    add_parameters,
    add_training,
    check_outputs,
    fit_and_save,
    fit_options,
)

if TYPE_CHECKING:
    from fusedlstm.training.scheduled_sampling import TeacherSchedule

RECIPES: dict[str, dict[str, Any]] = {
    # Sutskever, Vinyals and Le 2014, sections 3.4 and 3.6
    "sutskever2014": {
        "tokens": "word",
        "layers": 4,
        "hidden": 1000,
        "embedding": 1000,
        "reverse_source": True,
        "init_uniform": 0.08,
        "batch": 128,
        "optimiser": "sgd",
        "lr": 0.7,
        "schedule": "step",
        "decay": 0.5,
        "decay_after": 5,
        "decay_every": 0.5,
        "clip": 5.0,
        "loss_scale": "batch",
        "epochs": 8,
    }
}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train-pairs",
        help="train an encoder-decoder on pairs of sentences",
        description="Train a sequence-to-sequence model on two UTF-8 files of as many lines, or on one with "
        "source, tab, target on every line, and write it to one file. The state of the run is kept in a "
        "checkpoint; stop with Ctrl-C and continue with --resume.",
    )
    parser.set_defaults(run=run, parser=parser, recipes=RECIPES)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="source and target sentences, or one file with both"
    )
    parser.add_argument("-o", "--output", required=True, metavar="MODEL", help="model file to write")
    parser.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="settings of a published experiment (Sutskever et al. 2014) as defaults for the options below",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--tokens",
        choices=("word", "char", "byte", "subword"),
        default="word",
        help="what a token is; subwords need the package tokenizers (default: %(default)s)",
    )
    data.add_argument(
        "--min-count",
        type=positive_int,
        default=1,
        metavar="N",
        help="tokens seen less often are unknown (default: %(default)s)",
    )
    data.add_argument(
        "--max-size", type=positive_int, metavar="V", help="largest vocabulary; needed for subwords"
    )
    data.add_argument("--shared-vocabulary", action="store_true", help="one vocabulary for source and target")
    data.add_argument(
        "--max-length", type=positive_int, metavar="N", help="leave out pairs with more tokens on a side"
    )
    held_out = data.add_mutually_exclusive_group()
    held_out.add_argument(
        "--validation",
        type=fraction,
        metavar="FRACTION",
        help="part of the pairs, from their end, set aside for validation; 0: none (default: 0.1)",
    )
    held_out.add_argument(
        "--validation-files", nargs="+", metavar="FILE", help="pairs to validate on, in one file or two"
    )
    data.add_argument(
        "--test-files", nargs="+", metavar="FILE", help="pairs to measure the final model on, in one or two"
    )

    model = parser.add_argument_group("model")
    model.add_argument("--layers", type=positive_int, default=2, metavar="L", help="default: %(default)s")
    model.add_argument(
        "--hidden",
        type=positive_int,
        default=512,
        metavar="H",
        help="units of a layer and direction (default: %(default)s)",
    )
    model.add_argument(
        "--embedding",
        type=positive_int,
        metavar="E",
        help="size of the embeddings (default: that of a layer)",
    )
    model.add_argument("--bidirectional", action="store_true", help="the encoder reads in both directions")
    model.add_argument(
        "--bridge",
        choices=("pass", "linear", "tanh"),
        help="from the encoder's states to the decoder's (default: pass, and linear with --bidirectional)",
    )
    model.add_argument(
        "--attention",
        choices=("dot", "general", "concat", "bahdanau"),
        help="how the decoder looks back at the source (default: not at all)",
    )
    model.add_argument(
        "--input-feeding",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="feed the attentional output to the next step (default: with dot, general and concat)",
    )
    model.add_argument(
        "--coverage", action="store_true", help="attention of concat and bahdanau sees where it has looked"
    )
    model.add_argument("--reverse-source", action="store_true", help="read sources from their end")
    model.add_argument(
        "--share-embedding", action="store_true", help="one table for both sides of a shared vocabulary"
    )
    model.add_argument(
        "--dropout",
        type=fraction,
        default=0.0,
        metavar="P",
        help="rate on embeddings, between layers and before the output layer (default: %(default)s)",
    )
    add_parameters(model)

    training = parser.add_argument_group("training")
    training.add_argument(
        "--batch", type=positive_int, default=64, metavar="N", help="pairs of a step (default: %(default)s)"
    )
    training.add_argument(
        "--label-smoothing", type=fraction, default=0.0, metavar="X", help="default: %(default)s"
    )
    training.add_argument(
        "--scheduled-sampling",
        choices=("linear", "exponential", "inverse-sigmoid"),
        help="feed the decoder's own tokens ever more often (Bengio et al. 2015; default: never)",
    )
    training.add_argument(
        "--scheduled-steps",
        type=positive,
        metavar="K",
        help="linear: steps until always; exponential: steps until half of the time; inverse-sigmoid: k",
    )
    training.add_argument(
        "--scheduled-final",
        type=fraction,
        metavar="P",
        help="of linear: probability of the target's token that stays (default: 0)",
    )
    add_training(training)
    add_files(parser)


def read(files: list[str]) -> list[tuple[str, str]]:
    """Pairs from one file or two."""
    from fusedlstm.data import read_pairs, read_tsv_pairs

    if len(files) > 2:
        raise ValueError(f"pairs come from one file or two, got {len(files)}: {' '.join(files)}")
    return read_pairs(files[0], files[1]) if len(files) == 2 else read_tsv_pairs(files[0])


def _teacher(options: argparse.Namespace) -> float | TeacherSchedule:
    """How often the decoder is fed the target."""
    from fusedlstm.training import ExponentialDecay, InverseSigmoidDecay, LinearDecay

    kind, steps, final = options.scheduled_sampling, options.scheduled_steps, options.scheduled_final
    if (steps is None) != (kind is None):
        raise ValueError("--scheduled-sampling and --scheduled-steps need each other")
    if final is not None and kind != "linear":
        raise ValueError("--scheduled-final belongs to --scheduled-sampling linear")
    if kind is None:
        return 1.0
    if kind == "linear":
        return LinearDecay(max(1, round(steps)), final=final or 0.0)
    return ExponentialDecay(0.5 ** (1 / steps)) if kind == "exponential" else InverseSigmoidDecay(steps)


def run(options: argparse.Namespace) -> int:
    """Train, write the model, and say what came out."""
    from fusedlstm import Seq2Seq
    from fusedlstm.data import Tokenizer, TokenizerPair

    output = Path(options.output)
    checkpoint = Path(options.checkpoint or output.with_suffix(".checkpoint"))
    texts = [*options.files, *(options.validation_files or []), *(options.test_files or [])]
    check_outputs(options, checkpoint, texts)
    use_threads(options.threads)
    common, teacher = fit_options(options, checkpoint), _teacher(options)

    pairs = read(options.files)
    validation: Any = None if options.validation_files is None else read(options.validation_files)
    test = None if options.test_files is None else read(options.test_files)
    if validation is None:
        held_out = 0.1 if options.validation is None else options.validation
        cut = int(len(pairs) * (1.0 - held_out))
        pairs, validation = pairs[:cut], pairs[cut:] or None

    limits = (
        {} if options.tokens == "byte" else {"max_size": options.max_size, "min_count": options.min_count}
    )
    sides = [[source for source, _ in pairs], [target for _, target in pairs]]
    if options.shared_vocabulary:
        sides = [sides[0] + sides[1]] * 2
    source = Tokenizer.from_lines(sides[0], options.tokens, **limits)
    target = source if options.shared_vocabulary else Tokenizer.from_lines(sides[1], options.tokens, **limits)
    model = Seq2Seq(
        TokenizerPair(source, target),
        embedding_size=options.embedding,
        hidden_size=options.hidden,
        num_layers=options.layers,
        bidirectional=options.bidirectional,
        bridge=options.bridge,
        attention=options.attention,
        input_feeding=options.input_feeding,
        coverage=options.coverage,
        reverse_source=options.reverse_source,
        share_embedding=options.share_embedding,
        dropout=options.dropout,
        dtype=options.dtype,
        compute_dtype=options.compute_dtype,
        init="torch" if options.init_uniform is None else ("uniform", options.init_uniform),
        seed=options.seed,
    )
    return fit_and_save(
        options,
        checkpoint,
        model,
        pairs,
        test,
        target.kind,
        f"{len(pairs):,} pairs to train on, {0 if validation is None else len(validation):,} to validate on, "
        f"vocabularies {len(source):,} and {len(target):,}; {options.layers} x {options.hidden} LSTMs",
        validation=validation,
        max_length=options.max_length,
        label_smoothing=options.label_smoothing,
        teacher=teacher,
        **common,
    )
