"""What a generation loop is asked for, its tokens as they come, and sequences that are stepped together."""

from fusedlstm.generation.beam import BeamSearch, Hypothesis, prefix_steps
from fusedlstm.generation.sampling import Sampling
from fusedlstm.generation.session import NewToken, SavedSequence, Session
from fusedlstm.generation.stream import BatchTextStream, TextPieces, TextStream, token_steps, token_stream
from fusedlstm.generation.text import GeneratedText

__all__ = [
    "BatchTextStream",
    "BeamSearch",
    "GeneratedText",
    "Hypothesis",
    "NewToken",
    "Sampling",
    "SavedSequence",
    "Session",
    "TextPieces",
    "TextStream",
    "prefix_steps",
    "token_steps",
    "token_stream",
]
