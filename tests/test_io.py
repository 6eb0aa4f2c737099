"""Files: written whole or not at all, and read as what was written or refused with a FormatError."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusedlstm import io
from fusedlstm.data import Vocabulary
from fusedlstm.io import FormatError, ModelSchema, Option

DTYPES = ["float32", "float64", "int32", "int64", "uint64", "uint8"]


def language_model_shapes(config, vocabulary_size):
    """The tensors of a small language model."""
    yield "embedding.weight", (vocabulary_size, config["hidden_size"])
    for layer in range(config["num_layers"]):
        yield f"lstm.weight_hh_l{layer}", (4 * config["hidden_size"], config["hidden_size"])


SCHEMA = ModelSchema(
    "test_model",
    {
        "hidden_size": Option(int, minimum=1),
        "num_layers": Option(int, minimum=1),
        "dropout": Option(float, minimum=0.0, below=1.0),
        "tie_weights": Option(bool),
        "dtype": Option(str, choices=("float32", "float64")),
        "comment": Option(str, nullable=True),
    },
    language_model_shapes,
)
CONFIG = {
    "hidden_size": 2,
    "num_layers": 2,
    "dropout": 0.5,
    "tie_weights": True,
    "dtype": "float32",
    "comment": None,
}
VOCABULARY = Vocabulary.from_text("abé\n")


def tensors():
    rng = np.random.default_rng(3)
    return {
        name: rng.standard_normal(shape).astype(CONFIG["dtype"])
        for name, shape in language_model_shapes(CONFIG, len(VOCABULARY))
    }


def metadata():
    return {
        "format": "fusedlstm",
        "version": "1",
        "model": "test_model",
        "config": json.dumps(CONFIG),
        "vocabulary": json.dumps(VOCABULARY.to_dict()),
    }


@pytest.fixture
def path(tmp_path):
    """A good model file, alone in its folder."""
    path = tmp_path / "model.safetensors"
    io.save_model(path, tensors(), CONFIG, VOCABULARY, schema=SCHEMA)
    return path


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a good model file."""
    path = tmp_path_factory.mktemp("content") / "model.safetensors"
    io.save_model(path, tensors(), CONFIG, VOCABULARY, schema=SCHEMA)
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A path to write to again and again."""
    return tmp_path_factory.mktemp("scratch") / "file.safetensors"


def assert_equal_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


# what is written comes back -------------------------------------------------------------------------------


def test_a_model_comes_back(path):
    model = io.load_model(path, SCHEMA)
    assert_equal_tensors(model.tensors, tensors())
    assert model.config == CONFIG
    assert model.vocabulary == VOCABULARY
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_other_programs_can_read_a_model(path):
    assert_equal_tensors(safetensors.numpy.load_file(path), tensors())


ARRAYS = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=4,
)


@settings(deadline=None)
@given(
    ARRAYS, st.dictionaries(st.text(max_size=8).filter(lambda key: key != "checksum"), st.text(max_size=20))
)
def test_tensors_come_back(scratch, arrays, texts):
    io.write_tensors(scratch, arrays, texts)
    read, read_texts = io.read_tensors(scratch)
    assert_equal_tensors(read, arrays)
    assert read_texts == texts


def test_strided_and_foreign_order_arrays_come_back(scratch):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"columns": base[:, ::2], "transposed": base.T, "back": base[::-1], "big": base.astype(">f4")}
    io.write_tensors(scratch, arrays, {})
    read, _ = io.read_tensors(scratch)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_model_without_vocabulary(scratch):
    schema = ModelSchema("plain", {"dtype": Option(str)}, lambda config, size: [], vocabulary=False)
    io.save_model(scratch, {}, {"dtype": "float32"}, None, schema=schema)
    assert io.load_model(scratch, schema).vocabulary is None
    with pytest.raises(FormatError, match="a plain has none"):
        io.save_model(scratch, {}, {"dtype": "float32"}, VOCABULARY, schema=schema)


# any bytes give what was written, or a FormatError --------------------------------------------------------


def load(scratch, content):
    """Tensors that each reader finds in these bytes; nothing but a FormatError may come instead."""
    scratch.write_bytes(content)
    return [
        *accepted(lambda: io.load_model(scratch, SCHEMA).tensors, str(scratch)),
        *accepted(lambda: io.read_tensors(scratch)[0], str(scratch)),
    ]


def accepted(read, name):
    try:
        return [read()]
    except FormatError as error:
        message = str(error)
    assert message.startswith(f"{name}: ")
    assert len(message) < 2000
    return []


def test_every_truncation_is_refused(scratch, content):
    for length in range(len(content)):
        assert load(scratch, content[:length]) == []
    assert load(scratch, content + b"\0") == []
    assert len(load(scratch, content)) == 2


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_changed_byte_is_noticed(scratch, content, flip):
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= flip
        for arrays in load(scratch, bytes(changed)):  # white space of the header may change
            assert_equal_tensors(arrays, tensors())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutilated_files(scratch, content, data):
    """Pieces removed, repeated, overwritten and swapped."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)))
        stop = data.draw(st.integers(start, min(len(changed), start + 64)))
        changed[start:stop] = data.draw(st.binary(max_size=64) | st.just(changed[start:stop] * 2))
    for arrays in load(scratch, bytes(changed)):
        assert_equal_tensors(arrays, tensors())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(scratch, content):
    assert load(scratch, content) == []


