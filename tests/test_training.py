"""Training: against PyTorch's loop, bit-exact over kills and resumes, and when something fails."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tolerances import assert_close

from fusedlstm import LanguageModel
from fusedlstm.data import BatchStream, Vocabulary
from fusedlstm.io import FormatError
from fusedlstm.training import (
    SGD,
    Adam,
    AdamW,
    Checkpoint,
    Constant,
    Cosine,
    Plateau,
    StepDecay,
    TrainingLog,
    fit,
    plot_log,
    read_log,
)
from fusedlstm.training.interrupts import Interrupts

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40


def tiny(**options) -> LanguageModel:
    return LanguageModel(
        Vocabulary.from_text(TEXT), **{"hidden_size": 8, "num_layers": 2, "seed": 3, **options}
    )


def losses(path) -> list[float]:
    return [event["loss"] for event in read_log(path) if event["event"] == "step"]


# the loop against PyTorch's ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_scale", ["mean", "batch"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_fit_is_pytorchs_truncated_bptt(optimiser, loss_scale, tmp_path):
    """Two epochs in float64: lanes, carried state, clipping, Zaremba's scale and decay, validation."""
    model = tiny(dtype="float64")
    N, T = 4, 10
    clip = {"sgd": 0.2, "adam": 0.25}[optimiser] * (
        1 if loss_scale == "mean" else T
    )  # clips half of the steps
    tokens = model.vocabulary.encode(TEXT)
    start = {name: torch.tensor(value) for name, value in model.state_dict().items()}
    ours = {"sgd": SGD(0.5), "adam": Adam(0.01)}[optimiser]
    history = model.fit(
        tokens[:1000],
        validation=tokens[1000:1200],
        epochs=2,
        batch_size=N,
        window=T,
        optimiser=ours,
        schedule=StepDecay(0.5, after=1),
        clip=clip,
        loss_scale=loss_scale,
        keep_best=False,
        log=tmp_path / "log",
        progress=False,
    )

    lstm = torch.nn.LSTM(8, 8, 2, batch_first=True, dtype=torch.float64)
    embedding, output = torch.nn.Embedding(28, 8), torch.nn.Linear(8, 28)
    peer = torch.nn.ModuleDict({"lstm": lstm, "embedding": embedding, "output": output}).double()
    peer.load_state_dict(start)
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser](peer.parameters(), lr=ours.lr)

    def loss_of(x, y, state):
        h, state = lstm(embedding(torch.tensor(x, dtype=torch.long)), state)
        logits = output(h).flatten(0, 1)
        targets = torch.tensor(y, dtype=torch.long).flatten()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), state

    stream = BatchStream(tokens[:1000], N, T)
    expected, norms, validation = [], [], []
    for epoch in range(2):
        state = None
        for group in theirs.param_groups:
            group["lr"] = ours.lr * 0.5**epoch
        for x, y in stream:
            theirs.zero_grad()
            total, state = loss_of(x, y, state)
            state = tuple(part.detach() for part in state)
            (total / (x.size if loss_scale == "mean" else N)).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(peer.parameters(), clip)))
            theirs.step()
            expected.append(total.item() / x.size)
        held_out = tokens[1000:1200]
        with torch.no_grad():
            # evaluate: 199 predictions in 4 lanes of 50, 50, 50 and 49
            total = sum(
                loss_of(held_out[None, i : min(i + 50, 199)], held_out[None, i + 1 : i + 51], None)[0].item()
                for i in range(0, 199, 50)
            )
        validation.append(total / 199)
    steps = [event for event in read_log(tmp_path / "log") if event["event"] == "step"]
    assert len(steps) == len(expected) == 2 * len(stream)
    assert sum(norm > clip for norm in norms) > 10  # clipping was at work
    assert sum(norm < clip for norm in norms) > 10
    # PyTorch's clip divides by norm + 1e-6; over 50 steps that is what differs
    np.testing.assert_allclose([step["loss"] for step in steps], expected, rtol=2e-6)
    np.testing.assert_allclose([step["gradient_norm"] for step in steps], norms, rtol=1e-4)
    np.testing.assert_allclose([entry["validation_loss"] for entry in history.epochs], validation, rtol=2e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (Adam, torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-6}),
        (Adam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
        (AdamW, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    ],
)
def test_optimisers_are_pytorchs_over_a_restart(ours, theirs, options, rng, dtype):
    optimiser = ours(**options)
    parameters = rng.standard_normal(50).astype(dtype)
    leaf = torch.tensor(parameters, requires_grad=True)
    peer = theirs([leaf], **options)
    for step in range(10):
        if step == 5:  # a fresh object takes over the state
            state = {name: value.copy() for name, value in optimiser.state().items()}
            optimiser = ours(**{k: v for k, v in optimiser.config().items() if k != "name"})
            optimiser.load_state(state)
        gradients = rng.standard_normal(50).astype(dtype)
        leaf.grad = torch.tensor(gradients)
        peer.step()
        optimiser.step(parameters, 2 * gradients, gradient_scale=0.5)
    assert_close(parameters, leaf.detach().numpy(), "optimiser")


