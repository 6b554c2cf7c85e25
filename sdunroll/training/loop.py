"""The epoch loop: primal steps over the training split, dual steps, validation, the best epoch.

Legend: L layers, R rows of the constraint (L times its parts, mostly 1), K of them constrained.
"""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.constraints import DescentConstraint, distance
from sdunroll.data import Batch, FreshLoader, Loader
from sdunroll.networks import Trajectory, UnrolledNetwork
from sdunroll.primal_dual import DualUpdate, NotFinite, PrimalDual
from sdunroll.problems import Problem
from sdunroll.randomness import generator
from sdunroll.training.epoch import Epoch, half_squared_distance
from sdunroll.training.schedules import Stage, stages
from sdunroll.training.settings import TrainingSettings

NORMAL_97_5 = 1.96  # 97.5 % quantile of N(0, 1)


class Training:
    """A training under way: network, multipliers, generators and the epochs done.

    Args:
        settings: see :class:`TrainingSettings`.
        network, problem: on their device.
        constraint: what is measured at each layer.
        constrained: whether the constraints are enforced (K = 0 if not).
        dual: how the multipliers are updated.
        train, val: instances, on the same device.
        order_seed: of the order of the data. noise_seed: of the starts y_0 and of all noise.
        draw: ``(count, generator) -> Batch`` makes new instances for each step, as many in an epoch as
            ``train`` has; None walks over ``train``.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        *,
        network: UnrolledNetwork,
        problem: Problem,
        constraint: DescentConstraint,
        constrained: bool,
        dual: DualUpdate,
        train: Batch,
        val: Batch,
        order_seed: int,
        noise_seed: int,
        draw: Callable[[int, torch.Generator], Batch] | None = None,
    ) -> None:
        self.settings = settings
        self.network = network
        self.problem = problem
        self.constraint = constraint
        self.train = train
        self.val = val
        self.noise_seed = noise_seed
        # the constrained rows of a slack (R,); none for standard training, K = 0
        self.demanded = constraint.rows(network.num_layers)
        self.constrained = self.demanded if constrained else []
        self.stages = stages(
            settings.stages,
            num_layers=network.num_layers,
            epochs=settings.epochs,
            shares_weights=network.shares_weights,
        )
        self.stage = self.stages[0]
        if self.stage.alone and network.shares_weights:
            raise checks.InvalidValue(
                "training: expected layers with weights of their own for layerwise training, got layers "
                "that share them; take network.shared=false or training=incremental"
            )
        self.primal_dual = PrimalDual(
            parameters=network.named_parameters(),
            optimizer=self._new_optimizer(),
            dual=dual,
            num_constraints=len(self.constrained),
            clip_norm=settings.clip_norm,
        )
        device = train.obs.device
        self.start_rng = generator(noise_seed, "training/start", device)
        self.noise_rng = generator(noise_seed, "training/noise", device)
        size, order = settings.batch_size, generator(order_seed, "training/order")
        self.loader: Loader | FreshLoader
        if draw is None:
            self.loader = Loader(train, batch_size=size, generator=order)
        else:
            count = len(train.obs)
            self.loader = FreshLoader(draw, num_instances=count, batch_size=size, generator=order)
        self.on_step: Callable[[], object] = lambda: None
        self.epochs_done = 0
        self.best: tuple[int, float] | None = None  # (rank, validation loss): less is better
        self.best_epoch = 0

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return self.settings.optimizer(self.network.parameters(), lr=self.settings.lr)

    def run(self, on_step: Callable[[], object] = lambda: None) -> Iterator[Epoch]:
        """Train epoch by epoch, until the end, ``stop_after`` or the loss of patience.

        Args:
            on_step: called after each primal step, to show progress.
        """
        self.on_step = on_step
        last = self.settings.stop_after or self.settings.epochs
        while not self.finished() and self.epochs_done < last:
            yield self._epoch()

    def finished(self) -> bool:
        """Whether nothing is left to do, ``stop_after`` aside."""
        patience = self.settings.patience
        impatient = patience is not None and self.epochs_done - self.best_epoch >= patience
        return self.epochs_done >= self.settings.epochs or impatient

    def _epoch(self) -> Epoch:
        began = time.perf_counter()
        if self.epochs_done == 0:
            self._prepare()
        elif self.epochs_done == self.stage.end:
            self._next_stage()
        loss, moments, lr = self._train_epoch()
        slack = self.constraint.slack_of(moments, margin=self.constraint.margin)
        val_loss, val_distance, val_slack, with_margin, uncertainty = self._validate()
        if not (math.isfinite(val_loss) and val_slack.isfinite().all()):
            raise NotFinite(self._stopped("the validation loss or slack is not finite"))
        if self.primal_dual.dual.every == "epoch":
            self.primal_dual.dual_step(slack[self.constrained])
        self.epochs_done += 1
        slacks = val_slack.tolist()
        worst_row = max(self.demanded, key=slacks.__getitem__)
        key = (self._rank(with_margin, val_slack + uncertainty, val_slack), val_loss)
        best = self.best is None or key < self.best
        if best:
            self.best, self.best_epoch = key, self.epochs_done
        multipliers = torch.zeros(len(slacks), dtype=torch.float64)
        multipliers[self.constrained] = self.primal_dual.multipliers.cpu()
        return Epoch(
            epoch=self.epochs_done,
            train_loss=loss,
            slack=self.constraint.slack_of(moments).tolist(),
            multipliers=multipliers.tolist(),
            val_loss=val_loss,
            val_distance=val_distance,
            val_slack=slacks,
            worst_row=worst_row,
            feasible=slacks[worst_row] <= 0,
            best=best,
            lr=lr,
            seconds=time.perf_counter() - began,
        )

    def _rank(self, *slacks: Tensor) -> int:
        """How surely the constraints hold, by the validation split: 0 with the margin, 1 at 95 %
        confidence, 2 by the mean alone, 3 not; what holds by more here holds on other data as well.

        Args:
            slacks: (R,) each, in that order.
        """
        tests = (slack[self.constrained] for slack in slacks)
        return next((rank for rank, test in enumerate(tests) if (test <= 0).all()), len(slacks))

    def _prepare(self) -> None:
        """Let the network start from the first instances of the training split."""
        first = self.train.obs[: self.settings.batch_size]
        rng = generator(self.noise_seed, "training/prepare", first.device)
        self.network.prepare(first, rng)
        self._check_start(Batch(first, self.train.target[: self.settings.batch_size]), rng)

    @torch.no_grad()
    def _check_start(self, batch: Batch, rng: torch.Generator) -> None:
        """Errors: a layer that is to descend from a measure of 0, which nothing can."""
        path = self.network(batch.obs, generator=rng)
        before, after = self.constraint.measures(self.problem, path, batch)
        labels = self.constraint.labels(self.network.num_layers)
        for row in self.constrained:
            if before[row].max() == 0 and after[row].max() > 0:
                raise checks.InvalidValue(
                    f"constraint.first_layer: layer {labels[row]} receives a measure of 0, below which "
                    "nothing falls; take constraint.first_layer=2, another start or another constraint"
                )

    def _next_stage(self) -> None:
        """Go on to the next stage: with a new optimizer, since the moments of the old one would go on
        moving the layers that are done; and best is what is best at the stage's layer."""
        before, self.stage = self.stage, self._stage_at(self.epochs_done)
        self.primal_dual.optimizer = self._new_optimizer()
        if self.stage.layer != before.layer:
            self.best = None

    def _stage_at(self, epoch: int) -> Stage:
        """The stage of an epoch, from 0; the last one after all."""
        return next((stage for stage in self.stages if epoch < stage.end), self.stages[-1])

    def _train_epoch(self) -> tuple[float, Tensor, float]:
        """Mean loss, mean moments (2, R) and last lr of one pass over the training split."""
        total_loss = total_moments = torch.zeros((), dtype=torch.float64)
        lr = 0.0
        first = (self.epochs_done - self.stage.first_epoch) * len(self.loader)
        updates = self.stage.epochs * len(self.loader)
        for step, batch in enumerate(self.loader):
            lr = self.stage.lr_factor * self.settings.lr_at((first + step) / updates)
            for group in self.primal_dual.optimizer.param_groups:
                group["lr"] = lr
            loss, moments = self._step(batch)
            share = len(batch.obs) / self.loader.num_instances
            total_loss = total_loss + share * loss.double()
            total_moments = total_moments + share * moments.double()
            self.on_step()
        return float(total_loss), total_moments, lr

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One primal step; the loss and the moments it saw, detached."""
        noise = self.settings.noise.between_layers(self.problem, batch, self.noise_rng)
        layer = self.stage.layer
        frozen = layer - 1 if self.stage.alone else 0
        path = self.network(
            batch.obs, generator=self.start_rng, perturb=noise, depth=layer, frozen=frozen
        )
        loss = half_squared_distance(path.output, batch.target).mean()
        with torch.set_grad_enabled(len(self.primal_dual.multipliers) > 0):
            moments = self._moments(path, batch)
        slack = self.constraint.slack_of(moments, margin=self.constraint.margin)
        try:
            self.primal_dual.primal_step(loss, slack[self.constrained])
        except NotFinite as error:
            raise NotFinite(self._where(path, error)) from error
        moments = moments.detach()
        if self.primal_dual.dual.every == "batch":
            slack = self.constraint.slack_of(moments, margin=self.constraint.margin)
            self.primal_dual.dual_step(slack[self.constrained])
        return loss.detach(), moments

    def _moments(self, path: Trajectory, batch: Batch) -> Tensor:
        """The constraint's moments, (2, R); 0 for layers that are not run yet, which so count as
        descending."""
        moments = self.constraint.moments(self.problem, path, batch)
        depth = len(path.outputs)
        if self.stage.alone:  # the layers before are fixed
            moments = moments.unflatten(1, (-1, depth))  # (2, P, depth)
            moments = torch.cat([moments[..., :-1].detach(), moments[..., -1:]], -1).flatten(1)
        return self._all_layers(moments, depth)

    def _all_layers(self, values: Tensor, depth: int) -> Tensor:
        """``values`` of the first ``depth`` layers, (2, P depth, ...), with 0 for the rest, (2, R, ...)."""
        if depth == self.network.num_layers:
            return values
        parts = values.unflatten(1, (-1, depth))
        missing = parts.new_zeros(
            *parts.shape[:2], self.network.num_layers - depth, *parts.shape[3:]
        )
        return torch.cat([parts, missing], 2).flatten(1, 2)

    def _where(self, path: Trajectory, error: NotFinite) -> str:
        finite = path.states.isfinite().flatten(1).all(1).tolist()
        if all(finite):
            place = str(error)
        else:
            layer = finite.index(False)
            place = f"layer {layer} returned" if layer else "the start y_0 has"
            place += " values that are not finite"
        return self._stopped(place)

    def _stopped(self, place: str) -> str:
        return (
            f"training stopped in epoch {self.epochs_done + 1}: {place}; lower training.lr or "
            "training.clip_norm, or check the data"
            + ("; the last checkpoint is intact" if self.epochs_done else "")
        )

    @torch.no_grad()
    def _validate(self) -> tuple[float, float, Tensor, Tensor, Tensor]:
        """Mean loss and mean distance at the stage's layer, slack without and with margin (R,) and half
        the width of its 95 % interval (R,) on the validation split, always from the same y_0, without
        noise."""
        rng = generator(self.noise_seed, "validation", self.val.obs.device)
        finals, measured = [], []
        for batch in self.val.chunks():
            path = self.network(batch.obs, generator=rng, depth=self.stage.layer)
            finals.append(distance(path.output, batch.target))
            pairs = self.constraint.pairs(*self.constraint.measures(self.problem, path, batch))
            measured.append(self._all_layers(pairs, len(path.outputs)))
        final, pairs = torch.cat(finals), torch.cat(measured, 2)  # (N,), (2, R, N)
        means = pairs.mean(-1)
        slack = self.constraint.slack_of(means)
        with_margin = self.constraint.slack_of(means, margin=self.constraint.margin)
        uncertainty = NORMAL_97_5 * self.constraint.standard_error(pairs)
        return (
            float(final.square().mean() / 2),
            float(final.mean()),
            slack,
            with_margin,
            uncertainty,
        )

    def state_dict(self) -> dict:
        """All that the next epoch depends on; going on from it gives bit for bit the same."""
        return {
            "network": self.network.state_dict(),
            "primal_dual": self.primal_dual.state_dict(),
            "start_rng": self.start_rng.get_state(),
            "noise_rng": self.noise_rng.get_state(),
            "device": self.start_rng.device.type,
            "order_rng": self.loader.generator.get_state(),
            "epochs_done": self.epochs_done,
            "best": self.best,
            "best_epoch": self.best_epoch,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict`.

        Errors: a state made on another type of device, whose random streams cannot go on here.
        """
        device = self.start_rng.device.type
        if state["device"] != device:
            raise checks.InvalidValue(
                f"device: a training begun on {state['device']} goes on there alone, got {device}"
            )
        self.network.load_state_dict(state["network"])
        self.primal_dual.load_state_dict(state["primal_dual"])
        self.start_rng.set_state(state["start_rng"].cpu())
        self.noise_rng.set_state(state["noise_rng"].cpu())
        self.loader.generator.set_state(state["order_rng"])
        self.epochs_done = state["epochs_done"]
        self.stage = self._stage_at(
            self.epochs_done - 1
        )  # the next one begins with its first epoch
        self.best = None if state["best"] is None else tuple(state["best"])
        self.best_epoch = state["best_epoch"]