def container(header, body=b""):
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
SIZE = st.integers(0, 40) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64, -1])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "F8_E4M3", "BOOL", "U8", "I64", "C64", "X"]),
        "shape": st.lists(SIZE, max_size=3),
        "data_offsets": st.lists(SIZE, min_size=2, max_size=2) | st.just([0, 32]) | st.just([0, 0]),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["__metadata__", "a", "b"]), JSON | ENTRY, max_size=3)
    | st.fixed_dictionaries({"__metadata__": st.just({"checksum": "0" * 64}), "a": ENTRY}),
    st.binary(max_size=40),
)
def test_any_header_is_refused(scratch, header, body):
    assert load(scratch, container(header, body)) == []
    assert load(scratch, container(header, bytes(32))) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        (2**63).to_bytes(8, "little") + b"{}",
        container(b"{}"),
        container(b"[" * 100_000),
        container(b'{"a":' * 100_000),
        container({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"1234"),
        container(
            {
                "__metadata__": {"checksum": "x"},
                "a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]},
            }
        ),
        b"\x80\x04\x95pickle",
        b"PK\x03\x04 a zip file, such as PyTorch writes",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}",
        b"\x89HDF\r\n\x1a\n\0\0\0\0\0\0\0\0",
        b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0",
        b"First Citizen:\nBefore we proceed any further, hear me speak.\n",
    ],
)
def test_foreign_files_are_refused(scratch, content):
    assert load(scratch, content) == []


def test_a_safetensors_file_of_another_program(scratch):
    for texts in (None, {"format": "pt"}):
        scratch.write_bytes(safetensors.numpy.save(tensors(), texts))
        with pytest.raises(FormatError, match="not a file of fusedlstm"):
            io.load_model(scratch, SCHEMA)


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(FormatError, match="not a file"):
        io.load_model(tmp_path, SCHEMA)
    with pytest.raises(FileNotFoundError):
        io.load_model(tmp_path / "nothing", SCHEMA)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FormatError, match="not a file"):
            io.read_tensors(tmp_path / "pipe")


# files that are whole, but wrong --------------------------------------------------------------------------


def config_with(**changes):
    return {"config": json.dumps(CONFIG | changes)}


def config_without(name):
    return {"config": json.dumps({key: value for key, value in CONFIG.items() if key != name})}