def test_schedules():
    at = {"step": 0, "progress": 0.0}
    assert Constant().factor(epoch=9, **at) == 1.0
    # Zaremba's small model: 1 for four epochs, then 1/2, 1/4, ...
    assert [StepDecay(0.5, after=4).factor(epoch=e, **at) for e in range(7)] == [1, 1, 1, 1, 0.5, 0.25, 0.125]
    # Sutskever, Vinyals and Le: halved every half epoch after five
    halves = [
        StepDecay(0.5, after=5, every=0.5).factor(epoch=e, **at) for e in (4.99, 5, 5.49, 5.5, 6.0, 7.4)
    ]
    assert halves == [1, 0.5, 0.5, 0.25, 0.125, 0.03125]
    cosine = Cosine(warmup_steps=4, final=0.1)
    assert [cosine.factor(step=s, epoch=0, progress=0.0) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine.factor(step=99, epoch=0, progress=1.0) == pytest.approx(0.1)
    plateau = Plateau(0.5, patience=1)
    factors = []
    for loss in (3.0, 3.1, 3.0, 2.9, 2.95, 3.0, 2.0):
        plateau.epoch_end(loss)
        factors.append(plateau.factor(epoch=0, **at))
        again = Plateau(0.5, patience=1)
        again.load_state(json.loads(json.dumps(plateau.state())))
        plateau = again
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_early_stopping_and_best_model(tmp_path):
    """Overtrained on one line, the validation loss of other text rises: the best epoch's model is kept."""
    model = tiny(hidden_size=32)
    log = tmp_path / "log"
    history = model.fit(
        TEXT[:500], validation="dog lazy the over jumps fox brown quick the\n" * 3, epochs=60, batch_size=4,
        window=20, lr=0.02, early_stopping=3, log=log, progress=False,
    )  # fmt: skip
    validation = [entry["validation_loss"] for entry in history.epochs]
    assert history.stopped == "early stopping"
    assert history.best_epoch == int(np.argmin(validation)) + 1 == len(validation) - 3
    assert model.evaluate(
        "dog lazy the over jumps fox brown quick the\n" * 3, batch_size=4, window=20
    ) == min(validation)
    assert read_log(log)[-1]["event"] == "end"


def test_time_budget():
    history = tiny().fit(
        TEXT, epochs=10**6, batch_size=4, window=20, seconds=0.3, schedule=Cosine(), progress=False
    )
    assert history.stopped == "time"
    assert 0.2 < history.seconds < 5
    assert history.epochs[-1]["lr"] < 0.2 * 1e-3


# killed and resumed --------------------------------------------------------------------------------------

PROGRAM = f"""
import sys, time
from fusedlstm import LanguageModel
from fusedlstm.data import Vocabulary
from fusedlstm.training import SGD, Adam, Cosine, Plateau
log, checkpoint, model_path, kind, steps = sys.argv[1:]
text, words = {TEXT!r}, kind == "sgd"
model = LanguageModel(Vocabulary.from_text(text, "word" if words else "char"), hidden_size=8, num_layers=2,
                      dropout=0.3, embedding_dropout=0.2, seed=3)
real, calls = model.training_step, []
def training_step(*arguments, **options):
    calls.append(1)
    if len(calls) == int(steps):  # in the middle of this step the parent kills
        print("now", flush=True)
        time.sleep(60)
    return real(*arguments, **options)
model.training_step = training_step
model.fit(text, validation=0.2, epochs=4, batch_size=4, window=10 if words else 30,
          optimiser=SGD(0.5, momentum=0.5) if words else Adam(0.01),
          schedule=Plateau(0.5) if words else Cosine(warmup_steps=5),
          loss_scale="batch" if words else "mean", clip=1.0, seed=7,
          log=log, checkpoint=checkpoint, checkpoint_steps=3, resume=True, progress=False)
model.save(model_path)
"""


def start(folder, kind: str, steps: int) -> subprocess.Popen:
    """A run that stops and waits in step ``steps`` of its process; 0: that does not."""
    paths = [str(folder / name) for name in ("log", "checkpoint", "model")]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *paths, kind, str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "Ctrl-C"])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_killed_and_resumed_is_the_same_to_the_last_bit(kind, how, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    finish(start(whole, kind, 0))
    for steps in (2, 6, 17):  # before the first checkpoint, within the first epoch, and in a later one
        process = start(torn, kind, steps)
        ready = process.stdout.readline()
        process.send_signal(how)
        _, err = process.communicate(timeout=30)
        assert ready == "now\n", err
        assert process.returncode == -how, err
        assert not (torn / "model").exists()
        if how == signal.SIGINT:
            # every completed step is in the checkpoint, and nothing else is in the log
            saved = Checkpoint.load(torn / "checkpoint")
            assert saved.counters["step"] == len(losses(torn / "log"))
            assert saved.log_position[0] == (torn / "log").stat().st_size
    finish(start(torn, kind, 0))
    assert (torn / "log").read_bytes() == (whole / "log").read_bytes()
    ours, theirs = (LanguageModel.load(folder / "model") for folder in (torn, whole))
    assert np.array_equal(ours.parameters, theirs.parameters)
    assert len(set(losses(whole / "log"))) > 10
    # nothing but the files asked for is left behind
    assert sorted(path.name for path in torn.iterdir()) == ["checkpoint", "log", "model"]


def test_more_epochs_after_the_end(tmp_path):
    """Three epochs, then two more, are five epochs, best model included."""
    options = {"validation": 0.2, "batch_size": 4, "window": 20, "lr": 0.01, "progress": False}
    one = tiny(dropout=0.2)
    one.fit(TEXT, epochs=5, log=tmp_path / "one", checkpoint=tmp_path / "c1", **options)
    two = tiny(dropout=0.2)
    two.fit(TEXT, epochs=3, log=tmp_path / "two", checkpoint=tmp_path / "c2", **options)
    again = tiny(dropout=0.2, seed=99)  # parameters come from the checkpoint
    history = again.fit(
        TEXT, epochs=5, log=tmp_path / "two", checkpoint=tmp_path / "c2", resume=True, **options
    )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert np.array_equal(again.parameters, one.parameters)
    assert len(history.epochs) == 5


def test_resume_refuses_another_run(tmp_path):
    checkpoint, log = tmp_path / "c", tmp_path / "log"
    options = {
        "batch_size": 4,
        "window": 20,
        "epochs": 1,
        "log": log,
        "checkpoint": checkpoint,
        "progress": False,
    }
    tiny().fit(TEXT, **options)
    before = log.read_bytes()

    def resume(model=None, text=TEXT, **changes):
        (model or tiny()).fit(text, resume=True, **{**options, **changes})

    with pytest.raises(ValueError, match="batch_size was 4, now 5"):
        resume(batch_size=5)
    with pytest.raises(ValueError, match=r"optimiser was .*'lr': 0.001.* now .*'lr': 0.5"):
        resume(lr=0.5)
    with pytest.raises(ValueError, match="tokens was"):
        resume(text=TEXT[1:])
    with pytest.raises(ValueError, match="model was"):
        resume(model=tiny(num_layers=1))
    assert log.read_bytes() == before
    log.write_bytes(b"somebody's own file\n" * 1000)
    with pytest.raises(ValueError, match="does not begin with"):
        resume(epochs=2)
    assert log.read_bytes() == b"somebody's own file\n" * 1000
    with pytest.raises(ValueError, match="resume needs the name of a checkpoint"):
        resume(checkpoint=None)


def test_checkpoint_of_an_unfinished_run_is_not_overwritten(tmp_path):
    checkpoint = tmp_path / "c"
    options = {"batch_size": 4, "window": 20, "checkpoint": checkpoint, "progress": False}
    model = tiny()
    with pytest.raises(KeyboardInterrupt):
        interrupted_after(3, model, **options)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="unfinished run"):
        tiny().fit(TEXT, **options)
    assert checkpoint.read_bytes() == before
    tiny().fit(TEXT, resume=True, epochs=1, **options)
    tiny().fit(TEXT, epochs=1, **options)  # a finished one may be replaced


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "model"])
def test_damaged_checkpoints_are_refused(damage, tmp_path):
    checkpoint = tmp_path / "c"
    options = {"batch_size": 4, "window": 20, "epochs": 1, "checkpoint": checkpoint, "progress": False}
    model = tiny()
    model.fit(TEXT, **options)
    data = bytearray(checkpoint.read_bytes())
    if damage == "truncated":
        checkpoint.write_bytes(data[:-10])
    elif damage == "flipped":
        data[-10] ^= 1
        checkpoint.write_bytes(data)
    elif damage == "foreign":
        checkpoint.write_bytes(b"{}")
    else:
        model.save(checkpoint)
    before = model.parameters.copy()
    with pytest.raises(FormatError, match="c: "):
        model.fit(TEXT, resume=True, **options)
    assert np.array_equal(model.parameters, before)


