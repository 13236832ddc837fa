"""How samples and targets are prepared, and split into those to learn from and those to validate with."""

from thalweg.learning.data.preparation.inputs import prepare, prepared_rows, preprocess
from thalweg.learning.data.preparation.splitting import split
from thalweg.learning.data.preparation.statistics import MAX_FEATURES, standardization
from thalweg.learning.data.preparation.targets import as_targets

__all__ = ["MAX_FEATURES", "as_targets", "prepare", "prepared_rows", "preprocess", "split", "standardization"]
