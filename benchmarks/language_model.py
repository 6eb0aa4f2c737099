"""The model of the language-model benchmarks, in both systems, with equal weights: 2 x 512, 65 characters."""

from __future__ import annotations

import string

import torch

import fusedlstm
from fusedlstm.data import Vocabulary

CHARACTERS = string.ascii_letters + "0123456789 ,\n"
VOCABULARY, HIDDEN, LAYERS = len(CHARACTERS), 512, 2


class TorchLanguageModel(torch.nn.Module):
    """The usual composition of torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.lstm = torch.nn.LSTM(HIDDEN, HIDDEN, LAYERS, batch_first=True)
        self.output = torch.nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, tokens, state=None):
        y, state = self.lstm(self.embedding(tokens), state)
        return self.output(y), state


def pair() -> tuple[fusedlstm.LanguageModel, TorchLanguageModel]:
    torch.manual_seed(0)
    peer = TorchLanguageModel()
    ours = fusedlstm.LanguageModel(
        Vocabulary.from_text(CHARACTERS, "char"), hidden_size=HIDDEN, num_layers=LAYERS
    )
    ours.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    return ours, peer
