"""Pairs of sentences: reading them, and batches of similar lengths.

Letters: N sentences of a batch, S steps of the longest source, T of the longest target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm.data.corpus import Source, read_text
from fusedlstm.data.tokenizer import TokenizerPair

Int = NDArray[np.int32]


def read_lines(path: Source) -> list[str]:
    """Lines of a UTF-8 file, without their ends; only line feeds (and ``\\r\\n``) end a line.

    Parameters
    ----------
    path : path-like
        A file that is not empty.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is empty or not UTF-8; the message has the offset of the first wrong byte.

    Examples
    --------
    >>> import fusedlstm.data as data
    >>> data.read_lines(data.__file__)[0][:9]
    '\"\"\"Text t'
    """
    lines = read_text(path).split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_pairs(source: Source, target: Source) -> list[tuple[str, str]]:
    """Pairs of sentences from two files, line by line.

    Parameters
    ----------
    source, target : path-like
        Files of as many lines, UTF-8.

    Returns
    -------
    list of (str, str)
        Source and target sentence.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If one is empty or not UTF-8, or they have different numbers of lines.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fusedlstm.data import read_pairs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     german, english = Path(folder, "train.de"), Path(folder, "train.en")
    ...     _ = german.write_text("ein hund\\nja\\n"), english.write_text("a dog\\nyes\\n")
    ...     read_pairs(german, english)
    [('ein hund', 'a dog'), ('ja', 'yes')]
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise ValueError(
            f"pairs need as many lines on both sides: {source} has {len(sources)}, {target} {len(targets)}"
        )
    return list(zip(sources, targets, strict=True))