def vocabulary_of(kind, symbols):
    return {"vocabulary": json.dumps({"kind": kind, "symbols": symbols})}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a model of fusedlstm: format is 'other'"),
        ({"format": None}, "not a model of fusedlstm: format is None"),
        ({"version": "2"}, "version must be '1', got '2'"),
        ({"version": None}, "version must be '1', got None"),
        ({"model": "forecaster"}, "model must be 'test_model', got 'forecaster'"),
        ({"config": None}, "metadata must have"),
        ({"vocabulary": None}, "metadata must have"),
        ({"note": "foreign"}, "metadata must have"),
        ({"config": "{"}, "config: not JSON"),
        ({"config": ""}, "config: not JSON"),
        ({"config": "[1]"}, "config: must be a mapping, got list"),
        ({"config": "[" * 100_000}, "config: not JSON"),
        ({"config": '{"a": 1, "a": 2}'}, "config: a key is given twice"),
        ({"config": json.dumps(CONFIG).replace("0.5", "NaN")}, "config: NaN is not JSON"),
        ({"config": json.dumps(CONFIG).replace("0.5", "-Infinity")}, "config: -Infinity is not JSON"),
        ({"config": json.dumps(CONFIG).replace("0.5", "1e999")}, "dropout must be less than 1.0, got inf"),
        ({"config": json.dumps(CONFIG).replace("0.5", "9" * 5000)}, "config: not JSON"),
        (config_without("hidden_size"), "config: missing ['hidden_size'], foreign none"),
        (config_with(colour=1), "config: missing none, foreign ['colour']"),
        (config_with(hidden_size=0), "config: hidden_size must be at least 1, got 0"),
        (config_with(hidden_size=-3), "config: hidden_size must be at least 1, got -3"),
        (config_with(hidden_size=2.0), "config: hidden_size must be int, got 2.0"),
        (config_with(hidden_size=True), "config: hidden_size must be int, got True"),
        (config_with(hidden_size="2"), "config: hidden_size must be int, got '2'"),
        (config_with(hidden_size=[2] * 10_000), "config: hidden_size must be int, got [2"),
        (config_with(hidden_size=None), "config: hidden_size must be int, got None"),
        (config_with(dropout=1.0), "config: dropout must be less than 1.0, got 1.0"),
        (config_with(dropout=True), "config: dropout must be float, got True"),
        (config_with(tie_weights=1), "config: tie_weights must be bool, got 1"),
        (config_with(dtype="float16"), "config: dtype must be one of 'float32', 'float64', got 'float16'"),
        (config_with(comment=3), "config: comment must be str, got 3"),
        (config_with(dtype="float64"), "tensor embedding.weight must be float64 (4, 2), got float32 (4, 2)"),
        (config_with(hidden_size=3), "tensor embedding.weight must be float32 (4, 3), got float32 (4, 2)"),
        (config_with(hidden_size=10**30), f"tensor embedding.weight must be float32 (4, {10**30})"),
        (config_with(num_layers=3), "tensor lstm.weight_hh_l2 is missing"),
        (config_with(num_layers=10**30), "tensor lstm.weight_hh_l2 is missing"),
        (config_with(num_layers=1), "tensor lstm.weight_hh_l1 does not belong to the model"),
        ({"vocabulary": "1"}, "vocabulary: Vocabulary: a mapping with the keys kind and symbols"),
        ({"vocabulary": "{}"}, "vocabulary: Vocabulary: a mapping with the keys kind and symbols"),
        (vocabulary_of("byte", []), "tensor embedding.weight must be float32 (256, 2), got float32 (4, 2)"),
        (vocabulary_of("char", ["a", "b", "c"]), "tensor embedding.weight must be float32 (3, 2)"),
        (vocabulary_of("char", ["a", "b", "c", "c"]), "vocabulary: Vocabulary: symbol 'c' is given twice"),
        (vocabulary_of("char", ["a", "b", "c", 1]), "symbol 3 must be a str"),
        (vocabulary_of("word", ["a", "b", "c", "d"]), "words must include '<unk>'"),
        (vocabulary_of(["char"], ["a", "b", "c", "d"]), "kind must be a str"),
        (vocabulary_of("letter", ["a", "b", "c", "d"]), "kind must be one of"),
    ],
)
def test_inconsistent_metadata_is_refused(scratch, change, message):
    texts = {key: text for key, text in (metadata() | change).items() if text is not None}
    io.write_tensors(scratch, tensors(), texts)
    tracemalloc.start()
    with pytest.raises(FormatError) as error:
        io.load_model(scratch, SCHEMA)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in str(error.value)
    assert str(error.value).startswith(f"{scratch}: ")
    assert len(str(error.value)) < 1000
    assert peak < 20_000_000  # whatever sizes are claimed


def without(name):
    return lambda arrays: arrays.pop(name)


def put(name, value):
    return lambda arrays: arrays.update({name: value})


