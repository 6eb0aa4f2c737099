"""What translations are looked at with: alignment pictures and BLEU."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Alignment:
    """Attention weights of one pair of sentences.

    Attributes
    ----------
    source, target : tuple of str
        Tokens, ``<eos>`` included, in the order of the text.
    weights : ndarray
        (target tokens, source tokens): each row sums to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedlstm.models import Alignment
    >>> Alignment(("ja", "<eos>"), ("yes", "<eos>"), np.eye(2)).weights.shape
    (2, 2)
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: NDArray[Any]

    def plot(self, picture: str | os.PathLike[str]) -> None:
        """Draw the weights as a picture: source tokens in columns, target tokens in rows (extra ``plot``).

        Parameters
        ----------
        picture : path-like
            File to write; the ending (.png, .svg, .pdf) chooses the format.

        Raises
        ------
        ImportError
            matplotlib is not installed; the message says how to get it.
        OSError
            The file cannot be written.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError("an alignment picture needs matplotlib: pip install 'fusedlstm[plot]'")
        from matplotlib.figure import Figure

        rows, columns = self.weights.shape
        figure = Figure(figsize=(2 + 0.45 * columns, 1.5 + 0.38 * rows), layout="constrained")
        axes: Any = figure.add_subplot()
        image = axes.imshow(self.weights, cmap="gray_r", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_xticks(range(columns), self.source, rotation=60, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(rows), self.target)
        axes.xaxis.tick_top()
        axes.set_xlabel("source")
        axes.set_ylabel("target")
        figure.colorbar(image, ax=axes, label="attention weight")
        figure.savefig(picture, dpi=120)


def corpus_bleu(
    translations: Sequence[str], references: Sequence[str], *, tokenize: str = "13a"
) -> tuple[float, str]:
    """BLEU of a corpus with one reference each, and its signature, by ``sacrebleu`` (extra ``bleu``).

    Parameters
    ----------
    translations, references : sequence of str
        As many of both.
    tokenize : str
        How sacrebleu splits both sides: "none" for text that is tokenised already.

    Raises
    ------
    ImportError
        If sacrebleu is missing; the message says how to get it.
    ValueError
        If the numbers differ.
    """
    if len(translations) != len(references):
        raise ValueError(
            f"corpus_bleu: {len(translations)} translations need as many references, got {len(references)}"
        )
    if importlib.util.find_spec("sacrebleu") is None:
        raise ImportError("BLEU needs sacrebleu: pip install 'fusedlstm[bleu]'")
    metric = importlib.import_module("sacrebleu.metrics").BLEU(tokenize=tokenize)
    score = metric.corpus_score(list(translations), [list(references)]).score
    return float(score), str(metric.get_signature())
