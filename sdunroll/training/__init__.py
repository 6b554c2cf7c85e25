"""The epoch loop and its schedules."""

from sdunroll.training.end_to_end import EndToEnd
from sdunroll.training.loop import Epoch, Training, half_squared_distance

__all__ = ["EndToEnd", "Epoch", "Training", "half_squared_distance"]
