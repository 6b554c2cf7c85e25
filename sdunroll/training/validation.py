"""What a network does on the validation split.

Legend: R rows of the constraint (layers times its parts, mostly 1), N instances.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.constraints import distance
from sdunroll.data import Batch
from sdunroll.primal_dual import NotFinite
from sdunroll.randomness import generator
from sdunroll.training.forward import Forward, all_layers

NORMAL_97_5 = 1.96  # 97.5 % quantile of N(0, 1)


class Validation(NamedTuple):
    """Figures of the validation split.

    Attributes:
        loss, distance: mean loss and mean distance at the stage's layer.
        slack, with_margin: of every row, without and with the margin, (R,).
        uncertainty: half the width of the slack's 95 % interval, (R,).
    """

    loss: float
    distance: float
    slack: Tensor
    with_margin: Tensor
    uncertainty: Tensor

    def rank(self, rows: list[int]) -> int:
        """How surely these rows hold: 0 with the margin, 1 at 95 % confidence, 2 by the mean alone, 3
        not; what holds by more here holds on other data as well."""
        slacks = (self.with_margin, self.slack + self.uncertainty, self.slack)
        tests = (slack[rows] for slack in slacks)
        return next((rank for rank, test in enumerate(tests) if (test <= 0).all()), len(slacks))


@torch.no_grad()
def validate(forward: Forward, data: Batch, *, depth: int, seed: int) -> Validation:
    """Run the first ``depth`` layers on ``data``, always from the same y_0, without noise.

    Errors: a measure that is negative, by which descent would mean nothing, or nan.
    """
    network, constraint = forward.network, forward.constraint
    rng = generator(seed, "validation", data.obs.device)
    finals, measured = [], []
    for batch in data.chunks():
        path, part, share = forward.run(batch, rng, depth=depth)
        finals.append(share.gather(distance(path.output, part.target)))
        pairs = constraint.pairs(*constraint.measures(forward.problem, path, part))
        measured.append(all_layers(share.gather(pairs), depth, network.num_layers))
    final, pairs = torch.cat(finals), torch.cat(measured, 2)  # (N,), (2, R, N)
    if final.isfinite().all() and pairs.isnan().any():
        raise NotFinite(
            f"{type(constraint).__name__}.measure: expected numbers, got nan of estimates that are finite "
            "in validation; look at what it divides by, or lower training.lr"
        )
    if (lowest := float(pairs.min())) < 0:
        raise checks.UserError(
            f"{type(constraint).__name__}.measure: expected numbers >= 0, got {lowest:g}; take its norm, "
            "or add what bounds it from below"
        )
    means = pairs.mean(-1)
    return Validation(
        loss=float(final.square().mean() / 2),
        distance=float(final.mean()),
        slack=constraint.slack_of(means),
        with_margin=constraint.slack_of(means, margin=constraint.margin),
        uncertainty=NORMAL_97_5 * constraint.standard_error(pairs),
    )
