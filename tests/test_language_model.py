"""The language model: against PyTorch, against finite differences, what it learns, and its file."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import safetensors.numpy
import torch
from reference import log_softmax
from tolerances import assert_close

from fusedlstm import LanguageModel, _core
from fusedlstm.data import Vocabulary
from fusedlstm.io import FormatError
from fusedlstm.models.language_model import SCHEMA

TEXT = "the quick brown fox jumps over the lazy dog\n"
GOLDEN = [3.3629241228103637, 3.3525678634643556, 3.2963664531707764, 3.2903233885765077]


def tiny(**options) -> LanguageModel:
    sizes = {"hidden_size": 7, "num_layers": 2, "dtype": "float64", "seed": 3}
    return LanguageModel(Vocabulary.from_text(TEXT), **{**sizes, **options})


def batch(model, rng, N=3, T=5):
    size = (N, T)
    V = len(model.vocabulary)
    inputs = rng.integers(0, V, size, dtype=np.int32)
    targets = rng.integers(0, V, size, dtype=np.int32)
    shape = (model.lstm.num_layers, N, model.lstm.hidden_size)
    state = tuple(0.5 * rng.standard_normal(shape).astype(model.dtype) for _ in range(2))
    return inputs, targets, state


class TorchModel:
    """The same model from PyTorch's layers, in float64."""

    def __init__(self, model: LanguageModel) -> None:
        self.leaves = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in model.state_dict().items()
        }
        lstm = model.lstm
        self.lstm = torch.nn.LSTM(
            lstm.input_size, lstm.hidden_size, lstm.num_layers, batch_first=True, dtype=torch.float64
        )

    def loss_sum(self, inputs, targets, state):
        leaves = self.leaves
        x = leaves["embedding.weight"][torch.tensor(inputs, dtype=torch.long)]
        weights = {name[5:]: leaf for name, leaf in leaves.items() if name.startswith("lstm.")}
        state = tuple(torch.tensor(np.asarray(part), dtype=torch.float64) for part in state)
        y, state = torch.func.functional_call(self.lstm, weights, (x, state))
        weight = leaves.get("output.weight", leaves["embedding.weight"])
        logits = y @ weight.T + leaves["output.bias"]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(targets, dtype=torch.long).flatten(), reduction="sum"
        )
        return loss, tuple(part.detach().numpy() for part in state)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_training_step_is_pytorchs(tied, dtype, rng):
    model = tiny(tie_weights=tied, dtype=dtype, embedding_size=7 if tied else 5)
    inputs, targets, state = batch(model, rng)
    peer = TorchModel(model)
    expected, expected_state = peer.loss_sum(inputs, targets, state)
    expected.backward()

    model.zero_grad()
    loss, count, new_state = model.training_step(inputs, targets, state, scale=0.25, seed=0)
    assert count == inputs.size
    assert_close(loss / count, expected.item() / count, "torch forward", dtype)
    for ours, theirs in zip(new_state, expected_state, strict=True):
        assert_close(ours, theirs, "torch forward")
    gradients = model.named_gradients()
    assert gradients.keys() == peer.leaves.keys()
    for name, leaf in peer.leaves.items():
        assert_close(gradients[name], 0.25 * leaf.grad.numpy(), "torch backward", dtype)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gradients_with_every_dropout_are_finite_differences(tied, rng):
    model = LanguageModel(
        Vocabulary.from_text("abcd"),
        hidden_size=3,
        dtype="float64",
        dropout=0.3,
        embedding_dropout=0.2,
        output_dropout=0.4,
        tie_weights=tied,
    )
    inputs, targets, state = batch(model, rng, N=2, T=3)

    def loss() -> float:
        model.mark_updated()
        return model.training_step(inputs, targets, state, scale=1.0, seed=11)[0]

    model.zero_grad()
    loss()
    gradients = model.gradients.copy()
    step = 1e-5
    for index in range(model.parameters.size):
        kept = model.parameters[index]
        model.parameters[index] = kept + step
        above = loss()
        model.parameters[index] = kept - step
        below = loss()
        model.parameters[index] = kept
        assert_close(gradients[index], (above - below) / (2 * step), "finite differences")


