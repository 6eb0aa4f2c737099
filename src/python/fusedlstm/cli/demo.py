"""``fusedlstm demo``: a minute from nothing to generated Python, with text that is on every machine."""

from __future__ import annotations

import argparse
import sys
import sysconfig
from pathlib import Path
from typing import Any

from fusedlstm.cli.generate import show
from fusedlstm.cli.options import add_sampling, add_threads, positive, sampling, use_threads

MAX_CHARACTERS = 4_000_000


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="train for a minute on the Python standard library and write code",
        description="Train a small character model on the source of the Python standard library for about a "
        "minute, then let it write code.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--seconds", type=positive, default=60.0, metavar="S", help="training time (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt", default="\ndef ", metavar="TEXT", help="what to continue (default: '\\ndef ')"
    )
    parser.add_argument("-o", "--output", metavar="MODEL", help="keep the model in this file")
    add_sampling(parser, length=500, temperature=0.6)
    add_threads(parser)


def source_text(limit: int = MAX_CHARACTERS) -> str:
    """Python's own library, in the order of file names, until `limit` characters.

    Only ASCII files: a few rare characters would cost a vocabulary twice as large.
    """
    pieces, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            piece = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            continue  # unreadable or not ASCII: the library has enough others
        pieces.append(piece)
        size += len(piece)
        if size >= limit:
            break
    text = "".join(pieces)[:limit]
    if len(text) < 100_000:
        raise ValueError(
            f"the demo needs the source of the standard library, found only {len(text)} characters in "
            f"{sysconfig.get_path('stdlib')}"
        )
    return text


def run(options: argparse.Namespace) -> int:
    """Train, then write."""
    from fusedlstm import LanguageModel, isa, num_threads
    from fusedlstm.data import Vocabulary
    from fusedlstm.training import Adam, Cosine

    use_threads(options.threads)
    text = source_text()
    model = LanguageModel(
        Vocabulary.from_text(text), embedding_size=64, hidden_size=256, num_layers=1, seed=options.seed
    )
    model.vocabulary.encode(options.prompt)  # an unknown character is found out before training, not after
    print(
        f"{len(text):,} characters of the Python standard library; {model.num_parameters:,} parameters; "
        f"{num_threads()} threads, {isa()}; about {options.seconds:.0f} s",
        file=sys.stderr,
    )
    history = model.fit(
        text,
        validation=20_000 / len(text),
        epochs=1000,
        batch_size=32,
        window=32,
        optimiser=Adam(0.008),
        schedule=Cosine(warmup_steps=20, final=0.05),
        seconds=options.seconds,
        seed=options.seed,
    )
    if options.output is not None:
        model.save(options.output)
    print(
        f"trained on {history.tokens:,} characters, {history.tokens / history.seconds:,.0f} characters/s\n",
        file=sys.stderr,
    )
    stream = model.stream(options.prompt, **sampling(options))
    sys.stdout.write(options.prompt.lstrip("\n"))
    print(f"\n{show(stream)}", file=sys.stderr)
    return 0
