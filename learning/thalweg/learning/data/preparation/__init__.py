"""How samples and targets are prepared, and split into those to learn from and those to validate with."""

from thalweg.learning.data.preparation.features import in_own_units
from thalweg.learning.data.preparation.given import Prepared, prepare_table
from thalweg.learning.data.preparation.inputs import prepare, prepared_rows, preprocess
from thalweg.learning.data.preparation.splitting import Parts, Values, parts, split
from thalweg.learning.data.preparation.statistics import MAX_FEATURES, standardization
from thalweg.learning.data.preparation.tabular import Tabular, ignoring_less, own_rows, tabular, tabular_of_own_file
from thalweg.learning.data.preparation.targets import as_targets

__all__ = [
    "MAX_FEATURES",
    "Parts",
    "Prepared",
    "Tabular",
    "Values",
    "as_targets",
    "ignoring_less",
    "in_own_units",
    "own_rows",
    "parts",
    "prepare",
    "prepare_table",
    "prepared_rows",
    "preprocess",
    "split",
    "standardization",
    "tabular",
    "tabular_of_own_file",
]
