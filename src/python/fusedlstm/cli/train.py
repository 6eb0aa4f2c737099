"""``fusedlstm train``: a language model from text files."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedlstm.cli.options import (
    add_threads,
    fraction,
    natural_int,
    not_negative,
    positive,
    positive_int,
    use_threads,
)

if TYPE_CHECKING:
    from fusedlstm.training import Optimiser, Schedule

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
        "decay_after": 6,
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
    parser.set_defaults(run=run, parser=parser)
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
    model.add_argument(
        "--init-uniform",
        type=positive,
        metavar="A",
        help="initial values from U(-A, A) (default: as PyTorch's layers)",
    )
    model.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="default: %(default)s"
    )
    model.add_argument(
        "--compute-dtype",
        choices=("bfloat16",),
        help="round what the LSTM multiplies to it: faster where the processor multiplies bfloat16 "
        "(default: --dtype)",
    )

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
    training.add_argument("--epochs", type=positive_int, default=10, metavar="N", help="default: %(default)s")
    training.add_argument(
        "--seconds", type=positive, metavar="S", help="stop training after this time, even within an epoch"
    )
    training.add_argument(
        "--optimiser", choices=("sgd", "adam", "adamw"), default="adam", help="default: %(default)s"
    )
    training.add_argument(
        "--lr",
        type=positive,
        metavar="X",
        help="learning rate (default: 1 for sgd, 0.002 for adam and adamw)",
    )
    training.add_argument("--momentum", type=fraction, metavar="X", help="of sgd (default: 0)")
    training.add_argument(
        "--weight-decay", type=not_negative, metavar="X", help="default: 0, and 0.01 for adamw"
    )
    training.add_argument(
        "--clip",
        type=not_negative,
        default=5.0,
        metavar="X",
        help="bound on the norm of the gradient; 0: none (default: %(default)s)",
    )
    training.add_argument(
        "--tape",
        choices=("full", "half", "lean"),
        default="full",
        help="activations kept for backward: all; gates in 16 bits; or made again, same bits and about "
        "a fifth of the memory (default: %(default)s)",
    )
    training.add_argument(
        "--loss-scale",
        choices=("mean", "batch"),
        default="mean",
        help="gradient of the mean per token, or of the sum over time divided by the batch size "
        "(default: %(default)s)",
    )
    training.add_argument(
        "--schedule",
        choices=("constant", "step", "cosine", "plateau"),
        default="constant",
        help="of the learning rate (default: %(default)s)",
    )
    training.add_argument(
        "--decay",
        type=positive,
        metavar="X",
        help="factor per epoch of step (default: 0.5), or each time for plateau (default: 0.25)",
    )
    training.add_argument(
        "--decay-after", type=natural_int, metavar="N", help="epochs of step before it decays (default: 4)"
    )
    training.add_argument(
        "--warmup", type=natural_int, metavar="N", help="steps of cosine's linear rise (default: 0)"
    )
    training.add_argument(
        "--patience",
        type=natural_int,
        metavar="N",
        help="epochs without improvement that plateau forgives (default: 0)",
    )
    training.add_argument(
        "--early-stopping",
        type=positive_int,
        metavar="N",
        help="stop after N epochs without a better validation loss",
    )
    training.add_argument(
        "--seed",
        type=natural_int,
        default=0,
        metavar="N",
        help="of initial values and dropout (default: %(default)s)",
    )
    add_threads(training)

    files = parser.add_argument_group("files and progress")
    files.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="where the state of the run is kept (default: MODEL with the ending .checkpoint)",
    )
    files.add_argument(
        "--checkpoint-minutes",
        type=positive,
        default=5.0,
        metavar="M",
        help="write it this often, besides at every end of an epoch (default: %(default)s)",
    )
    files.add_argument(
        "--checkpoint-steps", type=positive_int, metavar="N", help="write it every N steps as well"
    )
    files.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint, if there is one, bit for bit"
    )
    files.add_argument("--log", metavar="FILE", help="write losses as JSON lines")
    files.add_argument("--plot", metavar="FILE", help="draw the loss curves of --log (needs matplotlib)")
    files.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show a bar, or nothing (default: a bar on a terminal, else a line per epoch)",
    )


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; a recipe changes the defaults of the other options."""
    options = parser.parse_args(words)
    if getattr(options, "recipe", None):
        options.parser.set_defaults(**RECIPES[options.recipe])
        options = parser.parse_args(words)
    options.words = list(words)
    return options


def _given(options: argparse.Namespace, choice: str, allowed: dict[str, str]) -> dict[str, Any]:
    """Values of the options that belong to ``choice``; an error for one that belongs to another choice."""
    chosen = getattr(options, choice)
    values = {}
    for name, belongs in allowed.items():
        value = getattr(options, name)
        if value is None:
            continue
        if chosen not in belongs.split():
            raise ValueError(
                f"--{name.replace('_', '-')} belongs to --{choice} {belongs.replace(' ', ' or ')}, "
                f"not {chosen}"
            )
        values[name] = value
    return values


