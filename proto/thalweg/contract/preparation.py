"""How files of parameters say how samples are prepared for them: as JSON in their metadata, for readers without this contract."""

import json

from thalweg.v1 import job_pb2

# The entry of the metadata.
PREPROCESSING = "preprocessing"


def to_json(preprocessing: job_pb2.Preprocessing) -> str:
    """`shape` of one sample, `mean` and `scale` of each feature, empty if the model sees samples as they are, and, of a table
    with names, `columns` in the order of the features and the `target`.
    """
    values = {
        "shape": list(preprocessing.shape),
        "mean": list(preprocessing.mean),
        "scale": list(preprocessing.scale),
        "columns": list(preprocessing.columns),
        "target": preprocessing.target,
    }
    return json.dumps(values)
