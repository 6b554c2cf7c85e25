"""The layers of unrolled algorithms."""

from sdunroll.networks.base import Perturb, Trajectory, UnrolledNetwork
from sdunroll.networks.coupled import CoupledLista
from sdunroll.networks.flow import Glow
from sdunroll.networks.gated_lista import GatedLista
from sdunroll.networks.hyper_lista import HyperLista
from sdunroll.networks.lamp import Lamp
from sdunroll.networks.lfista import Lfista
from sdunroll.networks.lista import Lista
from sdunroll.networks.proximal_gradient import (
    CnnProximal,
    FlowProximal,
    Proximal,
    ProximalGradient,
)
from sdunroll.networks.step_lista import StepLista

__all__ = [
    "CnnProximal",
    "CoupledLista",
    "FlowProximal",
    "GatedLista",
    "Glow",
    "HyperLista",
    "Lamp",
    "Lfista",
    "Lista",
    "Perturb",
    "Proximal",
    "ProximalGradient",
    "StepLista",
    "Trajectory",
    "UnrolledNetwork",
]