def _optimiser(options: argparse.Namespace) -> Optimiser:
    from fusedlstm.training import SGD, Adam, AdamW

    extra = _given(options, "optimiser", {"momentum": "sgd", "weight_decay": "sgd adam adamw"})
    if options.optimiser == "sgd":
        return SGD(1.0 if options.lr is None else options.lr, **extra)
    kind = Adam if options.optimiser == "adam" else AdamW
    return kind(0.002 if options.lr is None else options.lr, **extra)


def _schedule(options: argparse.Namespace) -> Schedule:
    from fusedlstm.training import Constant, Cosine, Plateau, StepDecay

    belongs = {"decay": "step plateau", "decay_after": "step", "warmup": "cosine", "patience": "plateau"}
    extra = _given(options, "schedule", belongs)
    if options.schedule == "step":
        return StepDecay(extra.get("decay", 0.5), after=extra.get("decay_after", 4))
    if options.schedule == "cosine":
        return Cosine(warmup_steps=extra.get("warmup", 0))
    if options.schedule == "plateau":
        return Plateau(extra.get("decay", 0.25), patience=extra.get("patience", 0))
    return Constant()


def _check_outputs(options: argparse.Namespace, checkpoint: Path) -> None:
    """Find out before hours of training what could not be written after them."""
    written = {"--output": options.output, "--log": options.log, "--plot": options.plot}
    for name, path in {**written, "--checkpoint": checkpoint}.items():
        if path is None:
            continue
        if not Path(path).resolve().parent.is_dir():
            raise ValueError(f"{name} {path}: the folder {Path(path).parent} does not exist")
        if Path(path).is_dir():
            raise ValueError(f"{name} {path} is a folder, not a file")
    named = [Path(path).resolve() for path in [*written.values(), checkpoint] if path is not None]
    inputs = [options.validation_file, options.test_file, *options.files]
    named += {Path(path).resolve() for path in inputs if path is not None}  # one text may be read twice
    if len(set(named)) != len(named):
        raise ValueError("texts, --output, --checkpoint, --log and --plot must be different files")
    if options.plot is not None:
        if options.log is None:
            raise ValueError("--plot needs --log")
        from fusedlstm.training.plot import require_matplotlib

        require_matplotlib()


def run(options: argparse.Namespace) -> int:
    """Train, write the model, and say what came out."""
    from fusedlstm import LanguageModel, isa, num_threads
    from fusedlstm.data import Vocabulary, read_corpus, split_tokens
    from fusedlstm.training import plot_log
    from fusedlstm.training.progress import describe_loss

    output = Path(options.output)
    checkpoint = Path(options.checkpoint or output.with_suffix(".checkpoint"))
    _check_outputs(options, checkpoint)
    use_threads(options.threads)
    optimiser, schedule = _optimiser(options), _schedule(options)
    quiet = options.progress is False

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

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
    say(
        f"{len(tokens):,} {token}s to train on, {0 if validation is None else len(validation):,} to validate "
        f"on, vocabulary {len(vocabulary):,}; {options.layers} x {options.hidden} LSTM, "
        f"{model.num_parameters:,} parameters; {num_threads()} threads, {isa()}"
    )
    if options.resume and not checkpoint.exists():
        say(f"no checkpoint {checkpoint}: starting from the beginning")
    try:
        history = model.fit(
            tokens,
            validation=validation,
            epochs=options.epochs,
            batch_size=options.batch,
            window=options.window,
            optimiser=optimiser,
            schedule=schedule,
            clip=options.clip or None,
            loss_scale=options.loss_scale,
            tape=options.tape,
            early_stopping=options.early_stopping,
            seconds=options.seconds,
            seed=options.seed,
            log=options.log,
            checkpoint=checkpoint,
            checkpoint_minutes=options.checkpoint_minutes,
            checkpoint_steps=options.checkpoint_steps,
            resume=options.resume,
            progress=options.progress,
        )
    except KeyboardInterrupt:
        words = [word for word in options.words if word != "--resume"]
        print(
            f"\ninterrupted; the state of the last completed step is in {checkpoint}. Continue with:\n"
            f"  {shlex.join(['fusedlstm', *words, '--resume'])}",
            file=sys.stderr,
        )
        return 130
    model.save(output)

    print(f"wrote {output} after {history.steps:,} steps (stopped: {history.stopped})")
    if history.best_loss is not None:
        print(
            f"validation loss {history.best_loss:.4f} nats per {token}, "
            f"{describe_loss(history.best_loss, level)}, best of epoch {history.best_epoch}"
        )
    if test is not None:
        loss = model.evaluate(test)
        print(f"test loss {loss:.4f} nats per {token}, {describe_loss(loss, level)}")
    if history.seconds > 0 and history.tokens:
        print(f"{history.seconds:.1f} s, {history.tokens / history.seconds:,.0f} tokens/s with validation")
    if options.plot is not None:
        plot_log(options.log, options.plot)
        print(f"wrote {options.plot}")
    return 0
