"""No change."""

from typing import Any

from thalweg.learning.schedules.base import Course


def factor(_: Any, course: Course, within: object) -> float:  # noqa: ARG001
    """1."""
    return 1.0
