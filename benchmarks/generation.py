"""Characters per second out of a 2 x 512 language model, one sequence, greedy and sampled.

The peer is a loop over torch's layers under inference_mode. Before timing, the greedy texts are compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .harness import Record, alternate, use_threads
from .language_model import CHARACTERS, HIDDEN, LAYERS, VOCABULARY, TorchLanguageModel, pair

PROMPT = "To be,"


@torch.inference_mode()
def torch_generate(model: TorchLanguageModel, prompt: str, tokens: int, greedy: bool) -> str:
    ids = torch.tensor([[CHARACTERS_SORTED.index(character) for character in prompt]])
    logits, state = model(ids)
    generated = []
    for k in range(tokens):
        last = logits[0, -1]
        token = last.argmax() if greedy else torch.multinomial(torch.softmax(last, -1), 1)[0]
        generated.append(int(token))
        if k + 1 < tokens:
            logits, state = model(token.view(1, 1), state)
    return "".join(CHARACTERS_SORTED[token] for token in generated)


CHARACTERS_SORTED = "".join(sorted(CHARACTERS))  # ids are positions in sorted order


def run(threads: int, quick: bool) -> Iterator[Record]:
    use_threads(threads)
    ours, peer = pair()
    tokens = 64 if quick else 256
    text = ours.generate(PROMPT, max_new_tokens=tokens, greedy=True)
    peer_text = torch_generate(peer, PROMPT, tokens, greedy=True)
    if text != peer_text:
        raise AssertionError(f"greedy text differs: {text!r}, torch {peer_text!r}")
    for greedy in (True, False):
        record = alternate(
            lambda greedy=greedy: ours.generate(PROMPT, max_new_tokens=tokens, greedy=greedy),
            lambda greedy=greedy: torch_generate(peer, PROMPT, tokens, greedy),
            repetitions=3 if quick else 11,
        )
        record |= {
            "benchmark": "generation",
            "case": f"{LAYERS}x{HIDDEN} N=1 {'greedy' if greedy else 'sampled'}",
            "shape": {"N": 1, "new": tokens, "H": HIDDEN, "L": LAYERS, "V": VOCABULARY, "dtype": "float32"},
            "peer": "torch",
            "threads": threads,
        }
        for side in ("ours", "peer"):
            record[f"{side}_tokens_per_second"] = tokens / record[f"{side}_seconds"]["median"]
        yield record
