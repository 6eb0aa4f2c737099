"""Vocabularies, reading of files and batch streams: properties and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedlstm.data import BatchStream, Vocabulary, read_bytes, read_corpus, read_text, split_tokens

ANY_TEXT = st.text(st.characters(codec=None), max_size=60)  # surrogates and every plane included


# vocabularies ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ANY_TEXT.filter(bool))
def test_characters_come_back(text):
    vocabulary = Vocabulary.from_text(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert len(ids) == len(text)
    assert ids.min() >= 0
    assert ids.max() == len(vocabulary) - 1
    assert list(vocabulary.symbols) == sorted(set(text))
    assert vocabulary.decode(ids) == text
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@settings(deadline=None)
@given(ANY_TEXT.filter(bool), ANY_TEXT)
def test_unknown_characters_are_named(text, other):
    vocabulary = Vocabulary.from_text(text)
    wrong = [position for position, character in enumerate(other) if character not in text]
    if not wrong:
        assert vocabulary.decode(vocabulary.encode(other)) == other
        return
    character = other[wrong[0]]
    message = f"{character!r} (U+{ord(character):04X}) at position {wrong[0]} "
    with pytest.raises(ValueError, match=re.escape(message)):
        vocabulary.encode(other)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_bytes_come_back(content):
    vocabulary = Vocabulary.byte()
    ids = vocabulary.encode(content)
    np.testing.assert_array_equal(ids, list(content))
    assert vocabulary.decode_bytes(ids) == content
    assert vocabulary.decode(ids) == content.decode("utf-8", "replace")


@settings(deadline=None)
@given(st.text(max_size=40), st.integers(1, 5))
def test_byte_decoder_gives_whole_characters(text, chunk):
    ids = Vocabulary.byte().encode(text)
    decoder = Vocabulary.byte().decoder()
    pieces = [decoder.push_many(ids[start : start + chunk]) for start in range(0, len(ids), chunk)]
    assert "".join(pieces) == text
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)
    assert decoder.finish() == ""


def test_byte_decoder_finishes_a_cut_character():
    decoder = Vocabulary.byte().decoder()
    assert [decoder.push(byte) for byte in "a€".encode()[:-1]] == ["a", "", ""]
    assert decoder.finish() == "\ufffd"
    assert decoder.push(ord("b")) == "b"  # usable again


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(["the", "cat", "é", "<unk>", "x"]), max_size=5), max_size=5))
def test_words_come_back(lines):
    text = "\n".join(" ".join(line) for line in lines)
    if not text:
        return
    vocabulary = Vocabulary.from_text(text, "word")
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert len(ids) == sum(map(len, lines)) + len(lines) - 1
    decoder = vocabulary.decoder()
    assert "".join(decoder.push(index) for index in ids) == text
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_words_are_those_of_the_penn_treebank_recipe():
    """Zaremba's recipe: every line feed is <eos>, split at white space, ids by frequency."""
    text = " a b a \n c  b\ta\r\n\n"
    vocabulary = Vocabulary.from_text(text, "word")
    words = text.replace("\n", " <eos> ").split()
    assert [vocabulary.symbols[index] for index in vocabulary.encode(text)] == words
    assert vocabulary.symbols == ("<eos>", "a", "b", "c", "<unk>")
    assert vocabulary.end_of_line == 0
    assert vocabulary.unknown == 4
    np.testing.assert_array_equal(vocabulary.encode("a dog"), [1, 4])


def test_words_that_the_text_marks_as_unknown_get_no_second_symbol():
    assert Vocabulary.from_text("the <unk> sat\n", "word").symbols == ("<eos>", "<unk>", "sat", "the")


def test_limits_of_a_word_vocabulary():
    text = "a a a b b c\n"
    assert Vocabulary.from_text(text, "word", min_count=2).symbols == ("a", "b", "<eos>", "<unk>")
    assert Vocabulary.from_text(text, "word", max_size=4).symbols == ("a", "b", "<eos>", "<unk>")
    assert Vocabulary.from_text(text, "word", max_size=3).symbols == ("a", "<eos>", "<unk>")
    assert len(Vocabulary.from_text(text, "word", max_size=99)) == 5


def test_ends_of_lines():
    assert Vocabulary.byte().end_of_line == 10
    assert Vocabulary.from_text("b\na").end_of_line == 0
    assert Vocabulary.from_text("ab").end_of_line is None
    assert Vocabulary.from_text("ab").unknown is None


def test_empty_text_encodes_to_nothing():
    for vocabulary in (Vocabulary.byte(), Vocabulary.from_text("ab"), Vocabulary.from_text("a b", "word")):
        ids = vocabulary.encode("")
        assert ids.shape == (0,)
        assert ids.dtype == np.int32
        assert vocabulary.decode(ids) == vocabulary.decode([]) == ""


