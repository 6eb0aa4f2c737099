"""Sequences of one model that are generated together, each joined and left at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.generation._turn import one_at_a_time
from fusedlstm.generation.sampling import Sampling

if TYPE_CHECKING:
    from fusedlstm import LanguageModel, Seq2Seq

NewText = Callable[[int, int | None], str]  # what a token adds; of the last one, less bytes at its end


class Beginning(NamedTuple):
    """What a model makes of a text that a sequence begins with.

    Examples
    --------
    >>> Beginning(np.array([1, 5], np.int32)).memory is None
    True
    """

    tokens: NDArray[np.int32]  #: that it is fed
    h0: NDArray[Any] | None = None  #: initial states, (L, H)
    c0: NDArray[Any] | None = None
    memory: NDArray[Any] | None = None  #: of a source, (S, M), for attention


class NewToken(NamedTuple):
    """What one step gave one sequence.

    Examples
    --------
    >>> NewToken(0, 7, "h", -1.5, None, []).finish is None
    True
    """

    id: int  #: of the sequence
    token: int
    text: str  #: that the token completes; empty within a character of several bytes
    log_probability: float  #: under the model's own softmax(logits)
    finish: str | None  #: None, or why the sequence has left: "length", "stop_token" or "stop_string"
    top: list[tuple[int, float]]  #: the most probable tokens and their log-probabilities


@dataclass(frozen=True, eq=False)
class SavedSequence:
    """A sequence as plain values; it can be pickled.

    Attributes
    ----------
    tokens : int32 (T,)
        Prompt and new tokens; a translation's prompt is ``<bos>``.
    prompt_length : int
        How many are the prompt's.
    state : (X,)
        The model's.
    logits : (V,)
        Of the next token.
    sampling : Sampling
        How tokens are chosen; its seed is the sequence's.
    memory : (S, M) or None
        Of the source, for attention.

    Examples
    --------
    >>> from fusedlstm import LanguageModel
    >>> from fusedlstm.data import Vocabulary
    >>> session = LanguageModel(Vocabulary.from_text("abc"), hidden_size=8, num_layers=1).session()
    >>> saved = session.save(session.join("ab"))
    >>> saved.tokens, saved.state.shape, saved.logits.shape
    (array([0, 1], dtype=int32), (16,), (3,))
    """

    tokens: NDArray[np.int32]
    prompt_length: int
    state: NDArray[Any]
    logits: NDArray[Any]
    sampling: Sampling
    memory: NDArray[Any] | None = None


class _Live(NamedTuple):
    """What a session keeps of a sequence beside the core."""

    sampling: Sampling
    new_text: NewText
    memory: NDArray[Any] | None


class Session:
    """A pool of live generators: weights are read once per step for all of them.

    Each sequence gets what ``model.generate`` would give it alone with the same options and seed, bit for
    bit, whoever else is there and whenever they joined. One call at a time: a second thread, or a processor
    that calls back, gets a ``RuntimeError``. After any error the sequences are as before.

    Parameters
    ----------
    model : LanguageModel or Seq2Seq
        Its parameters now; after training goes on, make a new session.
    capacity : int
        Most sequences at once, 1 to 2^20.
    processor, token_mask : callable, optional
        As in `LanguageModel.sample`, for all sequences; the ids they get are the session's.

    Raises
    ------
    ValueError
        A capacity out of range.

    Notes
    -----
    A step costs what a step of ``generate`` costs for a batch of as many sequences. With attention every
    sequence has the memory of its source to itself, a forked one too: about ``S (A + 2 M)`` numbers.

    Examples
    --------
    >>> from fusedlstm import LanguageModel
    >>> from fusedlstm.data import Vocabulary
    >>> model = LanguageModel(Vocabulary.from_text("abc"), hidden_size=8)
    >>> session = model.session(capacity=4)
    >>> first = session.join("a", max_new_tokens=5, seed=1)
    >>> text = session.step()[0].text
    >>> second = session.join("cb", max_new_tokens=3)
    >>> while session.ids:
    ...     text += "".join(new.text for new in session.step() if new.id == first)
    >>> text == model.generate("a", max_new_tokens=5, seed=1)
    True

    Translations, of which each ends when it is complete:

    >>> from fusedlstm import Seq2Seq
    >>> from fusedlstm.data import Tokenizer, TokenizerPair
    >>> letters = Tokenizer.from_lines(["abcd"], "char")
    >>> translator = Seq2Seq(TokenizerPair(letters, letters), hidden_size=8, attention="general")
    >>> session = translator.session(capacity=4)
    >>> texts = {session.join(source, greedy=True, max_new_tokens=6): "" for source in ("ab", "c", "dda")}
    >>> while session.ids:
    ...     for new in session.step():
    ...         texts[new.id] += new.text
    >>> [*texts.values()] == translator.translate(["ab", "c", "dda"], beam=1, max_new_tokens=6)
    True
    """

    def __init__(
        self,
        model: LanguageModel | Seq2Seq,
        capacity: int = 64,
        *,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
    ) -> None:
        self._model = model
        self._core = _core.GenerationSession(model._generator, capacity)
        self._processor = processor
        self._token_mask = token_mask
        self._live: dict[int, _Live] = {}
        self._turn = threading.Lock()

    @property
    def capacity(self) -> int:
        """Most sequences at once."""
        return self._core.capacity

    @property
    def ids(self) -> tuple[int, ...]:
        """The live sequences, in the order in which they joined. An id is never used twice."""
        return tuple(self._live.copy())  # as one: another thread may be in a step

    @one_at_a_time("session")
    def join(self, /, prompt: str, **options: Any) -> int:
        """Read a prompt or a source; its first new token comes with the next step.

        Parameters
        ----------
        prompt : str
            Text to continue or to translate, not empty.
        **options
            Those of the model's ``generate`` that are for one sequence; at least one new token.

        Returns
        -------
        int
            Id of the sequence.

        Raises
        ------
        ValueError
            An option out of its range, a wrong prompt, no place left.

        Warns
        -----
        UserWarning
            A source is longer than any in training.
        """
        sampling = self._model._sampling(options)
        begin = self._model._begin(prompt)
        id = self._core.join(
            begin.tokens,
            self._options(sampling),
            sampling.seed,
            h0=begin.h0,
            c0=begin.c0,
            memory=begin.memory,
        )
        return self._add(id, sampling, begin.tokens, len(begin.tokens), begin.memory)

    @one_at_a_time("session")
    def step(self) -> list[NewToken]:
        """The next token of every live sequence, in the order of `ids`; those that end with it leave.

        Raises
        ------
        Exception
            What a processor or token mask raises, or of what they return; the sequences are then as before.
        ValueError
            A sequence for which no token is left to choose from; the message has its id.
        """
        results = []
        for id, token, log_probability, finish, behind, top in self._core.step(
            processor=self._processor, token_mask=self._token_mask
        ):
            text = self._live[id].new_text(token, None if finish is None else behind)
            if finish is not None:
                del self._live[id]
            results.append(NewToken(id, token, text, log_probability, finish, top))
        return results

    @one_at_a_time("session")
    def leave(self, id: int) -> None:
        """End a sequence.

        Raises
        ------
        ValueError
            No live sequence has this id.
        """
        self._core.leave(id)
        del self._live[id]

    @one_at_a_time("session")
    def save(self, id: int) -> SavedSequence:
        """A copy of a sequence as it is now, which can be pickled.

        Raises
        ------
        ValueError
            No live sequence has this id.
        """
        tokens, prompt_length, state, logits = self._core.save(id)
        live = self._live[id]
        memory = None if live.memory is None else live.memory.copy()
        return SavedSequence(tokens, prompt_length, state, logits, live.sampling, memory)

    @one_at_a_time("session")
    def restore(self, saved: SavedSequence) -> int:
        """Go on with a saved sequence as a new one; returns its id.

        Raises
        ------
        ValueError
            Sizes of another model, values that are none; no place left.
        """
        id = self._core.restore(
            saved.tokens,
            saved.prompt_length,
            saved.state,
            saved.logits,
            self._options(saved.sampling),
            saved.sampling.seed,
            memory=saved.memory,
        )
        memory = None if saved.memory is None else saved.memory.copy()
        return self._add(id, saved.sampling, saved.tokens, saved.prompt_length, memory)

    def fork(self, id: int, *, seed: int | None = None) -> int:
        """A new sequence that goes on from where another is; returns its id.

        Parameters
        ----------
        id : int
            Of a live sequence.
        seed : int, optional
            Of the new one's draws; by default the same, and then so are its tokens.

        Raises
        ------
        ValueError
            No live sequence has this id; no place left.
        """
        saved = self.save(id)
        if seed is not None:
            saved = replace(saved, sampling=replace(saved.sampling, seed=seed))
        return self.restore(saved)

    def _options(self, sampling: Sampling) -> _core.SamplingOptions:
        return sampling.core(self._model._token_texts if sampling.stop_strings else None)

    def _add(
        self,
        id: int,
        sampling: Sampling,
        tokens: NDArray[np.int32],
        prompt_length: int,
        memory: NDArray[Any] | None,
    ) -> int:
        self._live[id] = _Live(sampling, self._model._new_text(tokens, prompt_length), memory)
        return id
