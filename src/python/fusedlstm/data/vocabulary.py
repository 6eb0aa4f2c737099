"""Vocabularies: text to token ids and back."""

import codecs
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core

Int = NDArray[np.int32]

KINDS = ("char", "byte", "word")
UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"


class Vocabulary:
    """Symbols and their ids, 0 to V-1.

    ========  ==============================================  =================================
    kind      a token is                                      what is not in the vocabulary
    ========  ==============================================  =================================
    ``char``  one Unicode character                           an error with its position
    ``byte``  one byte of the UTF-8 text; V is 256            cannot happen
    ``word``  what stands between white space; ``<eos>`` for  becomes ``<unk>``
              each end of line
    ========  ==============================================  =================================

    Parameters
    ----------
    kind : str
        ``"char"``, ``"byte"`` or ``"word"``.
    symbols : sequence of str
        The symbol of each id: single characters; for words, words without white space, among them ``<unk>``
        and ``<eos>``; nothing for bytes. Use `from_text` to take them from a text.

    Attributes
    ----------
    kind : str
        As given.
    symbols : tuple of str
        The symbol of each id; empty for bytes.

    Raises
    ------
    ValueError
        If the kind is unknown, or symbols are empty, repeated or not of the kind.

    Examples
    --------
    >>> from fusedlstm.data import Vocabulary
    >>> vocabulary = Vocabulary.from_text("hello")
    >>> len(vocabulary), vocabulary.encode("hole")
    (4, array([1, 3, 2, 0], dtype=int32))
    >>> vocabulary.decode([1, 0])
    'he'
    >>> words = Vocabulary.from_text("the cat\\nthe dog\\n", "word")
    >>> words.symbols
    ('<eos>', 'the', 'cat', 'dog', '<unk>')
    >>> words.decode(words.encode("the bird\\nthe cat"))
    'the <unk>\\nthe cat'
    """

    def __init__(self, kind: str, symbols: Sequence[str] = ()) -> None:
        if kind not in KINDS:
            raise ValueError(f"Vocabulary: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.kind = kind
        self.symbols = tuple(symbols)
        self._ids: dict[str, int] = {}
        self._table: Int | None = None
        if kind == "byte":
            if self.symbols:
                raise ValueError(f"Vocabulary: kind 'byte' has no symbols, got {len(self.symbols)}")
            return
        for index, symbol in enumerate(self.symbols):
            if not isinstance(symbol, str):
                raise ValueError(f"Vocabulary: symbol {index} must be a str, got {type(symbol).__name__}")
            if (len(symbol) != 1) if kind == "char" else (symbol.split() != [symbol]):
                what = "one character" if kind == "char" else "a word without white space"
                raise ValueError(f"Vocabulary: symbol {index} must be {what}, got {symbol!r}")
            if symbol in self._ids:
                raise ValueError(
                    f"Vocabulary: symbol {symbol!r} is given twice, as {self._ids[symbol]} and {index}"
                )
            self._ids[symbol] = index
        if not self.symbols:
            raise ValueError(f"Vocabulary: kind {kind!r} needs symbols, got none")
        if kind == "word":
            for needed in (UNKNOWN, END_OF_LINE):
                if needed not in self._ids:
                    raise ValueError(f"Vocabulary: words must include {needed!r}")
        else:
            points = np.array([ord(symbol) for symbol in self.symbols])
            self._table = np.full(int(points.max()) + 1, -1, np.int32)
            self._table[points] = np.arange(len(points), dtype=np.int32)

    @classmethod
    def byte(cls) -> "Vocabulary":
        """The 256 bytes."""
        return cls("byte")

    @classmethod
    def from_text(
        cls,
        text: str | bytes,
        kind: str = "char",
        *,
        max_size: int | None = None,
        min_count: int = 1,
    ) -> "Vocabulary":
        """Vocabulary of a text: its characters in the order of Unicode, or its words, most frequent first.

        Parameters
        ----------
        text : str or bytes
            Not empty. Bytes only for kind ``"byte"``, which is the same whatever the text.
        kind : str
            ``"char"``, ``"byte"`` or ``"word"``.
        max_size : int, optional
            Words only: keep so many symbols, ``<unk>`` and ``<eos>`` counted.
        min_count : int
            Words only: keep words seen so often.

        Raises
        ------
        ValueError
            If the text is empty, or a limit is given for another kind or out of range.
        TypeError
            If `text` is of the wrong kind.
        """
        if kind != "word" and (max_size is not None or min_count != 1):
            raise ValueError(f"Vocabulary: max_size and min_count are for words, not for kind {kind!r}")
        if kind == "byte":
            return cls("byte")
        if not isinstance(text, str):
            raise TypeError(f"Vocabulary: text must be a str for kind {kind!r}, got {type(text).__name__}")
        if not text:
            raise ValueError("Vocabulary: text must not be empty")
        if kind != "word":
            return cls(kind, sorted(set(text)))
        if min_count < 1:
            raise ValueError(f"Vocabulary: min_count must be at least 1, got {min_count}")
        if max_size is not None and max_size < 3:
            raise ValueError(f"Vocabulary: max_size must be at least 3, got {max_size}")
        counts = Counter(_words(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        kept = [word for word in ranked if counts[word] >= min_count or word in (UNKNOWN, END_OF_LINE)]
        kept += [word for word in (END_OF_LINE, UNKNOWN) if word not in counts]
        if max_size is not None and len(kept) > max_size:
            plain = [word for word in kept if word not in (UNKNOWN, END_OF_LINE)][: max_size - 2]
            allowed = {*plain, UNKNOWN, END_OF_LINE}
            kept = [word for word in kept if word in allowed]
        return cls("word", kept)

    def __len__(self) -> int:
        return 256 if self.kind == "byte" else len(self.symbols)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.kind == other.kind and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash((self.kind, self.symbols))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "texts"}  # native

    def __repr__(self) -> str:
        return f"Vocabulary({self.kind!r}, {len(self)} symbols)"

    @property
    def unknown(self) -> int | None:
        """Id of ``<unk>``; None where every text either has ids or is an error."""
        return self._ids[UNKNOWN] if self.kind == "word" else None

    @property
    def end_of_line(self) -> int | None:
        """Id of the end of a line: of ``<eos>``, or of the line feed where the vocabulary has it."""
        if self.kind == "byte":
            return ord("\n")
        return self._ids.get(END_OF_LINE if self.kind == "word" else "\n")

    @cached_property
    def texts(self) -> _core.TokenTexts:
        """The text of each token as the native loop needs it to look for stop strings."""
        if self.kind == "byte":
            return _core.TokenTexts([bytes([byte]) for byte in range(256)])
        texts = [symbol.encode("utf-8", "surrogatepass") for symbol in self.symbols]
        if self.kind == "char":
            return _core.TokenTexts(texts)
        end = self._ids[END_OF_LINE]
        texts[end] = b"\n"
        return _core.TokenTexts(texts, separator=b" ", line_end=end)

    def encode(self, text: str | bytes) -> Int:
        """Token ids of a text.

        Parameters
        ----------
        text : str or bytes
            Bytes only for kind ``"byte"``. May be empty.

        Returns
        -------
        ndarray of int32
            (number of tokens,).

        Raises
        ------
        ValueError
            If a character is not in the vocabulary; the message has the character and its position.
        TypeError
            If `text` is of the wrong kind.
        """
        if isinstance(text, (bytes, bytearray)) and self.kind == "byte":
            return np.frombuffer(bytes(text), np.uint8).astype(np.int32)
        if not isinstance(text, str):
            raise TypeError(
                f"Vocabulary: text must be a str for kind {self.kind!r}, got {type(text).__name__}"
            )
        if self.kind == "byte":
            return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32)
        if self.kind == "word":
            unknown = self._ids[UNKNOWN]
            return np.fromiter((self._ids.get(word, unknown) for word in _words(text)), np.int32)
        assert self._table is not None  # every char vocabulary has one
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        # Characters beyond the table share its last entry for the lookup, and are then marked as unknown.
        ids = self._table[np.minimum(points, len(self._table) - 1)]
        ids[points >= len(self._table)] = -1
        wrong = ids < 0
        if wrong.any():
            position = int(np.argmax(wrong))
            character = text[position]
            raise ValueError(
                f"character {character!r} (U+{ord(character):04X}) at position {position} is not among the "
                f"{len(self)} characters of the vocabulary"
            )
        return ids

    def decode(self, ids: Any) -> str:
        """Text of token ids.

        Bytes that are not UTF-8 become U+FFFD; words are joined by spaces, and ``<eos>`` ends a line.

        Parameters
        ----------
        ids : array_like of int
            1-D.

        Raises
        ------
        ValueError
            If an id is not in 0..V-1; the message has its position.
        TypeError
            If the ids are not ints.
        """
        decoder = self.decoder()
        return decoder.push_many(ids) + decoder.finish()

    def decode_bytes(self, ids: Any) -> bytes:
        """Bytes of token ids of kind ``"byte"``; other kinds and wrong ids are a ``ValueError``."""
        if self.kind != "byte":
            raise ValueError(f"Vocabulary: decode_bytes is for kind 'byte', not for {self.kind!r}")
        return self._checked(ids).astype(np.uint8).tobytes()

    def decoder(self) -> "TextDecoder":
        """A decoder for ids that come one by one."""
        return TextDecoder(self)

    def _checked(self, ids: Any) -> NDArray[Any]:
        array = np.asarray(ids)
        if array.ndim == 1 and array.size == 0:
            return array.astype(np.int32)
        if array.dtype.kind not in "iu":
            raise TypeError(f"Vocabulary: ids must be ints, got {array.dtype.name}")
        if array.ndim != 1:
            raise ValueError(f"Vocabulary: ids must be 1-D, got shape {array.shape}")
        wrong = (array < 0) | (array >= len(self))
        if wrong.any():
            position = int(np.argmax(wrong))
            raise ValueError(
                f"Vocabulary: ids must be between 0 and {len(self) - 1}, "
                f"got {array[position]} at position {position}"
            )
        return array

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary as values that JSON has; `from_dict` reads them back."""
        return {"kind": self.kind, "symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Vocabulary":
        """Vocabulary from what `to_dict` gave; everything is checked.

        Raises
        ------
        ValueError
            If keys are missing or foreign, or the values are not those of a vocabulary.
        """
        if not isinstance(values, Mapping) or set(values) != {"kind", "symbols"}:
            got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"Vocabulary: a mapping with the keys kind and symbols is needed, got {got}")
        kind, symbols = values["kind"], values["symbols"]
        if not isinstance(kind, str) or not isinstance(symbols, list):
            raise ValueError("Vocabulary: kind must be a str and symbols a list")
        return cls(kind, symbols)


class TextDecoder:
    """Ids to text as they come: whole characters only, and spaces between words.

    Parameters
    ----------
    vocabulary : Vocabulary
        Of the ids.

    Examples
    --------
    >>> from fusedlstm.data import Vocabulary
    >>> decoder = Vocabulary.byte().decoder()
    >>> [decoder.push(byte) for byte in "né".encode()], decoder.finish()
    (['n', '', 'é'], '')
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._line_start = True

    def push(self, token: int) -> str:
        """Text that the next id completes; may be empty within a character of several bytes.

        Raises
        ------
        ValueError
            If the id is not in 0..V-1.
        TypeError
            If it is not an int.
        """
        return self.push_many([token])

    def push_many(self, ids: Any) -> str:
        """Text that the next ids complete; errors are those of `Vocabulary.decode`."""
        vocabulary = self._vocabulary
        checked = vocabulary._checked(ids)
        if vocabulary.kind == "byte":
            return self._utf8.decode(checked.astype(np.uint8).tobytes())
        if vocabulary.kind == "char":
            return "".join(vocabulary.symbols[index] for index in checked.tolist())
        pieces = []
        for index in checked.tolist():
            word = vocabulary.symbols[index]
            if word == END_OF_LINE:
                pieces.append("\n")
            else:
                pieces.append(word if self._line_start else f" {word}")
            self._line_start = word == END_OF_LINE
        return "".join(pieces)

    def finish(self) -> str:
        """What is left at the end: U+FFFD for bytes of an unfinished character, else nothing."""
        rest = self._utf8.decode(b"", final=True)
        self._line_start = True
        return rest


def _words(text: str) -> Iterable[str]:
    lines = text.split("\n")
    last = len(lines) - 1
    for number, line in enumerate(lines):
        yield from line.split()
        if number < last:
            yield END_OF_LINE
