"""Tokenizers of pairs, reading of pair files, and batches of similar lengths."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedlstm.data import (
    PairBatch,
    PairBatches,
    Tokenizer,
    TokenizerPair,
    read_lines,
    read_pairs,
    read_tsv_pairs,
)

LINES = ["ein hund läuft .", "eine katze schläft .", "ein hund schläft ."]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


# tokenizers -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(TEXT)
def test_known_text_comes_back(text):
    assert Tokenizer("byte").decode(Tokenizer("byte").encode(text)) == text
    if text:
        characters = Tokenizer.from_lines([text], "char")
        assert characters.decode(characters.encode(text)) == text
    kept = [word for word in text.split() if word not in ("<unk>", "<bos>", "<eos>")]
    if kept:
        words = Tokenizer.from_lines([text], "word")
        assert words.decode(words.encode(text)).split() == [
            word if word in kept else "<unk>" for word in text.split()
        ]


def test_words_by_frequency_and_count():
    tokenizer = Tokenizer.from_lines(LINES, "word")
    assert tokenizer.symbols[:6] == ("<unk>", "<bos>", "<eos>", ".", "ein", "hund")
    assert Tokenizer.from_lines(LINES, "word", min_count=2).symbols[3:] == (".", "ein", "hund", "schläft")
    assert Tokenizer.from_lines(LINES, "word", max_size=5).symbols[3:] == (".", "ein")
    assert tokenizer.encode("ein wal läuft").tolist() == [4, 0, tokenizer.symbols.index("läuft")]
    assert tokenizer.all_unknown(tokenizer.encode("wal wal"))
    assert not tokenizer.all_unknown(tokenizer.encode("wal ."))
    assert not tokenizer.all_unknown(tokenizer.encode(""))


def test_special_tokens_in_a_text_are_unknown_words():
    tokenizer = Tokenizer.from_lines(["a <eos> b <bos>", "a"], "word")
    assert tokenizer.symbols[3:] == ("a", "b")
    assert tokenizer.encode("a <eos> <bos>").tolist() == [3, 0, 0]


@pytest.mark.parametrize("kind", ["word", "char", "byte", "subword"])
def test_tokenizers_are_stored(kind):
    if kind == "subword":
        pytest.importorskip("tokenizers")
    size = {"subword": 40}.get(kind)
    tokenizer = Tokenizer.from_lines(LINES, kind, max_size=size)
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer == pickle.loads(pickle.dumps(tokenizer))
    assert hash(again) == hash(tokenizer)
    for line in LINES:
        ids = tokenizer.encode(line)
        assert ids.dtype == np.int32
        assert ids.min() >= 3
        assert ids.max() < len(tokenizer)
        assert len(tokenizer.tokens(line)) == len(ids)
        assert tokenizer.decode([tokenizer.begin, *ids, tokenizer.end]) == line
        np.testing.assert_array_equal(again.encode(line), ids)


def test_subwords():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = Tokenizer.from_lines(LINES, "subword", max_size=60)
    assert len(tokenizer) <= 60
    assert len(tokenizer.encode("ein hund")) < len("ein hund")
    assert tokenizer.all_unknown(tokenizer.encode("漢字"))
    with pytest.raises(ValueError, match="not the JSON of a tokenizer"):
        Tokenizer.huggingface("{}")
    with pytest.raises(TypeError, match=r"must be a tokenizers\.Tokenizer"):
        Tokenizer.huggingface(3)
    with pytest.raises(ValueError, match="empty vocabulary"):
        Tokenizer.huggingface(tokenizers.Tokenizer(tokenizers.models.BPE()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tokenizer("line"), "kind must be one of"),
        (lambda: Tokenizer("word"), "needs symbols"),
        (lambda: Tokenizer("word", ["a", "a"]), "'a' is given twice"),
        (lambda: Tokenizer("word", ["a b"]), "a word without white space"),
        (lambda: Tokenizer("word", ["<eos>"]), "not a special token"),
        (lambda: Tokenizer("char", ["ab"]), "one character"),
        (lambda: Tokenizer("byte", ["a"]), "has no symbols"),
        (lambda: Tokenizer.from_lines(["a"], "word", min_count=2), "no word that occurs at least 2 times"),
        (lambda: Tokenizer.from_lines(["a"], "word", min_count=0), "min_count must be"),
        (lambda: Tokenizer.from_lines(["a"], "word", max_size=3), "max_size must be"),
        (lambda: Tokenizer.from_lines(["a"], "byte", max_size=9), "not for kind 'byte'"),
        (lambda: Tokenizer.from_lines(["a"], "subword"), "needs max_size"),
        (lambda: Tokenizer.from_lines(["a"], "letter"), "kind must be one of"),
        (lambda: Tokenizer.from_dict({"kind": "word"}), "keys kind and symbols"),
        (lambda: Tokenizer.from_dict([]), "keys kind and symbols"),
        (lambda: Tokenizer.from_dict({"kind": "word", "symbols": "ab"}), "symbols a list"),
        (lambda: TokenizerPair.from_dict({"source": {}}), "keys source and target"),
        (lambda: Tokenizer("byte").decode([259]), "between 0 and 258"),
    ],
)
def test_wrong_tokenizers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="text must be a str"):
        Tokenizer("byte").encode(b"a")
    with pytest.raises(TypeError, match="ids must be ints"):
        Tokenizer("byte").decode([1.5])
    with pytest.raises(TypeError, match="got one str"):
        Tokenizer.from_lines("ab")
    with pytest.raises(TypeError, match="target must be a Tokenizer"):
        TokenizerPair(Tokenizer("byte"), "byte")


# files ----------------------------------------------------------------------------------------------------


def test_only_line_feeds_end_lines(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("\ufeffa\u2028b\r\nc\x0bd\x85e\nf".encode())
    assert read_lines(path) == ["a\u2028b", "c\x0bd\x85e", "f"]


def test_files_that_are_no_pairs(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a\nb\nc\n")
    two.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"one has 3, .*two 2"):
        read_pairs(one, two)
    two.write_bytes(b"a\n\xff\n\n")
    with pytest.raises(ValueError, match=r"two: not UTF-8: byte 0xff at offset 2"):
        read_pairs(one, two)
    with pytest.raises(ValueError, match="line 1 must be source, tab, target, got 1 columns: 'a'"):
        read_tsv_pairs(one)
    two.write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        read_pairs(one, two)
    with pytest.raises(FileNotFoundError):
        read_pairs(one, tmp_path / "three")


# batches --------------------------------------------------------------------------------------------------


def corpus(rng, count=300):
    return [
        ("".join(rng.choice(list("abc"), n)), "".join(rng.choice(list("abc"), m)))
        for n, m in rng.integers(1, 30, (count, 2))
    ]


BYTES = TokenizerPair(Tokenizer("byte"), Tokenizer("byte"))


def test_every_pair_once_in_an_epoch_of_its_own_order(rng):
    pairs = corpus(rng)
    batches = PairBatches(pairs, BYTES, 16, pool=5)
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        order = batches.epoch(seed, epoch)
        assert len(order) == len(list(order)) == 19
        members = np.concatenate(order.members)
        np.testing.assert_array_equal(np.sort(members), np.arange(300))
        orders.append(members.tolist())
        assert sum(batch.count for batch in order) == batches.num_targets
        for indices, batch in zip(order.members, order, strict=True):
            for row, index in enumerate(indices):
                source, target = (Tokenizer("byte").encode(text) for text in pairs[index])
                n, m = len(source), len(target)
                assert batch.source[row, : n + 1].tolist() == [*source, 2]
                assert not batch.source[row, n + 1 :].any()
                assert batch.inputs[row, : m + 1].tolist() == [1, *target]
                assert batch.targets[row, : m + 1].tolist() == [*target, 2]
                assert (batch.targets[row, m + 1 :] == -1).all()
                assert (batch.source_lengths[row], batch.target_lengths[row]) == (n + 1, m + 1)
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3


def test_bucketing_saves_padding(rng):
    pairs = corpus(rng)

    def padding(pool):
        batches = list(PairBatches(pairs, BYTES, 16, pool=pool).epoch(0, 0))
        return sum(batch.targets.size - batch.count for batch in batches)

    assert padding(19) < 0.15 * padding(1)
    assert padding(5) < 0.4 * padding(1)


def test_sources_are_reversed_before_their_end():
    batch = PairBatches([("abc", "de")], BYTES, 1, reverse_source=True).batch([0])
    assert batch.source.tolist() == [[3 + ord("c"), 3 + ord("b"), 3 + ord("a"), 2]]
    assert batch.targets.tolist() == [[3 + ord("d"), 3 + ord("e"), 2]]


def test_wrong_pairs_are_refused():
    assert PairBatches([("a", "b"), ("abc", "d")], BYTES, 1, max_length=2).left_out == 1
    for pairs, options, message in (
        ([], {}, "at least one pair"),
        ([("a", "b"), ("", "c")], {}, "pair 2: the source sentence is empty"),
        ([("a", "")], {}, "pair 1: the target sentence is empty"),
        ([("abc", "d")], {"max_length": 2}, "all 1 are longer than 2"),
        ([("a", "b")], {"batch_size": 0}, "batch_size must be"),
        ([("a", "b")], {"pool": 0}, "pool must be"),
    ):
        with pytest.raises(ValueError, match=message):
            PairBatches(pairs, BYTES, **{"batch_size": 1, **options})
    with pytest.raises(TypeError, match=r"pair 1 must be \(source, target\)"):
        PairBatches(["ab"], BYTES, 1)


def test_a_batch_of_nothing():
    batch = PairBatch.pad([], [], begin=1, end=2)
    assert batch.source.shape == batch.targets.shape == (0, 1)
    assert batch.count == 0
