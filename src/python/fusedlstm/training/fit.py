"""Truncated back-propagation through time over one long token stream."""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.data import BatchStream
from fusedlstm.io import FormatError
from fusedlstm.nn import derive_seed
from fusedlstm.training.checkpoint import Checkpoint, require_same_run
from fusedlstm.training.interrupts import Interrupts
from fusedlstm.training.log import TrainingLog
from fusedlstm.training.optimisers import OPTIMISERS, Optimiser
from fusedlstm.training.progress import Progress
from fusedlstm.training.schedules import Constant, Cosine, Schedule

if TYPE_CHECKING:
    from fusedlstm.models import LanguageModel

Float = NDArray[Any]
Tokens = NDArray[np.int32]


@dataclass
class History:
    """What a training run did.

    Attributes
    ----------
    epochs : list of dict
        Per epoch: epoch (from 1), step, train_loss, validation_loss (nats per token, None without
        validation), lr of the epoch's last step.
    steps : int
        Optimiser steps in all, those before a resume included.
    best_epoch, best_loss : int or None, float or None
        Epoch with the lowest validation loss, and that loss.
    stopped : str
        Why training ended: "epochs", "early stopping" or "time".
    tokens, seconds : int, float
        Trained tokens and wall time of this process (validation included in the time).

    Examples
    --------
    >>> History().epochs
    []
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    best_epoch: int | None = None
    best_loss: float | None = None
    stopped: str = "epochs"
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class _Position:
    """Where the run is, after a completed step. Everything here is in the checkpoint."""

    step: int = 0
    epoch: int = 0  # completed epochs
    window: int = 0  # windows done in the current epoch
    loss_sum: float = 0.0  # nats over the current epoch
    loss_count: int = 0
    lr: float = 0.0
    elapsed: float = 0.0  # seconds, for the time budget
    best_epoch: int | None = None
    best_loss: float | None = None
    waited: int = 0  # epochs without improvement
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


def fit(
    model: LanguageModel,
    tokens: Tokens,
    *,
    validation: Tokens | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    window: int = 64,
    optimiser: str | Optimiser = "adam",
    lr: float | None = None,
    schedule: Schedule | None = None,
    clip: float | None = 5.0,
    loss_scale: str = "mean",
    tape: str = "full",
    early_stopping: int | None = None,
    keep_best: bool = True,
    seconds: float | None = None,
    seed: int = 0,
    log: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_minutes: float | None = 5.0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
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
    epochs : int
        Passes over the stream, counted from the first start of the run.
    batch_size, window : int
        Lanes N and steps T of a window.
    optimiser : str or Optimiser
        "sgd", "adam", "adamw", or an object of `fusedlstm.training`.
    lr : float, optional
        Base learning rate, for an optimiser given by name; by default the optimiser's own.
    schedule : Schedule, optional
        Multiplier of the learning rate; constant by default.
    clip : float or None
        Upper bound on the L2 norm of all gradients together.
    loss_scale : str
        "mean": gradients of the mean loss per token. "batch": gradients of the loss summed over time and
        divided by the batch size, as Zaremba et al. 2014; ``clip`` bounds the norm of that.
    tape : str
        What the LSTM's forward keeps, see `fusedlstm.nn.LSTM`: "full", "half" or "lean". "lean" gives the
        bits of "full" with about a fifth of its memory.
    early_stopping : int, optional
        Stop after that many epochs without a better validation loss.
    keep_best : bool
        End with the parameters of the epoch of lowest validation loss.
    seconds : float, optional
        Stop after this much training time, even within an epoch. A run with a time budget is not
        reproducible; schedules then run over time instead of steps.
    seed : int
        Of the dropout masks, >= 0.
    log : path-like, optional
        JSON-lines file, see `TrainingLog`.
    checkpoint : path-like, optional
        File that holds the state of the run: written at the end of every epoch, every
        ``checkpoint_minutes`` and ``checkpoint_steps`` (each may be None), and on Ctrl-C.
    resume : bool
        Continue from ``checkpoint`` if it exists; losses are the same to the last bit as without the stop.
        ``epochs`` may be larger than before.
    progress : bool, optional
        True: a bar on standard error; None: a bar if that is a terminal, else a line per epoch; False: none.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        An option out of its range; a stream too short; a checkpoint of another run; a checkpoint of an
        unfinished run that exists without ``resume``.
    FloatingPointError
        The loss or the gradient is not finite. The model keeps the parameters of the last good step.
    OSError
        Log or checkpoint cannot be written. The last checkpoint stays, and the model keeps its parameters.
    KeyboardInterrupt
        Ctrl-C. The model and, if given, the checkpoint have the state of the last completed step.

    Notes
    -----
    Per token about ``6 (4 H (I + H) L + H V)`` FLOPs. Kept per window: the tape, about 24 bytes per token,
    unit and layer. Checkpoints hold parameters, optimiser state and best parameters.

    References
    ----------
    Zaremba, Sutskever and Vinyals, Recurrent neural network regularization, 2014.
    """
    run = _Run(
        model,
        tokens,
        validation,
        epochs=epochs,
        batch_size=batch_size,
        window=window,
        optimiser=_make_optimiser(optimiser, lr),
        schedule=schedule if schedule is not None else Constant(),
        clip=clip,
        loss_scale=loss_scale,
        tape=tape,
        early_stopping=early_stopping,
        keep_best=keep_best,
        seconds=seconds,
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_minutes=checkpoint_minutes,
        checkpoint_steps=checkpoint_steps,
    )
    return run.run(log=log, resume=resume, show=progress)


