"""LSTMs on the CPU: training and generation as few native calls as possible.

Everything below is loaded when it is first used, so that importing the package costs next to nothing.

Examples
--------
>>> import fusedlstm
>>> fusedlstm.nn.LSTM(3, 5).num_parameters
200
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusedlstm import data, generation, io, models, nn, profiling, training
    from fusedlstm._core import __version__, isa, isa_levels, num_threads, set_isa, set_num_threads
    from fusedlstm.models import LanguageModel, OneToMany, Seq2Seq
    from fusedlstm.nn import Stream
    from fusedlstm.profiling import profile

__all__ = [
    "LanguageModel",
    "OneToMany",
    "Seq2Seq",
    "Stream",
    "__version__",
    "data",
    "generation",
    "get_include",
    "io",
    "isa",
    "isa_levels",
    "models",
    "nn",
    "num_threads",
    "profile",
    "profiling",
    "set_isa",
    "set_num_threads",
    "training",
]

_MODULES = ("data", "generation", "io", "models", "nn", "profiling", "training")
_HOMES = {
    "LanguageModel": "fusedlstm.models",
    "OneToMany": "fusedlstm.models",
    "Seq2Seq": "fusedlstm.models",
    "Stream": "fusedlstm.nn",
    "profile": "fusedlstm.profiling",
}


def get_include() -> str:
    """Return the folder to give a C compiler with ``-I``, for ``#include <fusedlstm/stream.h>``.

    Examples
    --------
    >>> import fusedlstm, os
    >>> os.path.isfile(os.path.join(fusedlstm.get_include(), "fusedlstm", "stream.h"))
    True
    """
    return str(Path(__file__).parent / "include")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fusedlstm' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"fusedlstm.{name}")
    home = _HOMES.get(name, "fusedlstm._core")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
