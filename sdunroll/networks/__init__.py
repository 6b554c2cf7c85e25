"""Unrolled networks."""

from sdunroll.networks.base import Perturb, Trajectory, UnrolledNetwork
from sdunroll.networks.lista import Lista

__all__ = ["Lista", "Perturb", "Trajectory", "UnrolledNetwork"]
