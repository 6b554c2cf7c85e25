"""What each layer is asked to do."""

from sdunroll.constraints.base import DescentConstraint
from sdunroll.constraints.measures import (
    Distance,
    GradientNorm,
    Objective,
    ObjectiveGap,
    SplitGradient,
    distance,
    norm,
)

__all__ = [
    "DescentConstraint",
    "Distance",
    "GradientNorm",
    "Objective",
    "ObjectiveGap",
    "SplitGradient",
    "distance",
    "norm",
]
