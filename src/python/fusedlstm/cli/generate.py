"""``fusedlstm generate``: text from a model file, as it comes."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from fusedlstm.cli.options import add_sampling, add_threads, natural_int, sampling, use_threads

if TYPE_CHECKING:
    from fusedlstm import LanguageModel
    from fusedlstm.generation import TextStream


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "generate",
        help="write text with a trained model",
        description="Continue prompts with a trained model; characters appear as they come.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL", help="file written by fusedlstm train")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to continue; may be given several times (default: the start of a line)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TOKEN",
        help="end after this character, byte or word; may be given several times",
    )
    parser.add_argument(
        "--stop-string",
        action="append",
        default=[],
        metavar="TEXT",
        help="end after this text; may be given several times",
    )
    parser.add_argument(
        "--min-length",
        type=natural_int,
        default=0,
        metavar="N",
        help="do not stop before N characters, bytes or words (default: %(default)s)",
    )
    parser.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16", "int8"),
        help="of the LSTM's products (default: what the model was trained with)",
    )
    parser.add_argument("--stats", action="store_true", help="tokens per second, on standard error")
    add_sampling(parser, length=500, temperature=1.0)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    """Continue every prompt, one after the other."""
    from fusedlstm import LanguageModel

    use_threads(options.threads)
    model = LanguageModel.load(options.model, compute_dtype=options.compute_dtype)
    prompts = options.prompt or [default_prompt(model)]
    # all of them first: a bad one is no reason to stop half-way
    streams = [
        model.stream(
            prompt,
            stop=options.stop,
            stop_strings=options.stop_string,
            min_new_tokens=options.min_length,
            **sampling(options),
        )
        for prompt in prompts
    ]
    for number, (prompt, stream) in enumerate(zip(prompts, streams, strict=True), start=1):
        if len(prompts) > 1:
            print(f"=== prompt {number} of {len(prompts)}: {prompt!r}", flush=True)
        # words are separated by the piece that follows
        sys.stdout.write((prompt.rstrip(" ") if model.vocabulary.kind == "word" else prompt).lstrip("\n"))
        rate = show(stream)
        if options.stats:
            print(rate, file=sys.stderr)
    return 0


def show(stream: TextStream) -> str:
    """Print the pieces as they come; how fast that was."""
    started = time.perf_counter()
    try:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(flush=True)
        raise
    finally:
        stream.close()
    seconds = time.perf_counter() - started
    print(flush=True)
    return f"{stream.tokens} tokens in {seconds:.3f} s, {stream.tokens / max(seconds, 1e-9):,.0f} tokens/s"


def default_prompt(model: LanguageModel) -> str:
    """The end of a line, after which a new one starts; else the first character there is."""
    return model.vocabulary.symbols[0] if model.vocabulary.end_of_line is None else "\n"
