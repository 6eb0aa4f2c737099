"""Argument types and groups shared by the commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def _number(
    kind: type[int] | type[float], wanted: str, valid: Callable[[float], bool]
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not valid(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return parse


INF = float("inf")
positive_int = _number(int, "a whole number > 0", lambda value: value > 0)
natural_int = _number(int, "a whole number >= 0", lambda value: value >= 0)
positive = _number(float, "a number > 0", lambda value: 0 < value < INF)
not_negative = _number(float, "a number >= 0", lambda value: 0 <= value < INF)
fraction = _number(float, "in [0, 1)", lambda value: 0 <= value < 1)
probability = _number(float, "in (0, 1]", lambda value: 0 < value <= 1)


def add_threads(parser: argparse._ActionsContainer) -> None:
    """``--threads``."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads to use (default: FUSEDLSTM_NUM_THREADS, OMP_NUM_THREADS, or the CPUs of this process)",
    )


def use_threads(threads: int | None) -> None:
    """Apply ``--threads``."""
    if threads is not None:
        from fusedlstm import _core

        _core.set_num_threads(threads)


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Those of ``add_sampling``, as models' methods name them."""
    return {
        "max_new_tokens": options.length,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "typical_p": options.typical_p,
        "repetition_penalty": options.repetition_penalty,
        "no_repeat_ngram_size": options.no_repeat_ngram_size,
        "greedy": options.greedy,
        "seed": options.seed,
    }


def add_sampling(parser: argparse.ArgumentParser, *, length: int, temperature: float) -> None:
    """Options that say how the next token is chosen."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--length",
        type=natural_int,
        default=length,
        metavar="N",
        help="characters, bytes or words to write (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=positive,
        default=temperature,
        metavar="X",
        help="below 1 more predictable, above 1 more varied (default: %(default)s)",
    )
    group.add_argument(
        "--top-k",
        type=natural_int,
        default=0,
        metavar="K",
        help="choose among the K most probable tokens; 0: all (default: %(default)s)",
    )
    group.add_argument(
        "--top-p",
        type=probability,
        default=1.0,
        metavar="P",
        help="choose among the most probable tokens that make up this probability (default: %(default)s)",
    )
    group.add_argument(
        "--min-p",
        type=fraction,
        default=0.0,
        metavar="P",
        help="choose among tokens at least P times as probable as the most probable (default: %(default)s)",
    )
    group.add_argument(
        "--typical-p",
        type=probability,
        default=1.0,
        metavar="P",
        help="choose among the most typical tokens that make up this probability (default: %(default)s)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=positive,
        default=1.0,
        metavar="X",
        help="above 1, what was written before becomes less probable (default: %(default)s)",
    )
    group.add_argument(
        "--no-repeat-ngram-size",
        type=natural_int,
        default=0,
        metavar="N",
        help="write no N tokens in a row twice; 0: may (default: %(default)s)",
    )
    group.add_argument("--greedy", action="store_true", help="always take the most probable token")
    group.add_argument(
        "--seed",
        type=natural_int,
        default=0,
        metavar="N",
        help="same seed, same text (default: %(default)s)",
    )
