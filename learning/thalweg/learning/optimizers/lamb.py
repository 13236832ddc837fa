"""LAMB: AdamW whose learning rate is scaled for each tensor, for large minibatches."""

import math
from collections.abc import Sequence

from thalweg.learning.optimizers.adam import Moments
from thalweg.learning.reductions import Quantity, Reduction, Scaled
from thalweg.v1 import job_pb2


def trust_ratio(sums: Sequence[float]) -> float:
    """‖w‖ / ‖r‖ from the squares of both; 1 where either is 0, NaN where either is not finite."""
    parameters, update = (math.sqrt(each) if math.isfinite(each) else math.nan for each in sums)
    return parameters / update if parameters != 0 and update != 0 else 1.0


class Lamb(Moments[job_pb2.Lamb]):
    """r = m̂ / (√v̂ + eps) + weight_decay · w; w ← w − learning_rate · ‖w‖ / ‖r‖ · r, with the norms of each tensor.

    Algorithm 2 of You et al. 2020, with φ(x) = x; m̂ and v̂ are Adam's. The ratio is 1 where either norm is 0.
    """

    decoupled = True
    reductions = (Reduction((Quantity.PARAMETERS, Quantity.UPDATE), True, Scaled.LEARNING_RATE, trust_ratio),)
