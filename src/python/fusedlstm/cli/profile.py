"""``fusedlstm profile``: where the time of training, inference, generation or streaming goes."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fusedlstm.cli.options import add_threads, positive, positive_int, use_threads

if TYPE_CHECKING:
    from fusedlstm import LanguageModel

Work = Callable[[], object]
DTYPES = ("float32", "float64", "bfloat16", "int8")
OVERHEAD_PAIRS = 20


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "profile",
        help="show where the time goes",
        description="Run an LSTM of any shape, or a model of fusedlstm train, on random input and show where "
        "the time goes: by phase, layer and thread, beside what this machine can do.",
    )
    parser.set_defaults(run=run, what="train")
    what = parser.add_mutually_exclusive_group()
    for name, text in {
        "train": "training steps with Adam (default)",
        "infer": "calls over whole sequences",
        "generate": "sampling of tokens",
        "stream": "one step per call, the state kept",
    }.items():
        what.add_argument(f"--{name}", dest="what", action="store_const", const=name, help=text)
    shape = parser.add_argument_group("shape")
    shape.add_argument(
        "--batch", type=positive_int, default=64, metavar="N", help="sequences (default: %(default)s)"
    )
    shape.add_argument(
        "--time", type=positive_int, default=128, metavar="T", help="steps (default: %(default)s)"
    )
    shape.add_argument("--input", type=positive_int, metavar="I", help="features of a step (default: H)")
    shape.add_argument(
        "--hidden",
        type=positive_int,
        default=512,
        metavar="H",
        help="units (default: %(default)s)",
    )
    shape.add_argument(
        "--layers", type=positive_int, default=2, metavar="L", help="layers (default: %(default)s)"
    )
    shape.add_argument(
        "--vocabulary",
        type=positive_int,
        metavar="V",
        help="a language model of V tokens instead of dense input; --generate has 96",
    )
    shape.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the products (default: %(default)s)"
    )
    shape.add_argument("--model", metavar="FILE", help="a model of fusedlstm train instead of a shape")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=2.0,
        metavar="S",
        help="repeat for so long, at least once (default: %(default)s)",
    )
    parser.add_argument(
        "--overhead", action="store_true", help="also compare the time with and without the profiler"
    )
    files = parser.add_argument_group("output besides the table")
    files.add_argument("--json", metavar="FILE", help="the table's numbers")
    files.add_argument("--trace", metavar="FILE", help="every interval, for https://ui.perfetto.dev")
    files.add_argument("--roofline", metavar="FILE", help="a picture (needs matplotlib)")
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    """Warm up, profile, show."""
    from fusedlstm.profiling import profile

    use_threads(options.threads)
    work, dtype, text = _workload(options)
    work()  # weights are packed, memory is there, threads are awake
    repeats = 0
    with profile(trace=options.trace is not None, dtype=dtype) as found:
        end = time.perf_counter() + options.seconds
        while not repeats or time.perf_counter() < end:
            work()
            repeats += 1
    print(f"{text}: {repeats} times, {found.seconds / repeats:.6f} s each\n")
    print(found.table())
    if options.overhead:
        print(f"\nwith the profiler on, a time is {_overhead(work):+.2%} longer (median of {OVERHEAD_PAIRS})")
    if options.json:
        found.save_json(options.json)
    if options.trace:
        found.save_trace(options.trace)
    if options.roofline:
        found.plot_roofline(options.roofline)
    return 0


def _overhead(work: Work) -> float:
    """Median of what a repetition takes longer with the profiler than its neighbour without."""
    from fusedlstm.profiling import profile

    def seconds() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    ratios = []
    for _ in range(OVERHEAD_PAIRS):
        off = seconds()
        with profile():
            on = seconds()
        ratios.append(on / off)
    return statistics.median(ratios) - 1


def _workload(options: argparse.Namespace) -> tuple[Work, str, str]:
    """What is repeated, the type of its products, and its description."""
    if options.model is not None:
        from fusedlstm import LanguageModel

        compute = None if options.dtype == "float32" else options.dtype
        model = LanguageModel.load(options.model, compute_dtype=compute)
        work = _language_model(model, options)
        return work, model.lstm.compute_dtype or model.dtype, f"{options.what}, {options.model}"
    shape = f"batch {options.batch}, time {options.time}, {options.layers} x {options.hidden}"
    if options.vocabulary is not None or options.what == "generate":
        model = _new_language_model(options)
        text = f"{options.what}, {shape}, {len(model.vocabulary)} tokens"
        return _language_model(model, options), options.dtype, text
    work = _dense(options)
    return work, options.dtype, f"{options.what}, {shape}, input {options.input or options.hidden}"


def _new_language_model(options: argparse.Namespace) -> LanguageModel:
    from fusedlstm import LanguageModel
    from fusedlstm.data import Vocabulary

    symbols = [chr(0x4E00 + token) for token in range(options.vocabulary or 96)]
    model = LanguageModel(
        Vocabulary("char", symbols),
        embedding_size=options.input or options.hidden,
        hidden_size=options.hidden,
        num_layers=options.layers,
        dtype="float64" if options.dtype == "float64" else "float32",
    )
    if options.dtype in ("bfloat16", "int8"):
        model.lstm.compute_dtype = options.dtype
    return model


def _language_model(model: LanguageModel, options: argparse.Namespace) -> Work:
    import numpy as np

    from fusedlstm import _core
    from fusedlstm.training import Adam

    N, T = options.batch, options.time
    tokens = np.random.default_rng(0).integers(0, len(model.vocabulary), (N, T + 1), dtype=np.int32)
    if options.what == "stream":
        return _stream(model.lstm, options)
    if options.what == "generate":
        prompts = [model.vocabulary.decode(row[:1]) for row in tokens]
        return lambda: model.sample(prompts, max_new_tokens=T)
    inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    if options.what == "infer":
        return lambda: model.lstm(inputs, embedding=model.embedding)
    optimiser, state = Adam(), model.zero_state(N)

    def step() -> None:
        model.zero_grad()
        model.training_step(inputs, targets, state, scale=1.0 / inputs.size, seed=0)
        norm = _core.gradient_norm(model.gradients)
        optimiser.step(model.parameters, model.gradients, gradient_scale=min(1.0, 5.0 / norm))
        model.mark_updated()

    return step


def _dense(options: argparse.Namespace) -> Work:
    import numpy as np

    from fusedlstm import nn
    from fusedlstm.training import Adam

    dtype = "float64" if options.dtype == "float64" else "float32"
    compute = options.dtype if options.dtype in ("bfloat16", "int8") else None
    I, H = options.input or options.hidden, options.hidden
    lstm = nn.LSTM(I, H, options.layers, dtype=dtype, compute_dtype=compute)
    if options.what == "stream":
        return _stream(lstm, options)
    x = np.random.default_rng(0).standard_normal((options.batch, options.time, I)).astype(dtype)
    if options.what == "infer":
        return lambda: lstm(x)
    model = nn.Sequential(lstm, nn.Linear(H, I, dtype=dtype))
    loss_function, optimiser = nn.MSELoss(), Adam()

    def step() -> None:
        model.zero_grad()
        y, tape = model.forward(x)
        _, dy = loss_function(y, x)
        model.backward(tape, dy, need_dx=False)
        optimiser.step(model.parameters, model.gradients)
        model.mark_updated()

    return step


def _stream(lstm: Any, options: argparse.Namespace) -> Work:
    import numpy as np

    rows = options.batch
    stream = lstm.stream(rows)
    for _ in range(rows - 1):
        stream.join()
    shape = (lstm.input_size,) if rows == 1 else (rows, lstm.input_size)
    x = np.random.default_rng(0).standard_normal((options.time, *shape)).astype(lstm.dtype)

    def steps() -> None:
        for x_t in x:
            stream.step(x_t)

    return steps
