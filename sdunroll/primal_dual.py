r"""Primal-dual training: the Lagrangian step on the weights and the dual step on the multipliers.

    min over the weights of E[loss]  subject to  slack_k <= 0, k = 1 .. K
    Lagrangian = E[loss] + sum_k lambda_k slack_k,  lambda_k >= 0

K = 0 is ordinary training. Reference: Hadou, NaderiAlizadeh, Ribeiro, "Robust Stochastically-Descending
Unrolled Networks", algorithm 1, https://arxiv.org/abs/2312.15788.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from sdunroll import checks
from sdunroll.distributed import ALONE, Ranks
from sdunroll.shared_memory import SharedStep


class NotFinite(checks.UserError, FloatingPointError):
    """A value that is not finite, found before any weight was changed."""


class DualUpdate(ABC):
    """How the multipliers answer to the slack.

    Args:
        every: when the dual step is taken, with the slack of that "epoch" or "batch".
        smoothing: the slack is first averaged as s' <- smoothing s' + (1 - smoothing) s, 0 for none.
    """

    def __init__(self, *, every: Literal["epoch", "batch"], smoothing: float) -> None:
        self.every = checks.choice("every", every, ("epoch", "batch"))
        self.smoothing = checks.number("smoothing", smoothing, low=0, below=1)

    @abstractmethod
    def step(self, state: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """The new state and the new multipliers, (K,) each, from the old state, 0 at the start."""


class Ascent(DualUpdate):
    """Projected dual ascent, the paper's: lambda <- [lambda + rate * slack]_+.

    Args:
        rate: the dual step.
    """

    def __init__(
        self, *, rate: float, every: Literal["epoch", "batch"] = "epoch", smoothing: float = 0.0
    ) -> None:
        super().__init__(every=every, smoothing=smoothing)
        self.rate = checks.number("rate", rate, above=0)

    def step(self, state: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        multipliers = (state + self.rate * slack).clamp_min(0)
        return multipliers, multipliers


class ProportionalIntegral(DualUpdate):
    """I <- [I + k_i slack]_+, lambda <- [I + k_p slack]_+.

    The proportional part damps the oscillation of dual ascent. Reference: Sohrabi et al., "On PI
    controllers for updating Lagrange multipliers in constrained optimization",
    https://arxiv.org/abs/2406.04558.

    Args:
        k_i, k_p: gains of the integral and of the proportional part.
    """

    def __init__(
        self,
        *,
        k_i: float,
        k_p: float,
        every: Literal["epoch", "batch"] = "epoch",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(every=every, smoothing=smoothing)
        self.k_i = checks.number("k_i", k_i, above=0)
        self.k_p = checks.number("k_p", k_p, low=0)

    def step(self, state: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        integral = (state + self.k_i * slack).clamp_min(0)
        return integral, (integral + self.k_p * slack).clamp_min(0)


def stalled(multipliers: Tensor, slack: Tensor) -> list[int]:
    """The constraints whose multipliers grow without effect: in the later half of some dual steps they
    are larger by more than a twentieth, and the slack, above 0 all along, has fallen by less.

    Args:
        multipliers, slack: after each of at least two steps, in order, (T, K) both.
    """
    half = len(slack) // 2
    grows = multipliers[half:].mean(0) > 1.05 * multipliers[:half].mean(0)
    stays = slack[half:].mean(0) > 0.95 * slack[:half].mean(0)
    violated = (slack > 0).all(0) & (multipliers > 0).all(0)
    return torch.nonzero(grows & stays & violated).flatten().tolist()


class PrimalDual:
    """Multipliers, the optimizer of the weights and the dual update.

    Args:
        parameters: the weights, with their names (``network.named_parameters()``).
        optimizer: of the same weights.
        dual: how the multipliers are updated.
        num_constraints: K.
        clip_norm: the gradient of the Lagrangian is scaled down to this norm; None leaves it.
        ranks: the processes over which gradients are summed.

    With a fused optimizer on a GPU the host waits for no step: whether all its values are finite is kept
    there, in ``broken``, and from the first step on of which they are not, weights and multipliers stay as
    they are. :meth:`check` asks.
    """

    def __init__(
        self,
        *,
        parameters: Iterable[tuple[str, nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        dual: DualUpdate,
        num_constraints: int,
        clip_norm: float | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.parameters = dict(parameters)
        self.optimizer = optimizer
        self.dual = dual
        self.ranks = ranks
        # PyTorch's own optimizers step each weight by itself; of others that is not known
        shares = ranks.size > 1 and type(optimizer).__module__.startswith("torch.optim")
        self.shared = SharedStep(list(self.parameters.values()), ranks) if shares else None
        count = checks.integer("num_constraints", num_constraints, low=0)
        self.clip_norm = math.inf
        if clip_norm is not None:
            self.clip_norm = checks.number("clip_norm", clip_norm, above=0)
        device = next(iter(self.parameters.values())).device
        self.multipliers = torch.zeros(count, dtype=torch.float64, device=device)
        self.dual_state = torch.zeros_like(self.multipliers)
        self.smoothed: Tensor | None = None
        # 1 from the first broken step on, in the type that fused optimizers ask for
        self.broken = torch.zeros((), device=device, dtype=torch.float32)
        #: whether the host looks at each step; only a fused optimizer can leave one out by itself
        self.waits = device.type == "cpu" or not optimizer.defaults.get("fused")

    def primal_step(self, loss: Tensor, slack: Tensor) -> Tensor:
        """One optimizer step on loss + lambda^T slack; returns that Lagrangian, detached.

        Args:
            loss: scalar. slack: (K,), both with their graphs.

        Errors: ``ValueError`` for shapes other than these; :class:`NotFinite` before the update, if this
        waits for it.
        """
        if loss.ndim != 0 or slack.shape != self.multipliers.shape:
            raise ValueError(
                f"primal_step: expected a scalar loss and a slack {tuple(self.multipliers.shape)}, "
                f"got {tuple(loss.shape)} and {tuple(slack.shape)}"
            )
        lagrangian = loss + (self.multipliers.to(slack.dtype) * slack).sum()
        self.optimizer.zero_grad(set_to_none=True)
        lagrangian.backward()
        value = lagrangian.detach()
        names = list(self._gradients())
        shared = self.shared if self.shared is not None and self.shared.collect() else None
        gradients = list(self._gradients().values())  # of a shared step the own ones alone
        if shared is None:
            self.ranks.sum_(gradients)
            norms = torch.stack(torch._foreach_norm(gradients))
        else:
            norms = shared.norms()
        norm = torch.linalg.vector_norm(norms)
        if self.waits:
            total = self._check_step(value, norm, norms, names)
            if gradients and total > self.clip_norm:
                torch._foreach_mul_(gradients, self.clip_norm / total)
        else:
            self._note_step(value, norm)
            if self.clip_norm < math.inf:
                scale = (self.clip_norm / norm).clamp(max=1.0)
                torch._foreach_mul_(gradients, scale)
        self.optimizer.step()
        if shared is not None:
            shared.spread()
        return value

    def _gradients(self) -> dict[str, Tensor]:
        return {
            name: weight.grad for name, weight in self.parameters.items() if weight.grad is not None
        }

    def _check_step(self, value: Tensor, norm: Tensor, norms: Tensor, names: list[str]) -> float:
        """The norm. Errors: :class:`NotFinite` for the Lagrangian or a gradient."""
        lagrangian, total = torch.stack([value.to(norm), norm]).tolist()
        if not math.isfinite(lagrangian):
            raise NotFinite(f"the Lagrangian is {lagrangian}")
        if not math.isfinite(total):
            largest = names[int(norms.nan_to_num(nan=math.inf).argmax())]
            raise NotFinite(f"the gradient of {largest} is not finite, or its norm overflows")
        return total

    def _note_step(self, value: Tensor, norm: Tensor) -> None:
        """Keep whether Lagrangian and gradient are finite, for :meth:`check`."""
        finite = value.isfinite() & norm.isfinite()
        self.broken.copy_(torch.maximum(self.broken, (~finite).to(self.broken)))
        # by which it leaves out the step, as for torch.amp.GradScaler
        self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]

    def check(self) -> None:
        """Errors: :class:`NotFinite` if a step so far was broken."""
        if self.broken.item():
            raise NotFinite("the Lagrangian or a gradient is not finite")

    @torch.no_grad()
    def dual_step(self, slack: Tensor) -> None:
        """Update the multipliers from a slack (K,).

        Errors: ``ValueError`` for another shape; :class:`NotFinite` before the update, if this waits for
        it, as it does for the step of an epoch.
        """
        slack = slack.to(self.multipliers)
        if slack.shape != self.multipliers.shape:
            raise ValueError(
                f"dual_step: expected a slack {tuple(self.multipliers.shape)}, "
                f"got {tuple(slack.shape)}"
            )
        if (self.waits or self.dual.every == "epoch") and not slack.isfinite().all():
            raise NotFinite(f"the slack is {slack.tolist()}")
        if self.smoothed is None:
            self.smoothed = slack.clone()
        else:
            smoothing = self.dual.smoothing
            self._put(self.smoothed, smoothing * self.smoothed + (1 - smoothing) * slack)
        state, multipliers = self.dual.step(self.dual_state, self.smoothed)
        self._put(self.dual_state, state)
        self._put(self.multipliers, multipliers)

    def _put(self, kept: Tensor, values: Tensor) -> None:
        """``values`` in the place of ``kept``, where a captured step looks for them, unless broken."""
        kept.copy_(torch.where(self.broken > 0, kept, values))

    def renew(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with another optimizer of the same type."""
        self.optimizer = optimizer
        if self.shared is not None:
            self.shared.owners = None

    def complete(self) -> None:
        """Give the first process the optimizer's state of all weights, where each steps its own alone."""
        if self.shared is not None:
            self.shared.complete(self.optimizer.state)

    def state_dict(self) -> dict:
        """All that the next step depends on, but for the weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "multipliers": self.multipliers.clone(),
            "dual_state": self.dual_state.clone(),
            "smoothed": None if self.smoothed is None else self.smoothed.clone(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.multipliers = state["multipliers"].to(self.multipliers, copy=True)
        self.dual_state = state["dual_state"].to(self.multipliers, copy=True)
        smoothed = state["smoothed"]
        self.smoothed = None if smoothed is None else smoothed.to(self.multipliers, copy=True)
        self.broken.zero_()
