"""Models: layers put together for a purpose."""

from fusedlstm.models.language_model import LanguageModel

__all__ = ["LanguageModel"]
