"""Translation in bfloat16 and int8: one result by every way to it, close to float32's."""

from __future__ import annotations

import pytest
from test_seq2seq import SHARED, reversals
from test_translation_session import VARIANTS

from fusedlstm import Seq2Seq

LOW = ["bfloat16", "int8"]
PAIRS = reversals(300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    """File of a model that knows a little; its linear bridge gives states beyond [-1, 1]."""
    model = Seq2Seq(
        SHARED, hidden_size=24, embedding_size=40, bidirectional=True, attention="general", seed=1
    )
    model.fit(PAIRS, epochs=6, batch_size=16, lr=0.02, progress=False)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model.save(path)
    return str(path)


@pytest.mark.parametrize("compute_dtype", LOW)
def test_close_to_float32(trained, compute_dtype):
    exact, low = Seq2Seq.load(trained), Seq2Seq.load(trained, compute_dtype=compute_dtype)
    held_out = reversals(40, seed=1)
    assert low.evaluate(held_out) != exact.evaluate(held_out)
    # nats per token; int8 was off by 0.001 of 0.354
    assert low.evaluate(held_out) == pytest.approx(exact.evaluate(held_out), abs=0.008)
    sources = [source for source, _ in held_out]
    pairs = zip(low.translate(sources), exact.translate(sources), strict=True)
    assert sum(one == other for one, other in pairs) > 30
    assert low.encoder.lstm.packed.compute_dtype == compute_dtype
    assert low.decoder.layers.lstm.packed.compute_dtype == compute_dtype
    assert low.decoder.output.packed.compute_dtype == compute_dtype
    assert low.decoder.native.nbytes < exact.decoder.native.nbytes
    assert low.config()["compute_dtype"] == (None if compute_dtype == "int8" else compute_dtype)
    wide = Seq2Seq.load(trained, compute_dtype="float32")
    assert wide.evaluate(held_out) == exact.evaluate(held_out)


@pytest.mark.parametrize("compute_dtype", LOW)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_one_result_by_every_way(options, compute_dtype, tmp_path):
    model = Seq2Seq(
        SHARED, **{"embedding_size": 5, "hidden_size": 7, "init": ("uniform", 1.5), "seed": 3, **options}
    )
    model.save(tmp_path / "model")
    model = Seq2Seq.load(tmp_path / "model", compute_dtype=compute_dtype)
    sources = ["abc", "h", "gfedcbaabcdefgh", "dd", "hgab"]
    limits = {"max_new_tokens": 9, "min_new_tokens": 3}
    hypotheses = model.beam_search(sources, width=1, **limits)
    greedy = [found[0].text for found in hypotheses]
    assert model.translate(sources, beam=1, batch_size=2, **limits) == greedy
    assert model.generate(sources, greedy=True, **limits) == greedy
    assert ["".join(model.stream(source, **limits)) for source in sources] == greedy
    assert [model.translate(source, **limits) for source in sources] == model.translate(sources, **limits)
    for source, (best,) in zip(sources, hypotheses, strict=True):
        if best.tokens[-1] == 2 and 0 not in best.tokens:
            assert model.score(source, best.text) == pytest.approx(best.log_probabilities.sum(), rel=1e-4)
    session = model.session(capacity=3)
    drawn = {session.join(source, seed=5 + n, **limits): [] for n, source in enumerate(sources[:3])}
    for step in range(100):
        for new in session.step():
            drawn[new.id].append(new.text)
        if step == 2:
            saved = session.save(1)
            session.leave(1)
            drawn[session.restore(saved)] = drawn.pop(1)
        if not session.ids:
            break
    texts = ["".join(drawn[id]) for id in (0, 3, 2)]
    assert texts == model.generate(sources[:3], seed=5, **limits)


def test_int8_is_not_for_training(trained):
    model = Seq2Seq.load(trained, compute_dtype="int8")
    with pytest.raises(ValueError, match="compute_dtype 'int8' is for inference"):
        model.fit(PAIRS, epochs=1, progress=False)
    model.encoder.lstm.compute_dtype = None
    with pytest.raises(ValueError, match="compute_dtype 'int8' is for generation"):
        model.fit(PAIRS, epochs=1, progress=False)


@pytest.mark.parametrize("compute_dtype", LOW)
def test_float64_models_have_one_type(tmp_path, compute_dtype):
    Seq2Seq(SHARED, hidden_size=4, dtype="float64").save(tmp_path / "model")
    with pytest.raises(ValueError, match="needs dtype 'float32', got 'float64'"):
        Seq2Seq.load(tmp_path / "model", compute_dtype=compute_dtype)
