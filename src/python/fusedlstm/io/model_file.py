"""Model files: safetensors with the configuration and the vocabulary as JSON in the metadata.

Metadata of version 1: ``format`` = "fusedlstm", ``version`` = "1", ``model`` = the schema's name, ``config``
and, for models of text, ``vocabulary`` as JSON, ``checksum``. Tensors have the names of
``Module.named_parameters``.
"""

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np

from fusedlstm.data import TokenizerPair, Vocabulary
from fusedlstm.io.tensors import Array, FormatError, open_tensors, parse_json, write_tensors

FORMAT = "fusedlstm"
VERSION = "1"

Shapes = Iterable[tuple[str, tuple[int, ...]]]


def lstm_shapes(name: str, inputs: int, hidden: int, layers: int, directions: int = 1) -> Shapes:
    """Names and shapes of an LSTM's tensors, as `fusedlstm.nn.LSTM` has them."""
    for layer in range(layers):
        for suffix in ("", "_reverse")[:directions]:
            width = inputs if layer == 0 else directions * hidden
            yield f"{name}.weight_ih_l{layer}{suffix}", (4 * hidden, width)
            yield f"{name}.weight_hh_l{layer}{suffix}", (4 * hidden, hidden)
            yield f"{name}.bias_ih_l{layer}{suffix}", (4 * hidden,)
            yield f"{name}.bias_hh_l{layer}{suffix}", (4 * hidden,)


