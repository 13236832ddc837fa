"""Predictions: a model's outputs for samples, and samples as a model gets them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.client.folders import AnyPath, expanded
from thalweg.client.weights import read_header
from thalweg.contract.layout import Slab

if TYPE_CHECKING:
    from thalweg.learning.data.tables import Table

# Samples, samples first, or rows of a table: a dictionary of columns by their names, rows that are dictionaries, a data frame of
# pandas, Polars or Arrow, or the path of a file or a folder, or a URL; or images: a path of one or of a folder, or several.
Given: TypeAlias = Union[ArrayLike, Mapping[str, object], Sequence[Mapping[str, object]], "Table", AnyPath, Sequence[AnyPath]]


@dataclass(frozen=True)
class Prediction:
    """A model's outputs for samples.

    `outputs` are the last layer's, samples first: logits, if the loss takes them. If the model is a classifier, `classes` has the
    class of each sample, int64 of shape (samples); for several yes-or-no outputs, 0 or 1 for each. If the outputs give
    probabilities, `probabilities` has the shape (samples, classes): one for each class; for yes-or-no outputs, that of each 1.

    Outputs for targets that were prepared are in the targets' own units. `names` are those of the classes, by label, if the job's
    data has names for them. `notices` are for the user, such as about categories that the training data does not have. If samples
    were given as paths of images, `files` are these.

    If the model returns several arrays, in a dictionary, a tuple or a data class, `named` has them by name, and `outputs` is the
    first. They are as the model returns them, whatever the targets' units.
    """

    outputs: Slab
    classes: NDArray[np.int64] | None
    probabilities: Slab | None = None
    names: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    named: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def labels(self) -> NDArray[Any] | None:
        """The name of the class of each sample, in the shape of `classes`; without names or classes None."""
        return np.array(self.names)[self.classes] if self.names and self.classes is not None else None

    def __iter__(self) -> Iterator[NDArray[Any] | None]:
        """The outputs and the classes: release 0.1.0 returned this pair."""
        return iter((self.outputs, self.classes))


def prepare(weights: AnyPath, x: Given) -> Slab:
    """Samples `x`, samples first, as a model gets them whose parameters are in a safetensors file that Thalweg wrote.

    They get the model's dtype, and are prepared as the job's data was: rows of a table, such as a data frame's, become features.
    Raises ThalwegError if the file cannot be read or was not written by Thalweg, if samples are not of the kind that the job was
    trained on, or if the dtype cannot hold them.
    """
    from thalweg.client.models import prepare_samples  # noqa: PLC0415 - programs that only submit jobs need no model

    return prepare_samples(read_header(expanded(weights), "weights"), x)
