"""The commands of translation: what they print, their exit codes, and one line for every error."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from fusedlstm import Seq2Seq
from fusedlstm.cli import main
from fusedlstm.training import read_log

GERMAN, ENGLISH = "null eins zwei drei vier".split(), "zero one two three four".split()
PAIRS = [
    (f"{GERMAN[a]} und {GERMAN[b]} .", f"{ENGLISH[a]} and {ENGLISH[b]} .") for a in range(5) for b in range(5)
]
SMALL = ["--hidden", "24", "--layers", "1", "--batch", "5", "--epochs", "25", "--lr", "0.02", "--no-progress"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with files of pairs and a model that knows them."""
    folder = tmp_path_factory.mktemp("pairs")
    for side, name in enumerate(("de", "en")):
        (folder / name).write_text("".join(f"{pair[side]}\n" for pair in PAIRS), encoding="utf-8")
    words = ["train-pairs", *(str(folder / name) for name in ("de", "en")), "-o", str(folder / "m")]
    assert main([*words, *SMALL, "--attention", "general", "--bidirectional", "--validation", "0"]) == 0
    return folder


@pytest.fixture
def folder(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def refused(capsys, *words: str) -> str:
    """The one line of an error."""
    assert main(words) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("fusedlstm: error: ")
    assert "Traceback" not in captured.err
    return last


@pytest.mark.parametrize("command", ["train-pairs", "translate"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: fusedlstm {command}" in capsys.readouterr().out


def test_training_says_what_came_out(folder, capsys, tmp_path):
    rows = "".join(f"{source}\t{target}\n" for source, target in PAIRS)
    (tmp_path / "pairs.tsv").write_text(rows, encoding="utf-8")
    words = [
        "train-pairs", str(tmp_path / "pairs.tsv"), "-o", str(tmp_path / "m"), "--hidden", "6",
        "--epochs", "2", "--validation-files", "de", "en", "--test-files", "de", "en",
        "--log", str(tmp_path / "log"), "--reverse-source", "--tokens", "char", "--min-count", "2",
        "--shared-vocabulary", "--share-embedding",
        "--scheduled-sampling", "linear", "--scheduled-steps", "10", "--label-smoothing", "0.1",
    ]  # fmt: skip
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "25 pairs to train on, 25 to validate on, vocabularies" in captured.err
    assert "epoch 2/2" in captured.err
    losses = re.findall(r"(validation|test) loss .* nats per character, .* bits per character", captured.out)
    assert len(losses) == 2
    start = read_log(tmp_path / "log")[0]
    assert start["teacher"] == {"name": "linear", "steps": 10, "final": 0.0}
    assert start["label_smoothing"] == 0.1
    model = Seq2Seq.load(tmp_path / "m")
    assert model.reverse_source and model.share_embedding
    assert f"test loss {model.evaluate(PAIRS):.4f}" in captured.out


def test_recipe_is_sutskevers_and_options_win(folder, tmp_path):
    words = ["train-pairs", "de", "en", "-o", str(tmp_path / "m"), "--recipe", "sutskever2014",
             "--hidden", "4", "--embedding", "4", "--batch", "6", "--epochs", "6",
             "--log", str(tmp_path / "log"),
             "--no-progress"]  # fmt: skip
    assert main(words) == 0
    events = read_log(tmp_path / "log")
    start = events[0]
    assert start["optimiser"]["name"] == "sgd"
    assert (start["clip"], start["loss_scale"], start["model"]["num_layers"]) == (5.0, "batch", 4)
    assert start["model"]["reverse_source"]
    rates = [event["lr"] for event in events if event["event"] == "step" and event["epoch"] >= 5]
    assert rates == [0.7] * 4 + [0.35] * 2 + [0.175] * 2


def test_interrupted_training_is_continued(folder, tmp_path):
    words = [
        "train-pairs",
        "de",
        "en",
        "-o",
        str(tmp_path / "m"),
        *SMALL[:-3],
        "--log",
        str(tmp_path / "log"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedlstm", *words, "--epochs", "100000"], stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("epoch 3/"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume" in err.splitlines()[-1]
    done = read_log(tmp_path / "log")[-1]["step"] // 5
    assert main([*words, "--epochs", str(done + 2), "--resume", "--no-progress"]) == 0
    whole = [word.replace(str(tmp_path), str(tmp_path) + "/whole") for word in words]
    (tmp_path / "whole").mkdir()
    assert main([*whole, "--epochs", str(done + 2), "--no-progress"]) == 0
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole" / "log").read_bytes()
    ours, theirs = (Seq2Seq.load(place / "m") for place in (tmp_path, tmp_path / "whole"))
    assert np.array_equal(ours.parameters, theirs.parameters)


def test_translate(folder, capsys):
    assert main(["translate", "m", "de", "--stats"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [target for _, target in PAIRS]
    assert "25 lines in" in captured.err
    assert main(["translate", "m", "de", "--n-best", "2", "--batch", "7"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in rows[::2]] == [target for _, target in PAIRS]
    assert all(
        float(first[0]) >= float(second[0]) for first, second in zip(rows[::2], rows[1::2], strict=True)
    )
    for compute_dtype in ("float32", "bfloat16", "int8"):
        assert main(["translate", "m", "de", "--compute-dtype", compute_dtype]) == 0
        assert capsys.readouterr().out.splitlines() == [target for _, target in PAIRS]
    outputs = []
    for batch in ("1", "25"):
        words = ["--sample", "--temperature", "3", "--seed", "5", "--batch", batch]
        assert main(["translate", "m", "de", *words]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0].splitlines() != [target for _, target in PAIRS]


def test_lines_are_translated_as_they_come(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedlstm", "translate", "m"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    for source, target in PAIRS[:3]:
        process.stdin.write(source + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == target + "\n"
    out, err = process.communicate("\n", timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err == "fusedlstm: error: line 4: beam_search: the source is empty: ''\n"


def test_bleu(folder, capsys):
    pytest.importorskip("sacrebleu")
    assert main(["translate", "m", "de", "--bleu", "en", "--tokenize", "none"]) == 0
    assert re.search(r"BLEU 100\.00  .*tok:none", capsys.readouterr().err)


def test_bad_input(folder, capsys, tmp_path):
    texts = {"short": b"eins\n", "blank": b"eins und zwei\n\n", "foreign": b"quux\n", "latin": b"f\xfcnf\n"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    short, blank, foreign, latin = (str(tmp_path / name) for name in texts)
    train = ["train-pairs", "-o", str(tmp_path / "n"), *SMALL]
    assert "de has 25, " in refused(capsys, *train, "de", short)
    assert "latin: not UTF-8: byte 0xfc at offset 1" in refused(capsys, *train, "de", latin)
    assert "line 1 must be source, tab, target" in refused(capsys, *train, "de")
    assert "pairs come from one file or two, got 3" in refused(capsys, *train, "de", "en", "de")
    assert "pair 2: the source sentence is empty" in refused(
        capsys, *train, blank, blank, "--validation", "0"
    )
    assert "--scheduled-sampling and --scheduled-steps" in refused(
        capsys, *train, "de", "en", "--scheduled-steps", "5"
    )
    assert "must be different files" in refused(capsys, "train-pairs", "de", "en", "-o", "de")
    assert not (tmp_path / "n").exists()
    assert "line 2 is empty" in refused(capsys, "translate", "m", blank)
    assert "line 1 has unknown tokens only: 'quux'" in refused(capsys, "translate", "m", foreign)
    assert "latin: not UTF-8" in refused(capsys, "translate", "m", latin)
    assert "1 references for 25 source sentences" in refused(capsys, "translate", "m", "de", "--bleu", short)
    assert "--top-k belongs to --sample" in refused(capsys, "translate", "m", "de", "--top-k", "3")
    assert "--n-best must be at most --beam" in refused(capsys, "translate", "m", "de", "--n-best", "9")
    assert "de: not a safetensors file" in refused(capsys, "translate", "de", "de")
    for words in (["--beam", "0"], ["--top-p", "2"], ["--length", "-1"]):
        with pytest.raises(SystemExit) as end:
            main(["translate", "m", "de", *words])
        assert end.value.code == 2
