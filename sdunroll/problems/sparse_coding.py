r"""Sparse coding: the LASSO over a learned dictionary.

    f(y; x) = 1/2 ||x - D y||^2 + alpha ||y||_1

Legend: B instances, m features, n atoms; ``...`` stands for leading dimensions such as the layers.
"""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sdunroll import checks, solvers
from sdunroll.cache import Cache, digest
from sdunroll.data import Batch, Source
from sdunroll.problems.base import Problem

log = logging.getLogger(__name__)


class SparseCoding(Problem):
    """min_y 1/2 ||x - D y||^2 + alpha ||y||_1.

    Args:
        dictionary: D, (m, n).
        alpha: weight of the l1 norm, > 0.
        solver: of the optimum: "admm" or "fista".
        cache: where optima are kept.
    """

    dictionary: Tensor
    alpha: Tensor
    gram: Tensor | None

    def __init__(
        self, dictionary: Tensor, *, alpha: float, solver: str = "admm", cache: Cache | None = None
    ) -> None:
        super().__init__()
        value = checks.number("alpha", alpha, above=0)
        self.solver = checks.choice("solver", solver, solvers.SOLVERS)
        self.register_buffer("dictionary", dictionary)
        self.register_buffer("alpha", torch.tensor(value, dtype=torch.float64))
        self.lipschitz = solvers.lipschitz(dictionary)
        features, atoms = dictionary.shape
        # for classical solvers, which are faster by it, as networks have their weights made beforehand
        gram = dictionary.T @ dictionary if atoms <= 2 * features else None
        self.register_buffer("gram", gram, persistent=False)
        self.cache = cache or Cache(None)

    def instances(
        self, signals: Tensor, clean: Tensor | None = None, *, keep: bool = True
    ) -> Batch:
        """The signals, flattened, with their optima; those of the disturbed problem, if any.

        Errors: signals of other than m features.
        """
        obs = signals.flatten(1)  # (B, m)
        features = len(self.dictionary)
        if obs.shape[1] != features:
            raise checks.UserError(
                f"expected signals of {features} features, as the dictionary's, got {obs.shape[1]}; "
                "bring them to one size"
            )
        if keep:
            return Batch(obs, self.optimum(obs.detach()))
        codes = self._solve(obs.detach()).codes
        if not obs.requires_grad:
            return Batch(obs, codes)
        # on its support y* is linear in x: the same value again, with its graph
        return Batch(obs, self._polish(codes, obs).to(codes.dtype))

    def objective(self, y: Tensor, obs: Tensor) -> Tensor:
        residual = y @ self.dictionary.T - obs  # (..., B, m)
        return residual.square().sum(-1) / 2 + self.alpha * y.abs().sum(-1)

    def smooth_gradient(self, y: Tensor, obs: Tensor) -> Tensor:
        """D^T (D y - x), (..., B, n): the gradient of the quadratic part."""
        return (y @ self.dictionary.T - obs) @ self.dictionary

    def gradient(self, y: Tensor, obs: Tensor) -> Tensor:
        """The minimum-norm subgradient, (..., B, n).

        With g = D^T (D y - x): g_j + alpha sign(y_j) where y_j != 0, else soft(g_j, alpha).
        """
        smooth = self.smooth_gradient(y, obs)
        return torch.where(
            y == 0,
            solvers.soft_threshold(smooth, self.alpha),
            smooth + self.alpha * torch.sign(y),
        )

    def gradient_mapping(self, y: Tensor, obs: Tensor) -> Tensor:
        """The proximal-gradient mapping, (..., B, n); unlike the subgradient, continuous in y.

        G(y) = Lip (y - soft(y - g / Lip, alpha / Lip)) = g - clamp(g - Lip y, -alpha, alpha),
        with g = D^T (D y - x) and Lip = ||D||_2^2. Reference: Beck, "First-Order Methods in
        Optimization", definition 10.5, https://doi.org/10.1137/1.9781611974997.
        """
        smooth = self.smooth_gradient(y, obs)
        return smooth - (smooth - self.lipschitz * y).clamp(-self.alpha, self.alpha)

    def step_length(self, y: Tensor, obs: Tensor) -> Tensor:
        """||G(y)|| / ||D||_2^2, (..., B): how far one step of ISTA moves y."""
        return torch.linalg.vector_norm(self.gradient_mapping(y, obs), dim=-1) / self.lipschitz

    def optimum(self, obs: Tensor) -> Tensor:
        """y*, (B, n), to a certified duality gap; see :func:`sdunroll.solvers.solve_lasso`."""
        key = {
            "what": "optima",
            "dictionary": digest(self.dictionary),
            "obs": digest(obs),
            "alpha": float(self.alpha),
            "solver": self.solver,
        }
        found = self.cache.tensors(key, lambda: self._certified(obs))
        return found["codes"].to(obs.device)

    def _solve(self, obs: Tensor) -> solvers.LassoSolution:
        return solvers.solve_lasso(self.dictionary, obs, float(self.alpha), solver=self.solver)

    def _certified(self, obs: Tensor) -> dict[str, Tensor]:
        solution = self._solve(obs)
        log.info(
            "optima: %d problems, worst relative duality gap %.1e, %.0f iterations on average",
            len(obs),
            solution.gap.max().item(),
            solution.iterations.double().mean().item(),
        )
        return {"codes": solution.codes, "gap": solution.gap}

    def _polish(self, codes: Tensor, obs: Tensor) -> Tensor:
        wide = self.dictionary.double()
        return solvers.polish(codes.double(), wide.T @ wide, obs.double() @ wide, float(self.alpha))

    def certificate(self, y: Tensor, obs: Tensor) -> Tensor:
        """By the better of two dual points: of y, and of what y was before it was rounded, if optimal."""
        gaps = [
            solvers.duality_gap(self.dictionary, obs, y, float(self.alpha), exact=exact)
            for exact in (None, self._polish(y, obs))
        ]
        return torch.minimum(*gaps)

    def baselines(self, batch: Batch) -> dict[str, Iterator[Tensor]]:
        obs = batch.obs
        start = obs.new_zeros(len(obs), self.dictionary.shape[1])
        return {
            name: solver(
                self.dictionary,
                obs,
                float(self.alpha),
                start=start,
                constant=self.lipschitz,
                gram=self.gram,
            )
            for name, solver in (("ista", solvers.ista), ("fista", solvers.fista))
        }

    def cache_key(self) -> dict[str, object] | None:
        if type(self) is not SparseCoding:  # what is derived from it may do otherwise
            return None
        return {
            "name": "sparse coding",
            "dictionary": digest(self.dictionary),
            "alpha": float(self.alpha),
        }

    def reconstruct(self, y: Tensor) -> Tensor:
        """D y, (..., m)."""
        return y @ self.dictionary.T


