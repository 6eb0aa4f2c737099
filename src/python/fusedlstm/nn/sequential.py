"""Layers one after another."""

from typing import Any

from fusedlstm.nn._checks import Float, derive_seed, seed_number
from fusedlstm.nn.lstm import LSTM
from fusedlstm.nn.module import Layer, Tape


class SequentialTape(Tape):
    """The tapes of the layers, first to last."""

    def __init__(self, layer: "Sequential", tapes: list[Tape]) -> None:
        super().__init__(layer)
        self.tapes = tapes


class Sequential(Layer):
    """Layers one after another: the output of each is the input of the next.

    Parameters
    ----------
    *layers : Layer
        At least one. They become parts of this module: parameters are named ``"0.weight"``, ``"1.bias"``, as
        in PyTorch, and lie in one flat buffer.

    Raises
    ------
    ValueError
        If there is no layer, dtypes differ, a layer is used twice, a layer returns its state, or an
        `Embedding` is not the first.
    TypeError
        If something is not a layer.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm import nn
    >>> model = nn.Sequential(nn.LSTM(1, 8, return_sequences=False), nn.Linear(8, 1))
    >>> y, tape = model.forward(np.zeros((4, 20, 1), np.float32))
    >>> loss, dy = nn.MSELoss()(y, np.zeros((4, 1), np.float32))
    >>> model.backward(tape, dy).shape
    (4, 20, 1)
    >>> list(model.named_parameters())[-1]
    '1.bias'
    """

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise ValueError("Sequential: at least one layer is needed")
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"Sequential: {index} must be a layer, got {type(layer).__name__}")
            if isinstance(layer, LSTM) and layer.return_state:
                raise ValueError(
                    f"Sequential: layer {index} returns its state: build it with return_state=False"
                )
            if index and not layer.has_dx:
                raise ValueError(f"Sequential: layer {index}, {layer!r}, takes ids and so must be the first")
        super().__init__(layers[0].dtype, children={str(index): layer for index, layer in enumerate(layers)})
        self.has_dx = layers[0].has_dx
        self.takes_lengths = any(layer.takes_lengths for layer in layers)

    @property
    def layers(self) -> tuple[Any, ...]:
        """The layers, first to last."""
        return tuple(self._children.values())

    @property
    def takes_seed(self) -> bool:
        """Whether `forward` needs ``seed=``: if one of the layers does."""
        return any(layer.takes_seed for layer in self.layers)

    def _options(self, layer: Layer, lengths: Any) -> dict[str, Any]:
        return {"lengths": lengths} if lengths is not None and layer.takes_lengths else {}

    def _check_lengths(self, lengths: Any) -> None:
        if lengths is not None and not self.takes_lengths:
            raise ValueError("Sequential: lengths are given, but no layer takes them")

    def __call__(self, x: Any, *, lengths: Any = None) -> Float:
        """Output of the last layer.

        Parameters
        ----------
        x : array_like
            Input of the first layer.
        lengths : array_like of int, optional
            (N,), given to every layer that takes them.

        Raises
        ------
        ValueError, TypeError
            What the layers raise, and if no layer takes `lengths`.
        """
        self._check_lengths(lengths)
        for layer in self.layers:
            x = layer(x, **self._options(layer, lengths))
        output: Float = x
        return output

    def forward(
        self, x: Any, *, lengths: Any = None, seed: int | None = None
    ) -> tuple[Float, SequentialTape]:
        """Output of the last layer, and the tape for `backward`.

        Parameters
        ----------
        x, lengths
            As for a call.
        seed : int, optional
            From which each layer that needs one gets its own. Give every step another.

        Raises
        ------
        ValueError, TypeError
            What the layers raise, and if a seed is needed and not given.
        """
        self._check_lengths(lengths)
        if self.takes_seed and seed is None:
            raise ValueError("Sequential.forward: dropout needs seed=, another one at every step")
        number = 0 if seed is None else seed_number(seed)
        tapes = []
        for index, layer in enumerate(self.layers):
            options = self._options(layer, lengths)
            if layer.takes_seed:
                options["seed"] = derive_seed(number, index)
            x, tape = layer.forward(x, **options)
            tapes.append(tape)
        return x, SequentialTape(self, tapes)

    def backward(self, tape: SequentialTape, dy: Any, *, need_dx: bool = True) -> Float | None:
        """Gradient of the input, or None for ids or without `need_dx`; parameters' gradients are added.

        Raises
        ------
        ValueError, TypeError
            What the layers raise.
        RuntimeError
            If the tape was already used.
        """
        tape.check(self)
        d: Any = dy
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            options = {"need_dx": index > 0 or need_dx} if layer.has_dx else {}
            d = layer.backward(tape.tapes[index], d, **options)
        tape.take(self)
        return None if d is None else d

    def _describe(self) -> str:
        return ", ".join(repr(layer) for layer in self.layers)
