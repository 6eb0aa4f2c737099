"""A training run of any task: the loop, what it keeps, and how it is continued."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from fusedlstm import _core
from fusedlstm.io import FormatError
from fusedlstm.nn import derive_seed
from fusedlstm.training.checkpoint import Checkpoint, require_same_run
from fusedlstm.training.interrupts import Interrupts
from fusedlstm.training.log import TrainingLog
from fusedlstm.training.optimisers import OPTIMISERS, Optimiser
from fusedlstm.training.progress import Progress
from fusedlstm.training.schedules import Constant, Cosine, Schedule

if TYPE_CHECKING:
    from fusedlstm.nn import Module

Float = NDArray[Any]
Carry = dict[str, Float]


class Batches(Protocol):
    """A list of batches, or anything that is read like one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Task(Protocol):
    """What is trained, on what: all that a run needs to know of either.

    A batch is whatever `training_step` takes. The same arguments must give the same bits in every process,
    or a resumed run is not the run that was stopped.

    Attributes
    ----------
    model : Module
        Its flat parameters are trained in place.
    unit : str
        What one prediction is, for people: see `describe_loss`.
    targets : int
        Predictions of one epoch, as far as known before it.
    fingerprint : dict
        Model, data and options, as plain JSON values: equal wherever a run may be resumed.
    validates : bool
        Whether there is data to validate on.

    Examples
    --------
    The smallest task: a Linear layer that learns y = 2 x.

    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> from fusedlstm.training import train
    >>> class Doubling:
    ...     unit, targets, validates = "value", 20, False
    ...     fingerprint = {"model": "doubling"}
    ...
    ...     def __init__(self):
    ...         self.model = nn.Linear(1, 1)
    ...
    ...     def batches(self, seed, epoch):
    ...         return [np.random.default_rng([seed, epoch]).random((20, 1), np.float32)]
    ...
    ...     def initial_carry(self):
    ...         return {}
    ...
    ...     def training_step(self, x, carry, *, seed, step):
    ...         y, tape = self.model.forward(x)
    ...         loss, dy = nn.MSELoss()(y, 2 * x)
    ...         self.model.backward(tape, dy)
    ...         return loss * len(x), len(x), carry
    ...
    ...     def validation_loss(self):
    ...         return None
    >>> history = train(Doubling(), epochs=200, lr=0.05, progress=False)
    >>> history.epochs[-1]["train_loss"] < 0.01
    True
    """

    @property
    def model(self) -> Module: ...
    @property
    def unit(self) -> str: ...
    @property
    def targets(self) -> int: ...
    @property
    def fingerprint(self) -> Mapping[str, Any]: ...
    @property
    def validates(self) -> bool: ...

    def batches(self, seed: int, epoch: int) -> Batches:
        """The batches of an epoch, counted from 0, in order; as many in every epoch."""

    def initial_carry(self) -> Carry:
        """Arrays carried from step to step that an epoch begins with; they are kept in checkpoints."""

    def training_step(self, batch: Any, carry: Carry, *, seed: int, step: int) -> tuple[float, int, Carry]:
        """Forward and backward of one batch; gradients are added to ``model.gradients``.

        Parameters
        ----------
        batch
            One of `batches`.
        carry : dict of ndarray
            From the step before; not to be written to.
        seed : int
            Of this step's random numbers.
        step : int
            Completed steps of the run.

        Returns
        -------
        loss, count, carry
            Loss summed over the predictions, their number, and what the next step is given.
        """

    def validation_loss(self) -> float | None:
        """Mean loss per prediction on the data to validate on; None without any."""


