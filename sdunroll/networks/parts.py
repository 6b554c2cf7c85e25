"""What the networks of the LISTA family share: thresholds, support selection, analytic weights.

Legend: B instances, m features, n atoms, L layers.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from sdunroll import checks
from sdunroll.problems import Problem, SparseCoding, SparseRecovery


class _SoftThreshold(torch.autograd.Function):
    """soft(v, theta); keeps its output alone for the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, v: Tensor, theta: Tensor) -> Tensor:
        out = v - v.clamp(-theta, theta)
        ctx.save_for_backward(out)
        ctx.shape = theta.shape  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        (out,) = ctx.saved_tensors  # type: ignore[attr-defined]
        sign = out.sign()
        signed = grad * sign  # (B, n)
        return signed * sign, -signed.sum_to_size(ctx.shape)  # type: ignore[attr-defined]


def soft(v: Tensor, theta: Tensor) -> Tensor:
    """sign(v) max(|v| - theta, 0), (B, n), for theta >= 0 of shape (1,), (n,), (B, 1) or (B, n)."""
    return _SoftThreshold.apply(v, theta)


class _Exceeds(torch.autograd.Function):
    """1 where size > theta, 0 elsewhere; the gradient is that of a ramp of half-width BAND theta."""

    @staticmethod
    def forward(ctx: FunctionCtx, size: Tensor, theta: Tensor) -> Tensor:
        ctx.save_for_backward(size, theta)
        return (size > theta).to(size.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        size, theta = ctx.saved_tensors  # type: ignore[attr-defined]
        half = BAND * theta
        slope = torch.where((size - theta).abs() < half, grad / (2 * half), 0.0)  # (B, n)
        return slope, -slope.sum_to_size(theta.shape)


def select_support(v: Tensor, theta: Tensor, count: int | Tensor) -> Tensor:
    """Soft thresholding that leaves the ``count`` largest entries of each instance as they are.

    Those that are at most theta become 0 all the same: an entry among the largest is v 1{|v| > theta}.
    That jump has no derivative, but moves the mean over many instances, and without it thresholds are
    trained as if they let nothing in or out: in noise they sink, and the loss rises. So the gradient takes
    the step for a ramp from (1 - BAND) theta to (1 + BAND) theta, which is a kernel estimate of the
    density of entries at theta times the jump.

    References: Chen, Liu, Wang, Yin, "Theoretical Linear Convergence of Unfolded ISTA and Its Practical
    Weights and Thresholds", section 3.2, https://arxiv.org/abs/1808.10038; for the gradient, Neftci,
    Mostafa, Zenke, "Surrogate Gradient Learning in Spiking Neural Networks",
    https://arxiv.org/abs/1901.09948.

    Args:
        v: (B, n). theta: as in :func:`soft`. count: one number or one for each instance, (B, 1).
    """
    most = int(count.max()) if isinstance(count, Tensor) else count
    if most < 1:
        return soft(v, theta)
    size = v.abs()
    largest = size.detach().topk(most, dim=1).values
    if isinstance(count, Tensor):
        least = largest.gather(1, (count - 1).clamp_min(0)).masked_fill(count < 1, torch.inf)
    else:
        least = largest[:, -1:]  # (B, 1)
    return torch.where(size >= least, v * _Exceeds.apply(size, theta), soft(v, theta))


def selected(num_layers: int, atoms: int, *, share: float, most: float) -> list[int]:
    """How many entries each layer leaves as they are: min(l share, most) of n, rounded, (L,)."""
    checks.number("selection", share, low=0, high=1)
    checks.number("max_selection", most, low=0, high=1)
    return [round(min(layer * share, most) * atoms) for layer in range(1, num_layers + 1)]


def analytic_weight(dictionary: Tensor) -> Tensor:
    r"""W, (m, n): the minimiser of ||W^T D||_F^2 subject to w_i^T d_i = 1 for each column i.

    In closed form w_i = (D D^T)^+ d_i / (d_i^T (D D^T)^+ d_i), computed in float64: columns decouple, and
    each minimises w^T D D^T w on a hyperplane; that of an atom of 0 is 0. Reference: Liu, Chen, Wang, Yin,
    "ALISTA: Analytic Weights Are As Good As Learned Weights in LISTA", equation 16,
    https://openreview.net/forum?id=B1lnzn0ctQ.
    """
    exact = dictionary.double()
    raw = torch.linalg.pinv(exact @ exact.T, hermitian=True) @ exact
    scale = (raw * exact).sum(0)
    return (raw / torch.where(scale > 0, scale, 1.0)).to(dictionary.dtype)


# of a threshold: how far from it entries still say what it lets through, in the gradient
BAND = 0.2
THRESHOLD, DECAY = 0.5, 0.8  # of thresholds at the start: in layer 1, and from layer to layer
RATE = 20.0  # by which scalars learn faster than entries of matrices, at one step for all


def first_thresholds(
    problem: Problem, num_layers: int, *, threshold: float, decay: float, selecting: bool
) -> Tensor:
    """Where the thresholds of layers with (nearly) analytic weights start, (L,): threshold decay^(l - 1),
    since errors fall geometrically.

    With noise they fall more slowly, so that only the last layer's comes down to what noise makes of an
    entry of W^T x, and every layer has something left to do. That is three of its standard deviations
    where large entries are left as they are, one where they are shrunk: the bias then costs more.
    """
    checks.number("threshold", threshold, above=0)
    checks.number("decay", decay, above=0, high=1)
    if isinstance(problem, SparseRecovery) and num_layers > 1:
        size = float(analytic_weight(problem.coding.dictionary).norm(dim=0).mean())
        least = min((3 if selecting else 1) * problem.std * size, threshold)
        decay = max(decay, (least / threshold) ** (1 / (num_layers - 1)))
    return threshold * decay ** torch.arange(num_layers)


class Positive(nn.Module):
    """A positive number for each layer, exp(RATE w_l); shape (1,) when called with l = 1 .. L.

    Args:
        start: where each begins, (L,).
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.log = nn.Parameter(start.log() / RATE)

    def forward(self, index: int) -> Tensor:
        return (RATE * self.log[index - 1 : index]).exp()


def lasso_of(problem: Problem, network: str) -> SparseCoding:
    """The LASSO that a network unrolls: that of sparse coding or of sparse recovery.

    Errors: another problem.
    """
    lasso = problem.coding if isinstance(problem, SparseRecovery) else problem
    if not isinstance(lasso, SparseCoding):
        raise checks.InvalidValue(
            f"network: {network} unrolls sparse coding, got the problem {type(problem).__name__}; "
            "take another network, problem=lista or problem=synthetic"
        )
    return lasso


def residual(obs: Tensor, y: Tensor, dictionary: Tensor) -> Tensor:
    """x - D y, (B, m)."""
    return torch.addmm(obs, y, dictionary.T, alpha=-1)
