"""Command line: ``fusedlstm demo | train | generate | train-pairs | translate | profile | info``.

Exit codes: 0 done, 1 error (one line on standard error), 2 wrong usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fusedlstm.cli import demo, generate, info, profile, train, train_pairs, training, translate


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusedlstm",
        description="Train LSTMs on text, generate and translate with them, on the CPU.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in (demo, train, generate, train_pairs, translate, profile, info):
        module.add_parser(commands)
    return parser


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words after the program's name; those of the process by default.

    Returns
    -------
    int
        Exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    try:
        options = training.parse(parser, words)
        if options.version:
            from fusedlstm import __version__

            print(f"fusedlstm {__version__}")
            return 0
        if options.command is None:
            parser.print_help()
            return 2
        code: int = options.run(options)
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of a pipe (head) has gone: not an error, but Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ArithmeticError, ImportError, MemoryError) as error:
        print(f"fusedlstm: error: {_message(error)}", file=sys.stderr)
        return 1