def read_tsv_pairs(path: Source) -> list[tuple[str, str]]:
    """Pairs of sentences from one file: source, tab, target on every line.

    Parameters
    ----------
    path : path-like
        UTF-8.

    Returns
    -------
    list of (str, str)

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is empty or not UTF-8, or a line has not exactly one tab.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fusedlstm.data import read_tsv_pairs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "pairs.tsv")
    ...     _ = path.write_text("ein hund\\ta dog\\n")
    ...     read_tsv_pairs(path)
    [('ein hund', 'a dog')]
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise ValueError(
                f"{path}: line {number} must be source, tab, target, got {len(columns)} columns: "
                f"{line[:60]!r}"
            )
        pairs.append((columns[0], columns[1]))
    return pairs


@dataclass(frozen=True)
class PairBatch:
    """N pairs as padded arrays.

    Attributes
    ----------
    source : int32 (N, S)
        Source ids, each sentence ending with ``<eos>``; 0 past its end.
    source_lengths : int32 (N,)
        Steps of each source, ``<eos>`` included.
    inputs, targets : int32 (N, T)
        ``<bos> y_1 .. y_n`` and ``y_1 .. y_n <eos>``; past the end 0 and -1.
    target_lengths : int32 (N,)
        Steps of each target, n + 1.

    Examples
    --------
    >>> from fusedlstm.data import PairBatch
    >>> batch = PairBatch.pad([[3, 2], [4, 4, 2]], [[5, 6], [7]], begin=1, end=2)
    >>> batch.inputs.tolist(), batch.targets.tolist()
    ([[1, 5, 6], [1, 7, 0]], [[5, 6, 2], [7, 2, -1]])
    """

    source: Int
    source_lengths: Int
    inputs: Int
    targets: Int
    target_lengths: Int

    @staticmethod
    def pad(sources: Sequence[Any], targets: Sequence[Any], *, begin: int, end: int) -> "PairBatch":
        """Batch of encoded sentences: sources as the encoder reads them, targets without special tokens."""
        source, source_lengths = pad(sources)
        lengths = np.array([len(ids) + 1 for ids in targets], np.int32)
        shape = (len(lengths), int(lengths.max(initial=1)))
        inputs, wanted = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        inputs[:, 0] = begin
        for row, ids in enumerate(targets):
            inputs[row, 1 : len(ids) + 1] = ids
            wanted[row, : len(ids)] = ids
            wanted[row, len(ids)] = end
        return PairBatch(source, source_lengths, inputs, wanted, lengths)

    @property
    def count(self) -> int:
        """Predictions: target tokens, ``<eos>`` included."""
        return int(self.target_lengths.sum())


def pad(sentences: Sequence[Any]) -> tuple[Int, Int]:
    """Sentences of ids as one array (N, S), zeros past their ends, and their lengths (N,)."""
    lengths = np.array([len(ids) for ids in sentences], np.int32)
    ids = np.zeros((len(lengths), int(lengths.max(initial=1))), np.int32)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
    return ids, lengths


class PairBatches:
    """Encoded pairs of a corpus, cut into batches of similar lengths.

    An epoch's order is drawn from (seed, epoch): all pairs are shuffled, pools of ``pool`` batches are sorted
    by length and cut, and the batches are shuffled. Little is spent on padding, and which pairs meet in a
    batch changes from epoch to epoch.

    Parameters
    ----------
    pairs : sequence of (str, str)
        Source and target sentences, not empty.
    tokenizers : TokenizerPair
        Of the two sides.
    batch_size : int
        N; the last batch of an epoch may have fewer.
    reverse_source : bool
        Whether the encoder reads the source's tokens from the last to the first; ``<eos>`` stays at the end.
    max_length : int, optional
        Leave out pairs of which one side has more tokens.
    empty_targets : bool
        Whether targets may be empty.
    pool : int
        Batches that are sorted together; 1: no sorting.

    Attributes
    ----------
    sources, targets : list of int32 arrays
        Encoded sentences: sources as they are read, ``<eos>`` included; targets without special tokens.
    left_out : int
        Pairs that were longer than `max_length`.
    num_targets : int
        Predictions of an epoch, ``<eos>`` included.

    Raises
    ------
    ValueError
        If there is no pair, a sentence without tokens (its number is in the message), or a size below 1.
    TypeError
        If a pair is not two strings.

    Examples
    --------
    >>> from fusedlstm.data import PairBatches, Tokenizer, TokenizerPair
    >>> tokenizer = Tokenizer.from_lines(["abc"], "char")
    >>> batches = PairBatches([("ab", "ba"), ("c", "c")], TokenizerPair(tokenizer, tokenizer), 2)
    >>> [batch.source.shape for batch in batches.epoch(seed=0, epoch=0)]
    [(2, 3)]
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        tokenizers: TokenizerPair,
        batch_size: int,
        *,
        reverse_source: bool = False,
        max_length: int | None = None,
        empty_targets: bool = False,
        pool: int = 50,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_length", max_length), ("pool", pool)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"PairBatches: {name} must be an int of at least 1, got {value!r}")
        self.tokenizers, self.batch_size, self.pool = tokenizers, batch_size, pool
        self.sources: list[Int] = []
        self.targets: list[Int] = []
        self.left_out = 0
        for number, pair in enumerate(pairs, start=1):
            if isinstance(pair, str) or len(pair) != 2:
                raise TypeError(f"PairBatches: pair {number} must be (source, target), got {pair!r}")
            source, target = tokenizers.source.encode(pair[0]), tokenizers.target.encode(pair[1])
            for side, ids in (("source", source), ("target", target)):
                if not len(ids) and not (side == "target" and empty_targets):
                    raise ValueError(f"pair {number}: the {side} sentence is empty")
            if max_length is not None and max(len(source), len(target)) > max_length:
                self.left_out += 1
                continue
            self.sources.append(source_ids(source, tokenizers.source.end, reverse_source))
            self.targets.append(target)
        if not self.sources:
            raise ValueError(
                "PairBatches: there must be at least one pair"
                + (f", but all {self.left_out} are longer than {max_length}" if self.left_out else "")
            )
        self._lengths = np.array([(len(t), len(s)) for s, t in zip(self.sources, self.targets, strict=True)])
        self.num_targets = int(self._lengths[:, 0].sum()) + len(self.targets)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.sources)

    def epoch(self, seed: int, epoch: int) -> "Epoch":
        """The batches of one epoch, as many in every one.

        Parameters
        ----------
        seed, epoch : int
            Not negative; the order is a function of both.
        """
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(self))
        size = self.batch_size * self.pool
        batches = []
        for start in range(0, len(order), size):
            part = order[start : start + size]
            if self.pool > 1:
                part = part[np.lexsort((self._lengths[part, 1], self._lengths[part, 0]))]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return Epoch(self, [batches[index] for index in generator.permutation(len(batches))])

    def in_order(self) -> "Epoch":
        """All pairs, longest targets first, for measuring: no randomness."""
        order = np.lexsort((self._lengths[:, 1], self._lengths[:, 0]))[::-1]
        return Epoch(self, [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)])

    def batch(self, indices: Any) -> PairBatch:
        """The pairs of these numbers as one batch."""
        target = self.tokenizers.target
        return PairBatch.pad(
            [self.sources[index] for index in indices],
            [self.targets[index] for index in indices],
            begin=target.begin,
            end=target.end,
        )


class Epoch:
    """Batches made when they are read.

    Parameters
    ----------
    pairs : PairBatches
        What the numbers are of.
    members : list of int arrays
        Numbers of the pairs of each batch.

    Attributes
    ----------
    members : list of int arrays
        As given.

    Examples
    --------
    >>> from fusedlstm.data import PairBatches, Tokenizer, TokenizerPair
    >>> byte = Tokenizer("byte")
    >>> pairs = PairBatches([("a", "b")] * 5, TokenizerPair(byte, byte), 2)
    >>> len(pairs.epoch(seed=0, epoch=0))
    3
    """

    def __init__(self, pairs: PairBatches, members: list[NDArray[Any]]) -> None:
        self._pairs, self.members = pairs, members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> PairBatch:
        return self._pairs.batch(self.members[index])

    def __iter__(self) -> Iterator[PairBatch]:
        return map(self._pairs.batch, self.members)


def source_ids(ids: Int, end: int, reverse: bool) -> Int:
    """A source as the encoder reads it: reversed if asked for, then ``<eos>``."""
    return np.append(ids[::-1] if reverse else ids, np.int32(end)).astype(np.int32)
