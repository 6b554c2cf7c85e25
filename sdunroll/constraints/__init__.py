"""What each layer is asked to do."""

from sdunroll.constraints.base import DescentConstraint
from sdunroll.constraints.measures import Distance, GradientNorm, ObjectiveGap, distance, norm

__all__ = ["DescentConstraint", "Distance", "GradientNorm", "ObjectiveGap", "distance", "norm"]
