"""What PyTorch's errors mean for a job: their texts speak of tensors alone."""

import re

from thalweg.learning.batch import Batch

# What PyTorch says about tensors of several types, and about those that an operation does not take.
_OF_TYPES = re.compile(r"dtype|scalar types?\b|Input type .* should be the same", re.DOTALL)
_OF_ONE_SAMPLE = "Expected more than 1 value per channel"


def advice(error: BaseException, batch: Batch) -> str:
    """What is added about an error that was raised for a batch: empty, or an addition to its text."""
    text = str(error) if isinstance(error, (RuntimeError, TypeError, ValueError)) else ""
    if _OF_ONE_SAMPLE in text:
        return "; batch norm needs several samples in each microbatch: raise training.batch_size, or lower training.microbatches"
    if _OF_TYPES.search(text):
        types = ", ".join(f"{name} is {values.dtype}" for name, values in batch.items())
        return f'; in the data {types}: convert it there, as x.astype("float32"), or in the module'
    return ""
