"""Models: layers put together for a purpose."""

from fusedlstm.models.alignment import Alignment, corpus_bleu
from fusedlstm.models.encoder_decoder import Bridge, Decoder, Encoder
from fusedlstm.models.language_model import LanguageModel
from fusedlstm.models.one_to_many import OneToMany
from fusedlstm.models.seq2seq import Seq2Seq

__all__ = [
    "Alignment",
    "Bridge",
    "Decoder",
    "Encoder",
    "LanguageModel",
    "OneToMany",
    "Seq2Seq",
    "corpus_bleu",
]