@dataclass
class History:
    """What a training run did.

    Attributes
    ----------
    epochs : list of dict
        Per epoch: epoch (from 1), step, train_loss, validation_loss (per prediction, in nats for models of
        tokens; None without validation), lr of the epoch's last step.
    steps : int
        Optimiser steps in all, those before a resume included.
    best_epoch, best_loss : int or None, float or None
        Epoch with the lowest validation loss, and that loss.
    stopped : str
        Why training ended: "epochs", "early stopping" or "time".
    tokens, seconds : int, float
        Predictions trained on and wall time of this process (validation included in the time).

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
    batch: int = 0  # batches done in the current epoch
    loss_sum: float = 0.0  # over the current epoch
    loss_count: int = 0
    lr: float = 0.0
    elapsed: float = 0.0  # seconds, for the time budget
    best_epoch: int | None = None
    best_loss: float | None = None
    waited: int = 0  # epochs without improvement
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


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


def train(
    task: Task,
    *,
    epochs: int = 10,
    optimiser: str | Optimiser = "adam",
    lr: float | None = None,
    schedule: Schedule | None = None,
    clip: float | None = 5.0,
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
    """Train a task: optimiser, schedule, clipping, early stopping, log and checkpoints.

    Parameters
    ----------
    task : Task
        Its model is trained in place.
    epochs : int
        Passes over the batches, counted from the first start of the run.
    optimiser : str or Optimiser
        "sgd", "adam", "adamw", or an object of `fusedlstm.training`.
    lr : float, optional
        Base learning rate, for an optimiser given by name; by default the optimiser's own.
    schedule : Schedule, optional
        Multiplier of the learning rate; constant by default.
    clip : float or None
        Upper bound on the L2 norm of all gradients together.
    early_stopping : int, optional
        Stop after that many epochs without a better validation loss.
    keep_best : bool
        End with the parameters of the epoch of lowest validation loss.
    seconds : float, optional
        Stop after this much training time, even within an epoch. A run with a time budget is not
        reproducible; schedules then run over time instead of steps.
    seed : int
        Of the order of batches and of the dropout masks, >= 0.
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
        An option out of its range; a checkpoint of another run; a checkpoint of an unfinished run that
        exists without ``resume``.
    FloatingPointError
        The loss or the gradient is not finite. The model keeps the parameters of the last good step.
    OSError
        Log or checkpoint cannot be written. The last checkpoint stays, and the model keeps its parameters.
    KeyboardInterrupt
        Ctrl-C. The model and, if given, the checkpoint have the state of the last completed step.

    Notes
    -----
    Checkpoints hold parameters, optimiser state and best parameters.
    """
    run = _Run(
        task,
        epochs=epochs,
        optimiser=_make_optimiser(optimiser, lr),
        schedule=schedule if schedule is not None else Constant(),
        clip=clip,
        early_stopping=early_stopping,
        keep_best=keep_best,
        seconds=seconds,
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_minutes=checkpoint_minutes,
        checkpoint_steps=checkpoint_steps,
    )
    return run.run(log=log, resume=resume, show=progress)


class _Run:
    """One training run: its options, its position, and the loop."""

    def __init__(
        self,
        task: Task,
        *,
        epochs: int,
        optimiser: Optimiser,
        schedule: Schedule,
        clip: float | None,
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
        if seed < 0:
            raise ValueError(f"fit: seed must be >= 0, got {seed!r}")
        if early_stopping is not None and not task.validates:
            raise ValueError("fit: early_stopping needs validation")
        self.task, self.model = task, task.model
        self.epochs = epochs
        self.optimiser, self.schedule, self.clip = optimiser, schedule, clip
        self.early_stopping, self.keep_best = early_stopping, keep_best
        self.seconds, self.seed = seconds, seed
        self.checkpoint = checkpoint
        self.checkpoint_minutes, self.checkpoint_steps = checkpoint_minutes, checkpoint_steps
        self.at = _Position()
        self.carry = task.initial_carry()
        self.best: Float | None = None
        self.log: TrainingLog | None = None
        self.fingerprint = {
            **task.fingerprint,
            "optimiser": optimiser.config(),
            "schedule": schedule.config(),
            "clip": clip,
            "early_stopping": early_stopping,
            "keep_best": keep_best,
            "seed": seed,
            # only the cosine looks at the length of the whole run; others may be extended
            "epochs": epochs if isinstance(schedule, Cosine) else None,
            "seconds": seconds,
        }

    def run(self, *, log: str | os.PathLike[str] | None, resume: bool, show: bool | None) -> History:
        loaded = self._load(resume)
        self.batches = self.task.batches(self.seed, self.at.epoch)
        if log is not None:
            saved_log = loaded.log_position if loaded is not None else None
            self.log = TrainingLog(log, position=saved_log)
        progress = Progress(
            show,
            unit=self.task.unit,
            epochs=self.epochs,
            total_tokens=self.task.targets * self.epochs,
            done_tokens=self.task.targets * self.at.epoch + self.at.loss_count,
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
                            self.log.write("start", level=self.task.unit, **self.fingerprint)
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
            while at.batch < len(self.batches) and not self._out_of_time():
                loss, count = self._step(interrupts)
                history.tokens += count
                progress.step(at.epoch + 1, count, loss)
                due = self.checkpoint_steps is not None and at.step % self.checkpoint_steps == 0
                if self.checkpoint_minutes is not None:
                    due = due or time.perf_counter() - last_save >= 60 * self.checkpoint_minutes
                if due and at.batch < len(self.batches):  # the end of the epoch saves anyway
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
        if at.batch:
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
        if self.seconds is None:
            progress = at.step / (len(self.batches) * self.epochs)
        else:
            progress = min(at.elapsed / self.seconds, 1.0)
        lr = self.optimiser.lr * self.schedule.factor(
            step=at.step, epoch=at.epoch + at.batch / len(self.batches), progress=progress
        )

        model.zero_grad()
        # masks depend on (seed, step) only: a resumed run needs no generator's state
        total, count, carry = self.task.training_step(
            self.batches[at.batch], self.carry, seed=derive_seed(self.seed, at.step), step=at.step
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
            at.batch += 1
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
        validation = self.task.validation_loss()
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
            at.batch, at.loss_sum, at.loss_count = 0, 0.0, 0
            self.carry = self.task.initial_carry()
        if at.epoch < self.epochs:
            self.batches = self.task.batches(self.seed, at.epoch)
        progress.epoch(at.epoch, at.step, train, validation, at.lr)

    # checkpoints -----------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        tensors = {"parameters": self.model.parameters}
        tensors |= {f"carry.{name}": array for name, array in self.carry.items()}
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
            carry = {name: tensors.pop(f"carry.{name}") for name in self.carry}
            best = tensors.pop("best_parameters", None)
            schedule = counters.pop("schedule")
            if "window" in counters:  # its name when batches were windows of a text only
                counters["batch"] = counters.pop("window")
            at = _Position(**counters)
        except (KeyError, TypeError) as error:
            raise FormatError(f"checkpoint {self.checkpoint} is incomplete: {error}") from error
        for name, got, want in (
            ("parameters", parameters, self.model.parameters),
            ("best_parameters", best, self.model.parameters),
            *((f"carry.{name}", carry[name], self.carry[name]) for name in self.carry),
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
