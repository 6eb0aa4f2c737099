"""Table of vectors, looked up by token id."""

from typing import Any

import numpy as np

from fusedlstm import _core
from fusedlstm.nn._checks import (
    Float,
    Init,
    Int,
    float_array,
    integer,
    seed_number,
    shaped,
    token_array,
    uniform_limit,
)
from fusedlstm.nn.module import Layer, Tape, lay_out


class EmbeddingTape(Tape):
    """The ids that `Embedding.forward` looked up."""

    def __init__(self, layer: "Embedding", ids: Int) -> None:
        super().__init__(layer)
        self.ids = ids


class Embedding(Layer):
    """Vector of each token id: ``y = weight[ids]``.

    Shapes: ``ids`` (...), ``y`` (..., E), ``weight`` (V, E).

    Parameters
    ----------
    num_embeddings : int
        V, number of ids.
    embedding_dim : int
        E, length of a vector.
    dtype : str
        ``"float32"`` or ``"float64"``.
    init : str or tuple
        ``"torch"``: standard normal; ``("uniform", a)``: U(-a, a).
    seed : int
        Of the initial values.

    Raises
    ------
    ValueError, TypeError
        If a size, dtype or init is not as described.

    Notes
    -----
    To feed an `LSTM`, pass the table as ``lstm(ids, embedding=table)``: no (N, T, E) array is made then.

    Examples
    --------
    >>> from fusedlstm import nn
    >>> table = nn.Embedding(10, 4)
    >>> table([[1, 2, 3]]).shape
    (1, 3, 4)
    """

    has_dx = False  # ids have no gradient

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dtype: str = "float32",
        init: Init = "torch",
        seed: int = 0,
    ) -> None:
        self.num_embeddings = integer(num_embeddings, "num_embeddings", 1, 2**31 - 1)
        self.embedding_dim = integer(embedding_dim, "embedding_dim", 1)
        generator = np.random.default_rng(seed_number(seed))
        limit = uniform_limit(init, 0.0, "Embedding")
        super().__init__(dtype, lay_out([("weight", (self.num_embeddings, self.embedding_dim))]))
        shape = self.weight.shape
        self.weight[...] = (
            generator.standard_normal(shape) if init == "torch" else generator.uniform(-limit, limit, shape)
        )

    @property
    def weight(self) -> Float:
        """View (V, E) of the table."""
        return self._view(self._parameters, "weight")

    @property
    def d_weight(self) -> Float:
        """View (V, E) of the table's gradient."""
        return self._view(self._gradients, "weight")

    def __call__(self, x: Any) -> Float:
        """Vectors (..., E) of the ids (...).

        Raises
        ------
        ValueError
            If an id is not in 0..V-1.
        TypeError
            If the ids are not ints.
        """
        ids = token_array(x, self.num_embeddings, "Embedding", "ids")
        return _core.embedding_forward(self.weight, ids.reshape(-1)).reshape(*ids.shape, self.embedding_dim)

    def forward(self, x: Any) -> tuple[Float, EmbeddingTape]:
        """Vectors (..., E) of the ids (...), and the tape for `backward`; raises what a call raises."""
        ids = token_array(x, self.num_embeddings, "Embedding", "ids")
        y = _core.embedding_forward(self.weight, ids.reshape(-1)).reshape(*ids.shape, self.embedding_dim)
        return y, EmbeddingTape(self, ids)

    def backward(self, tape: EmbeddingTape, dy: Any) -> None:
        """Add the gradient ``dy`` (..., E) to the rows of the ids that were looked up.

        Raises
        ------
        ValueError
            If `dy` has another shape or dtype than the output.
        RuntimeError
            If the tape was already used.
        """
        tape.check(self)
        given = float_array(dy, self.dtype, "Embedding.backward", "dy")
        shaped(given, (*tape.ids.shape, self.embedding_dim), "(..., E)", "Embedding.backward", "dy")
        tape.take(self)
        _core.embedding_backward(tape.ids.reshape(-1), given.reshape(-1, self.embedding_dim), self.d_weight)

    def _describe(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
