"""The epoch loop and its schedules."""

from sdunroll.training.epoch import Epoch, half_squared_distance
from sdunroll.training.loop import Training
from sdunroll.training.schedules import Stage, stages
from sdunroll.training.settings import TrainingSettings

__all__ = ["Epoch", "Stage", "Training", "TrainingSettings", "half_squared_distance", "stages"]
