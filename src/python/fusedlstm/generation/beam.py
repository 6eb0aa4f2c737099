"""Beam search: what it is asked for, what it finds, and what is certain while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    r"""Search for the most probable continuations, keeping the best few at every step.

    .. code-block:: text

        S(y)     = sum_t log p(y_t | y_<t), after the rules below
        score(y) = S(y) / t^a              length_penalty_form="plain", t tokens in y
                 = S(y) / ((5 + t) / 6)^a  length_penalty_form="gnmt"

    At each step the candidates, every beam with every token, are ordered by S; ties go to the better beam, then
    to the lower id. Candidates that end with a stop token and are among the first ``width`` are finished
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
        ``max_new_tokens``, where a > 0 ("never": with a >= 0 and no rule that raises probabilities, nothing
        better is lost by ending).
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
    repetition_penalty : float
        Log-probabilities of tokens that are there already, prompt included, are multiplied by it.
    no_repeat_ngram : int
        n: no n tokens in a row come twice, prompt included; 0: they may.

    Raises
    ------
    ValueError, TypeError
        An option out of its range or of a wrong kind.

    Notes
    -----
    The options mean what they mean in Hugging Face's ``generate``, penalised log-probabilities are not
    normalised again either. A step costs a step of the model with ``width`` rows per source, and one pass over
    their V log-probabilities; sources that have ended cost nothing.

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
    stop_tokens: Sequence[int] = ()
    banned_tokens: Sequence[int] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    core: _core.BeamOptions = field(init=False, repr=False, compare=False)
    """The options as the native search takes them."""

    def __post_init__(self) -> None:
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
        Of each token under the model, before any rule.

    Examples
    --------
    >>> from fusedlstm import LanguageModel
    >>> from fusedlstm.data import Vocabulary
    >>> model = LanguageModel(Vocabulary.from_text("abc"), hidden_size=8)
    >>> best = model.beam_search("a", max_new_tokens=4, length_penalty=0.0)[0]
    >>> len(best.text), abs(best.score - best.log_probabilities.sum()) < 1e-6
    (4, True)
    """

    text: str
    score: float
    tokens: NDArray[np.int32]
    log_probabilities: NDArray[Any]
