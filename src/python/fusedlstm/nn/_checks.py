"""Turning what a caller passes into what the native core takes, or saying what was wrong with it."""

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedlstm import _core

Float = NDArray[Any]  # float32 or float64
Int = NDArray[np.int32]
State = tuple[Float, Float]
Init = str | tuple[str, float]

DTYPES = ("float32", "float64")
_DTYPES = {name: np.dtype(name) for name in DTYPES}
MAX_SEED = 2**64 - 1


def dtype_name(dtype: str) -> str:
    """Name of a floating type that the core has, ``"float32"`` or ``"float64"``."""
    try:
        name = str(np.dtype(dtype).name)
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return name


def compute_name(compute_dtype: str | None, dtype: str, who: str) -> str | None:
    """The type that products are made in, ``"bfloat16"`` or ``"int8"``; None if that is ``dtype`` itself."""
    if compute_dtype is None or compute_dtype == dtype:
        return None
    if compute_dtype not in ("bfloat16", "int8"):
        raise ValueError(
            f"{who}: compute_dtype must be {dtype!r}, 'bfloat16' or 'int8', got {compute_dtype!r}"
        )
    if dtype != "float32":
        raise ValueError(f"{who}: compute_dtype {compute_dtype!r} needs dtype 'float32', got {dtype!r}")
    return compute_dtype


def integer(value: object, name: str, minimum: int, maximum: int | None = None) -> int:
    """An int in a range; ``True``, ``3.0`` and ``"3"`` are refused."""
    wanted = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int {wanted}, got {value!r}")
    number = operator.index(value)
    if number < minimum or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {wanted}, got {number}")
    return number


def rate(value: object, name: str) -> float:
    """A probability of dropping an element: at least 0 and less than 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {number}")
    return number


def seed_number(value: object, name: str = "seed") -> int:
    """A seed that the core takes: an int that fits in 64 bits without a sign."""
    return integer(value, name, 0, MAX_SEED)


def derive_seed(seed: int, *path: int) -> int:
    """A 64-bit seed for a named place, from one seed for everything.

    Different paths give independent seeds, so that layers or steps that share one seed do not share masks.

    Parameters
    ----------
    seed : int
        0 <= seed < 2**64.
    *path : int
        Non-negative numbers that name the place, such as ``(step, layer)``.

    Returns
    -------
    int
        0 <= value < 2**64, by NumPy's ``SeedSequence``.

    Raises
    ------
    TypeError, ValueError
        If a number is not an int, negative or too large.

    Examples
    --------
    >>> from fusedlstm.nn import derive_seed
    >>> derive_seed(1, 0) == derive_seed(1, 0), derive_seed(1, 0) == derive_seed(1, 1)
    (True, False)
    """
    # SeedSequence pads its entropy with zeros, so (1,) and (1, 0) would be one seed: the length goes first.
    entropy = [len(path), seed_number(seed), *(integer(place, "path", 0, MAX_SEED) for place in path)]
    words = [word for number in entropy for word in (number & 0xFFFFFFFF, number >> 32)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def describe(value: Any) -> str:
    """What came, for an error: dtype and shape of an array, else its type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} {value.shape}"
    return type(value).__name__


def float_array(value: Any, dtype: str, who: str, name: str) -> Float:
    """``value`` as a C-contiguous array of ``dtype``.

    Lists are converted. An array of another type is refused, because a silent copy of every batch is a cost
    that its caller should know of; a strided one is copied.
    """
    if isinstance(value, np.ndarray):
        if value.dtype != _DTYPES[dtype]:
            raise ValueError(
                f"{who}: {name} must be {dtype}, got {describe(value)}; {name}.astype('{dtype}') converts it"
            )
        return np.asarray(value, order="C")
    try:
        raw = np.asarray(value)
    except ValueError as error:  # nested lists of unequal lengths
        raise ValueError(f"{who}: {name} must be a rectangular array of numbers: {error}") from None
    if raw.dtype.kind not in "fiu":
        raise TypeError(f"{who}: {name} must be an array of numbers, got {describe(value)}")
    return np.asarray(raw, dtype=dtype, order="C")


def shaped(array: Float, shape: tuple[int, ...], letters: str, who: str, name: str) -> Float:
    """``array`` if it has ``shape``, else an error that shows both."""
    if array.shape != shape:
        raise ValueError(f"{who}: {name} must be {letters} = {shape}, got {array.shape}")
    return array


def require_finite(x: Float, who: str, name: str, lengths: Int | None = None) -> None:
    """Refuse NaN and infinities in ``x``; with ``lengths``, only in the valid steps of ``x`` (N, T, ...)."""
    if _core.all_finite(x):
        return
    wrong = ~np.isfinite(x)
    if lengths is not None:
        wrong[np.arange(x.shape[1])[None, :] >= lengths[:, None]] = False
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{who}: {name} must be finite, got {x[index]} at {index}")


def integer_array(value: Any, who: str, name: str) -> NDArray[Any]:
    """``value`` as an array of some integer type; an empty list is one too."""
    try:
        raw = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{who}: {name} must be a rectangular array of ints: {error}") from None
    if raw.size == 0 and not isinstance(value, np.ndarray):
        raw = raw.astype(np.int32)
    if raw.dtype.kind not in "iu":
        raise TypeError(f"{who}: {name} must be ints, got {describe(raw)}")
    return raw


def token_array(value: Any, size: int, who: str, name: str, ignore_index: int | None = None) -> Int:
    """Ids in [0, size) as C-contiguous int32; ``ignore_index`` is let through where it is given."""
    raw = integer_array(value, who, name)
    if raw.size:
        # Before the cast to int32, in which a large id could wrap around to a valid one.
        wrong = (raw < 0) | (raw >= size)
        if ignore_index is not None:
            wrong &= raw != ignore_index
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"{who}: {name} must be between 0 and {size - 1}, got {raw[index]} at {index}")
    return np.asarray(raw, dtype=np.int32, order="C")


def length_array(value: Any, batch: int, steps: int, who: str) -> Int:
    """Lengths (N,) in [0, T] as int32."""
    raw = integer_array(value, who, "lengths")
    if raw.shape != (batch,):
        raise ValueError(f"{who}: lengths must be (N,) = ({batch},), got {raw.shape}")
    wrong = (raw < 0) | (raw > steps)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise ValueError(f"{who}: lengths must be between 0 and T = {steps}, got {raw[index]} at {index}")
    return np.ascontiguousarray(raw, dtype=np.int32)


def uniform_limit(init: Init, default: float, who: str) -> float:
    """Half width of the uniform distribution that ``init`` asks for."""
    if init == "torch":
        return default
    if isinstance(init, tuple) and len(init) == 2 and init[0] == "uniform":
        limit = init[1]
        if isinstance(limit, (int, float)) and not isinstance(limit, bool) and 0.0 <= limit < math.inf:
            return float(limit)
    raise ValueError(f"{who}: init must be 'torch' or ('uniform', a) with a >= 0, got {init!r}")