# Ctrl-C in one process -----------------------------------------------------------------------------------


def interrupted_after(steps: int, model: LanguageModel, **options) -> None:
    """Fit with a Ctrl-C in the middle of step ``steps + 1``: between forward and backward."""
    real, calls = model.lstm.backward, []

    def backward(*arguments, **keywords):
        calls.append(1)
        if len(calls) == steps + 1:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    model.lstm.backward = backward
    try:
        model.fit(TEXT, **options)
    finally:
        del model.lstm.backward


def test_interrupted_step_leaves_no_trace(tmp_path):
    options = {"batch_size": 4, "window": 20, "epochs": 2, "progress": False}
    whole = tiny()
    whole.fit(TEXT, log=tmp_path / "whole", **options)
    model = tiny()
    files = {"log": tmp_path / "log", "checkpoint": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        interrupted_after(5, model, **options, **files)
    saved = Checkpoint.load(tmp_path / "c")
    assert saved.counters["step"] == 5
    assert np.array_equal(saved.tensors["parameters"], model.parameters)
    model.fit(TEXT, resume=True, **options, **files)
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()
    assert np.array_equal(model.parameters, whole.parameters)


def test_interrupted_validation_is_repeated(tmp_path):
    options = {"validation": 0.2, "batch_size": 4, "window": 20, "epochs": 2, "progress": False}
    whole = tiny()
    whole.fit(TEXT, log=tmp_path / "whole", **options)
    model = tiny()
    files = {"log": tmp_path / "log", "checkpoint": tmp_path / "c"}

    def evaluate(*arguments, **options):
        raise KeyboardInterrupt

    model.evaluate = evaluate
    with pytest.raises(KeyboardInterrupt):
        model.fit(TEXT, **options, **files)
    del model.evaluate
    assert read_log(tmp_path / "log")[-1]["event"] == "step"
    history = model.fit(TEXT, resume=True, **options, **files)
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()
    assert np.array_equal(model.parameters, whole.parameters)
    assert len(history.epochs) == 2


def test_ctrl_c_waits_for_the_end_of_a_shield():
    done = []

    def torn() -> None:
        with Interrupts() as interrupts, interrupts.shield:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        torn()
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def outside() -> None:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        outside()
    assert time.monotonic() - before < 2


# failures ------------------------------------------------------------------------------------------------


def test_disk_full_keeps_the_last_checkpoint_and_the_model(tmp_path, monkeypatch):
    checkpoint, log = tmp_path / "c", tmp_path / "log"
    options = {"batch_size": 4, "window": 20, "epochs": 2, "progress": False}
    whole = tiny()
    whole.fit(TEXT, log=tmp_path / "whole", **options)
    real, saves = os.replace, []

    def replace(source, target):  # the write of the second checkpoint fails at its last moment
        saves.append(target)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    model = tiny()
    with pytest.raises(OSError, match="No space left on device") as failure:
        model.fit(TEXT, log=log, checkpoint=checkpoint, checkpoint_steps=4, **options)
    assert failure.value.errno == errno.ENOSPC
    assert failure.value.filename == str(checkpoint)
    assert Checkpoint.load(checkpoint).counters["step"] == 4
    assert len(losses(log)) == 8
    assert math.isfinite(model.evaluate(TEXT))  # what was learned until then is still there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "log", "whole"]
    model.fit(TEXT, log=log, checkpoint=checkpoint, checkpoint_steps=4, resume=True, **options)
    assert log.read_bytes() == (tmp_path / "whole").read_bytes()
    assert np.array_equal(model.parameters, whole.parameters)


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="a device that is always full exists on Linux only"
)
def test_full_disk_under_the_log():
    with pytest.raises(OSError, match="No space left on device") as failure:
        tiny().fit(TEXT, batch_size=4, window=20, log="/dev/full", progress=False)
    assert failure.value.filename == "/dev/full"


