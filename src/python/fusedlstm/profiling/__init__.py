"""Where the time of native calls goes: by phase, layer and thread, beside what the machine can do."""

from fusedlstm.profiling.ceilings import Bandwidth, Ceilings, measure_ceilings
from fusedlstm.profiling.times import PhaseTime, Profile, ThreadTime, profile

__all__ = [
    "Bandwidth",
    "Ceilings",
    "PhaseTime",
    "Profile",
    "ThreadTime",
    "measure_ceilings",
    "profile",
]
