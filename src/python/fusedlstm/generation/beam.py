"""Beam search: what it is asked for, what it finds, and what is certain while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.generation._loop import iterate
from fusedlstm.generation.sampling import keep_tokens

Int = NDArray[np.int32]


class BeamKeywords(TypedDict, total=False):
    """Options of `BeamSearch` that models' methods take by name."""

    width: int
    num_return: int
    max_new_tokens: int
    min_new_tokens: int
    length_penalty: float
    length_penalty_form: str
    early_stopping: bool | str
    groups: int
    diversity_strength: float
    stop_tokens: Sequence[int] | Int
    banned_tokens: Sequence[int] | Int
    forced_tokens: Mapping[int, int]
    repetition_penalty: float
    no_repeat_ngram_size: int


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    r"""Search for the most probable continuations, keeping the best few at every step.

    .. code-block:: text

        S(y)     = sum_t log p(y_t | y_<t), under the constraints below
        score(y) = S(y) / t^a              length_penalty_form="plain", t tokens in y
                 = S(y) / ((5 + t) / 6)^a  length_penalty_form="gnmt"

    At each step the candidates, every beam with every token, are ordered by S; ties go to the better beam,
    then to the lower id. Candidates that end with a stop token and are among the first ``width`` are finished
    hypotheses, of which the best ``width`` by score are kept; the first ``width`` others are the next beams.
    A hypothesis of ``max_new_tokens`` tokens is finished too.

    Parameters
    ----------
    width : int
        Beams, 1 .. 65536; 1 is greedy search.
    num_return : int
        Hypotheses to return, best first; at most ``width``.
    max_new_tokens : int
        Longest hypothesis, a stop token included.
    min_new_tokens : int
        Tokens that must come before a stop token.
    length_penalty : float
        a, in -30 .. 30: 0 compares sums, which favours short hypotheses; the larger, the longer they get.
    length_penalty_form : str
        "plain", as in Hugging Face's ``generate``, or "gnmt".
    early_stopping : bool or str
        Once ``width`` hypotheses are finished, the search ends at once (True); when the best beam, scored at
        its present length, does not beat the worst of them (False); or when it could not even at
        ``max_new_tokens`` tokens, where a > 0 ("never").
    groups : int
        Divides ``width``. Beams in groups that search one after the other at each step, each with its
        ``width / groups``: diverse beam search. All that is said above of ``width`` then holds for a group.
    diversity_strength : float
        S of a candidate is lowered by this for every beam of an earlier group that was given the same token
        at the same step.
    stop_tokens : sequence of int
        Each of them ends a hypothesis and is its last token.
    banned_tokens : sequence of int
        Never written.
    forced_tokens : mapping of int to int
        New token number, from 0, to the token it must be; it adds nothing to S and overrides all other
        constraints.
    repetition_penalty : float
        Log-probabilities of tokens in prompt or hypothesis are multiplied by it; > 0.
    no_repeat_ngram_size : int
        No so many tokens in a row occur twice in prompt and hypothesis; 0: they may.

    Raises
    ------
    ValueError, TypeError
        An option out of its range or of a wrong kind.

    Notes
    -----
    All options mean what they mean in Hugging Face's ``generate``, where constraints change
    log-probabilities too, which are not normalised again. A step costs a step of the model with ``width``
    rows per prompt, and one pass over their V log-probabilities; prompts whose search is over cost nothing.

    References
    ----------
    Wu et al., Google's neural machine translation system, 2016 (length penalty).
    Vijayakumar et al., Diverse beam search, AAAI 2018.

    Examples
    --------
    >>> BeamSearch(width=6, groups=3, diversity_strength=0.5).width
    6
    >>> BeamSearch(width=0)
    Traceback (most recent call last):
    ...
    ValueError: beam_search: width must be an int in 1 .. 65536, got 0
    """

    width: int = 5
    num_return: int = 1
    max_new_tokens: int = 100
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    length_penalty_form: str = "plain"
    early_stopping: bool | str = False
    groups: int = 1
    diversity_strength: float = 0.0
    stop_tokens: Sequence[int] | Int = ()
    banned_tokens: Sequence[int] | Int = ()
    forced_tokens: Mapping[int, int] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    core: _core.BeamOptions = field(init=False, repr=False, compare=False)
    """The options as the native search takes them."""

    def __post_init__(self) -> None:
        keep_tokens(self)
        options = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        object.__setattr__(self, "core", _core.BeamOptions(**options))


@dataclass(frozen=True, kw_only=True, eq=False)
class Hypothesis:
    """One sequence that a search found.

    Attributes
    ----------
    text : str
        The continuation, without the prompt.
    score : float
        By which hypotheses are ordered, see `BeamSearch`.
    tokens : int32 (T,)
        Its ids, a stop token included.
    log_probabilities : float (T,)
        Of each token under the model, before any constraint.

    Examples
    --------
    >>> from fusedlstm import LanguageModel
    >>> from fusedlstm.data import Vocabulary
    >>> model = LanguageModel(Vocabulary.from_text("abc"), hidden_size=8)
    >>> best = model.beam_search("a", max_new_tokens=4, length_penalty=0.0)[0]
    >>> len(best.text), bool(abs(best.score - best.log_probabilities.sum()) < 1e-6)
    (4, True)
    """

    text: str
    score: float
    tokens: NDArray[np.int32]
    log_probabilities: NDArray[Any]


def prefix_steps(
    decoder: _core.LanguageModelDecoder, prompts: Sequence[Int], search: BeamSearch
) -> Generator[tuple[int, Int, bool], None, None]:
    """Iterate over what is certain of the best hypotheses while the native search is running.

    The agreed prefix of a prompt is the longest one that all its beams, of all groups, and its best finished
    hypothesis share; the best hypothesis of the result begins with it. The search runs in a thread of its own
    that does not wait for the reader. Closing the iterator, or an exception (Ctrl-C) in the reader, stops the
    search at its next step.

    Parameters
    ----------
    decoder : LanguageModelDecoder
        The prepared model.
    prompts : sequence of int32 (T,)
        Each at least one token.
    search : BeamSearch
        The options.

    Yields
    ------
    prompt : int
        Its number; after every step each prompt whose search is not over has its turn.
    tokens : int32 (K,)
        By which its agreed prefix has grown, K >= 0. All of them together are the best hypothesis.
    ended : bool
        Whether its search is over.

    Raises
    ------
    ValueError, FloatingPointError
        From the native search: a token out of range, logits that are not finite.
    """

    def loop(put: Callable[[tuple[int, Int, bool]], None]) -> None:
        decoder.beam_search(
            np.concatenate(prompts),
            np.array([len(prompt) for prompt in prompts], np.int32),
            search.core,
            on_prefix=lambda prompt, tokens, ended: put((prompt, tokens, ended)),
        )

    return iterate(loop)