def test_divergence_is_an_error_and_keeps_the_last_good_parameters(tmp_path):
    model = tiny()
    real, calls = model.training_step, []

    def training_step(*arguments, **options):
        loss, count, state = real(*arguments, **options)
        calls.append(1)
        return (math.nan if len(calls) == 4 else loss), count, state

    model.training_step = training_step
    with pytest.raises(FloatingPointError, match="at step 4, epoch 1"):
        model.fit(TEXT, batch_size=4, window=20, log=tmp_path / "log", progress=False)
    assert len(losses(tmp_path / "log")) == 3
    assert np.isfinite(model.parameters).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"window": 10**6}, "too few for 4 lanes"),
        ({"clip": -1.0}, "clip must be"),
        ({"clip": math.nan}, "clip must be"),
        ({"seconds": 0.0}, "seconds must be"),
        ({"loss_scale": "sum"}, "loss_scale must be"),
        ({"optimiser": "rmsprop"}, "optimiser must be one of sgd, adam, adamw, got 'rmsprop'"),
        ({"optimiser": SGD(), "lr": 1.0}, "lr belongs to"),
        ({"early_stopping": 2}, "early_stopping needs validation"),
        ({"validation": 1.5}, "validation must be"),
        ({"validation": "t"}, "at least 2 tokens"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny().fit(TEXT, **{"batch_size": 4, "window": 20, "progress": False, **options})


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(-1.0), lambda: SGD(math.nan), lambda: SGD(momentum=1.0), lambda: SGD(nesterov=True),
        lambda: Adam(betas=(0.9, 1.0)), lambda: Adam(eps=-1.0), lambda: AdamW(weight_decay=math.inf),
        lambda: StepDecay(0.0), lambda: StepDecay(0.5, after=-1), lambda: StepDecay(every=0.0),
        lambda: Cosine(final=2.0), lambda: Cosine(warmup_steps=-1), lambda: Plateau(1.0),
        lambda: Plateau(patience=-1),
    ],
)  # fmt: skip
def test_wrong_optimisers_and_schedules_are_refused(make):
    with pytest.raises(ValueError, match=r"must be|needs"):
        make()


