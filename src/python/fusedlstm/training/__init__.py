"""Training: optimisers, learning-rate schedules, the fit loop, checkpoints, logs and plots."""

from fusedlstm.training.checkpoint import Checkpoint
from fusedlstm.training.fit import fit
from fusedlstm.training.log import TrainingLog, read_log
from fusedlstm.training.optimisers import SGD, Adam, AdamW, Optimiser
from fusedlstm.training.plot import plot_log
from fusedlstm.training.run import History, Task, train
from fusedlstm.training.scheduled_sampling import (
    ExponentialDecay,
    InverseSigmoidDecay,
    LinearDecay,
    TeacherSchedule,
)
from fusedlstm.training.schedules import Constant, Cosine, Plateau, Schedule, StepDecay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Checkpoint",
    "Constant",
    "Cosine",
    "ExponentialDecay",
    "History",
    "InverseSigmoidDecay",
    "LinearDecay",
    "Optimiser",
    "Plateau",
    "Schedule",
    "StepDecay",
    "Task",
    "TeacherSchedule",
    "TrainingLog",
    "fit",
    "plot_log",
    "read_log",
    "train",
]
