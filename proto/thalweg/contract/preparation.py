"""The preparation of samples in files of parameters: JSON in their metadata, for readers without this contract."""

import json
from typing import Any

from google.protobuf import json_format

from thalweg.v1 import job_pb2

# The entry of the metadata.
PREPROCESSING = "preprocessing"


def to_json(preprocessing: job_pb2.Preprocessing) -> str:
    """`shape` of one sample, `mean` and `scale` of each feature, empty if samples are not standardized, and, for a table
    with names, `columns` in the order of the features and the `target`; and the `dtype` of samples as the model gets them.
    Where columns become features in further ways, `table` has those for each column, and `targets` classes, or how targets were
    prepared: the fields of the messages `PreparedColumn` and `PreparedTarget` by name, without those that are 0 or empty.
    Rows may have the columns `ignored` besides; with `others_ignored`, any.
    """
    values: dict[str, Any] = {
        "shape": list(preprocessing.shape),
        "mean": list(preprocessing.mean),
        "scale": list(preprocessing.scale),
        "columns": list(preprocessing.columns),
        "target": preprocessing.target,
        "dtype": preprocessing.dtype,
    }
    for name in ("table", "targets"):
        if found := getattr(preprocessing, name):
            values[name] = [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in found]
    if preprocessing.ignored:
        values["ignored"] = list(preprocessing.ignored)
    if preprocessing.others_ignored:
        values["others_ignored"] = True
    return json.dumps(values)