# log and plot --------------------------------------------------------------------------------------------


def test_log_reads_back_the_same_floats_and_leaves_out_a_torn_line(tmp_path):
    log = TrainingLog(tmp_path / "log")
    values = [0.1 + 0.2, 1e-300, math.pi, 1 / 3]
    for value in values:
        log.write("step", loss=value)
    log.close()
    with open(tmp_path / "log", "ab") as file:
        file.write(b'{"event": "step", "lo')
    assert losses(tmp_path / "log") == values
    (tmp_path / "log").write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1 is not a line of a training log"):
        read_log(tmp_path / "log")


def test_log_is_cut_to_the_position_it_is_resumed_from(tmp_path):
    log = TrainingLog(tmp_path / "log")
    log.write("step", loss=1.0)
    position = log.position()
    log.write("step", loss=2.0)
    log.close()
    log = TrainingLog(tmp_path / "log", position=position)
    assert losses(tmp_path / "log") == [1.0]
    log.write("step", loss=3.0)
    log.close()
    assert losses(tmp_path / "log") == [1.0, 3.0]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    model = tiny()
    model.fit(TEXT, validation=0.2, epochs=3, batch_size=4, window=10, log=tmp_path / "log", progress=False)
    plot_log(tmp_path / "log", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="no training step"):
        plot_log(tmp_path / "empty", tmp_path / "loss.png")


def test_progress_has_lines_without_a_terminal_and_a_bar_on_demand(capsys):
    options = {"validation": 0.2, "epochs": 2, "batch_size": 4, "window": 20}
    tiny().fit(TEXT, **options)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(
        part in lines[1] for part in ("epoch 2/2", "train", "validation", "bits per character", "tokens/s")
    )
    tiny().fit(TEXT, progress=True, **options)
    bar = capsys.readouterr().err
    assert "100%" in bar
    assert all(part in bar for part in ("loss", "bits per character", "tokens/s", "<00:00"))
    fit(tiny(), tiny().vocabulary.encode(TEXT), epochs=1, batch_size=4, window=20, progress=False)
    assert capsys.readouterr().err == ""