@dataclass(frozen=True)
class Option:
    """What one value of a configuration may be.

    Parameters
    ----------
    kind : type
        ``int``, ``float`` (ints count), ``bool`` or ``str``.
    minimum : float, optional
        Smallest number allowed.
    maximum : float, optional
        Largest number allowed.
    below : float, optional
        Numbers must be less than this.
    choices : tuple, optional
        The values allowed.
    nullable : bool
        Whether None is allowed too.
    optional : bool
        Whether a file may lack it, as those written before it existed do.

    Examples
    --------
    >>> from fusedlstm.io import Option
    >>> Option(float, minimum=0.0, below=1.0).problem(1.5)
    'must be less than 1.0, got 1.5'
    """

    kind: type
    minimum: float | None = None
    maximum: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    nullable: bool = False
    optional: bool = False

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, or None."""
        if value is None and self.nullable:
            return None
        kinds = (int, float) if self.kind is float else (self.kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.kind is not bool):
            return f"must be {self.kind.__name__}, got {reprlib.repr(value)}"
        if self.choices is not None and value not in self.choices:
            return f"must be one of {', '.join(map(repr, self.choices))}, got {reprlib.repr(value)}"
        if isinstance(value, (int, float)):
            if self.minimum is not None and not value >= self.minimum:
                return f"must be at least {self.minimum}, got {value}"
            if self.maximum is not None and not value <= self.maximum:
                return f"must be at most {self.maximum}, got {value}"
            if self.below is not None and not value < self.below:
                return f"must be less than {self.below}, got {value}"
        return None


@dataclass(frozen=True)
class ModelSchema:
    """What a kind of model stores: options, and the tensors that follow from them.

    Parameters
    ----------
    model : str
        Name of the kind of model in the file.
    options : mapping of str to Option
        Every key of the configuration; each must be present unless it is optional. ``dtype`` is one of them.
    shapes : callable
        ``shapes(config, vocabulary_size)``, or ``shapes(config, (source size, target size))`` for a pair of
        tokenizers, yields name and shape of every tensor. It must be a generator:
        reading stops at the first tensor that the file does not have, so a wrong count of layers costs
        nothing.
    vocabulary : bool or None
        Whether the model has a vocabulary; None: it may have one.
    pair : bool
        Whether the vocabulary is a `TokenizerPair` instead of a `Vocabulary`.

    Examples
    --------
    >>> from fusedlstm.io import ModelSchema, Option
    >>> def shapes(config, vocabulary_size):
    ...     yield "weight", (config["size"],)
    >>> schema = ModelSchema("toy", {"size": Option(int, 1), "dtype": Option(str)}, shapes, vocabulary=False)
    >>> schema.check({"size": 0, "dtype": "float32"})
    Traceback (most recent call last):
        ...
    fusedlstm.io.tensors.FormatError: config: size must be at least 1, got 0
    """

    model: str
    options: Mapping[str, Option]
    shapes: Callable[[Mapping[str, Any], Any], Shapes]
    vocabulary: bool | None = True
    pair: bool = False

    def check(self, config: object) -> dict[str, Any]:
        """The configuration, if its options are those of the schema and in range; else a ``FormatError``."""
        if not isinstance(config, Mapping):
            raise FormatError(f"config: must be a mapping, got {type(config).__name__}")
        missing = [
            name for name, option in self.options.items() if name not in config and not option.optional
        ]
        foreign = [name for name in config if name not in self.options]
        if missing or foreign:
            raise FormatError(
                f"config: missing {missing or 'none'}, foreign {reprlib.repr(foreign) if foreign else 'none'}"
            )
        for name, option in self.options.items():
            problem = option.problem(config[name]) if name in config else None
            if problem is not None:
                raise FormatError(f"config: {name} {problem}")
        return dict(config)

    def check_specs(
        self,
        config: Mapping[str, Any],
        vocabulary: Vocabulary | TokenizerPair | None,
        specs: Mapping[str, tuple[str, tuple[int, ...]]],
    ) -> None:
        """Raise ``FormatError`` unless names, dtypes and shapes of the tensors follow from the rest."""
        if self.vocabulary is not None and (vocabulary is not None) != self.vocabulary:
            raise FormatError(f"vocabulary: a {self.model} {'needs one' if self.vocabulary else 'has none'}")
        dtype = config["dtype"]
        expected = set()
        size: int | tuple[int, int] | None
        if isinstance(vocabulary, TokenizerPair):
            size = len(vocabulary.source), len(vocabulary.target)
        else:
            size = None if vocabulary is None else len(vocabulary)
        for name, shape in self.shapes(config, size):
            if name not in specs:
                raise FormatError(f"tensor {name} is missing")
            if specs[name] != (dtype, shape):
                came, came_shape = specs[name]
                raise FormatError(f"tensor {name} must be {dtype} {shape}, got {came} {came_shape}")
            expected.add(name)
        extra = sorted(set(specs) - expected)
        if extra:
            raise FormatError(f"tensor {extra[0]} does not belong to the model")


@dataclass(frozen=True)
class ModelFile:
    """Content of a model file, checked against its schema.

    Attributes
    ----------
    tensors : dict of str to ndarray
        The parameters by name.
    config : dict
        The options.
    vocabulary : Vocabulary, TokenizerPair or None
        None for a model without text.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from fusedlstm.io import ModelSchema, Option, load_model, save_model
    >>> def shapes(config, vocabulary_size):
    ...     yield "weight", (config["size"],)
    >>> schema = ModelSchema("toy", {"size": Option(int, 1), "dtype": Option(str)}, shapes, vocabulary=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/toy.safetensors"
    ...     weight = np.ones(2, np.float32)
    ...     save_model(path, {"weight": weight}, {"size": 2, "dtype": "float32"}, None, schema=schema)
    ...     load_model(path, schema).tensors
    {'weight': array([1., 1.], dtype=float32)}
    """

    tensors: dict[str, Array]
    config: dict[str, Any]
    vocabulary: Vocabulary | TokenizerPair | None


def save_model(
    path: str | PathLike[str],
    tensors: Mapping[str, Array],
    config: Mapping[str, Any],
    vocabulary: Vocabulary | TokenizerPair | None,
    *,
    schema: ModelSchema,
) -> None:
    """Write a model file, atomically; what `load_model` would refuse is not written.

    Parameters
    ----------
    path : path-like
        The file; see `atomic_write`.
    tensors : mapping of str to ndarray
        The parameters by name.
    config : mapping
        The options of the schema.
    vocabulary : Vocabulary, TokenizerPair or None
        As the schema says.
    schema : ModelSchema
        Of the kind of model.

    Raises
    ------
    FormatError
        If the parts do not fit together or a weight is not finite.
    OSError
        If the disk does not take the file. The old file is then as it was.
    """
    checked = schema.check(config)
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    try:
        schema.check_specs(checked, vocabulary, {n: (a.dtype.name, a.shape) for n, a in arrays.items()})
        _require_finite(arrays)
    except FormatError as error:
        raise FormatError(f"{fspath(path)}: not saved: {error}") from None
    metadata = {"format": FORMAT, "version": VERSION, "model": schema.model, "config": json.dumps(checked)}
    if vocabulary is not None:
        metadata["vocabulary"] = json.dumps(vocabulary.to_dict())
    write_tensors(path, arrays, metadata)


def load_model(path: str | PathLike[str], schema: ModelSchema) -> ModelFile:
    """Read a model file and refuse whatever is not consistent.

    Parameters
    ----------
    path : path-like
        A file that `save_model` wrote.
    schema : ModelSchema
        Of the kind of model that is expected.

    Returns
    -------
    ModelFile
        Tensors, configuration and vocabulary.

    Raises
    ------
    FormatError
        If the file is foreign, truncated or corrupted, of another version or kind of model; if the
        configuration lacks an option, has another one or one out of range; if a tensor is missing,
        unexpected, of another shape or dtype, or not finite; if the vocabulary is wrong.
    OSError
        If it cannot be read.

    Notes
    -----
    Sizes are compared with those of the file before any memory is taken for them.
    """
    name = fspath(path)
    try:
        with open_tensors(path) as file:
            config, vocabulary = _metadata(file.metadata, schema)
            schema.check_specs(config, vocabulary, file.specs)
            tensors = file.read()
        _require_finite(tensors)
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(f"{name}: ") else f"{name}: {text}") from None
    return ModelFile(tensors, config, vocabulary)


def _metadata(
    metadata: Mapping[str, str], schema: ModelSchema
) -> tuple[dict[str, Any], Vocabulary | TokenizerPair | None]:
    if metadata.get("format") != FORMAT:
        raise FormatError(f"not a model of fusedlstm: format is {reprlib.repr(metadata.get('format'))}")
    if metadata.get("version") != VERSION:
        raise FormatError(f"version must be {VERSION!r}, got {reprlib.repr(metadata.get('version'))}")
    if metadata.get("model") != schema.model:
        raise FormatError(f"model must be {schema.model!r}, got {reprlib.repr(metadata.get('model'))}")
    has_vocabulary = "vocabulary" in metadata if schema.vocabulary is None else schema.vocabulary
    wanted = {"format", "version", "model", "config"} | ({"vocabulary"} if has_vocabulary else set())
    if set(metadata) != wanted:
        raise FormatError(f"metadata must have {sorted(wanted)}, got {reprlib.repr(sorted(metadata))}")
    config = schema.check(parse_json(metadata["config"], "config"))
    if not has_vocabulary:
        return config, None
    try:
        read = TokenizerPair.from_dict if schema.pair else Vocabulary.from_dict
        return config, read(parse_json(metadata["vocabulary"], "vocabulary"))
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"vocabulary: {error}") from None


def _require_finite(tensors: Mapping[str, Array]) -> None:
    for name, array in tensors.items():
        wrong = ~np.isfinite(array)
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise FormatError(f"tensor {name} must be finite, got {array[index]} at {index}")
