"""What the commands that train have in common."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedlstm.cli.options import (
    add_threads,
    fraction,
    natural_int,
    not_negative,
    positive,
    positive_int,
)

if TYPE_CHECKING:
    from fusedlstm import LanguageModel, Seq2Seq
    from fusedlstm.training import Optimiser, Schedule


def add_parameters(model: argparse._ArgumentGroup) -> None:
    """How parameters begin, and what they are stored and multiplied in."""
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
        help="round what the LSTMs multiply to it: faster where the processor multiplies bfloat16 "
        "(default: --dtype)",
    )


def add_training(training: argparse._ArgumentGroup) -> None:
    """Epochs, optimiser, schedule, early stopping, seed and threads."""
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
        help="factor of step, once per epoch (default: 0.5), or each time for plateau (default: 0.25)",
    )
    training.add_argument(
        "--decay-after", type=natural_int, metavar="N", help="epochs of step before it decays (default: 4)"
    )
    training.add_argument(
        "--decay-every",
        type=positive,
        metavar="X",
        help="epochs from one decay of step to the next (default: 1)",
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


def add_files(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, log, plot and progress."""
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
        options.parser.set_defaults(**options.recipes[options.recipe])
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


def make_optimiser(options: argparse.Namespace) -> Optimiser:
    """The optimiser that the options name."""
    from fusedlstm.training import SGD, Adam, AdamW

    extra = _given(options, "optimiser", {"momentum": "sgd", "weight_decay": "sgd adam adamw"})
    if options.optimiser == "sgd":
        return SGD(1.0 if options.lr is None else options.lr, **extra)
    kind = Adam if options.optimiser == "adam" else AdamW
    return kind(0.002 if options.lr is None else options.lr, **extra)


def make_schedule(options: argparse.Namespace) -> Schedule:
    """The schedule of the learning rate that the options name."""
    from fusedlstm.training import Constant, Cosine, Plateau, StepDecay

    belongs = {
        "decay": "step plateau",
        "decay_after": "step",
        "decay_every": "step",
        "warmup": "cosine",
        "patience": "plateau",
    }
    extra = _given(options, "schedule", belongs)
    if options.schedule == "step":
        return StepDecay(
            extra.get("decay", 0.5), after=extra.get("decay_after", 4), every=extra.get("decay_every", 1.0)
        )
    if options.schedule == "cosine":
        return Cosine(warmup_steps=extra.get("warmup", 0))
    if options.schedule == "plateau":
        return Plateau(extra.get("decay", 0.25), patience=extra.get("patience", 0))
    return Constant()


def check_outputs(options: argparse.Namespace, checkpoint: Path, texts: Iterable[str | None]) -> None:
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
    named += {Path(path).resolve() for path in texts if path is not None}  # one text may be read twice
    if len(set(named)) != len(named):
        raise ValueError("texts, --output, --checkpoint, --log and --plot must be different files")
    if options.plot is not None:
        if options.log is None:
            raise ValueError("--plot needs --log")
        from fusedlstm.training.plot import require_matplotlib

        require_matplotlib()


def fit_options(options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Arguments of ``fit`` that every model takes."""
    return {
        "epochs": options.epochs,
        "batch_size": options.batch,
        "optimiser": make_optimiser(options),
        "schedule": make_schedule(options),
        "clip": options.clip or None,
        "loss_scale": options.loss_scale,
        "early_stopping": options.early_stopping,
        "seconds": options.seconds,
        "seed": options.seed,
        "log": options.log,
        "checkpoint": checkpoint,
        "checkpoint_minutes": options.checkpoint_minutes,
        "checkpoint_steps": options.checkpoint_steps,
        "resume": options.resume,
        "progress": options.progress,
    }


def fit_and_save(
    options: argparse.Namespace,
    checkpoint: Path,
    model: LanguageModel | Seq2Seq,
    data: Any,
    test: Any,
    unit: str,
    what: str,
    /,
    **settings: Any,
) -> int:
    """Train on ``data``, which is ``what``, write the model, and say what came out."""
    from fusedlstm import isa, num_threads
    from fusedlstm.training import plot_log
    from fusedlstm.training.progress import describe_loss

    def say(text: str) -> None:
        if options.progress is not False:
            print(text, file=sys.stderr, flush=True)

    say(f"{what}, {model.num_parameters:,} parameters; {num_threads()} threads, {isa()}")
    if options.resume and not checkpoint.exists():
        say(f"no checkpoint {checkpoint}: starting from the beginning")
    try:
        history = model.fit(data, **settings)
    except KeyboardInterrupt:
        _how_to_continue(options, checkpoint)
        return 130
    model.save(options.output)

    token = "character" if unit == "char" else unit
    print(f"wrote {options.output} after {history.steps:,} steps (stopped: {history.stopped})")
    if history.best_loss is not None:
        print(
            f"validation loss {history.best_loss:.4f} nats per {token}, "
            f"{describe_loss(history.best_loss, unit)}, best of epoch {history.best_epoch}"
        )
    if test is not None:
        loss = model.evaluate(test)
        print(f"test loss {loss:.4f} nats per {token}, {describe_loss(loss, unit)}")
    if history.seconds > 0 and history.tokens:
        print(f"{history.seconds:.1f} s, {history.tokens / history.seconds:,.0f} tokens/s with validation")
    if options.plot is not None:
        plot_log(options.log, options.plot)
        print(f"wrote {options.plot}")
    return 0


def _how_to_continue(options: argparse.Namespace, checkpoint: Path) -> None:
    """What to type after Ctrl-C."""
    words = [word for word in options.words if word != "--resume"]
    print(
        f"\ninterrupted; the state of the last completed step is in {checkpoint}. Continue with:\n"
        f"  {shlex.join(['fusedlstm', *words, '--resume'])}",
        file=sys.stderr,
    )
