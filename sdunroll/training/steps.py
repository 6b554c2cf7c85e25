"""The steps of an epoch: the primal step on each batch, and the dual step where that is taken with it.

Legend: L layers, R rows of the constraint (L times its parts, mostly 1), K of them constrained.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.constraints import DescentConstraint
from sdunroll.data import Batch
from sdunroll.primal_dual import NotFinite, PrimalDual
from sdunroll.training.captured import Captured, make_capturable
from sdunroll.training.forward import Forward, first_broken
from sdunroll.training.schedules import Stage


class Steps:
    """Takes the steps of a training.

    Args:
        forward: the pass. constraint: what is measured at each layer.
        primal_dual: weights, multipliers and optimizer, which a new stage exchanges.
        rows: the constrained ones, (K,).
        objective: what is minimised, from the mean loss.
        cuda_graph: record a GPU's steps and replay them, see :class:`Captured`; a CPU does without.

    Errors: ``cuda_graph`` with several processes, or an optimizer that cannot be recorded.
    """

    def __init__(
        self,
        *,
        forward: Forward,
        constraint: DescentConstraint,
        primal_dual: PrimalDual,
        rows: Tensor,
        objective: Callable[[Tensor], Tensor],
        cuda_graph: bool = False,
    ) -> None:
        self.forward = forward
        self.constraint = constraint
        self.primal_dual = primal_dual
        self.rows = rows
        self.objective = objective
        self.captures = cuda_graph and rows.device.type == "cuda"
        # one for all stages, as libraries keep memory by it
        self.stream: torch.cuda.Stream | None = None
        # where recorded steps look for it
        self.lr = torch.zeros((), device=rows.device, dtype=torch.float32)

    def begin(self, stage: Stage) -> None:
        """Go on with ``stage`` and the optimizer that there is now."""
        self.stage = stage
        self.step: Callable[[Batch], tuple[Tensor, ...]] = self.take
        if self.captures:
            if self.forward.ranks.size > 1:
                raise checks.InvalidValue(
                    f"cuda_graph: expected one process, got {self.forward.ranks.size}; take "
                    "cuda_graph=false"
                )
            make_capturable(self.primal_dual.optimizer, self.lr)
            self.stream = self.stream or torch.cuda.Stream()
            self.step = Captured(self.take, self.forward.generators, self.stream)

    def __call__(self, batch: Batch, lr: float) -> tuple[Tensor, ...]:
        """:meth:`take` a step of size ``lr``, or replay one."""
        if self.captures:
            self.lr.fill_(lr)
        else:
            for group in self.primal_dual.optimizer.param_groups:
                group["lr"] = lr
        return self.step(batch)

    def take(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step; the loss and the moments, (2, R), that it saw, detached.

        Errors: :class:`NotFinite`, with the place that it comes from.
        """
        path, loss, moments = self.forward(
            batch, self.stage, constrained=len(self.primal_dual.multipliers) > 0
        )
        slack = self.constraint.slack_of(moments, margin=self.constraint.margin)
        try:
            self.primal_dual.primal_step(self.objective(loss), slack[self.rows])
        except NotFinite as error:
            place = first_broken(path, self.forward.ranks)
            if place is None and moments.isnan().any():
                place = (
                    f"{type(self.constraint).__name__}.measure is nan of estimates that are finite"
                )
            raise NotFinite(place or str(error)) from error
        moments = moments.detach()
        if self.primal_dual.dual.every == "batch":
            slack = self.constraint.slack_of(moments, margin=self.constraint.margin)
            self.primal_dual.dual_step(slack[self.rows])
        return loss.detach(), moments

    def check(self, batches: Iterable[Batch], on_step: Callable[[], object]) -> None:
        """Errors: :class:`NotFinite` if a step so far was broken, which a GPU does not tell at once.

        The weights are those of before that step: to find the place, steps on ``batches`` are looked at,
        and ``on_step`` is called after each.
        """
        try:
            self.primal_dual.check()
        except NotFinite:
            self.primal_dual.waits = True
            for batch in batches:
                self.take(batch)
                on_step()
            raise
