"""Figures of a job: its learning curve, and slices of its loss. Needs the extra `plot`."""

from thalweg.client.plotting.curve import learning_curve
from thalweg.client.plotting.figures import PICTURES, save_figure
from thalweg.client.plotting.slices import Element, loss_slice, parse_element

__all__ = ["PICTURES", "Element", "learning_curve", "loss_slice", "parse_element", "save_figure"]
