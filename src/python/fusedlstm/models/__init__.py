"""Models: layers put together for a purpose."""

from fusedlstm.models.encoder_decoder import Bridge, Decoder, Encoder
from fusedlstm.models.language_model import LanguageModel
from fusedlstm.models.seq2seq import Seq2Seq

__all__ = ["Bridge", "Decoder", "Encoder", "LanguageModel", "Seq2Seq"]
