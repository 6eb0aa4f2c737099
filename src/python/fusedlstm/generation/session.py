"""Sequences of one model that are generated together, each joined and left at any time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.generation._turn import one_at_a_time
from fusedlstm.generation.sampling import Sampling
from fusedlstm.generation.stream import TextPieces

if TYPE_CHECKING:
    from fusedlstm import LanguageModel


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
        Prompt and new tokens.
    prompt_length : int
        How many are the prompt's.
    state : (S,)
        The model's.
    logits : (V,)
        Of the next token.
    sampling : Sampling
        How tokens are chosen; its seed is the sequence's.

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


class Session:
    """A pool of live generators: weights are read once per step for all of them.

    Each sequence gets what `LanguageModel.generate` would give it alone with the same options and seed, bit
    for bit, whoever else is there and whenever they joined. One call at a time: a second thread, or a
    processor that calls back, gets a ``RuntimeError``. After any error the sequences are as before.

    Parameters
    ----------
    model : LanguageModel
        Its parameters now; after training goes on, make a new session.
    capacity : int
        Most sequences at once, 1 to 2^20.
    processor, token_mask : callable, optional
        As in `LanguageModel.sample`, for all sequences; the ids they get are the session's.

    Raises
    ------
    ValueError
        A capacity out of range.

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
    """

    def __init__(
        self,
        model: LanguageModel,
        capacity: int = 64,
        *,
        processor: _core.Processor | None = None,
        token_mask: _core.TokenMask | None = None,
    ) -> None:
        self._model = model
        self._core = _core.GenerationSession(model.decoder, capacity)
        self._processor = processor
        self._token_mask = token_mask
        self._live: dict[int, tuple[Sampling, TextPieces]] = {}
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
        """Read a prompt; its first new token comes with the next step.

        Parameters
        ----------
        prompt : str
            Text to continue, not empty.
        **options
            Those of `LanguageModel.generate`; at least one new token.

        Returns
        -------
        int
            Id of the sequence.

        Raises
        ------
        ValueError
            An option out of its range, a wrong prompt, no place left.
        """
        tokens = self._model._prompt(prompt, "")
        sampling = self._model._sampling(options)
        core = self._core.join(tokens, sampling.core(self._model.vocabulary.texts), sampling.seed)
        return self._add(core, sampling, tokens)

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
            pieces = self._live[id][1].push([token], [-1 if finish is None else behind])
            if finish is not None:
                del self._live[id]
            text = pieces[0][1] if pieces else ""
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
        return SavedSequence(tokens, prompt_length, state, logits, self._live[id][0])

    @one_at_a_time("session")
    def restore(self, saved: SavedSequence) -> int:
        """Go on with a saved sequence as a new one; returns its id.

        Raises
        ------
        ValueError
            Sizes of another model, values that are none; no place left.
        """
        sampling = saved.sampling
        id = self._core.restore(
            saved.tokens,
            saved.prompt_length,
            saved.state,
            saved.logits,
            sampling.core(self._model.vocabulary.texts),
            sampling.seed,
        )
        return self._add(id, sampling, saved.tokens)

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

    def _add(self, id: int, sampling: Sampling, tokens: NDArray[np.int32]) -> int:
        self._live[id] = sampling, TextPieces([self._model._text_decoder(tokens)])
        return id