def poison(value):
    def change(arrays):
        arrays["lstm.weight_hh_l1"][3, 1] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("embedding.weight"), "tensor embedding.weight is missing"),
        (without("lstm.weight_hh_l1"), "tensor lstm.weight_hh_l1 is missing"),
        (put("lstm.scale", np.ones(3, np.float32)), "tensor lstm.scale does not belong to the model"),
        (put("embedding.weight", np.ones((2, 4), np.float32)), "(4, 2), got float32 (2, 4)"),
        (put("embedding.weight", np.ones(8, np.float32)), "(4, 2), got float32 (8,)"),
        (put("embedding.weight", np.ones((4, 2))), "must be float32 (4, 2), got float64 (4, 2)"),
        (put("embedding.weight", np.ones((4, 2), np.int32)), "must be float32 (4, 2), got int32 (4, 2)"),
        (poison(np.nan), "tensor lstm.weight_hh_l1 must be finite, got nan at (3, 1)"),
        (poison(-np.inf), "tensor lstm.weight_hh_l1 must be finite, got -inf at (3, 1)"),
    ],
)
def test_inconsistent_tensors_are_refused_and_not_saved(scratch, path, change, message):
    arrays = tensors()
    change(arrays)
    io.write_tensors(scratch, arrays, metadata())
    with pytest.raises(FormatError, match=re.escape(message)):
        io.load_model(scratch, SCHEMA)
    before = path.read_bytes()
    with pytest.raises(FormatError) as error:
        io.save_model(path, arrays, CONFIG, VOCABULARY, schema=SCHEMA)
    assert message in str(error.value)
    assert "not saved" in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arrays", "texts", "message"),
    [
        ({"a": np.ones(2, np.float16)}, {}, "a: dtype must be one of float32"),
        ({"a": np.array(["x"])}, {}, "a: dtype must be one of float32"),
        ({}, {"checksum": "1"}, "must not have the key 'checksum'"),
        ({}, {"version": 1}, "metadata must be texts, got 'version': int"),
    ],
)
def test_what_cannot_be_stored(path, arrays, texts, message):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(message)):
        io.write_tensors(path, arrays, texts)
    assert path.read_bytes() == before


# a file is replaced as a whole or not at all --------------------------------------------------------------


def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_untouched(path, content):
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("place", ["open", "fsync", "replace", "chmod"])
def test_disk_full_keeps_the_old_file(path, monkeypatch, place):
    before = path.read_bytes()
    monkeypatch.setattr(os, place, disk_full)
    with pytest.raises(OSError, match="cannot write: No space left on device") as error:
        io.save_model(path, tensors(), CONFIG, VOCABULARY, schema=SCHEMA)
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(path)
    assert_untouched(path, before)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_interrupted_writer_keeps_the_old_file(path, kind):
    before = path.read_bytes()

    def writer(file):
        file.write(b"half")
        raise kind

    with pytest.raises(kind):
        io.atomic_write(path, writer)
    assert_untouched(path, before)


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are those of POSIX")
def test_a_disk_that_takes_no_more_keeps_the_old_file(path):
    """A real failure of write(2), by the limit of the size of files, in a process of its own."""
    before = path.read_bytes()
    program = (
        "import resource, sys, numpy as np; from fusedlstm import io\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "io.write_tensors(sys.argv[1], {'a': np.ones(100_000)}, {})\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "cannot write: File too large" in run.stderr
    assert_untouched(path, before)


def test_a_new_file_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        io.atomic_write(tmp_path / "new", lambda file: file.write(b"x"))
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_it_gets_the_name(path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("replace"), replace(old, new)))
    io.atomic_write(path, lambda file: file.write(b"new"))
    assert events == ["fsync", "replace", "fsync"][: 3 if os.name == "posix" else 2]
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="permissions and links are those of POSIX")
def test_permissions_and_links_are_kept(tmp_path):
    old = os.umask(0o027)
    try:
        target, link = tmp_path / "target", tmp_path / "link"
        io.atomic_write(target, lambda file: file.write(b"1"))
        assert target.stat().st_mode & 0o777 == 0o640
        target.chmod(0o604)
        link.symlink_to(target)
        io.atomic_write(link, lambda file: file.write(b"2"))
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert target.read_bytes() == b"2"
    assert target.stat().st_mode & 0o777 == 0o604


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        io.atomic_write(tmp_path / "nowhere" / "file", lambda file: None)
    assert error.value.filename == str(tmp_path / "nowhere" / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        io.atomic_write(tmp_path / "folder", lambda file: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    io.atomic_write("file", lambda file: file.write(b"x"))
    assert Path("file").read_bytes() == b"x"
