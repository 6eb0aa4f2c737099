"""Sentences to token ids and back, for models that read one text and write another."""

import importlib
import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core

Int = NDArray[np.int32]

TOKENS = ("word", "char", "byte", "subword")
SPECIALS = ("<unk>", "<bos>", "<eos>")


class Tokenizer:
    """Tokens of sentences and their ids: special ones ``<unk>``, ``<bos>``, ``<eos>`` first, then 3 to V-1.

    ===========  ========================================================  ==========================
    kind         a token is                                                what is not known
    ===========  ========================================================  ==========================
    ``word``     what stands between white space; decoded with one space   becomes ``<unk>``
    ``char``     one Unicode character                                     becomes ``<unk>``
    ``byte``     one byte of the UTF-8 text; V is 259                      cannot happen
    ``subword``  what a tokenizer of Hugging Face's ``tokenizers`` says    as that tokenizer does
                 (extra ``tokenizers``); its ids are moved up by 3
    ===========  ========================================================  ==========================

    Parameters
    ----------
    kind : str
        ``"word"``, ``"char"`` or ``"byte"``; see `huggingface` for subwords, `from_lines` for all.
    symbols : sequence of str
        Words or characters, without the special tokens; nothing for bytes.

    Attributes
    ----------
    kind : str
        As given.
    symbols : tuple of str
        The text of every id, special tokens included.
    unknown, begin, end : int
        0, 1 and 2: ids of the special tokens. A sentence is written from ``begin`` on until ``end``.

    Raises
    ------
    ValueError
        If the kind is unknown, or symbols are empty, repeated or not of the kind.

    Examples
    --------
    >>> from fusedlstm.data import Tokenizer
    >>> words = Tokenizer.from_lines(["the cat", "the dog"], "word")
    >>> words.symbols
    ('<unk>', '<bos>', '<eos>', 'the', 'cat', 'dog')
    >>> words.encode("the bird")
    array([3, 0], dtype=int32)
    >>> words.decode([3, 5, 2])
    'the dog'
    """

    unknown, begin, end = range(3)

    def __init__(self, kind: str, symbols: Sequence[str] = ()) -> None:
        if kind not in TOKENS or kind == "subword":
            raise ValueError(f"Tokenizer: kind must be one of word, char, byte, got {kind!r}")
        self.kind = kind
        self._model: Any = None
        self._texts: _core.TokenTexts | None = None
        if kind == "byte":
            if symbols:
                raise ValueError(f"Tokenizer: kind 'byte' has no symbols, got {len(symbols)}")
            self.symbols = SPECIALS + tuple(f"<{value:02x}>" for value in range(256))
            self._ids: dict[str, int] = {}
            return
        self.symbols = SPECIALS + tuple(symbols)
        if not symbols:
            raise ValueError(f"Tokenizer: kind {kind!r} needs symbols, got none")
        for index, symbol in enumerate(symbols):
            if not isinstance(symbol, str):
                raise ValueError(f"Tokenizer: symbol {index} must be a str, got {type(symbol).__name__}")
            if (len(symbol) != 1) if kind == "char" else (symbol.split() != [symbol] or symbol in SPECIALS):
                what = (
                    "one character" if kind == "char" else "a word without white space, not a special token"
                )
                raise ValueError(f"Tokenizer: symbol {index} must be {what}, got {symbol!r}")
        # a word "<eos>" of the text is no end of a sentence: special tokens are not looked up
        self._ids = {symbol: 3 + index for index, symbol in enumerate(symbols)}
        if len(self._ids) != len(symbols):
            twice = next(symbol for symbol, count in Counter(symbols).items() if count > 1)
            raise ValueError(f"Tokenizer: symbol {twice!r} is given twice")

    @classmethod
    def from_lines(
        cls, lines: Iterable[str], kind: str = "word", *, max_size: int | None = None, min_count: int = 1
    ) -> "Tokenizer":
        """Tokenizer of a corpus, most frequent tokens first.

        Parameters
        ----------
        lines : iterable of str
            Sentences.
        kind : str
            ``"word"``, ``"char"``, ``"byte"`` or ``"subword"``: byte-pair encoding by ``tokenizers``.
        max_size : int, optional
            Largest V; needed for subwords.
        min_count : int
            Leave out words and characters, or pairs of subwords, seen less often.

        Raises
        ------
        ValueError
            If nothing is left, or a limit is out of range or given for bytes.
        ImportError
            If ``tokenizers`` is needed and missing.

        References
        ----------
        Sennrich, Haddow, Birch: Neural machine translation of rare words with subword units, 2016.
        """
        if isinstance(lines, str):
            raise TypeError("Tokenizer: lines must be sentences, got one str")
        if kind not in TOKENS:
            raise ValueError(f"Tokenizer: kind must be one of {', '.join(TOKENS)}, got {kind!r}")
        if min_count < 1:
            raise ValueError(f"Tokenizer: min_count must be at least 1, got {min_count}")
        if max_size is not None and max_size < 5:
            raise ValueError(f"Tokenizer: max_size must be at least 5, got {max_size}")
        if kind == "byte":
            if max_size is not None or min_count != 1:
                raise ValueError("Tokenizer: max_size and min_count are not for kind 'byte'")
            return cls("byte")
        if kind == "subword":
            if max_size is None:
                raise ValueError("Tokenizer: kind 'subword' needs max_size")
            return cls.huggingface(_train_subwords(lines, max_size - 3, min_count))
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line.split() if kind == "word" else line)
        for special in SPECIALS if kind == "word" else ():
            counts.pop(special, None)
        kept = [symbol for symbol, count in counts.items() if count >= min_count]
        kept.sort(key=lambda symbol: (-counts[symbol], symbol))
        if not kept:
            raise ValueError(f"Tokenizer: the corpus has no {kind} that occurs at least {min_count} times")
        return cls(kind, kept[: None if max_size is None else max_size - 3])

    @classmethod
    def huggingface(cls, model: Any) -> "Tokenizer":
        """Tokenizer of Hugging Face's ``tokenizers``.

        Parameters
        ----------
        model : tokenizers.Tokenizer or str
            The object, or its content as JSON (``Tokenizer.to_str()``, a ``tokenizer.json``). Its own special
            tokens are not added to sentences.

        Raises
        ------
        ValueError
            If the JSON is not that of a tokenizer.
        ImportError
            If the package is missing; the message says how to get it.
        """
        library = _library()
        if isinstance(model, str):
            try:
                model = library.Tokenizer.from_str(model)
            except Exception as error:  # the library raises plain Exception
                raise ValueError(f"Tokenizer: not the JSON of a tokenizer: {error}") from None
        if not isinstance(model, library.Tokenizer):
            raise TypeError(f"Tokenizer: model must be a tokenizers.Tokenizer, got {type(model).__name__}")
        size = model.get_vocab_size()
        if not size:
            raise ValueError("Tokenizer: the model has an empty vocabulary")
        self = cls.__new__(cls)
        self.kind, self._model, self._ids, self._texts = "subword", model, {}, None
        self.symbols = SPECIALS + tuple(model.id_to_token(index) or f"<{index}>" for index in range(size))
        return self

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Tokenizer) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.kind, self.symbols))

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind!r}, {len(self)} symbols)"

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(Tokenizer.from_dict(state)))

    def encode(self, text: str) -> Int:
        """Token ids of a sentence, without ``<bos>`` and ``<eos>``.

        Parameters
        ----------
        text : str
            May be empty.

        Returns
        -------
        ndarray of int32
            (number of tokens,).

        Raises
        ------
        TypeError
            If `text` is not a str.
        """
        if not isinstance(text, str):
            raise TypeError(f"Tokenizer: text must be a str, got {type(text).__name__}")
        if self.kind == "byte":
            return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32) + 3
        if self.kind == "subword":
            ids = self._model.encode(text, add_special_tokens=False).ids
            return np.asarray(ids, np.int32) + 3 if ids else np.zeros(0, np.int32)
        tokens = text.split() if self.kind == "word" else text
        return np.fromiter((self._ids.get(token, self.unknown) for token in tokens), np.int32)

    def tokens(self, text: str) -> list[str]:
        """The pieces that the ids of `encode` stand for, unknown ones as they are in the text."""
        if self.kind == "word":
            return text.split()
        if self.kind == "char":
            return list(text)
        return [self.symbols[index] for index in self.encode(text)]

    def decode(self, ids: Any) -> str:
        """Sentence of token ids; ``<bos>`` and ``<eos>`` are left out.

        Parameters
        ----------
        ids : array_like of int
            1-D.

        Raises
        ------
        ValueError
            If an id is not in 0..V-1.
        TypeError
            If the ids are not ints.
        """
        array = np.asarray(ids)
        if array.size == 0:
            return ""
        if array.dtype.kind not in "iu":
            raise TypeError(f"Tokenizer: ids must be ints, got {array.dtype.name}")
        if array.ndim != 1 or array.min() < 0 or array.max() >= len(self):
            raise ValueError(f"Tokenizer: ids must be 1-D and between 0 and {len(self) - 1}, got {ids!r}")
        kept = [int(index) for index in array if index not in (self.begin, self.end)]
        if self.kind == "byte":
            return bytes(index - 3 for index in kept if index >= 3).decode("utf-8", "replace")
        if self.kind == "subword":
            return str(self._model.decode([index - 3 for index in kept if index >= 3]))
        return (" " if self.kind == "word" else "").join(self.symbols[index] for index in kept)

    @property
    def texts(self) -> _core.TokenTexts:
        """The text of every token, by which native loops find stop strings.

        Raises
        ------
        ValueError
            For subwords: what text a piece becomes depends on its neighbours.
        """
        if self.kind == "subword":
            raise ValueError("Tokenizer: stop strings are not for kind 'subword'")
        if self._texts is None:
            if self.kind == "byte":
                plain = [bytes([value]) for value in range(256)]
            else:
                plain = [symbol.encode("utf-8", "surrogatepass") for symbol in self.symbols[3:]]
            # no space comes after <bos>, which stands before every sentence
            self._texts = _core.TokenTexts(
                [b"<unk>" if self.kind != "byte" else b"", b"", b"", *plain],
                separator=b" " if self.kind == "word" else b"",
                line_end=self.begin,
            )
        return self._texts

    def all_unknown(self, ids: Int) -> bool:
        """Whether a sentence that has tokens has no known one."""
        unknown = [self.unknown]
        if self.kind == "subword":
            own = self._model.token_to_id(getattr(self._model.model, "unk_token", None) or "<unk>")
            unknown += [] if own is None else [own + 3]
        known = ids[~np.isin(ids, unknown)]
        return bool(len(ids)) and not (self.decode(known).strip() if self.kind == "subword" else len(known))

    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as values that JSON has; `from_dict` reads them back."""
        if self.kind == "subword":
            return {"kind": self.kind, "model": self._model.to_str()}
        return {"kind": self.kind, "symbols": [] if self.kind == "byte" else list(self.symbols[3:])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Tokenizer":
        """Tokenizer from what `to_dict` gave; everything is checked.

        Raises
        ------
        ValueError
            If keys are missing or foreign, or the values are not those of a tokenizer.
        ImportError
            If it is one of ``tokenizers``, and that is missing.
        """
        if isinstance(values, Mapping) and set(values) == {"kind", "model"} and values["kind"] == "subword":
            if not isinstance(values["model"], str):
                raise ValueError("Tokenizer: model must be a str")
            return cls.huggingface(values["model"])
        if not isinstance(values, Mapping) or set(values) != {"kind", "symbols"}:
            got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"Tokenizer: a mapping with the keys kind and symbols is needed, got {got}")
        kind, symbols = values["kind"], values["symbols"]
        if not isinstance(kind, str) or not isinstance(symbols, list):
            raise ValueError("Tokenizer: kind must be a str and symbols a list")
        return cls(kind, symbols)


class TokenizerPair:
    """The tokenizers of source and target, which may be one and the same.

    Parameters
    ----------
    source, target : Tokenizer
        Equal ones become one, which is then shared.

    Attributes
    ----------
    source, target : Tokenizer
        As given.
    shared : bool
        Whether they are one.

    Examples
    --------
    >>> from fusedlstm.data import Tokenizer, TokenizerPair
    >>> byte = Tokenizer("byte")
    >>> TokenizerPair(byte, Tokenizer("byte")).shared
    True
    """

    def __init__(self, source: Tokenizer, target: Tokenizer) -> None:
        for name, tokenizer in (("source", source), ("target", target)):
            if not isinstance(tokenizer, Tokenizer):
                raise TypeError(f"TokenizerPair: {name} must be a Tokenizer, got {type(tokenizer).__name__}")
        self.source = source
        self.target = source if source == target else target

    @property
    def shared(self) -> bool:
        """Whether source and target have one tokenizer."""
        return self.source is self.target

    def __repr__(self) -> str:
        return f"TokenizerPair({self.source!r}, {self.target!r})"

    def to_dict(self) -> dict[str, Any]:
        """Both as values that JSON has; a shared one is stored once."""
        target = None if self.shared else self.target.to_dict()
        return {"source": self.source.to_dict(), "target": target}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TokenizerPair":
        """Pair from what `to_dict` gave; a ``ValueError`` if it is something else."""
        if not isinstance(values, Mapping) or set(values) != {"source", "target"}:
            got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"TokenizerPair: a mapping with the keys source and target is needed, got {got}")
        source = Tokenizer.from_dict(values["source"])
        return cls(source, source if values["target"] is None else Tokenizer.from_dict(values["target"]))


def _library() -> Any:
    if importlib.util.find_spec("tokenizers") is None:
        raise ImportError("subwords need the package tokenizers: pip install 'fusedlstm[tokenizers]'")
    return importlib.import_module("tokenizers")


def _train_subwords(lines: Iterable[str], size: int, min_count: int) -> Any:
    library = _library()
    model = library.Tokenizer(library.models.BPE(unk_token="<unk>"))
    # a word's first piece carries the space, so that decoding is the inverse
    model.pre_tokenizer = library.pre_tokenizers.Metaspace()
    model.decoder = library.decoders.Metaspace()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, min_frequency=min_count, special_tokens=["<unk>"], show_progress=False
    )
    model.train_from_iterator(lines, trainer)
    return model
