"""Predictions: what a model makes of samples, and samples as a model sees them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.client.folders import AnyPath, expanded
from thalweg.client.weights import read_header
from thalweg.contract.layout import Slab


@dataclass(frozen=True)
class Prediction:
    """What a model makes of samples.

    `outputs` are those of the last layer, samples first: logits, if the loss takes them. If the model is a classifier, `classes`
    has the class of each sample, int64 of shape (samples); of a model with several yes-or-no outputs, a 0 or 1 for each. If its
    outputs say so much, `probabilities` has the shape (samples, classes): the probability of each class; of several yes-or-no
    outputs, that of each 1.
    """

    outputs: Slab
    classes: NDArray[np.int64] | None
    probabilities: Slab | None = None

    def __iter__(self) -> Iterator[NDArray[Any] | None]:
        """The outputs and the classes: release 0.1.0 gave a pair of these."""
        return iter((self.outputs, self.classes))


def prepare(weights: AnyPath, x: ArrayLike) -> Slab:
    """Samples `x`, samples first, as the model sees them whose parameters are in a safetensors file that Thalweg wrote.

    They get the model's dtype, and are standardized if the job's data was. The shape stays. Raises ThalwegError if the file
    cannot be read or was written by others, if samples are not of the kind that the job was trained on, or if the dtype cannot
    hold them.
    """
    from thalweg.client.models import prepare_samples  # noqa: PLC0415 - programs that only submit jobs need no model

    return prepare_samples(read_header(expanded(weights), "weights"), x)
