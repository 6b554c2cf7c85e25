r"""The paper's guarantees, evaluated for a trained network.

With g_l = E||grad f(y_l; x)|| and a network that holds the constraints on its N training samples, with
probability at least 1 - delta each,

    g_l <= rho g_{l-1} + (1 - delta) zeta + delta M,    rho = (1 - delta) (1 - epsilon),

so that from layer s on, where the constraints begin,

    g_l <= rho^(l-s) g_s + [(1 - delta) zeta + delta M] (1 - rho^(l-s)) / (1 - rho),
    lim_l E[min_{k<=l} ||grad f(y_k)||] <= (zeta + delta M / (1 - delta)) / epsilon.

zeta is the gap between the mean over N samples and the expectation, M bounds the gradient norm.
Reference: Hadou, NaderiAlizadeh, Ribeiro, "Robust Stochastically-Descending Unrolled Networks",
https://arxiv.org/abs/2312.15788. Legend: L layers, N samples.

Under a shift of the distribution by a distance d, the same with zeta + 2 M d in place of zeta.

What is measured and what is assumed: g_l is the mean over the test split. zeta is estimated as the
largest difference, over the layers, between the constraint's mean on the test and on the training
split; M is the largest gradient norm that was seen on either, not a bound on what was not. delta is
given. d is estimated by :func:`sliced_wasserstein` between observations, a choice: the theorem does not
say how to estimate it. That each constraint holds with probability 1 - delta is the theorem's, not
checked here.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sdunroll import checks


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The recursion's bound beside what was measured.

    Attributes:
        epsilon, delta, zeta, largest_norm, rho: see above; ``largest_norm`` is M.
        shift: d, 0 without one.
        generalisation: zeta + 2 M d, the error that is left to the bound.
        first_state: s, the state from which descent is demanded.
        measured: g_l for l = s .. L.
        bound: the recursion's bound of each; the first is g_s itself.
        holds: whether each is at most its bound.
        limit: the bound of the limit.
        train_slack: the largest mean of g_l - (1 - epsilon) g_{l-1} on the training split: the theorem
            supposes that it is <= 0.
    """

    epsilon: float
    delta: float
    zeta: float
    largest_norm: float
    rho: float
    shift: float
    generalisation: float
    first_state: int
    measured: list[float]
    bound: list[float]
    holds: list[bool]
    limit: float
    train_slack: float

    def as_dict(self) -> dict[str, Any]:
        """Its attributes, for a JSON file."""
        return asdict(self)


def sliced_wasserstein(
    one: Tensor, two: Tensor, generator: torch.Generator, *, directions: int = 200
) -> float:
    """The mean 1-Wasserstein distance between the projections of two samples, (N, ...) both, onto
    random directions.

    Reference: Bonneel, Rabin, Peyre, Pfister, "Sliced and Radon Wasserstein Barycenters of Measures",
    https://doi.org/10.1007/s10851-014-0506-3.
    """
    one, two = one.flatten(1).double(), two.flatten(1).double()
    drawn = torch.randn(one.shape[1], directions, generator=generator, dtype=torch.float64)
    drawn = drawn / drawn.norm(dim=0)
    projected = [(sample.cpu() @ drawn).sort(0).values for sample in (one, two)]  # (N, directions)
    return float((projected[0] - projected[1]).abs().mean())


def guarantee(
    train: Tensor,
    test: Tensor,
    *,
    epsilon: float,
    delta: float,
    first_layer: int = 1,
    shifted: Tensor | None = None,
    shift: float = 0.0,
) -> Guarantee:
    """Evaluate the recursion.

    Args:
        train, test: gradient norms at y_0 .. y_L, (L + 1, N) each.
        epsilon: the relative descent that is demanded; of several, the least.
        delta: 0 < delta < 1.
        first_layer: the first constrained layer.
        shifted: gradient norms on a shifted distribution, (L + 1, N), which are then what the bound is
            for. shift: its distance d.
    """
    checks.number("epsilon", epsilon, above=0, below=1)
    checks.number("delta", delta, above=0, below=1)
    first = checks.integer("first_layer", first_layer) - 1
    means = [values[first:].double().mean(1) for values in (train, test)]  # (L + 1 - s,) each
    slacks = [mean[1:] - (1 - epsilon) * mean[:-1] for mean in means]
    zeta = float((slacks[1] - slacks[0]).abs().max())
    seen = [train, test] if shifted is None else [train, test, shifted]
    largest = max(float(values.max()) for values in seen)
    left = zeta + 2 * largest * checks.number("shift", shift, low=0)
    measured = means[1] if shifted is None else shifted[first:].double().mean(1)
    rho = (1 - delta) * (1 - epsilon)
    steps = torch.arange(len(measured), dtype=torch.float64)
    decay = rho**steps
    rest = ((1 - delta) * left + delta * largest) * (1 - decay) / (1 - rho)
    bound = decay * measured[0] + rest
    return Guarantee(
        epsilon=epsilon,
        delta=delta,
        zeta=zeta,
        largest_norm=largest,
        rho=rho,
        shift=shift,
        generalisation=left,
        first_state=first,
        measured=measured.tolist(),
        bound=bound.tolist(),
        holds=(measured <= bound).tolist(),
        limit=(left + delta * largest / (1 - delta)) / epsilon,
        train_slack=float(slacks[0].max()),
    )
