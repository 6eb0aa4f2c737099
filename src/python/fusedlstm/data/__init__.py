"""Text to tokens to batches: reading files, vocabularies, and streams for truncated backpropagation."""

from fusedlstm.data.batches import BatchStream, split_tokens
from fusedlstm.data.corpus import read_bytes, read_corpus, read_text
from fusedlstm.data.pairs import PairBatch, PairBatches, read_lines, read_pairs, read_tsv_pairs
from fusedlstm.data.tokenizer import TOKENS, Tokenizer, TokenizerPair
from fusedlstm.data.vocabulary import KINDS, TextDecoder, Vocabulary

__all__ = [
    "KINDS",
    "TOKENS",
    "BatchStream",
    "PairBatch",
    "PairBatches",
    "TextDecoder",
    "Tokenizer",
    "TokenizerPair",
    "Vocabulary",
    "read_bytes",
    "read_corpus",
    "read_lines",
    "read_pairs",
    "read_text",
    "read_tsv_pairs",
    "split_tokens",
]
