"""``fusedlstm translate``: lines of text through a sequence-to-sequence model."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fusedlstm.cli.options import (
    add_threads,
    natural_int,
    positive,
    positive_int,
    probability,
    use_threads,
)

if TYPE_CHECKING:
    from fusedlstm import Seq2Seq


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "translate",
        help="translate lines with a trained encoder-decoder",
        description="Translate every line of UTF-8 text files, or of standard input as lines come, with a "
        "model of fusedlstm train-pairs. One line is written for each, at once.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL", help="file written by fusedlstm train-pairs")
    parser.add_argument("files", nargs="*", metavar="FILE", help="source sentences (default: standard input)")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--beam",
        type=positive_int,
        default=5,
        metavar="W",
        help="hypotheses that are kept; 1: greedy (default: %(default)s)",
    )
    search.add_argument(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="A",
        help="score = log-probability / length^A (default: %(default)s)",
    )
    search.add_argument(
        "--n-best",
        type=positive_int,
        default=1,
        metavar="N",
        help="write the N best of every line, each as score, tab, text (default: the best one's text)",
    )
    search.add_argument(
        "--length",
        type=positive_int,
        default=200,
        metavar="N",
        help="most tokens of a translation (default: %(default)s)",
    )
    search.add_argument(
        "--batch",
        type=positive_int,
        metavar="N",
        help="lines translated together (default: 32 for files, 1 for standard input)",
    )
    draw = parser.add_argument_group("drawing instead of searching")
    draw.add_argument("--sample", action="store_true", help="draw every token at random")
    draw.add_argument("--temperature", type=positive, metavar="X", help="default: 1")
    draw.add_argument("--top-k", type=natural_int, metavar="K", help="among the K most probable tokens")
    draw.add_argument(
        "--top-p", type=probability, metavar="P", help="among the most probable tokens that make up P"
    )
    draw.add_argument("--seed", type=natural_int, metavar="N", help="line n draws with N + n (default: 0)")
    parser.add_argument(
        "--bleu", metavar="FILE", help="reference translations: BLEU on standard error (needs sacrebleu)"
    )
    parser.add_argument(
        "--tokenize",
        default="13a",
        metavar="NAME",
        help="how sacrebleu splits text; none for text that is tokenised already (default: %(default)s)",
    )
    parser.add_argument("--stats", action="store_true", help="lines per second, on standard error")
    parser.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16", "int8"),
        help="of the products of LSTMs and output layer (default: what the model was trained with)",
    )
    add_threads(parser)


def _lines(files: list[str]) -> Iterator[str]:
    """Source sentences: all of the files, or standard input as it comes."""
    from fusedlstm.data import read_lines

    if files:
        for path in files:
            yield from read_lines(path)
        return
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        yield _decoded(raw, number)


def _decoded(raw: bytes, number: int) -> str:
    try:
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input: line {number} is not UTF-8: byte 0x{raw[error.start]:02x} at offset "
            f"{error.start}"
        ) from None


def _batches(lines: Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for line in lines:
        batch.append(line)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _check(options: argparse.Namespace) -> dict[str, Any]:
    """Options of drawing that were given."""
    names = ("temperature", "top_k", "top_p", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if given and not options.sample:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} belongs to --sample")
    if options.n_best > options.beam:
        raise ValueError(f"--n-best must be at most --beam, got {options.n_best} of {options.beam}")
    if options.sample and options.n_best > 1:
        raise ValueError("--n-best belongs to the search, not to --sample")
    return given


def run(options: argparse.Namespace) -> int:
    """Translate line after line."""
    from fusedlstm import Seq2Seq
    from fusedlstm.data import read_lines
    from fusedlstm.models import corpus_bleu

    draw = _check(options)
    use_threads(options.threads)
    references = None if options.bleu is None else read_lines(options.bleu)
    model = Seq2Seq.load(options.model, compute_dtype=options.compute_dtype)
    lines = _lines(options.files)
    if options.files:  # a wrong line is no reason to stop half-way
        sources = list(lines)
        _check_sources(model, sources)
        if references is not None and len(references) != len(sources):
            raise ValueError(
                f"{options.bleu}: {len(references)} references for {len(sources)} source sentences"
            )
        lines = iter(sources)
    started, done, best = time.perf_counter(), 0, []
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        warnings.simplefilter("always")
        for batch in _batches(lines, options.batch or (32 if options.files else 1)):
            for found in _translate(model, batch, options, draw, done):
                best.append(found[0][1])
                for score, text in found:
                    print(f"{score:.4f}\t{text}" if options.n_best > 1 else text)
            sys.stdout.flush()
            done += len(batch)
    seconds = time.perf_counter() - started
    if options.stats:
        rate = done / max(seconds, 1e-9)
        print(f"{done} lines in {seconds:.3f} s, {rate:,.1f} lines/s", file=sys.stderr)
    if references is not None:
        score, signature = corpus_bleu(best, references, tokenize=options.tokenize)
        print(f"BLEU {score:.2f}  {signature}", file=sys.stderr)
    return 0


def _check_sources(model: Seq2Seq, sources: list[str]) -> None:
    tokenizer = model.tokenizers.source
    for number, source in enumerate(sources, start=1):
        ids = tokenizer.encode(source)
        if not len(ids):
            raise ValueError(f"line {number} is empty")
        if tokenizer.all_unknown(ids):
            raise ValueError(f"line {number} has unknown tokens only: {source[:60]!r}")


def _translate(
    model: Seq2Seq, batch: list[str], options: argparse.Namespace, draw: dict[str, Any], done: int
) -> Iterator[list[tuple[float, str]]]:
    """(Score, text) of the best translations of every line."""
    try:
        if options.sample:
            seed = draw.get("seed", 0) + done
            texts = model.generate(batch, max_new_tokens=options.length, **{**draw, "seed": seed})
            yield from ([(0.0, text)] for text in texts)
            return
        found = model.beam_search(
            batch,
            width=options.beam,
            num_return=options.n_best,
            length_penalty=options.length_penalty,
            max_new_tokens=options.length,
        )
    except ValueError as error:
        which = f"line {done + 1}" if len(batch) == 1 else f"lines {done + 1} to {done + len(batch)}"
        raise ValueError(f"{which}: {error}") from None
    for hypotheses in found:
        yield [(hypothesis.score, hypothesis.text) for hypothesis in hypotheses]
