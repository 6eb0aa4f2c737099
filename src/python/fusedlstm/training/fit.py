"""Truncated back-propagation through time over one long token stream."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm.data import BatchStream
from fusedlstm.training.run import Carry, History, train

if TYPE_CHECKING:
    from fusedlstm.models import LanguageModel

Tokens = NDArray[np.int32]


def fit(
    model: LanguageModel,
    tokens: Tokens,
    *,
    validation: Tokens | None = None,
    batch_size: int = 32,
    window: int = 64,
    loss_scale: str = "mean",
    tape: str = "full",
    **options: Any,
) -> History:
    """Train a language model by truncated back-propagation through time.

    The stream is cut into ``batch_size`` equal lanes. A step takes the next ``window`` tokens of every lane;
    the LSTM state is carried from window to window (values only, no gradient) and is zero at the start of
    an epoch. One step is: embedding, LSTM, dropout, output layer and loss, backward, norm, optimiser, repack.

    Parameters
    ----------
    model : LanguageModel
        Trained in place.
    tokens, validation : int32 (R,)
        Token ids; see `LanguageModel.fit` for text.
    batch_size, window : int
        Lanes N and steps T of a window.
    loss_scale : str
        "mean": gradients of the mean loss per token. "batch": gradients of the loss summed over time and
        divided by the batch size, as Zaremba et al. 2014; ``clip`` bounds the norm of that.
    tape : str
        What the LSTM's forward keeps, see `fusedlstm.nn.LSTM`: "full", "half" or "lean". "lean" gives the
        bits of "full" with about a fifth of its memory.
    **options
        Those of `train`: epochs, optimiser, lr, schedule, clip, early_stopping, keep_best, seconds, seed,
        log, checkpoint, checkpoint_minutes, checkpoint_steps, resume, progress.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        A stream too short, and as `train`.
    FloatingPointError, OSError, KeyboardInterrupt
        As `train`.

    Notes
    -----
    Per token about ``6 (4 H (I + H) L + H V)`` FLOPs. Kept per window: the tape, about 24 bytes per token,
    unit and layer.

    References
    ----------
    Zaremba, Sutskever and Vinyals, Recurrent neural network regularization, 2014.
    """
    task = _Windows(
        model, tokens, validation, batch_size=batch_size, window=window, loss_scale=loss_scale, tape=tape
    )
    return train(task, **options)


def _digest(tokens: Tokens | None) -> str | None:
    return None if tokens is None else hashlib.sha256(tokens.tobytes()).hexdigest()


class _Windows:
    """The next token of one long stream, as a task."""

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        validation: Tokens | None,
        *,
        batch_size: int,
        window: int,
        loss_scale: str,
        tape: str,
    ) -> None:
        if loss_scale not in ("mean", "batch"):
            raise ValueError(f"fit: loss_scale must be 'mean' or 'batch', got {loss_scale!r}")
        model.lstm.tape = tape
        self.model, self.validation = model, validation
        self.stream = BatchStream(tokens, batch_size, window)
        if validation is not None and len(validation) < 2:
            raise ValueError(
                f"fit: validation must have at least 2 tokens to predict one, got {len(validation)}"
            )
        self.batch_size, self.window, self.loss_scale = batch_size, window, loss_scale
        self.unit = model.vocabulary.kind
        self.targets = self.stream.num_targets
        self.validates = validation is not None
        self.fingerprint = {
            "model": model.config(),
            "vocabulary": hashlib.sha256(repr(model.vocabulary.to_dict()).encode()).hexdigest(),
            "tokens": _digest(tokens),
            "validation": _digest(validation),
            "batch_size": batch_size,
            "window": window,
            "loss_scale": loss_scale,
            "tape": "half" if tape == "half" else "full or lean",  # these two give the same bits
        }

    def batches(self, seed: int, epoch: int) -> BatchStream:
        return self.stream

    def initial_carry(self) -> Carry:
        h, c = self.model.zero_state(self.batch_size)
        return {"h": h, "c": c}

    def training_step(
        self, batch: tuple[Tokens, Tokens], carry: Carry, *, seed: int, step: int
    ) -> tuple[float, int, Carry]:
        inputs, targets = batch
        total, count, (h, c) = self.model.training_step(
            inputs,
            targets,
            (carry["h"], carry["c"]),
            scale=1.0 / (inputs.size if self.loss_scale == "mean" else self.batch_size),
            seed=seed,
        )
        return total, count, {"h": h, "c": c}

    def validation_loss(self) -> float | None:
        if self.validation is None:
            return None
        return self.model.evaluate(self.validation, batch_size=self.batch_size, window=self.window)
