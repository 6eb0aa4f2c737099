"""Characters per second out of a 2 x 512 language model, one sequence, greedy and sampled.

The peer is a loop over torch's layers under inference_mode. Before timing, the greedy texts are compared.
Ours also with weights in bfloat16 and int8, beside the same float32 peer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .harness import Plan, Record, alternate, use_threads
from .language_model import CHARACTERS, LAYERS, TorchLanguageModel, pair

BENCHMARK = "generation"
PROMPT = "To be,"


@torch.inference_mode()
def torch_generate(model: TorchLanguageModel, prompt: str, tokens: int, greedy: bool) -> str:
    ids = torch.from_numpy(CHARACTERS.vocabulary.encode(prompt).astype("int64"))[None]
    logits, state = model(ids)
    generated = []
    for k in range(tokens):
        last = logits[0, -1]
        token = last.argmax() if greedy else torch.multinomial(torch.softmax(last, -1), 1)[0]
        generated.append(int(token))
        if k + 1 < tokens:
            logits, state = model(token.view(1, 1), state)
    return CHARACTERS.vocabulary.decode(generated)


def run(plan: Plan) -> Iterator[Record]:
    use_threads(plan.threads)
    ours, peer = pair()
    tokens = 64 if plan.quick else 256
    text = ours.generate(PROMPT, max_new_tokens=tokens, greedy=True)
    peer_text = torch_generate(peer, PROMPT, tokens, greedy=True)
    if text != peer_text:
        raise AssertionError(f"greedy text differs: {text!r}, torch {peer_text!r}")
    for dtype, greedy in [("float32", True), ("float32", False), ("bfloat16", True), ("int8", True)]:
        kind = ("greedy" if greedy else "sampled") + ("" if dtype == "float32" else f" {dtype}")
        case = f"{LAYERS}x{CHARACTERS.hidden} N=1 {kind}"
        if not plan.wants(BENCHMARK, case):
            continue
        ours.lstm.compute_dtype = dtype
        record = alternate(
            lambda greedy=greedy: ours.generate(PROMPT, max_new_tokens=tokens, greedy=greedy),
            lambda greedy=greedy: torch_generate(peer, PROMPT, tokens, greedy),
            repetitions=3 if plan.quick else 11,
        )
        record |= {
            "benchmark": BENCHMARK,
            "case": case,
            "shape": {"N": 1, "new": tokens, "H": CHARACTERS.hidden, "L": LAYERS, "dtype": dtype},
            "peer": "torch",
        }
        for side in ("ours", "peer"):
            record[f"{side}_tokens_per_second"] = tokens / record[f"{side}_seconds"]["median"]
        yield record
