"""What a generation loop has made of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class GeneratedText:
    """One generated sequence of T tokens.

    Attributes
    ----------
    text : str
        Without the prompt.
    tokens : int32 (T,)
        Its tokens; with a stop string, the last one may reach beyond the text.
    log_probabilities : (T,)
        Of each token under ``softmax(logits)``: the model's own, before any penalty, temperature or filter.
    top_tokens : int32 (T, top_log_probabilities)
        The most probable tokens at each step, most probable first.
    top_log_probabilities : (T, top_log_probabilities)
        Theirs.
    finish : str
        Why it ended: "length", "stop_token" or "stop_string".

    Examples
    --------
    >>> from fusedlstm import LanguageModel
    >>> from fusedlstm.data import Vocabulary
    >>> model = LanguageModel(Vocabulary.from_text("abc"), hidden_size=8)
    >>> one, other = model.sample("a", max_new_tokens=4, num_sequences=2, top_log_probabilities=3)
    >>> len(one.text), one.finish, other.top_tokens.shape
    (4, 'length', (4, 3))
    """

    text: str
    tokens: NDArray[np.int32]
    log_probabilities: NDArray[Any]
    top_tokens: NDArray[np.int32]
    top_log_probabilities: NDArray[Any]
    finish: str
