"""What a generation loop is asked for, and its tokens as they come."""

from fusedlstm.generation.sampling import Sampling
from fusedlstm.generation.stream import TextStream, token_stream

__all__ = ["Sampling", "TextStream", "token_stream"]
