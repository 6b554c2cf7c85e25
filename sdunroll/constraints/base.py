r"""Descent constraints: the mean of a measure must fall by a share epsilon at each layer.

    E[m(y_l; x)] <= (1 - epsilon_l) E[m(y_{l-1}; x)],    l = first_layer .. L

Reference: Hadou, NaderiAlizadeh, Ribeiro, "Robust Stochastically-Descending Unrolled Networks",
https://arxiv.org/abs/2312.15788. Legend: L layers, P parts of a measure
(mostly 1), R = P L rows, part by part, K constrained rows, B instances.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.data import Batch
from sdunroll.networks import Trajectory
from sdunroll.problems import Problem

Form = Literal["ratio", "difference", "mean_ratio"]

Mean = Callable[[Tensor], Tensor]
"""(..., B) -> (...), over the instances of a batch, of which a process may have a part alone."""

LARGEST_RATIO = 1e6  # of a layer that makes something of a measure of 0: large, but finite


def _mean(values: Tensor) -> Tensor:
    return values.mean(-1)


def _floor(before: Tensor, after: Tensor) -> Tensor:
    """``before``, raised where "after" would be more than :data:`LARGEST_RATIO` times as large."""
    least = (after.detach() / LARGEST_RATIO).clamp_min(torch.finfo(before.dtype).tiny)
    return torch.maximum(before, least)


class DescentConstraint(ABC):
    r"""One constraint a layer on the descent of a measure m; satisfied iff the slack is <= 0.

    The slack of layer l, with "before" the m of what the layer received and "after" of what it
    returned, is by ``form``:

    * ``ratio``: E[after] / E[before] - (1 - epsilon_l), free of scale, all layers weigh alike;
    * ``difference``: E[after] - (1 - epsilon_l) E[before], the paper's;
    * ``mean_ratio``: E[after / before] - (1 - epsilon_l), each instance weighs alike.

    Args:
        epsilon: required relative descent, 0 < epsilon < 1: one number, or a list of those of the first
            layers, whose last holds for all after them; numbers for more layers than there are stay
            unused.
        form: see above.
        detach_previous: no gradient flows through "before", so that no layer can gain by spoiling
            the input of the next. False is the paper's.
        spare: with ``detach_previous``, the exception: a layer that descends by more than
            epsilon + spare (the margin does not count) has descent to spare, and the next may ask
            for some of it: its "before" is not detached. None for no exception.
        first_layer: the first layer that is constrained; 1 is all.
        margin: added to epsilon in training, and in the choice of its best epoch, so that constraints hold
            on unseen data too.

    Errors: values outside what they may be.
    """

    name: str  #: the measure in a word, for tables and files
    parts: tuple[str, ...] = ("",)  #: names of the parts, where each is constrained by itself

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def __init__(
        self,
        *,
        epsilon: float | Sequence[float] = 0.1,
        form: Form = "ratio",
        detach_previous: bool = True,
        spare: float | None = 0.02,
        first_layer: int = 1,
        margin: float = 0.1,
    ) -> None:
        several = isinstance(epsilon, Sequence) and not isinstance(epsilon, str)
        values: list[object] = [*epsilon] if several else [epsilon]  # type: ignore[misc]
        if not values:
            raise checks.InvalidValue("epsilon: expected a number or a list of them, got []")
        self.margin = checks.number("margin", margin, low=0, below=1)
        self.epsilon = tuple(checks.number("epsilon", value, above=0, below=1) for value in values)
        if max(self.epsilon) + self.margin >= 1:
            raise checks.InvalidValue(
                f"epsilon + margin: expected less than 1, got {epsilon} + {margin}"
            )
        self.form = checks.choice("form", form, ("ratio", "difference", "mean_ratio"))
        self.detach_previous = checks.boolean("detach_previous", detach_previous)
        self.spare = None if spare is None else checks.number("spare", spare, low=0)
        self.first_layer = checks.integer("first_layer", first_layer)

    @abstractmethod
    def measure(self, problem: Problem, y: Tensor, batch: Batch) -> Tensor:
        """m(y; x) >= 0, (..., B) for y (..., B, n); (P, ..., B) for a measure of several parts."""

    def layers(self, num_layers: int) -> range:
        """The constrained layers, first_layer .. L.

        Errors: no such layer.
        """
        if self.first_layer > num_layers:
            raise checks.InvalidValue(
                f"first_layer: expected at most the number of layers, {num_layers}, "
                f"got {self.first_layer}"
            )
        return range(self.first_layer, num_layers + 1)

    def epsilons(self, num_layers: int) -> tuple[float, ...]:
        """epsilon_1 .. epsilon_L."""
        return (self.epsilon + self.epsilon[-1:] * num_layers)[:num_layers]

    def rows(self, num_layers: int) -> list[int]:
        """The places of the constrained layers among the R rows, (K,)."""
        layers = self.layers(num_layers)
        return [
            part * num_layers + layer - 1 for part in range(len(self.parts)) for layer in layers
        ]

    def labels(self, num_layers: int) -> list[str]:
        """A name for each row: the layer's number, after the part's name if there are several."""
        layers = range(1, num_layers + 1)
        return [f"{part}_{layer}".lstrip("_") for part in self.parts for layer in layers]

    def _keep(self, like: Tensor, rows: int, margin: float = 0.0) -> Tensor:
        """1 - margin - epsilon, (1,) or (R,), R ``rows`` of as many layers as were run."""
        depth = rows // len(self.parts)
        values = self.epsilon if len(self.epsilon) == 1 else self.epsilons(depth) * len(self.parts)
        # filled where it is: a list that is copied to a GPU would make every step wait
        return 1 - margin - torch.cat([like.new_full((1,), value) for value in values])

    def moments(
        self, problem: Problem, path: Trajectory, batch: Batch, *, mean: Mean = _mean
    ) -> Tensor:
        """The batch means from which :meth:`slack_of` makes the slack, (2, R); see :meth:`pairs`.

        Args:
            mean: over the instances of the whole batch, where this is a part of it.
        """
        if path.problems is None:
            before, after = self.measures(problem, path, batch)
            before = self._detached(before, after, mean)
        else:
            before, after = self._own_measures(path, batch, detach=self.detach_previous, mean=mean)
        return mean(self.pairs(before, after))

    def _has_spare(self, before: Tensor, after: Tensor, keep: Tensor, mean: Mean) -> Tensor:
        """Whether measures (..., B) fall by more than is demanded and ``spare``, (...)."""
        if self.spare is None:
            return torch.zeros(before.shape[:-1], dtype=torch.bool, device=before.device)
        means = mean(torch.stack([before.detach(), after.detach()]))
        return means[1] / _floor(*means) < keep - self.spare

    def _detached(self, before: Tensor, after: Tensor, mean: Mean) -> Tensor:
        """The measure "before", (R, B), cut off from its graph as the settings say."""
        if not self.detach_previous:
            return before
        keep = self._keep(before, len(before))
        spare = self._has_spare(before, after, keep, mean).view(len(self.parts), -1)
        # the first layer's input is no layer's output
        attached = torch.cat([torch.zeros_like(spare[:, :1]), spare[:, :-1]], 1).flatten()
        return torch.where(attached[:, None], before, before.detach())

    def _own_measures(
        self, path: Trajectory, batch: Batch, *, detach: bool, mean: Mean = _mean
    ) -> tuple[Tensor, Tensor]:
        """:meth:`measures` where each layer descends on an objective of its own.

        With ``detach``, what the layer received is cut off from its graph, rather than the measure of
        it, which depends on the layer's weights too: else a layer would seem to descend by shrinking
        its own penalty.
        """
        assert path.problems is not None
        both: list[Tensor] = []
        keep = self._keep(batch.target, len(path.problems) * len(self.parts))
        attached: Tensor | None = None  # the first layer's input is no layer's output
        triples = zip(path.problems, path.inputs, path.outputs, strict=True)
        for layer, (own, received, returned) in enumerate(triples):
            if detach:
                cut = received.detach()
                # not by if, for which the host would wait for a GPU
                received = cut if attached is None else torch.where(attached, received, cut)
            measured = self._measure(own, torch.stack([received, returned]), batch)  # (P, 2, B)
            if detach and self.spare is not None:
                enough = keep[layer % len(keep)]
                attached = self._has_spare(measured[:, 0], measured[:, 1], enough, mean).all()
            both.append(measured)
        stacked = torch.stack(both, 2)  # (P, 2, L, B)
        return stacked[:, 0].flatten(0, 1), stacked[:, 1].flatten(0, 1)

    def pairs(self, before: Tensor, after: Tensor) -> Tensor:
        """What the slack averages over the instances, (2, R, B), from measures (R, B).

        "before" and "after" themselves; for ``mean_ratio`` 1 and after / before.
        """
        if self.form == "mean_ratio":
            after = after / _floor(before, after)
            before = torch.ones_like(after)
        return torch.stack([before, after])

    def measures(self, problem: Problem, path: Trajectory, batch: Batch) -> tuple[Tensor, Tensor]:
        """The measure of what each layer received and of what it returned, (R, B) both."""
        if path.problems is not None:
            return self._own_measures(path, batch, detach=False)
        if path.received is None:
            measured = self._measure(problem, path.states, batch)  # (P, L + 1, B)
            return measured[:, :-1].flatten(0, 1), measured[:, 1:].flatten(0, 1)
        return (
            self._measure(problem, path.inputs, batch).flatten(0, 1),
            self._measure(problem, path.outputs, batch).flatten(0, 1),
        )

    def _measure(self, problem: Problem, states: Tensor, batch: Batch) -> Tensor:
        """The measure of states (S, B, ...), one number a state and instance, (P, S, B)."""
        measured = self.measure(problem, states, batch)
        several = len(self.parts) > 1
        expected = (len(self.parts),) * several + tuple(states.shape[:2])
        what = f"{type(self).__name__}.measure, one number a state and instance"
        checks.shaped(what, measured, expected)
        return measured if several else measured[None]

    def slack_of(self, moments: Tensor, *, margin: float = 0.0) -> Tensor:
        """The slack of every row, constrained or not, (..., R), from mean pairs (2, ..., R).

        0 / 0, a layer that stays at a measure of 0, counts as descent; what grows from 0 counts as
        :data:`LARGEST_RATIO` times as large.
        """
        before, after = moments
        keep = self._keep(before, before.shape[-1], margin)  # (1,) or (R,)
        if self.form == "difference":
            return after - keep * before
        return after / _floor(before, after) - keep

    def slack_terms(self, pairs: Tensor, moments: Tensor) -> Tensor:
        """Each instance's part in the slack, (R, B), whose mean is the slack; for its spread."""
        before, after = pairs
        keep = self._keep(before, len(before))[:, None]  # (1, 1) or (R, 1)
        terms = after - keep * before
        if self.form == "difference":
            return terms
        return terms / _floor(*moments)[:, None]

    def standard_error(self, pairs: Tensor) -> Tensor:
        """Standard error of the slack over the instances, (R,), from pairs (2, R, B).

        Of a ratio of means by the delta method: the spread of (after - r before) / E[before], r the
        ratio itself.
        """
        moments = pairs.mean(-1)
        terms = self.slack_terms(pairs, moments)
        if self.form != "difference":
            before = pairs[0] / _floor(*moments)[:, None]
            terms = terms - self.slack_of(moments)[:, None] * before
        return terms.std(1, unbiased=False) / terms.shape[1] ** 0.5

    def slack(
        self, problem: Problem, path: Trajectory, batch: Batch, *, margin: float = 0.0
    ) -> Tensor:
        """The slack of the constrained rows, (K,); satisfied iff <= 0."""
        every = self.slack_of(self.moments(problem, path, batch), margin=margin)
        return every[self.rows(len(every) // len(self.parts))]