def test_equality():
    assert Vocabulary.from_text("ab") == Vocabulary.from_text("ba")
    assert hash(Vocabulary.from_text("ab")) == hash(Vocabulary.from_text("ba"))
    assert Vocabulary.from_text("ab") != Vocabulary.from_text("abc")
    assert Vocabulary.from_text("ab") != "ab"
    assert repr(Vocabulary.from_text("ab")) == "Vocabulary('char', 2 symbols)"


CHARS = Vocabulary.from_text("ab")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: Vocabulary("letter"), ValueError, "kind must be one of char, byte, word, got 'letter'"),
        (lambda: Vocabulary("char"), ValueError, "kind 'char' needs symbols"),
        (lambda: Vocabulary("byte", ["a"]), ValueError, "kind 'byte' has no symbols"),
        (lambda: Vocabulary("char", ["a", "bc"]), ValueError, "symbol 1 must be one character, got 'bc'"),
        (lambda: Vocabulary("char", ["a", 1]), ValueError, "symbol 1 must be a str, got int"),
        (lambda: Vocabulary("char", ["a", "a"]), ValueError, "symbol 'a' is given twice, as 0 and 1"),
        (lambda: Vocabulary("word", ["a b"]), ValueError, "symbol 0 must be a word without white space"),
        (lambda: Vocabulary("word", [""]), ValueError, "symbol 0 must be a word"),
        (lambda: Vocabulary("word", ["<unk>"]), ValueError, "words must include '<eos>'"),
        (lambda: Vocabulary.from_text(""), ValueError, "text must not be empty"),
        (lambda: Vocabulary.from_text(b"a"), TypeError, "text must be a str for kind 'char', got bytes"),
        (lambda: Vocabulary.from_text("a", max_size=5), ValueError, "max_size and min_count are for words"),
        (lambda: Vocabulary.from_text("a", "word", max_size=2), ValueError, "max_size must be at least 3"),
        (lambda: Vocabulary.from_text("a", "word", min_count=0), ValueError, "min_count must be at least 1"),
        (lambda: CHARS.encode(b"a"), TypeError, "text must be a str for kind 'char', got bytes"),
        (lambda: Vocabulary.byte().encode(["a"]), TypeError, "text must be a str for kind 'byte', got list"),
        (lambda: CHARS.decode([0, 2]), ValueError, "ids must be between 0 and 1, got 2 at position 1"),
        (lambda: CHARS.decode([-1]), ValueError, "ids must be between 0 and 1, got -1 at position 0"),
        (lambda: CHARS.decode([[0]]), ValueError, "ids must be 1-D, got shape (1, 1)"),
        (lambda: CHARS.decode([0.5]), TypeError, "ids must be ints, got float64"),
        (lambda: CHARS.decode_bytes([0]), ValueError, "decode_bytes is for kind 'byte'"),
        (lambda: Vocabulary.byte().decode([256]), ValueError, "between 0 and 255, got 256"),
        (lambda: Vocabulary.from_dict({"kind": "byte"}), ValueError, "keys kind and symbols"),
        (lambda: Vocabulary.from_dict([1]), ValueError, "got list"),
        (lambda: Vocabulary.from_dict({"kind": "char", "symbols": "ab"}), ValueError, "symbols a list"),
        (
            lambda: Vocabulary.from_dict({"kind": "byte", "symbols": [], "x": 1}),
            ValueError,
            "kind and symbols",
        ),
    ],
)
def test_vocabulary_errors(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()


# files ----------------------------------------------------------------------------------------------------


def test_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\xc3\xa9\n")
    assert read_text(path) == "a\r\nbé\n"
    assert read_bytes(path) == path.read_bytes()


def first_wrong_byte(content):
    """Offset of the first byte that is not UTF-8, or None."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=60) | st.text(min_size=1, max_size=20).map(str.encode))
def test_any_bytes_are_text_or_a_named_offset(content):
    path = Path(__file__).with_name("nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: content)
        offset = first_wrong_byte(content)
        if offset is not None:
            message = f"byte 0x{content[offset]:02x} at offset {offset} "
            with pytest.raises(ValueError, match=message):
                read_text(path)
        elif content != b"\xef\xbb\xbf":
            assert read_text(path) == content.decode("utf-8").removeprefix("\ufeff")


def test_files_are_joined(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("ab", encoding="utf-8")
    second.write_text("c\n", encoding="utf-8")
    assert read_corpus([first, second], "char") == "abc\n"
    assert read_corpus([str(second)], "byte") == b"c\n"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"empty\.txt: the file is empty"):
        read_text(path)


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"ok \xe9t\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8: byte 0xe9 at offset 3 .*byte vocabulary"):
        read_text(path)
    assert len(read_corpus([path], "byte")) == 6


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_text(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(ValueError, match="at least one file"):
        read_corpus([], "char")
    with pytest.raises(TypeError, match="sequence of paths"):
        read_corpus(str(tmp_path), "char")


# streams --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 20))
def test_streams_hold_every_target_once(count, batch_size, window):
    tokens = np.arange(count)
    lane_length = max(count - 1, 0) // batch_size
    if lane_length < window:
        with pytest.raises(ValueError, match=f"at least {batch_size * window + 1} are needed"):
            BatchStream(tokens, batch_size, window)
        BatchStream(np.arange(batch_size * window + 1), batch_size, window)  # and that is true
        return
    stream = BatchStream(tokens, batch_size, window)
    batches = list(stream)
    assert len(batches) == len(stream)
    for x, y in batches:
        assert x.dtype == y.dtype == np.int32
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        np.testing.assert_array_equal(y, x + 1)  # the next token
    x, y = (np.concatenate(parts, axis=1) for parts in zip(*batches, strict=True))
    assert x.shape == (batch_size, stream.lane_length)
    np.testing.assert_array_equal(y.reshape(-1), np.arange(1, stream.num_targets + 1))
    np.testing.assert_array_equal(np.diff(x, axis=1), 1)  # a lane goes on from window to window
    assert count - 1 - stream.num_targets < batch_size  # as few as possible are left out
    assert all(x.shape[1] == window for x, _ in batches[:-1])


def test_a_window_can_be_read_again():
    stream = BatchStream(range(100), 4, 5)
    for index, (x, y) in enumerate(stream):
        np.testing.assert_array_equal(stream[index][0], x)
        np.testing.assert_array_equal(stream[index][1], y)
    for index in (-1, len(stream)):
        with pytest.raises(IndexError, match="window must be between 0 and 4"):
            stream[index]
    assert repr(stream) == "BatchStream(4 lanes of 24, windows of 5)"


@settings(deadline=None)
@given(st.integers(2, 2000), st.floats(0.01, 0.99))
def test_split_keeps_order_and_every_token(count, validation):
    tokens = np.arange(count, dtype=np.int64)
    cut = int(count * (1.0 - validation))
    if cut in (0, count):
        with pytest.raises(ValueError, match="leave"):
            split_tokens(tokens, validation)
        return
    train, held_out = split_tokens(tokens, validation)
    assert len(train) == cut
    np.testing.assert_array_equal(np.concatenate([train, held_out]), tokens)
    assert train.dtype == held_out.dtype == np.int32


def test_split_of_tiny_shakespeare():
    """Counts that nanoGPT prints for its 1,115,394 characters."""
    train, validation = split_tokens(np.zeros(1_115_394, np.int32), 0.1)
    assert (len(train), len(validation)) == (1_003_854, 111_540)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: BatchStream([1, 2, 3], 0, 1), ValueError, "batch_size must be an int of at least 1, got 0"),
        (lambda: BatchStream([1, 2, 3], 1, 1.5), ValueError, "window must be an int of at least 1, got 1.5"),
        (lambda: BatchStream([1, 2, 3], True, 1), ValueError, "batch_size must be an int"),
        (lambda: BatchStream([1, 2, 3], 1, 5), ValueError, "3 tokens are too few for 1 lanes of 5 steps"),
        (lambda: BatchStream([], 1, 5), ValueError, "0 tokens are too few"),
        (lambda: BatchStream([0.5, 1.5], 1, 1), TypeError, "tokens must be ints, got float64"),
        (lambda: BatchStream([[1, 2]], 1, 1), ValueError, "tokens must be 1-D, got shape (1, 2)"),
        (lambda: BatchStream([1, -2], 1, 1), ValueError, "tokens must be between 0 and 2147483647, got -2"),
        (lambda: BatchStream([1, 2**31], 1, 1), ValueError, "got 1 to 2147483648"),
        (lambda: split_tokens([1, 2, 3], 0.0), ValueError, "validation must be above 0 and below 1, got 0.0"),
        (lambda: split_tokens([1, 2, 3], float("nan")), ValueError, "validation must be above 0"),
        (lambda: split_tokens([1, 2], 1e-20), ValueError, "leave 2 for training and 0 for validation"),
        (lambda: split_tokens([1], 0.5), ValueError, "leave 0 for training and 1 for validation"),
        (lambda: split_tokens("text", 0.5), TypeError, "tokens must be ints"),
    ],
)
def test_stream_errors(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()
