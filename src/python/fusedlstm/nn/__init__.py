"""Layers and losses: parameters in one flat buffer, and one native call each way.

``layer(x)`` is inference. ``y, tape = layer.forward(x)`` is training, and ``dx = layer.backward(tape, dy)``
adds to ``layer.gradients``; nothing is recorded anywhere else.
"""

from fusedlstm.nn._checks import derive_seed
from fusedlstm.nn.attention import AttentionDecoder, AttentionDecoderTape, ScheduledSampling
from fusedlstm.nn.cell import LSTMCell
from fusedlstm.nn.dropout import Dropout
from fusedlstm.nn.embedding import Embedding
from fusedlstm.nn.linear import Linear
from fusedlstm.nn.losses import CrossEntropyLoss, LinearCrossEntropy, MSELoss
from fusedlstm.nn.lstm import LSTM, LSTMTape
from fusedlstm.nn.module import Layer, Module, Tape
from fusedlstm.nn.sequential import Sequential
from fusedlstm.nn.stream import Stream

__all__ = [
    "LSTM",
    "AttentionDecoder",
    "AttentionDecoderTape",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "LSTMCell",
    "LSTMTape",
    "Layer",
    "Linear",
    "LinearCrossEntropy",
    "MSELoss",
    "Module",
    "ScheduledSampling",
    "Sequential",
    "Stream",
    "Tape",
    "derive_seed",
]
