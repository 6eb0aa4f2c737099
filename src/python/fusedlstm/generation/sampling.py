"""How the next token is chosen."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.nn._checks import MAX_SEED, seed_number

if TYPE_CHECKING:
    from fusedlstm.generation.beam import BeamSearch


class SamplingKeywords(TypedDict, total=False):
    """Options of `Sampling` that models' methods take by name."""

    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    greedy: bool
    repetition_penalty: float
    no_repeat_ngram_size: int
    banned_tokens: Sequence[int] | NDArray[np.int32]
    forced_tokens: Mapping[int, int]
    stop_tokens: Sequence[int] | NDArray[np.int32]
    stop_strings: str | Sequence[str]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the model's logits, and when a sequence ends.

    Applied in the order of Hugging Face's ``generate``: repetition penalty, no repeated n-gram, banned
    tokens, minimum length, token mask, forced token, the caller's processor; then temperature, top-k, top-p,
    min-p, typical. Each filter sees what the one before has left, and among equals keeps the lower id.

    Parameters
    ----------
    max_new_tokens : int
        Tokens to generate, >= 0.
    min_new_tokens : int
        No stop token may be chosen, and no stop string counts, before there are so many.
    temperature : float
        Logits are divided by it; > 0. Below 1 sharper, above 1 more varied.
    top_k : int
        Keep the k most probable tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of most probable tokens whose probabilities sum to at least this; in (0, 1].
    min_p : float
        Keep tokens at least this times as probable as the most probable one; in [0, 1).
    typical_p : float
        Keep the smallest set that sums to at least this of the tokens whose surprisal ``-log p`` is closest
        to the entropy; in (0, 1].
    greedy : bool
        Take the most probable token; temperature, filters and seed then have no effect.
    repetition_penalty : float
        Logits z of tokens in prompt or text become ``z / penalty``, or ``z * penalty`` if negative; > 0.
    no_repeat_ngram_size : int
        No so many tokens in a row occur twice in prompt and text; 0: they may.
    banned_tokens : sequence of int
        Never chosen.
    forced_tokens : mapping of int to int
        New token number, from 0, to the token it must be; it overrides all other constraints.
    stop_tokens : sequence of int
        A sequence ends with any of these.
    stop_strings : str or sequence of str
        A sequence ends with the token that completes one of these in the new text, wherever tokens begin
        and end. The text then ends with the stop string: it is part of the text, and what the last token
        has behind it is not.
    num_sequences : int
        Sequences per prompt; the prompt is read once.
    top_log_probabilities : int
        How many of the most probable tokens to report at each step.
    seed : int
        Sequence r of a call (number ``i`` of prompt ``b``: ``r = b num_sequences + i``) draws from the stream
        of ``seed + r``, whatever the others are.

    Raises
    ------
    ValueError, TypeError
        An option out of its range or of a wrong kind, a forced token that is banned.

    References
    ----------
    Holtzman et al., The curious case of neural text degeneration, 2020 (top-p).
    Meister et al., Locally typical sampling, 2023.
    Nguyen et al., Turning up the heat: min-p sampling, 2024.
    Keskar et al., CTRL, 2019 (repetition penalty).

    Examples
    --------
    >>> Sampling(max_new_tokens=10, temperature=0.8, top_k=5).core().max_new_tokens
    10
    >>> Sampling(max_new_tokens=10, top_p=1.5)
    Traceback (most recent call last):
    ...
    ValueError: SamplingOptions: top_p must be in (0, 1], got 1.5
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    greedy: bool = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    banned_tokens: Sequence[int] | NDArray[np.int32] = ()
    forced_tokens: Mapping[int, int] = field(default_factory=dict)
    stop_tokens: Sequence[int] | NDArray[np.int32] = ()
    stop_strings: str | Sequence[str] = ()
    num_sequences: int = 1
    top_log_probabilities: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", seed_number(self.seed))
        strings = [self.stop_strings] if isinstance(self.stop_strings, str) else self.stop_strings
        if isinstance(strings, Iterable):
            object.__setattr__(self, "stop_strings", tuple(strings))
        if not isinstance(strings, Iterable) or not all(isinstance(text, str) for text in self.stop_strings):
            raise TypeError(f"Sampling: stop_strings must be texts, got {self.stop_strings!r}")
        keep_tokens(self)
        self.core(_core.TokenTexts([]))

    def seeds(self, rows: int) -> NDArray[np.uint64]:
        """Seed of every row of a batch, uint64 (N,)."""
        return np.array([(self.seed + row) % (MAX_SEED + 1) for row in range(rows)], np.uint64)

    def core(self, token_texts: _core.TokenTexts | None = None) -> _core.SamplingOptions:
        """The options of the native loop; with stop strings, the texts of the model's tokens are needed."""
        return _core.SamplingOptions(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            greedy=self.greedy,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            banned_tokens=self.banned_tokens,
            forced_tokens=self.forced_tokens,
            stop_tokens=self.stop_tokens,
            stop_strings=[text.encode("utf-8", "surrogatepass") for text in self.stop_strings],
            token_texts=token_texts,
            num_sequences=self.num_sequences,
            top_log_probabilities=self.top_log_probabilities,
        )


def keep_tokens(options: Sampling | BeamSearch) -> None:
    """Copies of the token ids that the caller may change later; the core refuses what is none."""
    for name in ("banned_tokens", "stop_tokens"):
        ids = getattr(options, name)
        if isinstance(ids, Iterable) and not isinstance(ids, str):
            object.__setattr__(options, name, tuple(_plain(token) for token in ids))
    if isinstance(options.forced_tokens, Mapping):
        object.__setattr__(options, "forced_tokens", dict(options.forced_tokens))


def _plain(token: object) -> object:
    """NumPy's ints as Python's."""
    return operator.index(token) if isinstance(token, np.integer) else token
