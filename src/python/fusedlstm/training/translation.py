"""Targets from sources: pairs of sentences, batches of similar lengths."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from fusedlstm.data import PairBatch, PairBatches
from fusedlstm.data.pairs import Epoch
from fusedlstm.nn._checks import rate
from fusedlstm.training.run import Carry

if TYPE_CHECKING:
    from fusedlstm.models import Seq2Seq
    from fusedlstm.training.scheduled_sampling import TeacherSchedule


class Translation:
    """Targets from sources, as a task."""

    def __init__(
        self,
        model: Seq2Seq,
        pairs: PairBatches,
        validation: PairBatches | None,
        *,
        label_smoothing: float,
        teacher: float | TeacherSchedule,
        sample: bool,
        loss_scale: str,
    ) -> None:
        if loss_scale not in ("mean", "batch"):
            raise ValueError(f"fit: loss_scale must be 'mean' or 'batch', got {loss_scale!r}")
        self.model, self.pairs, self.validation = model, pairs, validation
        self.label_smoothing = rate(label_smoothing, "label_smoothing")
        self.teacher, self.sample, self.loss_scale = teacher, bool(sample), loss_scale
        if isinstance(teacher, int | float) and not 0.0 <= teacher <= 1.0:
            raise ValueError(f"fit: teacher must be in [0, 1] or a schedule, got {teacher!r}")
        model.longest_source = max(model.longest_source, *(len(ids) for ids in pairs.sources))
        self.unit = model.tokenizers.target.kind
        self.targets = pairs.num_targets
        self.validates = validation is not None
        tokenizers = json.dumps(model.tokenizers.to_dict()).encode()
        self.fingerprint = {
            "model": model.config(),
            "tokenizers": hashlib.sha256(tokenizers).hexdigest(),
            "pairs": _digest(pairs),
            "validation": None if validation is None else _digest(validation),
            "batch_size": pairs.batch_size,
            "pool": pairs.pool,
            "label_smoothing": self.label_smoothing,
            "teacher": teacher if isinstance(teacher, int | float) else teacher.config(),
            "sample": self.sample,
            "loss_scale": loss_scale,
        }

    def batches(self, seed: int, epoch: int) -> Epoch:
        return self.pairs.epoch(seed, epoch)

    def initial_carry(self) -> Carry:
        return {}

    def training_step(
        self, batch: PairBatch, carry: Carry, *, seed: int, step: int
    ) -> tuple[float, int, Carry]:
        teacher = self.teacher
        total, count = self.model.training_step(
            batch,
            scale=1.0 / (batch.count if self.loss_scale == "mean" else len(batch.source)),
            seed=seed,
            label_smoothing=self.label_smoothing,
            teacher_probability=teacher if isinstance(teacher, int | float) else teacher.probability(step),
            sample=self.sample,
        )
        return total, count, carry

    def validation_loss(self) -> float | None:
        return None if self.validation is None else self.model.loss(self.validation)


def _digest(pairs: PairBatches) -> str:
    digest = hashlib.sha256()
    for source, target in zip(pairs.sources, pairs.targets, strict=True):
        digest.update(len(source).to_bytes(8, "little") + source.tobytes() + target.tobytes())
    return digest.hexdigest()
