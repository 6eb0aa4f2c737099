"""What every layer and model has: one flat buffer of parameters, one of gradients, and names in them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusedlstm import _core
from fusedlstm.nn._checks import Float, describe, dtype_name

Table = Sequence[tuple[str, tuple[int, ...], int]]

ALIGNMENT = 16  # elements: the start of every parameter, as the core lays them out


def lay_out(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> list[tuple[str, tuple[int, ...], int]]:
    """Rows (name, shape, offset in elements) of a flat buffer in which each parameter starts aligned."""
    table = []
    offset = 0
    for name, shape in shapes:
        table.append((name, shape, offset))
        offset += padded(math.prod(shape))
    return table


def padded(size: int) -> int:
    """``size`` rounded up to whole alignment units."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Module:
    """Base of layers and models: named views of one flat parameter buffer and of one gradient buffer.

    A composite is built from children: it takes over their values into one buffer of its own, and from then
    on the children are views of it. A child therefore belongs to one parent only.

    Parameters
    ----------
    dtype : str
        ``"float32"`` or ``"float64"``.
    table : sequence of (name, shape, offset)
        The module's own parameters and where they start in its buffer, in elements.
    children : mapping of str to Module, optional
        Parts whose parameters follow the module's own ones, under ``"<child>.<name>"``.
    size : int, optional
        Length of the part of the buffer that `table` describes; by default the end of its last parameter.

    Attributes
    ----------
    dtype : str
        Type of parameters, inputs and outputs.
    parameters, gradients : ndarray
        The flat buffers, 1-D. Between parameters there may be a few elements of padding that stay zero.

    Raises
    ------
    ValueError
        If a child has another dtype, appears twice or already belongs to another module.

    Notes
    -----
    Kernels read a packed copy of the weights that is made once per version of them. After writing into
    `parameters` or into a named view, call `mark_updated`, or the next call still uses the old values.

    Examples
    --------
    >>> from fusedlstm import nn
    >>> layer = nn.Linear(3, 2)
    >>> {name: view.shape for name, view in layer.named_parameters().items()}
    {'weight': (2, 3), 'bias': (2,)}
    >>> layer.num_parameters
    8
    """

    dtype: str

    def __init__(
        self,
        dtype: str,
        table: Table = (),
        *,
        children: Mapping[str, "Module"] | None = None,
        size: int | None = None,
    ) -> None:
        self.dtype = dtype_name(dtype)
        self._children = dict(children or {})
        self._parent: str | None = None
        if size is None:
            size = padded(max((offset + math.prod(shape) for _, shape, offset in table), default=0))
        rows = list(table)
        self._spans: dict[str, slice] = {}
        for name, child in self._children.items():
            self._admit(name, child)
            length = padded(child._parameters.size)
            self._spans[name] = slice(size, size + child._parameters.size)
            rows.extend((f"{name}.{key}", shape, size + offset) for key, shape, offset in child._table)
            size += length
        self._table: Table = tuple(rows)
        self._parameters: Float = _core.aligned_zeros(size, self.dtype)
        self._gradients: Float = _core.aligned_zeros(size, self.dtype)
        for name, child in self._children.items():
            self._parameters[self._spans[name]] = child._parameters
            child._parent = type(self).__name__
        self._bind_children()

    def _admit(self, name: str, child: "Module") -> None:
        who = type(self).__name__
        if child.dtype != self.dtype:
            raise ValueError(f"{who}: {name} must be {self.dtype} like the rest, got {child.dtype}")
        if child._parent is not None:
            raise ValueError(f"{who}: {name} already belongs to another {child._parent}")
        if any(other is child for key, other in self._children.items() if key != name):
            raise ValueError(f"{who}: {name} is given twice: build one module for each place")

    def _bind_children(self) -> None:
        for name, child in self._children.items():
            span = self._spans[name]
            child._bind(self._parameters[span], self._gradients[span])

    def _bind(self, parameters: Float, gradients: Float) -> None:
        """Use these slices of a parent's buffers as this module's own."""
        self._parameters = parameters
        self._gradients = gradients
        self._bind_children()
        self._drop_packed()

    def _drop_packed(self) -> None:
        """Forget the packed copy of the weights; layers that keep one override this."""

    @property
    def parameters(self) -> Float:
        """The flat parameter buffer, 1-D, with the padding between parameters."""
        return self._parameters

    @property
    def gradients(self) -> Float:
        """The flat gradient buffer, laid out like `parameters`."""
        return self._gradients

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers, without the padding of the flat buffer."""
        return sum(math.prod(shape) for _, shape, _ in self._table)

    def _views(self, buffer: Float) -> Iterator[tuple[str, Float]]:
        for name, shape, offset in self._table:
            yield name, buffer[offset : offset + math.prod(shape)].reshape(shape)

    def named_parameters(self) -> dict[str, Float]:
        """Views of the parameters by name; after writing into one, call `mark_updated`."""
        return dict(self._views(self._parameters))

    def named_gradients(self) -> dict[str, Float]:
        """Views of the gradients by the names of their parameters."""
        return dict(self._views(self._gradients))

    def _view(self, buffer: Float, name: str) -> Float:
        for key, shape, offset in self._table:
            if key == name:
                return buffer[offset : offset + math.prod(shape)].reshape(shape)
        raise KeyError(name)

    def state_dict(self) -> dict[str, Float]:
        """Copies of the parameters by name, in PyTorch's names and shapes."""
        return {name: view.copy() for name, view in self._views(self._parameters)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy parameters in by name; nothing is written unless all of them fit.

        Parameters
        ----------
        state_dict : mapping of str to array
            Exactly the names of `named_parameters`, each of the same shape and dtype. PyTorch's CPU tensors
            do.

        Raises
        ------
        ValueError
            If names are missing or unknown, or a shape or dtype differs.
        """
        who = f"{type(self).__name__}.load_state_dict"
        views = self.named_parameters()
        missing = [name for name in views if name not in state_dict]
        unknown = [name for name in state_dict if name not in views]
        if missing or unknown:
            raise ValueError(f"{who}: missing {missing or 'none'}, unknown {unknown or 'none'}")
        arrays = {name: np.asarray(value) for name, value in state_dict.items()}
        for name, view in views.items():
            array = arrays[name]
            if array.shape != view.shape or array.dtype != view.dtype:
                raise ValueError(f"{who}: {name} must be {describe(view)}, got {describe(array)}")
        for name, view in views.items():
            view[...] = arrays[name]
        self.mark_updated()

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        _core.zero_gradients(self._gradients)

    def mark_updated(self) -> None:
        """Say that parameters were written to: what was packed from them is packed again when next needed."""
        self._drop_packed()
        for child in self._children.values():
            child.mark_updated()

    def __getstate__(self) -> dict[str, Any]:
        # Handles of the core cannot be pickled, and copied views would no longer share one buffer: values are
        # stored, and the rest is rebuilt. Gradients of a copy start at zero; a copy has no parent.
        state = {key: value for key, value in vars(self).items() if not _has_handle(value)}
        del state["_gradients"]
        state["_parameters"] = np.array(self._parameters)
        state["_parent"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._parameters = _core.aligned_zeros(state["_parameters"].size, self.dtype)
        self._parameters[:] = state["_parameters"]
        self._gradients = _core.aligned_zeros(self._parameters.size, self.dtype)
        for child in self._children.values():
            child._parent = type(self).__name__
        self._bind_children()
        self._drop_packed()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()})"

    def _describe(self) -> str:
        return ", ".join(f"{name}={child!r}" for name, child in self._children.items())


def _has_handle(value: object) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return any(type(part).__module__ == _core.__name__ for part in parts)


class Tape:
    """What a training forward of one layer keeps for its backward, which uses it up.

    Parameters
    ----------
    layer : Module
        The layer whose ``forward`` made the tape; only its ``backward`` takes it.

    Attributes
    ----------
    consumed : bool
        Whether a backward has used the tape.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> layer = nn.Linear(3, 2)
    >>> y, tape = layer.forward(np.zeros((1, 3), np.float32))
    >>> dx = layer.backward(tape, y)
    >>> tape.consumed
    True
    """

    def __init__(self, layer: Module) -> None:
        self._layer = layer
        self._uses = [None]  # taken out by the one backward

    @property
    def consumed(self) -> bool:
        return not self._uses

    def check(self, layer: Module) -> None:
        """Refuse a tape of another layer (``ValueError``) or one already used (``RuntimeError``)."""
        if self._layer is layer and not self.consumed:
            return
        who = f"{type(layer).__name__}.backward"
        if self._layer is not layer:
            raise ValueError(f"{who}: tape is of another {type(self._layer).__name__}, not of this layer")
        raise RuntimeError(f"{who}: this tape was already used: each forward gives a tape for one backward")

    def take(self, layer: Module) -> None:
        """`check`, and use the tape up: of several threads that come at once, one gets it."""
        self.check(layer)
        try:
            self._uses.pop()
        except IndexError:  # another thread took it since
            self.check(layer)


class Layer(Module):
    """A module with one input and one output, as `Sequential` chains them.

    ``layer(x)`` is inference, ``y, tape = layer.forward(x)`` is training, and
    ``dx = layer.backward(tape, dy)`` adds to `gradients`. Some layers take more by keyword, and say so here.

    Attributes
    ----------
    takes_lengths : bool
        Whether calls take ``lengths=``.
    has_dx : bool
        Whether `backward` can return the gradient of the input, and so takes ``need_dx=``.

    Examples
    --------
    >>> from fusedlstm import nn
    >>> nn.LSTM(3, 5).takes_lengths, nn.Embedding(10, 3).has_dx, nn.Dropout(0.5).takes_seed
    (True, False, True)
    """

    takes_lengths = False
    has_dx = True

    @property
    def takes_seed(self) -> bool:
        """Whether ``forward`` draws random numbers and so needs ``seed=``."""
        return False
