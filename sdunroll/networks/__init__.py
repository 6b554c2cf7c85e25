"""The layers of unrolled algorithms."""

from sdunroll.networks.base import Perturb, Trajectory, UnrolledNetwork
from sdunroll.networks.flow import Glow
from sdunroll.networks.lista import Lista
from sdunroll.networks.proximal_gradient import (
    CnnProximal,
    FlowProximal,
    Proximal,
    ProximalGradient,
)

__all__ = [
    "CnnProximal",
    "FlowProximal",
    "Glow",
    "Lista",
    "Perturb",
    "Proximal",
    "ProximalGradient",
    "Trajectory",
    "UnrolledNetwork",
]
