"""Models: layers put together for a purpose."""

from fusedlstm.models.language_model import LanguageModel
from fusedlstm.models.one_to_many import OneToMany

__all__ = ["LanguageModel", "OneToMany"]
