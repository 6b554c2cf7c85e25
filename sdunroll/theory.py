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

What is measured and what is assumed: g_l is the mean over the test split. zeta is estimated as the
largest difference, over the layers, between the constraint's mean on the test and on the training
split; M is the largest gradient norm that was seen on either, not a bound on what was not. delta is
given. That each constraint holds with probability 1 - delta is the theorem's, not checked here.
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
    first_state: int
    measured: list[float]
    bound: list[float]
    holds: list[bool]
    limit: float
    train_slack: float

    def as_dict(self) -> dict[str, Any]:
        """Its attributes, for a JSON file."""
        return asdict(self)


def guarantee(
    train: Tensor, test: Tensor, *, epsilon: float, delta: float, first_layer: int = 1
) -> Guarantee:
    """Evaluate the recursion.

    Args:
        train, test: gradient norms at y_0 .. y_L, (L + 1, N) each.
        epsilon: the relative descent that is demanded; of several, the least.
        delta: 0 < delta < 1.
        first_layer: the first constrained layer.
    """
    checks.number("epsilon", epsilon, above=0, below=1)
    checks.number("delta", delta, above=0, below=1)
    first = checks.integer("first_layer", first_layer) - 1
    means = [values[first:].double().mean(1) for values in (train, test)]  # (L + 1 - s,) each
    slacks = [mean[1:] - (1 - epsilon) * mean[:-1] for mean in means]
    zeta = float((slacks[1] - slacks[0]).abs().max())
    largest = max(float(train.max()), float(test.max()))
    rho = (1 - delta) * (1 - epsilon)
    steps = torch.arange(len(means[1]), dtype=torch.float64)
    decay = rho**steps
    rest = ((1 - delta) * zeta + delta * largest) * (1 - decay) / (1 - rho)
    bound = decay * means[1][0] + rest
    return Guarantee(
        epsilon=epsilon,
        delta=delta,
        zeta=zeta,
        largest_norm=largest,
        rho=rho,
        first_state=first,
        measured=means[1].tolist(),
        bound=bound.tolist(),
        holds=(means[1] <= bound).tolist(),
        limit=(zeta + delta * largest / (1 - delta)) / epsilon,
        train_slack=float(slacks[0].max()),
    )
