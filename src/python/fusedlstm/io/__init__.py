"""Files that are either right or refused: atomic writing, and models as safetensors."""

from fusedlstm.io.atomic import atomic_write
from fusedlstm.io.model_file import ModelFile, ModelSchema, Option, load_model, save_model
from fusedlstm.io.tensors import FormatError, parse_json, read_tensors, write_tensors

__all__ = [
    "FormatError",
    "ModelFile",
    "ModelSchema",
    "Option",
    "atomic_write",
    "load_model",
    "parse_json",
    "read_tensors",
    "save_model",
    "write_tensors",
]