def _make_optimiser(optimiser: str | Optimiser, lr: float | None) -> Optimiser:
    if not isinstance(optimiser, str):
        if lr is not None:
            raise ValueError("fit: lr belongs to an optimiser given by name; this one has its own")
        return optimiser
    if optimiser not in OPTIMISERS:
        raise ValueError(f"fit: optimiser must be one of {', '.join(OPTIMISERS)}, got {optimiser!r}")
    kind = OPTIMISERS[optimiser]
    return kind() if lr is None else kind(lr)


def _positive(name: str, value: float | None, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if value is None or not value > 0 or value == math.inf:
        raise ValueError(f"fit: {name} must be a finite number > 0, got {value!r}")


def _digest(tokens: Tokens | None) -> str | None:
    return None if tokens is None else hashlib.sha256(tokens.tobytes()).hexdigest()


class _Run:
    """One training run: its options, its position, and the loop."""

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        validation: Tokens | None,
        *,
        epochs: int,
        batch_size: int,
        window: int,
        optimiser: Optimiser,
        schedule: Schedule,
        clip: float | None,
        loss_scale: str,
        tape: str,
        early_stopping: int | None,
        keep_best: bool,
        seconds: float | None,
        seed: int,
        checkpoint: Path | None,
        checkpoint_minutes: float | None,
        checkpoint_steps: int | None,
    ) -> None:
        _positive("epochs", epochs)
        _positive("clip", clip, optional=True)
        _positive("seconds", seconds, optional=True)
        _positive("early_stopping", early_stopping, optional=True)
        _positive("checkpoint_minutes", checkpoint_minutes, optional=True)
        _positive("checkpoint_steps", checkpoint_steps, optional=True)
        if loss_scale not in ("mean", "batch"):
            raise ValueError(f"fit: loss_scale must be 'mean' or 'batch', got {loss_scale!r}")
        if seed < 0:
            raise ValueError(f"fit: seed must be >= 0, got {seed!r}")
        if early_stopping is not None and validation is None:
            raise ValueError("fit: early_stopping needs validation")
        model.lstm.tape = tape
        self.model, self.validation = model, validation
        self.stream = BatchStream(tokens, batch_size, window)
        if validation is not None and len(validation) < 2:
            raise ValueError(
                f"fit: validation must have at least 2 tokens to predict one, got {len(validation)}"
            )
        self.epochs, self.batch_size, self.window = epochs, batch_size, window
        self.optimiser, self.schedule, self.clip, self.loss_scale = optimiser, schedule, clip, loss_scale
        self.early_stopping, self.keep_best = early_stopping, keep_best
        self.seconds, self.seed = seconds, seed
        self.checkpoint = checkpoint
        self.checkpoint_minutes, self.checkpoint_steps = checkpoint_minutes, checkpoint_steps
        self.at = _Position()
        self.carry: tuple[Float, Float] = model.zero_state(batch_size)
        self.best: Float | None = None
        self.log: TrainingLog | None = None
        self.fingerprint = {
            "model": model.config(),
            "vocabulary": hashlib.sha256(repr(model.vocabulary.to_dict()).encode()).hexdigest(),
            "tokens": _digest(tokens),
            "validation": _digest(validation),
            "batch_size": batch_size,
            "window": window,
            "optimiser": optimiser.config(),
            "schedule": schedule.config(),
            "clip": clip,
            "loss_scale": loss_scale,
            "tape": "half" if tape == "half" else "full or lean",  # these two give the same bits
            "early_stopping": early_stopping,
            "keep_best": keep_best,
            "seed": seed,
            # only the cosine looks at the length of the whole run; others may be extended
            "epochs": epochs if isinstance(schedule, Cosine) else None,
            "seconds": seconds,
        }

    def run(self, *, log: str | os.PathLike[str] | None, resume: bool, show: bool | None) -> History:
        loaded = self._load(resume)
        if log is not None:
            saved_log = loaded.log_position if loaded is not None else None
            self.log = TrainingLog(log, position=saved_log)
        epoch_tokens = self.stream.num_targets
        progress = Progress(
            show,
            unit=self.model.vocabulary.kind,
            epochs=self.epochs,
            total_tokens=epoch_tokens * self.epochs,
            done_tokens=epoch_tokens * self.at.epoch + self.at.loss_count,
            seconds=self.seconds,
        )
        started = time.perf_counter()
        history = History()
        try:
            with Interrupts() as interrupts:
                try:
                    if loaded is not None:
                        progress.note(
                            f"resumed {self.checkpoint} at step {self.at.step}, epoch {self.at.epoch + 1}"
                        )
                    if self.log is not None and (loaded is None or loaded.log_position is None):
                        with interrupts.shield:
                            self.log.write("start", level=self.model.vocabulary.kind, **self.fingerprint)
                    self._loop(interrupts, progress, history)
                except KeyboardInterrupt:
                    if not self.at.finished:  # the end has been saved, and the best parameters are in place
                        with interrupts.shield:
                            self._save()
                    raise
        finally:
            progress.close()
            if self.log is not None:
                self.log.close()
        history.seconds = time.perf_counter() - started
        history.steps, history.epochs = self.at.step, self.at.history
        history.best_epoch, history.best_loss = self.at.best_epoch, self.at.best_loss
        return history

    # the loop --------------------------------------------------------------------------------------

    def _loop(self, interrupts: Interrupts, progress: Progress, history: History) -> None:
        at = self.at
        last_save = time.perf_counter()
        while not self._complete():
            while at.window < len(self.stream) and not self._out_of_time():
                loss, count = self._step(interrupts)
                history.tokens += count
                progress.step(at.epoch + 1, count, loss)
                due = self.checkpoint_steps is not None and at.step % self.checkpoint_steps == 0
                if self.checkpoint_minutes is not None:
                    due = due or time.perf_counter() - last_save >= 60 * self.checkpoint_minutes
                if due and at.window < len(self.stream):  # the end of the epoch saves anyway
                    with interrupts.shield:
                        self._save()
                    last_save = time.perf_counter()
            self._end_epoch(interrupts, progress)
            if not self._complete():  # the end saves anyway
                with interrupts.shield:
                    self._save()
                last_save = time.perf_counter()
        history.stopped = self._complete()
        with interrupts.shield:
            at.finished = True
            self._save()
            if self.log is not None:
                self.log.write(
                    "end", stopped=history.stopped, best_epoch=at.best_epoch, best_loss=at.best_loss
                )
            if self.best is not None:
                self.model.parameters[:] = self.best
                self.model.mark_updated()

    def _complete(self) -> str:
        """Why there is nothing left to do; empty within an epoch and while there is."""
        at = self.at
        if at.window:
            return ""
        if self.early_stopping is not None and at.waited >= self.early_stopping:
            return "early stopping"
        if at.epoch >= self.epochs:
            return "epochs"
        return "time" if self._out_of_time() else ""

    def _out_of_time(self) -> bool:
        return self.seconds is not None and self.at.elapsed >= self.seconds

    def _step(self, interrupts: Interrupts) -> tuple[float, int]:
        at, model = self.at, self.model
        started = time.perf_counter()
        inputs, targets = self.stream[at.window]
        rows = inputs.size
        scale = 1.0 / rows if self.loss_scale == "mean" else 1.0 / self.batch_size
        if self.seconds is None:
            progress = at.step / (len(self.stream) * self.epochs)
        else:
            progress = min(at.elapsed / self.seconds, 1.0)
        lr = self.optimiser.lr * self.schedule.factor(step=at.step, epoch=at.epoch, progress=progress)

        model.zero_grad()
        # masks depend on (seed, step) only: a resumed run needs no generator's state
        total, count, carry = model.training_step(
            inputs, targets, self.carry, scale=scale, seed=derive_seed(self.seed, at.step)
        )
        norm = _core.gradient_norm(model.gradients)
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise FloatingPointError(
                f"fit: loss {total / count} and gradient norm {norm} at step {at.step + 1}, epoch "
                f"{at.epoch + 1}, are not both finite; lower the learning rate ({lr}) or clip lower"
            )
        clipped = self.clip is not None and norm > self.clip
        with interrupts.shield:  # parameters, position and log change together or not at all
            self.optimiser.step(
                model.parameters,
                model.gradients,
                lr=lr,
                gradient_scale=self.clip / norm if clipped and self.clip is not None else 1.0,
            )
            model.mark_updated()
            self.carry = carry
            at.step += 1
            at.window += 1
            at.loss_sum += total
            at.loss_count += count
            at.lr = lr
            at.elapsed += time.perf_counter() - started
            if self.log is not None:
                self.log.write(
                    "step",
                    epoch=at.epoch + 1,
                    step=at.step,
                    loss=total / count,
                    gradient_norm=norm,
                    lr=lr,
                )
        return total / count, count

    def _end_epoch(self, interrupts: Interrupts, progress: Progress) -> None:
        at, model = self.at, self.model
        validation = None
        if self.validation is not None:
            validation = model.evaluate(self.validation, batch_size=self.batch_size, window=self.window)
        train = at.loss_sum / max(at.loss_count, 1)
        entry = {
            "epoch": at.epoch + 1,
            "step": at.step,
            "train_loss": train,
            "validation_loss": validation,
            "lr": at.lr,
        }
        with interrupts.shield:
            if self.log is not None:
                self.log.write("epoch", **entry)
            at.history.append(entry)
            self.schedule.epoch_end(train if validation is None else validation)
            if validation is not None and (at.best_loss is None or validation < at.best_loss):
                at.best_epoch, at.best_loss, at.waited = at.epoch + 1, validation, 0
                if self.keep_best:
                    self.best = model.parameters.copy()
            else:
                at.waited += 1
            at.epoch += 1
            at.window, at.loss_sum, at.loss_count = 0, 0.0, 0
            self.carry = model.zero_state(self.batch_size)
        progress.epoch(at.epoch, at.step, train, validation, at.lr)

    # checkpoints -----------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        tensors = {
            "parameters": self.model.parameters,
            "carry.h": self.carry[0],
            "carry.c": self.carry[1],
        }
        if self.best is not None:
            tensors["best_parameters"] = self.best
        tensors |= {f"optimiser.{name}": tensor for name, tensor in self.optimiser.state().items()}
        Checkpoint(
            tensors,
            self.fingerprint,
            {**vars(self.at), "schedule": self.schedule.state()},
            None if self.log is None else self.log.position(),
        ).save(self.checkpoint)

    def _load(self, resume: bool) -> Checkpoint | None:
        if self.checkpoint is None:
            if resume:
                raise ValueError("fit: resume needs the name of a checkpoint")
            return None
        if not self.checkpoint.exists():
            return None
        saved = Checkpoint.load(self.checkpoint)
        if not resume:
            if saved.counters.get("finished"):
                return None  # a run that came to its end may be replaced
            raise ValueError(
                f"checkpoint {self.checkpoint} holds an unfinished run: resume it, or delete the file first"
            )
        require_same_run(self.checkpoint, saved.fingerprint, self.fingerprint)
        self._restore(saved)
        return saved

    def _restore(self, saved: Checkpoint) -> None:
        tensors, counters = dict(saved.tensors), dict(saved.counters)
        try:
            parameters = tensors.pop("parameters")
            carry = tensors.pop("carry.h"), tensors.pop("carry.c")
            best = tensors.pop("best_parameters", None)
            schedule = counters.pop("schedule")
            at = _Position(**counters)
        except (KeyError, TypeError) as error:
            raise FormatError(f"checkpoint {self.checkpoint} is incomplete: {error}") from error
        for name, got, want in (
            ("parameters", parameters, self.model.parameters),
            ("best_parameters", best, self.model.parameters),
            ("carry.h", carry[0], self.carry[0]),
            ("carry.c", carry[1], self.carry[1]),
        ):
            if got is not None and (got.shape != want.shape or got.dtype != want.dtype):
                raise FormatError(
                    f"checkpoint {self.checkpoint}: {name} must be {want.dtype} {want.shape}, "
                    f"got {got.dtype} {got.shape}"
                )
        at.finished = False
        self.at = at
        self.model.parameters[:] = parameters
        self.model.mark_updated()
        self.carry = carry
        self.best = best
        self.schedule.load_state(schedule)
        self.optimiser.load_state(
            {name.removeprefix("optimiser."): tensor for name, tensor in tensors.items()}
        )