def test_dropout_masks_depend_on_the_seed_only(rng):
    model = tiny(dropout=0.5)
    inputs, targets, state = batch(model, rng)
    losses = [model.training_step(inputs, targets, state, scale=1.0, seed=seed)[0] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_evaluate_is_pytorchs_mean_over_every_prediction():
    model = tiny()
    tokens = model.vocabulary.encode(TEXT * 3)
    expected, _ = TorchModel(model).loss_sum(tokens[None, :-1], tokens[None, 1:], model.zero_state(1))
    for window in (1, 7, 1000):
        loss = model.evaluate(TEXT * 3, window=window)
        assert_close(loss, expected.item() / (len(tokens) - 1), "torch forward", "float64")
    # in lanes, each from the zero state: the same predictions, the last lane shorter
    predictions = len(tokens) - 1
    lanes = [slice(start, min(start + 33, predictions)) for start in range(0, predictions, 33)]
    total = sum(
        TorchModel(model)
        .loss_sum(tokens[None, :-1][:, lane], tokens[None, 1:][:, lane], model.zero_state(1))[0]
        .item()
        for lane in lanes
    )
    loss = model.evaluate(tokens, batch_size=4, window=10)
    assert_close(loss, total / predictions, "torch forward", "float64")


def test_memorises_a_string():
    model = LanguageModel(Vocabulary.from_text(TEXT), hidden_size=48, num_layers=1, seed=1)
    history = model.fit(TEXT * 20, epochs=25, batch_size=4, window=22, lr=0.02, progress=False)
    assert history.epochs[-1]["train_loss"] < 0.05
    assert model.generate("the quick ", max_new_tokens=34, greedy=True) == TEXT[10:]


def golden_run() -> list[float]:
    model = LanguageModel(
        Vocabulary.from_text(TEXT),
        embedding_size=8,
        hidden_size=16,
        dropout=0.25,
        embedding_dropout=0.1,
        seed=5,
    )
    history = []
    state = model.zero_state(2)
    tokens = model.vocabulary.encode(TEXT)
    for step in range(4):
        model.zero_grad()
        loss, count, state = model.training_step(
            np.stack([tokens[10 * step : 10 * step + 10]] * 2),
            np.stack([tokens[10 * step + 1 : 10 * step + 11]] * 2),
            state,
            scale=1 / 20,
            seed=step,
        )
        model.parameters[:] -= np.float32(0.5) * model.gradients
        model.mark_updated()
        history.append(loss / count)
    return history


def test_golden_losses(isa, threads):
    """The recorded losses, the same to the last bit on every instruction set and number of threads."""
    threads(1)
    one = golden_run()
    threads(3)
    assert golden_run() == one
    assert one == pytest.approx(GOLDEN, rel=1e-6, abs=0)  # float32 rounding over four steps
    if isa != "generic":
        _core.set_isa("generic")
        assert golden_run() == one


@pytest.mark.parametrize("kind", ["char", "byte", "word"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_file_gives_back_every_bit(kind, tied, dtype, tmp_path):
    model = LanguageModel(
        Vocabulary.from_text(TEXT, kind), hidden_size=6, tie_weights=tied, dropout=0.5, dtype=dtype, seed=2
    )
    model.save(tmp_path / "m.safetensors")
    loaded = LanguageModel.load(tmp_path / "m.safetensors")
    assert np.array_equal(loaded.parameters, model.parameters)
    assert loaded.config() == model.config()
    assert loaded.vocabulary == model.vocabulary
    assert loaded.generate("the ", max_new_tokens=20) == model.generate("the ", max_new_tokens=20)


def trained(compute_dtype=None, **options):
    model = tiny(hidden_size=32, dtype="float32", compute_dtype=compute_dtype)
    history = model.fit(TEXT * 30, epochs=4, batch_size=4, window=16, lr=0.02, progress=False, **options)
    return model, history.epochs[-1]["train_loss"]


def test_bfloat16_trains_as_float32_does(tmp_path):
    (full, full_loss), (model, loss) = trained(), trained("bfloat16")
    assert abs(loss - full_loss) < 0.05 * full_loss
    assert model.parameters.dtype == np.float32
    assert abs(model.evaluate(TEXT) - full.evaluate(TEXT)) < 0.05
    path = tmp_path / "model.safetensors"
    model.save(path)
    same = LanguageModel.load(path)
    assert same.lstm.compute_dtype == "bfloat16"
    assert same.config() == model.config()
    assert same.evaluate(TEXT) == model.evaluate(TEXT)
    other = LanguageModel.load(path, compute_dtype="float32")
    assert other.lstm.compute_dtype is None
    assert 0 < abs(other.evaluate(TEXT) - model.evaluate(TEXT)) < 0.01


@pytest.mark.parametrize("tape", ["half", "lean"])
def test_bfloat16_with_every_tape(tape):
    assert abs(trained("bfloat16", tape=tape)[1] - trained("bfloat16")[1]) < 1e-3


def test_int8_reads_a_trained_model(tmp_path):
    model, _ = trained()
    path = tmp_path / "model.safetensors"
    model.save(path)
    small = LanguageModel.load(path, compute_dtype="int8")
    assert 0 < abs(small.evaluate(TEXT) - model.evaluate(TEXT)) < 0.01
    with pytest.raises(ValueError, match="compute_dtype 'int8' is for inference"):
        small.fit(TEXT * 9, epochs=1, batch_size=4, window=16, progress=False)
    with pytest.raises(ValueError, match=r"LanguageModel: compute_dtype 'int8' .* use load"):
        tiny(dtype="float32", compute_dtype="int8")
    small.save(path)  # the parameters are still float32, and so is what is saved
    assert LanguageModel.load(path).evaluate(TEXT) == model.evaluate(TEXT)


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "int8"])
def test_low_precision_generates_what_it_evaluates(isa, threads, compute_dtype):
    """Tokens, log probabilities and states of the decode loop are those of forward, alone or in a batch."""
    model, _ = trained()
    model.lstm.compute_dtype = compute_dtype
    prompts = ["the quick", "fox", "over the lazy "]
    texts = model.generate(prompts, max_new_tokens=20, seed=3)
    for count in (1, 2):
        threads(count)
        for number, prompt in enumerate(prompts):
            assert model.generate(prompt, max_new_tokens=20, seed=3 + number) == texts[number]
    ids = model.vocabulary.encode(prompts[0])
    made = model.decoder.generate(
        ids,
        np.array([len(ids)], np.int32),
        _core.SamplingOptions(max_new_tokens=9),
        seeds=np.array([3], np.uint64),
    )
    tokens, log_probability = made.tokens, made.log_probabilities
    h, c = made.states.reshape(2, -1, 1, model.lstm.hidden_size)
    whole = np.concatenate([ids, tokens[0]])[None]
    y, (h_n, c_n) = model.lstm(whole[:, :-1], embedding=model.embedding)
    assert np.array_equal(h, h_n)
    assert np.array_equal(c, c_n)
    logits = _core.linear_forward(model._output, np.ascontiguousarray(y[0, len(ids) - 1 :]))
    p = log_softmax(logits.astype(float))[np.arange(9), tokens[0]]
    assert_close(log_probability[0], p, "log probabilities")


def test_files_without_a_compute_dtype_are_read(tmp_path):
    """Those written before there was one."""
    model, path = tiny(dtype="float32"), tmp_path / "model.safetensors"
    model.save(path)
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    assert config.pop("compute_dtype", "missing") is None
    assert SCHEMA.check(config) == config
    assert LanguageModel(model.vocabulary, **config).config() == model.config()
    assert set(tensors) == set(model.state_dict())


def test_wrong_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    model = tiny()
    model.save(path)
    good = path.read_bytes()
    for wrong in (b"", b"hello", good[:-1], good[: len(good) // 2], good[:-5] + b"\x00\x01\x02\x03\x04"):
        path.write_bytes(wrong)
        with pytest.raises(FormatError, match=r"m\.safetensors"):
            LanguageModel.load(path)
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(FormatError):
        LanguageModel.load(path)
    with pytest.raises(FileNotFoundError):
        LanguageModel.load(tmp_path / "none")


def test_not_finite_parameters_are_not_saved(tmp_path):
    model = tiny()
    model.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    model.parameters[5] = np.nan
    with pytest.raises(FormatError, match="finite"):
        model.save(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before


def test_copies_are_independent(rng):
    model = tiny()
    model.generate(TEXT[:3], max_new_tokens=1)  # what is packed for it is no part of a copy
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.parameters, model.parameters)
        other.parameters[:] = 0
        other.mark_updated()
        assert model.evaluate(TEXT) != other.evaluate(TEXT) == pytest.approx(math.log(len(model.vocabulary)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"embedding_size": -1}, "embedding_size must be at least 1"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"embedding_dropout": -0.1}, "embedding_dropout must be"),
        ({"tie_weights": True, "embedding_size": 3}, "tie_weights needs embedding_size = hidden_size"),
        ({"dtype": "float16"}, "dtype must be"),
        ({"init": "glorot"}, "init must be"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_wrong_vocabulary_is_refused():
    with pytest.raises(TypeError, match="vocabulary must be a Vocabulary, got list"):
        LanguageModel(["a", "b"], hidden_size=4)


def test_wrong_text_is_refused():
    model = tiny()
    with pytest.raises(ValueError, match=r"'X' \(U\+0058\) at position 4"):
        model.evaluate("the X")
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        model.evaluate("t")
    with pytest.raises(ValueError, match="between 0 and"):
        model.evaluate(np.array([0, 1, 999]))
    with pytest.raises(TypeError, match="ints"):
        model.evaluate(np.array([0.5, 1.0]))


def test_uniform_init_covers_every_parameter():
    model = LanguageModel(Vocabulary.from_text(TEXT), hidden_size=30, init=("uniform", 0.1), seed=7)
    for name, value in model.named_parameters().items():
        assert 0.05 < np.abs(value).max() <= 0.1, name
        assert abs(value.mean()) < 0.1 / math.sqrt(value.size) * 3, name
