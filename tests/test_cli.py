"""The command line: what it prints, its exit codes, and one line for every error."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

import fusedlstm
from fusedlstm import LanguageModel
from fusedlstm.cli import main
from fusedlstm.cli.train import RECIPES
from fusedlstm.training import Checkpoint, read_log

TEXT = "the quick brown fox jumps over the lazy dog\n" * 60
SMALL = ["--hidden", "8", "--layers", "1", "--batch", "4", "--window", "20", "--epochs", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    (path.parent / "text.txt").write_text(TEXT)
    assert main(["train", str(path.parent / "text.txt"), "-o", str(path), *SMALL, "--no-progress"]) == 0
    return path


def run(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fusedlstm", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def refused(capsys, *words: str) -> str:
    """The one line of an error."""
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("fusedlstm: error: ")
    assert "Traceback" not in captured.err
    return last


# help, version, info -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["generate"], ["info"]], ids=str)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert "usage: fusedlstm" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["fly"], ["train"], ["train", "x", "-o"], ["generate"], ["info", "--fast"],
        ["train", "x", "-o", "m", "--epochs", "0"], ["train", "x", "-o", "m", "--dropout", "1"],
        ["train", "x", "-o", "m", "--lr", "nan"], ["train", "x", "-o", "m", "--level", "letter"],
        ["train", "x", "-o", "m", "--validation", "0.1", "--validation-file", "y"],
        ["generate", "m", "--temperature", "0"], ["generate", "m", "--top-p", "2"],
        ["generate", "m", "--seed", "-1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "train" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fusedlstm {fusedlstm.__version__}\n"


def test_info(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("FUSEDLSTM_ISA", raising=False)
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"] == fusedlstm.__version__
    assert facts["isa"] == fusedlstm.isa()
    assert facts["isa_available"] == fusedlstm.isa_levels()
    assert facts["threads"] == fusedlstm.num_threads()
    assert facts["cpu"]
    assert facts["build"]
    assert 1 <= facts["usable_cpus"] <= os.cpu_count()
    assert facts["packages"]["tqdm"] == importlib.metadata.version("tqdm")
    assert facts["environment"]["OMP_NUM_THREADS"] == "7"
    assert "FUSEDLSTM_ISA" not in facts["environment"]
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert all(
        re.search(rf"^{name} +\S", out, re.MULTILINE) for name in ("version", "isa", "threads", "numpy")
    )


def test_as_a_module_and_as_a_program():
    assert run("--version").stdout == f"fusedlstm {fusedlstm.__version__}\n"
    program = os.path.join(os.path.dirname(sys.executable), "fusedlstm")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fusedlstm {fusedlstm.__version__}\n"


# train and generate --------------------------------------------------------------------------------------


def test_train_writes_model_log_and_plot(folder, capsys):
    pytest.importorskip("matplotlib")
    words = ["train", "text.txt", "-o", "m.safetensors", *SMALL, "--log", "log.jsonl", "--plot", "loss.png"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "wrote m.safetensors after" in captured.out
    assert re.search(
        r"validation loss \d\.\d{4} nats per character, \d\.\d{3} bits per character", captured.out
    )
    assert "epoch 2/2" in captured.err
    assert sorted(os.listdir()) == ["log.jsonl", "loss.png", "m.checkpoint", "m.safetensors", "text.txt"]
    epochs = [event for event in read_log("log.jsonl") if event["event"] == "epoch"]
    best = min(event["validation_loss"] for event in epochs)
    model = LanguageModel.load("m.safetensors")
    cut = int(len(TEXT) * 0.9)
    assert model.evaluate(TEXT[cut:], batch_size=4, window=20) == best


def test_words_with_their_own_validation_and_test(folder, capsys):
    (folder / "valid.txt").write_text("the lazy fox\nthe quick cat\n" * 10)
    words = [
        "train", "text.txt", "-o", "m", *SMALL, "--level", "word", "--batch", "2", "--window", "5",
        "--validation-file", "valid.txt", "--test-file", "valid.txt", "--no-progress",
    ]  # fmt: skip
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert (
        len(re.findall(r"(validation|test) loss .* nats per word, perplexity \d+\.\d\d", captured.out)) == 2
    )
    model = LanguageModel.load("m")
    assert model.vocabulary.kind == "word"
    assert f"test loss {model.evaluate((folder / 'valid.txt').read_text()):.4f}" in captured.out


def test_bytes_of_any_encoding(folder):
    (folder / "latin.txt").write_bytes("naïve café\n".encode("latin-1") * 300)
    assert main(["train", "latin.txt", "-o", "m", "--level", "byte", *SMALL, "--no-progress"]) == 0
    assert LanguageModel.load("m").vocabulary.kind == "byte"


def test_recipe_is_zarembas_and_options_win(folder):
    words = ["train", "text.txt", "-o", "m", "--recipe", "zaremba-small", "--window", "10", "--batch", "2",
             "--hidden", "6", "--epochs", "6", "--log", "log", "--no-progress"]  # fmt: skip
    assert main(words) == 0
    events = read_log("log")
    start = events[0]
    assert start["level"] == "word"
    assert start["optimiser"]["name"] == "sgd"
    assert start["loss_scale"] == "batch"
    assert start["clip"] == 5.0
    assert (start["window"], start["batch_size"], start["model"]["hidden_size"]) == (10, 2, 6)
    assert [event["lr"] for event in events if event["event"] == "epoch"] == [1, 1, 1, 1, 0.5, 0.25]
    small = RECIPES["zaremba-small"]
    assert (small["hidden"], small["window"], small["epochs"], small["init_uniform"]) == (200, 20, 13, 0.1)


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        (
            ["--schedule", "step", "--decay", "0.9", "--decay-after", "1"],
            {"name": "step", "decay": 0.9, "after": 1},
        ),
        (["--schedule", "cosine", "--warmup", "3"], {"name": "cosine", "warmup_steps": 3, "final": 0.0}),
        (["--schedule", "plateau", "--patience", "2"], {"name": "plateau", "decay": 0.25, "patience": 2}),
    ],
)
def test_schedules_and_optimisers_are_options(folder, options, schedule):
    optimiser = [
        "--optimiser",
        "sgd",
        "--lr",
        "0.5",
        "--momentum",
        "0.9",
        "--weight-decay",
        "0.01",
        "--clip",
        "0",
    ]
    words = ["train", "text.txt", "-o", "m", *SMALL, *optimiser, *options, "--log", "log", "--no-progress"]
    assert main(words) == 0
    start = read_log("log")[0]
    assert start["schedule"] == schedule
    assert start["clip"] is None
    assert start["optimiser"] == {
        "name": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 0.01, "nesterov": False,
    }  # fmt: skip


def test_generate(model_file, capsys):
    words = ["generate", str(model_file), "--length", "40", "--seed", "3"]
    assert main([*words, "--prompt", "the quick", "--stats"]) == 0
    captured = capsys.readouterr()
    text = LanguageModel.load(model_file).generate("the quick", max_new_tokens=40, seed=3)
    assert captured.out == f"the quick{text}\n"
    assert re.fullmatch(r"40 tokens in \d+\.\d{3} s, [\d,]+ tokens/s\n", captured.err)
    assert main([*words, "--prompt", "the", "--prompt", "fox"]) == 0
    out = capsys.readouterr().out
    assert "=== prompt 1 of 2: 'the'\nthe" in out
    assert "=== prompt 2 of 2: 'fox'\nfox" in out
    rules = [
        "--min-p",
        "0.1",
        "--typical-p",
        "0.9",
        "--repetition-penalty",
        "1.2",
        "--no-repeat-ngram-size",
        "3",
    ]
    ends = ["--stop", "q", "--stop", "z", "--stop-string", "o ", "--min-length", "5"]
    assert main([*words, "--prompt", "the", *rules, *ends]) == 0
    text = LanguageModel.load(model_file).generate(
        "the", max_new_tokens=40, seed=3, min_p=0.1, typical_p=0.9, repetition_penalty=1.2,
        no_repeat_ngram_size=3, stop=["q", "z"], stop_strings=["o "], min_new_tokens=5,
    )  # fmt: skip
    assert capsys.readouterr().out == f"the{text}\n"
    assert main(words) == 0  # without a prompt: a new line
    assert len(capsys.readouterr().out) == 41


def test_compute_dtype_is_an_option(folder, capsys):
    words = ["text.txt", "-o", "m.safetensors", *SMALL, "--no-progress", "--compute-dtype", "bfloat16"]
    assert main(["train", *words]) == 0
    assert LanguageModel.load("m.safetensors").lstm.compute_dtype == "bfloat16"
    capsys.readouterr()
    for compute_dtype in ("float32", "bfloat16", "int8"):
        generate = ["generate", "m.safetensors", "--prompt", "the ", "--length", "9"]
        assert main([*generate, "--compute-dtype", compute_dtype]) == 0
        assert len(capsys.readouterr().out) == len("the ") + 9 + 1
    assert main(["train", *words, "--dtype", "float64"]) == 1
    assert "compute_dtype 'bfloat16' needs dtype 'float32', got 'float64'" in capsys.readouterr().err


def test_a_closed_pipe_is_not_an_error(model_file):
    program = shlex.join(
        [sys.executable, "-m", "fusedlstm", "generate", str(model_file), "--length", "100000"]
    )
    done = subprocess.run(f"{program} | head -c 10", shell=True, capture_output=True, text=True, check=True)
    assert len(done.stdout) == 10
    assert done.stderr == ""


def test_demo(capsys):
    """Two seconds are not enough to write Python, but are enough to see every part."""
    assert main(["demo", "--seconds", "2", "--length", "80"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("def ")
    assert len(captured.out) == len("def ") + 80 + 1
    assert "characters of the Python standard library" in captured.err
    assert "tokens/s" in captured.err


# Ctrl-C --------------------------------------------------------------------------------------------------


def test_ctrl_c_in_training_and_the_command_it_prints(folder):
    words = ["train", "text.txt", "-o", "m.safetensors", *SMALL, "--log", "log"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedlstm", *words, "--epochs", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:  # a few epochs, then Ctrl-C
        if line.startswith("epoch 3/"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; the state of the last completed step is in m.checkpoint" in err
    assert "Traceback" not in err
    command = shlex.split(err.strip().splitlines()[-1])
    assert command == ["fusedlstm", *words, "--epochs", "1000000", "--resume"]
    # a few epochs more, and the same number of epochs at a stretch
    epochs = str(Checkpoint.load("m.checkpoint").counters["epoch"] + 2)
    again = run(*[epochs if word == "1000000" else word for word in command[1:]])
    assert again.returncode == 0, again.stderr
    assert "resumed m.checkpoint at step" in again.stderr
    whole = [{"m.safetensors": "whole.safetensors", "log": "whole.log"}.get(word, word) for word in words]
    assert main([*whole, "--epochs", epochs, "--no-progress"]) == 0
    assert (folder / "log").read_bytes() == (folder / "whole.log").read_bytes()
    one, two = (LanguageModel.load(name) for name in ("m.safetensors", "whole.safetensors"))
    assert np.array_equal(one.parameters, two.parameters)


def test_ctrl_c_in_generation(model_file):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fusedlstm",
            "generate",
            str(model_file),
            "--prompt",
            "the",
            "--length",
            "1000000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    head = process.stdout.read(50)  # it is writing
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert head.startswith("the")
    assert rest.endswith("\n")
    assert err == "interrupted\n"


# errors --------------------------------------------------------------------------------------------------


def test_bad_texts(folder, capsys):
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    (folder / "short.txt").write_text("too short")
    assert "empty.txt: the file is empty" in refused(capsys, "train", "empty.txt", "-o", "m")
    error = refused(capsys, "train", "latin.txt", "-o", "m")
    assert "latin.txt: not UTF-8: byte 0xe9 at offset 3" in error
    assert "8 tokens are too few for 32 lanes" in refused(capsys, "train", "short.txt", "-o", "m")
    assert "none.txt: No such file" in refused(capsys, "train", "none.txt", "-o", "m")
    assert "Is a directory" in refused(capsys, "train", ".", "-o", "m")
    assert sorted(os.listdir()) == ["empty.txt", "latin.txt", "short.txt", "text.txt"]


def test_bad_outputs_are_found_before_training(folder, capsys):
    train = ["train", "text.txt", *SMALL, "--no-progress"]
    assert "nowhere does not exist" in refused(capsys, *train, "-o", "nowhere/m")
    assert "is a folder" in refused(capsys, *train, "-o", str(folder))
    assert "different files" in refused(capsys, *train, "-o", "text.txt")
    assert "different files" in refused(capsys, *train, "-o", "m", "--log", "m")
    assert "--plot needs --log" in refused(capsys, *train, "-o", "m", "--plot", "p.png")
    assert (folder / "text.txt").read_text() == TEXT


def test_options_that_do_not_belong_together(folder, capsys):
    train = ["train", "text.txt", "-o", "m", *SMALL, "--no-progress"]
    assert "--momentum belongs to --optimiser sgd, not adam" in refused(capsys, *train, "--momentum", "0.5")
    assert "--decay belongs to --schedule step or plateau, not constant" in refused(
        capsys, *train, "--decay", "0.5"
    )
    assert "early_stopping needs validation" in refused(
        capsys, *train, "--validation", "0", "--early-stopping", "2"
    )
    error = refused(capsys, *train, "--tie-weights", "--embedding", "4")
    assert "tie_weights needs embedding_size = hidden_size" in error


def test_bad_models_and_prompts(folder, model_file, capsys):
    good = model_file.read_bytes()
    for name, data in {
        "cut": good[:-9],
        "changed": good[:-9] + bytes(9),
        "foreign": b"\x89PNG" * 9,
        "none": b"",
    }.items():
        (folder / name).write_bytes(data)
        assert name in refused(capsys, "generate", name)
    assert "absent: No such file" in refused(capsys, "generate", "absent")
    error = refused(capsys, "generate", str(model_file), "--prompt", "the", "--prompt", "the Q")
    assert "character 'Q' (U+0051) at position 4" in error
    assert "prompt must have at least one" in refused(capsys, "generate", str(model_file), "--prompt", "")
    assert "stop must be one token" in refused(capsys, "generate", str(model_file), "--stop", "the")


def test_threads_and_instruction_set(model_file, capsys):
    before = fusedlstm.num_threads()
    for threads in ("0", "-2"):
        assert "thread" in refused(capsys, "generate", str(model_file), "--threads", threads)
    assert fusedlstm.num_threads() == before
    for name, value in {"FUSEDLSTM_ISA": "sse9", "FUSEDLSTM_NUM_THREADS": "0"}.items():
        done = run("info", env={**os.environ, name: value})
        assert done.returncode == 1
        assert re.fullmatch(rf"fusedlstm: error: .*{name}.*\n", done.stderr), done.stderr


def test_resume_refuses_other_options(folder, capsys):
    train = ["train", "text.txt", "-o", "m", *SMALL, "--no-progress"]
    assert main(train) == 0
    capsys.readouterr()
    assert "batch_size was 4, now 3" in refused(capsys, *train, "--resume", "--batch", "3")


def test_full_disk(folder):
    """A limit on the size of files: the checkpoint does not fit, the old model stays, and nothing else."""
    (folder / "m.safetensors").write_bytes(b"an older model")
    done = run(
        "train", "text.txt", "-o", "m.safetensors", *SMALL, "--hidden", "64",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fusedlstm: error: m.checkpoint: ")
    assert "File too large" in last
    assert (folder / "m.safetensors").read_bytes() == b"an older model"
    assert sorted(os.listdir()) == ["m.safetensors", "text.txt"]
