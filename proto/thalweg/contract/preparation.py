"""The preparation of samples in files of parameters: JSON in their metadata, for readers without this contract."""

import json

from thalweg.v1 import job_pb2

# The entry of the metadata.
PREPROCESSING = "preprocessing"


def to_json(preprocessing: job_pb2.Preprocessing) -> str:
    """`shape` of one sample, `mean` and `scale` of each feature, empty if samples are not standardized, and, for a table
    with names, `columns` in the order of the features and the `target`; and the `dtype` of samples as the model gets them.
    """
    values = {
        "shape": list(preprocessing.shape),
        "mean": list(preprocessing.mean),
        "scale": list(preprocessing.scale),
        "columns": list(preprocessing.columns),
        "target": preprocessing.target,
        "dtype": preprocessing.dtype,
    }
    return json.dumps(values)
