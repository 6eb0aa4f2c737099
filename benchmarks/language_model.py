"""Models of the language-model benchmarks, in both systems, with equal weights."""

from __future__ import annotations

import string
from dataclasses import dataclass

import torch

import fusedlstm
from fusedlstm.data import Vocabulary

LAYERS = 2


@dataclass(frozen=True)
class Size:
    """A model and its training windows."""

    hidden: int
    vocabulary: Vocabulary
    batch: int
    window: int

    @property
    def case(self) -> str:
        return f"{LAYERS}x{self.hidden} V={len(self.vocabulary)} N={self.batch} T={self.window}"


CHARACTERS = Size(512, Vocabulary.from_text(string.ascii_letters + "0123456789 ,\n", "char"), 64, 128)
# Zaremba's medium model of Penn Treebank; two of the words are <unk> and <eos>
WORDS = Size(650, Vocabulary.from_text(" ".join(f"w{k}" for k in range(9998)) + "\n", "word"), 20, 35)


class TorchLanguageModel(torch.nn.Module):
    """The usual composition of torch's own layers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(len(size.vocabulary), size.hidden)
        self.lstm = torch.nn.LSTM(size.hidden, size.hidden, LAYERS, batch_first=True)
        self.output = torch.nn.Linear(size.hidden, len(size.vocabulary))

    def forward(self, tokens, state=None):
        y, state = self.lstm(self.embedding(tokens), state)
        return self.output(y), state


def pair(
    size: Size = CHARACTERS, compute_dtype: str | None = None
) -> tuple[fusedlstm.LanguageModel, TorchLanguageModel]:
    torch.manual_seed(0)
    peer = TorchLanguageModel(size)
    ours = fusedlstm.LanguageModel(
        size.vocabulary, hidden_size=size.hidden, num_layers=LAYERS, compute_dtype=compute_dtype
    )
    ours.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    return ours, peer
