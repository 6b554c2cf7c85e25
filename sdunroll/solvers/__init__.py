"""Classical algorithms: ISTA, FISTA, AMP, the LASSO optimum, dictionary learning, harmonic fill."""

from sdunroll.solvers.amp import amp, least_squares_on
from sdunroll.solvers.dictionary_learning import DictionaryLearning
from sdunroll.solvers.harmonic import harmonic_fill
from sdunroll.solvers.lasso import (
    SOLVERS,
    Admm,
    LassoSolution,
    NotConverged,
    RestartedFista,
    duality_gap,
    polish,
    solve_lasso,
)
from sdunroll.solvers.proximal import fista, ista, lipschitz, soft_threshold

__all__ = [
    "SOLVERS",
    "Admm",
    "DictionaryLearning",
    "LassoSolution",
    "NotConverged",
    "RestartedFista",
    "amp",
    "duality_gap",
    "fista",
    "harmonic_fill",
    "ista",
    "least_squares_on",
    "lipschitz",
    "polish",
    "soft_threshold",
    "solve_lasso",
]
