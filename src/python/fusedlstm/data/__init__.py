"""Text to tokens to batches: reading files, vocabularies, and streams for truncated backpropagation."""

from fusedlstm.data.batches import BatchStream, split_tokens
from fusedlstm.data.corpus import read_bytes, read_corpus, read_text
from fusedlstm.data.vocabulary import KINDS, TextDecoder, Vocabulary

__all__ = [
    "KINDS",
    "BatchStream",
    "TextDecoder",
    "Vocabulary",
    "read_bytes",
    "read_corpus",
    "read_text",
    "split_tokens",
]
