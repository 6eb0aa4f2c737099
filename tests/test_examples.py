"""The scripts of docs/examples: each runs as a program of its own, and its output says what it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


def output_of(name: str, tmp_path: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not [*tmp_path.iterdir()], "an example leaves files behind"
    return run.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in:\n{text}"
    return float(found.group(1))


def integer_to_sequence(text):
    assert "2 -> 2 4 6 8 " in text  # not among the examples it learned from
    assert "5 -> 5 10 15 20 " in text
    assert "9 -> 9 18 27 36 " in text


def character_to_text(text):
    assert "A -> ctions speak louder than words.\n" in text
    assert "D -> on't count your chickens before they hatch.\n" in text
    assert "H -> aste makes waste.\n" in text


def value_to_sine(text):
    assert number(r"root mean squared error ([\d.]+)", text) < 0.1
    assert len(re.findall(r"^ *\d+ +-?[\d.]+ +\*$", text, re.MULTILINE)) == 15


def window_to_value(text):
    assert "windows (256, 20, 3) -> values (256, 1)" in text
    error, base = (number(rf"{what} ([\d.]+)", text) for what in ("squared error", "saying 0"))
    assert error < base / 10


def window_to_values(text):
    assert "windows (256, 20, 3) -> values (256, 20, 1)" in text
    assert max(map(float, re.findall(r"squared error ([\d.]+)", text))) < 0.01
    assert "last step equals return_sequences=False: True" in text


def states(text):
    assert "y (3, 10, 16) h (2, 3, 16) c (2, 3, 16)" in text
    assert text.count("True") == 6
    assert "False" not in text


def encoder_decoder(text):
    assert number(r"(\d+) of 500 new dates right", text) >= 400
    assert len(re.findall(r"^ *\d+ [a-z]+ \d{4} -> \d{4}-\d\d-\d\d$", text, re.MULTILINE)) >= 4


def character_generator(text):
    losses = [float(loss) for loss in re.findall(r"([\d.]+) nats per character", text)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1.9  # a third of the first guess, log 92 = 4.5
    samples = re.split(r"--- temperature .*\n", text)[1:]
    assert len(samples) == 3
    assert all(len(sample.rstrip("\n")) >= 150 for sample in samples)
    assert len(set(samples)) == 3


CHECKS = [
    integer_to_sequence, character_to_text, value_to_sine, window_to_value, window_to_values, states,
    encoder_decoder, character_generator,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_example(check, tmp_path):
    check(output_of(check.__name__, tmp_path))


def test_every_example_is_checked():
    assert {script.stem for script in EXAMPLES.glob("*.py")} == {check.__name__ for check in CHECKS}
