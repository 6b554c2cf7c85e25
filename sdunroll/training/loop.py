"""The epoch loop: primal steps over the training split, dual steps, validation, the best epoch.

Legend: L layers, R rows of the constraint (L times its parts, mostly 1), K of them constrained.
"""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.constraints import DescentConstraint
from sdunroll.data import Batch, loader
from sdunroll.distributed import ALONE, Ranks
from sdunroll.networks import UnrolledNetwork
from sdunroll.primal_dual import DualUpdate, NotFinite, PrimalDual
from sdunroll.problems import Problem
from sdunroll.randomness import generator
from sdunroll.training.epoch import Epoch
from sdunroll.training.forward import Forward, Precision
from sdunroll.training.schedules import Stage, stages
from sdunroll.training.settings import TrainingSettings
from sdunroll.training.start import prepare
from sdunroll.training.steps import Steps
from sdunroll.training.validation import Validation, validate

CHECKED_EVERY = 100  # steps until values that are not finite show, where not each step is looked at


class Training:
    """A training under way: network, multipliers, generators and the epochs done.

    Args:
        settings: see :class:`TrainingSettings`.
        network, problem: on their device. constraint: what is measured at each layer.
        constrained: whether that is enforced (K = 0 if not). dual: how the multipliers are updated.
        train, val: instances, on the same device.
        order_seed: of the order of the data. noise_seed: of the starts y_0 and of all noise.
        draw: ``(count, generator) -> Batch`` makes new instances for each step, as many in an epoch as
            ``train`` has; None walks over ``train``.
        ranks: the processes that train together, each with the same arguments.
        precision: of the network's matrix products in training, see :class:`Forward`.
        cuda_graph: record a GPU's steps and replay them, see :class:`Steps`.
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
        ranks: Ranks = ALONE,
        precision: Precision = "fp32",
        cuda_graph: bool = False,
    ) -> None:
        self.settings = settings
        self.network = network
        self.constraint = constraint
        self.train, self.val = train, val
        self.noise_seed = noise_seed
        # the constrained rows of a slack (R,); none for standard training, K = 0
        self.demanded = constraint.rows(network.num_layers)
        self.constrained = self.demanded if constrained else []
        self.rows = torch.tensor(self.constrained, dtype=torch.long, device=train.obs.device)
        self.stages = stages(
            settings.stages,
            num_layers=network.num_layers,
            epochs=settings.epochs,
            shares_weights=network.shares_weights,
        )
        self.primal_dual = PrimalDual(
            parameters=network.named_parameters(),
            optimizer=settings.new_optimizer(network.parameters()),
            dual=dual,
            num_constraints=len(self.constrained),
            clip_norm=settings.clip_norm,
            ranks=ranks,
        )
        self.forward = Forward(
            network=network,
            problem=problem,
            constraint=constraint,
            noise=settings.noise,
            seed=noise_seed,
            device=train.obs.device,
            ranks=ranks,
            precision=precision,
        )
        order = generator(order_seed, "training/order")
        self.loader = loader(train, draw, batch_size=settings.batch_size, generator=order)
        self.on_step: Callable[[], object] = lambda: None
        self.steps = Steps(
            forward=self.forward,
            constraint=constraint,
            primal_dual=self.primal_dual,
            rows=self.rows,
            objective=settings.objective,
            cuda_graph=cuda_graph,
        )
        self.steps.begin(self.stages[0])
        self.epochs_done = 0
        self.best: tuple[int, float] | None = None  # (rank, validation loss): less is better
        self.best_epoch = 0

    @property
    def stage(self) -> Stage:
        """The one under way."""
        return self.steps.stage

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
        val = self._validate()
        if not (math.isfinite(val.loss) and val.slack.isfinite().all()):
            raise NotFinite(self._stopped("the validation loss or slack is not finite"))
        if self.primal_dual.dual.every == "epoch":
            self.primal_dual.dual_step(slack[self.rows])
        self.primal_dual.complete()
        self.epochs_done += 1
        slacks = val.slack.tolist()
        worst_row = max(self.demanded, key=slacks.__getitem__)
        key = (val.rank(self.constrained), val.loss)
        if best := self.best is None or key < self.best:
            self.best, self.best_epoch = key, self.epochs_done
        multipliers = torch.zeros(len(slacks), dtype=torch.float64)
        multipliers[self.constrained] = self.primal_dual.multipliers.cpu()
        return Epoch(
            epoch=self.epochs_done,
            train_loss=loss,
            slack=self.constraint.slack_of(moments).tolist(),
            multipliers=multipliers.tolist(),
            val_loss=val.loss,
            val_distance=val.distance,
            val_slack=slacks,
            worst_row=worst_row,
            feasible=slacks[worst_row] <= 0,
            best=best,
            lr=lr,
            seconds=time.perf_counter() - began,
        )

    def _prepare(self) -> None:
        first = Batch(*(values[: self.settings.batch_size] for values in self.train))
        rng = generator(self.noise_seed, "training/prepare", first.obs.device)
        prepare(self.forward, first, rows=self.constrained, generator=rng)
        self.forward.ranks.align(self.network)

    def _next_stage(self) -> None:
        """Go on to the next stage: with a new optimizer, since the moments of the old one would go on
        moving the layers that are done; and best is what is best at the stage's layer."""
        before = self.stage
        self.primal_dual.renew(self.settings.new_optimizer(self.network.parameters()))
        self.steps.begin(self._stage_at(self.epochs_done))
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
        try:
            for step, batch in enumerate(self.loader):
                lr = self.stage.lr_factor * self.settings.lr_at((first + step) / updates)
                loss, moments = self.steps(batch, lr)
                share = len(batch.obs) / self.loader.num_instances
                total_loss = total_loss + share * loss.double()
                total_moments = total_moments + share * moments.double()
                self.on_step()
                if (step + 1) % CHECKED_EVERY == 0 or step + 1 == len(self.loader):
                    self.steps.check(islice(self.loader, CHECKED_EVERY), self.on_step)
        except NotFinite as error:
            raise NotFinite(self._stopped(str(error))) from error
        return float(total_loss), total_moments, lr

    def _stopped(self, place: str) -> str:
        intact = "; the last checkpoint is intact" if self.epochs_done else ""
        return (
            f"training stopped in epoch {self.epochs_done + 1}: {place}; lower training.lr or "
            f"training.clip_norm, or check the data{intact}"
        )

    def _validate(self) -> Validation:
        return validate(self.forward, self.val, depth=self.stage.layer, seed=self.noise_seed)

    def state_dict(self) -> dict:
        """All that the next epoch depends on; going on from it gives bit for bit the same. Of several
        processes the first one's."""
        return {
            "network": self.network.state_dict(),
            "primal_dual": self.primal_dual.state_dict(),
            **self.forward.state_dict(),
            "device": self.train.obs.device.type,
            "order_rng": self.loader.generator.get_state(),
            "epochs_done": self.epochs_done,
            "best": self.best,
            "best_epoch": self.best_epoch,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict`.

        Errors: a state made on another type of device, whose random streams cannot go on here.
        """
        device = self.train.obs.device.type
        if state["device"] != device:
            raise checks.InvalidValue(
                f"device: a training begun on {state['device']} goes on there alone, got {device}"
            )
        self.network.load_state_dict(state["network"])
        self.primal_dual.load_state_dict(state["primal_dual"])
        self.forward.load_state_dict(state)
        self.loader.generator.set_state(state["order_rng"])
        self.epochs_done = state["epochs_done"]
        # the next begins with its first epoch
        self.steps.begin(self._stage_at(self.epochs_done - 1))
        self.best = None if state["best"] is None else tuple(state["best"])
        self.best_epoch = state["best_epoch"]