def sparse_coding(
    source: Source,
    cache: Cache,
    state: dict[str, Tensor] | None = None,
    *,
    alpha: float,
    overcompleteness: float,
    learner: Callable[[Tensor, int], Tensor],
    solver: str = "admm",
) -> SparseCoding:
    """Sparse coding over the source's own dictionary, or over one learned from its training signals.

    Args:
        alpha: weight of the l1 norm.
        overcompleteness: n / m of a learned dictionary; n is rounded down.
        learner: ``(signals (N, m), n) -> dictionary (m, n)``, such as
            :class:`sdunroll.solvers.DictionaryLearning`.
        solver: of the optimum: "admm" or "fista".
    """
    checks.number("overcompleteness", overcompleteness, above=0)
    if state is not None:
        dictionary = state["dictionary"]
    elif source.dictionary is not None:
        dictionary = source.dictionary
    else:
        signals = source.signals("train").flatten(1)
        num_atoms = int(overcompleteness * signals.shape[1])
        checks.integer("overcompleteness * features", num_atoms)
        if isinstance(learner, solvers.DictionaryLearning):
            key = {
                "what": "dictionary",
                "signals": digest(signals),
                "num_atoms": num_atoms,
                "learner": learner.cache_key(),
            }
            found = cache.tensors(key, lambda: {"dictionary": learner(signals, num_atoms)})
            dictionary = found["dictionary"]
        else:  # nothing is known of what decides another learner's result
            dictionary = learner(signals, num_atoms)
    return SparseCoding(dictionary, alpha=alpha, solver=solver, cache=cache)
