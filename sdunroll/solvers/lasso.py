r"""The LASSO optimum with a certificate.

    P(y) = 1/2 ||x - D y||^2 + alpha ||y||_1        primal
    Q(u) = 1/2 ||x||^2 - 1/2 ||x - u||^2            dual, feasible iff ||D^T u||_inf <= alpha

For any y, u = s (x - D y) with s = min(1, alpha / ||D^T (x - D y)||_inf) is feasible, and
P(y) - P(y*) <= P(y) - Q(u). Reference: Kim, Koh, Lustig, Boyd, Gorinevsky, "An Interior-Point Method
for Large-Scale l1-Regularized Least Squares", https://doi.org/10.1109/JSTSP.2007.910971.

Legend: B problems, m features, n atoms, S the largest support in a batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdunroll.checks import UserError
from sdunroll.solvers.feature_sign import feature_sign
from sdunroll.solvers.proximal import lipschitz, soft_threshold

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}
CHUNK = 1024  # problems solved at once, to bound the memory
GROUP = 32  # problems polished at once
RELAXATION = 1.6  # over-relaxation, between 1.5 and 1.8 by section 3.4.3 of Boyd et al.
SUPPORT_ENTRIES = 2**25  # of their normal equations at most, 256 MiB; three such are alive


class NotConverged(UserError):
    """Some problem did not reach its duality gap within the iterations allowed."""


@dataclass(frozen=True, slots=True)
class LassoSolution:
    """Solutions and their certificates.

    Attributes:
        codes: y, (B, n).
        gap: relative duality gap (P(y) - Q(u)) / P(y), in float64, (B,).
        iterations: iterations spent on each problem, (B,).
    """

    codes: Tensor
    gap: Tensor
    iterations: Tensor


def duality_gap(
    dictionary: Tensor, obs: Tensor, codes: Tensor, alpha: float, *, exact: Tensor | None = None
) -> Tensor:
    """Relative duality gap of ``codes`` in float64, (B,); 0 where the primal value is 0.

    Args:
        exact: the codes before they were rounded, whose residual makes u; None for ``codes``. Rounding
            moves P by its square alone, but u by itself, which for bright signals is more than the gap.
    """
    dictionary, obs, codes = dictionary.double(), obs.double(), codes.double()
    residual = obs - codes @ dictionary.T
    primal = residual.square().sum(1) / 2 + alpha * codes.abs().sum(1)
    if exact is not None:
        residual = obs - exact @ dictionary.T
    correlation = (residual @ dictionary).abs().amax(1)
    scale = (alpha / correlation.clamp_min(alpha))[:, None]
    dual = (obs.square().sum(1) - (obs - scale * residual).square().sum(1)) / 2
    return torch.where(primal == 0, 0.0, (primal - dual) / primal)  # nan stays nan


class Admm:
    r"""ADMM for the LASSO, batched, one :meth:`step` at a time.

        y <- (D^T D + rho I)^{-1} (D^T x + rho (z - u)),  y' = r y + (1 - r) z
        z <- soft(y' + u, alpha / rho),  u <- u + y' - z

    Unlike FISTA's, its speed hardly depends on the largest singular value of D, which is large for
    dictionaries of natural images (all atoms share the mean). rho = 24 alpha / rms(||x||) makes the
    threshold alpha / rho scale with the codes. Reference: Boyd, Parikh, Chu, Peleato, Eckstein,
    "Distributed Optimization and Statistical Learning via the Alternating Direction Method of
    Multipliers", https://doi.org/10.1561/2200000016.

    Args:
        dictionary: D, (m, n). obs: x, (B, m). alpha: weight of the l1 norm.
    """

    check_every = 50  # iterations between certificates, each of which costs about as much
    search_after = 200  # iterations, for what is left then a search one by one is faster

    def __init__(self, dictionary: Tensor, obs: Tensor, alpha: float) -> None:
        scale = float(obs.double().square().sum(1).mean().sqrt())
        rho = 24 * alpha / scale if scale > 0 else 1.0
        self.threshold = alpha / rho
        # in float64: of a dictionary with more atoms than features the inverse is as large as 1 / rho
        atoms = dictionary.double()
        identity = torch.eye(atoms.shape[1], dtype=atoms.dtype, device=atoms.device)
        inverse = torch.linalg.inv(atoms.T @ atoms + rho * identity)
        self.still = (obs.double() @ atoms @ inverse).to(obs)  # (B, n) y where z = u
        self.inverse = (rho * inverse).to(obs)  # (n, n), of norm 1 at most
        self.z = torch.zeros_like(self.still)  # (B, n) the sparse iterate
        self.u = torch.zeros_like(self.still)  # (B, n) the scaled dual variable

    def step(self) -> Tensor:
        """One iteration; returns the new z, (B, n)."""
        y = torch.addmm(self.still, self.z - self.u, self.inverse)
        sum_ = self.u.add_(torch.lerp(self.z, y, RELAXATION))
        self.z = soft_threshold(sum_, self.threshold)
        self.u = sum_ - self.z
        return self.z

    def keep(self, rows: Tensor) -> None:
        """Go on with these problems alone; ``rows`` is a mask (B,)."""
        self.still, self.z, self.u = (value[rows] for value in (self.still, self.z, self.u))


class RestartedFista:
    r"""FISTA with adaptive restart for the LASSO, batched, one :meth:`step` at a time.

        z' <- soft(p - (D^T D p - D^T x) / Lip, alpha / Lip)
        t <- 1 where <p - z', z' - z> > 0: there the momentum points uphill
        t' <- (1 + sqrt(1 + 4 t^2)) / 2,  p <- z' + (t - 1) / t' (z' - z)

    Each problem restarts by itself. Reference: O'Donoghue & Candes, "Adaptive Restart for Accelerated
    Gradient Schemes", https://arxiv.org/abs/1204.3982, the gradient scheme.

    Args:
        dictionary: D, (m, n). obs: x, (B, m). alpha: weight of the l1 norm.
    """

    check_every = 100  # iterations between certificates; it takes some twenty times those of ADMM
    search_after = 4000  # iterations, as above

    def __init__(self, dictionary: Tensor, obs: Tensor, alpha: float) -> None:
        constant = lipschitz(dictionary)
        step = 1 / constant if constant > 0 else 1.0
        self.threshold = step * alpha
        self.gram = dictionary.T @ dictionary  # (n, n)
        self.drive = obs @ dictionary  # (B, n) D^T x
        self.step_length = step
        self.z = torch.zeros_like(self.drive)  # (B, n)
        self.point = torch.zeros_like(self.drive)  # (B, n) where the gradient is taken
        self.t = torch.ones_like(self.drive[:, :1])  # (B, 1)

    def step(self) -> Tensor:
        """One iteration; returns the new z, (B, n)."""
        gradient = self.point @ self.gram - self.drive
        z = soft_threshold(self.point - self.step_length * gradient, self.threshold)
        move = z - self.z
        uphill = ((self.point - z) * move).sum(1, keepdim=True) > 0
        t = torch.where(uphill, 1.0, self.t)
        self.t = (1 + (1 + 4 * t.square()).sqrt()) / 2
        self.point = z + (t - 1) / self.t * move
        self.z = z
        return z

    def keep(self, rows: Tensor) -> None:
        """Go on with these problems alone; ``rows`` is a mask (B,)."""
        self.drive, self.z, self.point, self.t = (
            value[rows] for value in (self.drive, self.z, self.point, self.t)
        )


SOLVERS: dict[str, type[Admm] | type[RestartedFista]] = {"admm": Admm, "fista": RestartedFista}


def polish(codes: Tensor, gram: Tensor, drive: Tensor, alpha: float) -> Tensor:
    """The exact optimum on the support and signs of ``codes``, (B, n).

    Solves D_S^T D_S y_S = D_S^T x - alpha sign(y_S); entries whose sign turns are set to 0. Where the
    support is right this is y*, to rounding error; where the equations are singular, ``codes`` is kept.

    Args:
        codes: (B, n). gram: D^T D, (n, n). drive: D^T x, (B, n).
    """
    sizes, order = (codes != 0).sum(1).sort(descending=True)
    polished = torch.zeros_like(codes)
    start = 0
    while start < len(order):  # problems of about the same support, for the larger pads the smaller
        size = int(sizes[start])
        rows = order[start : start + min(GROUP, max(1, SUPPORT_ENTRIES // max(size, 1) ** 2))]
        polished[rows] = _polish(codes[rows], gram, drive[rows], alpha, size)
        start += len(rows)
    return polished


def _polish(codes: Tensor, gram: Tensor, drive: Tensor, alpha: float, size: int) -> Tensor:
    support = codes.abs().topk(size, dim=1).indices  # (B, S), padded with entries that are 0
    values = codes.gather(1, support)
    signs = values.sign()
    active = signs.abs()
    normal = (
        gram[support[:, :, None], support[:, None, :]] * active[:, :, None] * active[:, None, :]
    )
    normal.diagonal(dim1=1, dim2=2).add_(1 - active)  # identity on the padding
    right = (drive.gather(1, support) - alpha * signs) * active
    factor, singular = torch.linalg.cholesky_ex(normal)
    solved = torch.cholesky_solve(right[..., None], factor)[..., 0]
    solved = torch.where(solved * signs > 0, solved, 0.0)
    solved = torch.where((singular == 0)[:, None], solved, values)
    return torch.zeros_like(codes).scatter(1, support, solved)


def solve_lasso(
    dictionary: Tensor,
    obs: Tensor,
    alpha: float,
    *,
    solver: str = "admm",
    tolerance: float | None = None,
    max_iterations: int = 20_000,
) -> LassoSolution:
    """Minimise P for every row of ``obs`` until its relative duality gap is at most ``tolerance``.

    The solver, in float32, finds the support, :func:`polish` the values on it, in float64; of a problem for
    which that takes long, :func:`sdunroll.solvers.feature_sign.feature_sign` finds both. A problem leaves
    the batch once the codes, rounded to the dtype of ``obs``, are certified.

    Args:
        dictionary: D, (m, n). obs: x, (B, m).
        alpha: weight of the l1 norm.
        solver: "admm", or "fista", with restart: another way to the same codes.
        tolerance: default 1e-6 in float64 and 1e-5 in float32.

    Errors: :class:`NotConverged` if some gap is still larger after ``max_iterations``.
    """
    tolerance = TOLERANCE[obs.dtype] if tolerance is None else tolerance
    parts = [
        _solve_chunk(dictionary.double(), chunk, alpha, SOLVERS[solver], tolerance, max_iterations)
        for chunk in obs.split(CHUNK)
    ]
    return LassoSolution(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.gap for part in parts]),
        torch.cat([part.iterations for part in parts]),
    )


@torch.no_grad()
def _solve_chunk(
    dictionary: Tensor,
    obs: Tensor,
    alpha: float,
    make_solver: type[Admm] | type[RestartedFista],
    tolerance: float,
    max_iterations: int,
) -> LassoSolution:
    codes = obs.new_zeros(len(obs), dictionary.shape[1])
    gap = duality_gap(dictionary, obs, codes, alpha)  # of y = 0, the optimum where alpha is large
    iterations = torch.zeros(len(obs), dtype=torch.long, device=obs.device)
    left = torch.arange(len(obs), device=obs.device)
    gram, drive = dictionary.T @ dictionary, obs.double() @ dictionary
    solver = make_solver(dictionary.float(), obs.float(), alpha)
    for iteration in range(0, max_iterations + solver.check_every, solver.check_every):
        certified = gap[left] <= tolerance
        left = left[~certified]
        if not len(left):
            return LassoSolution(codes, gap, iterations)
        if iteration >= max_iterations:
            break
        solver.keep(~certified)
        for _ in range(solver.check_every):
            solver.step()
        iterations[left] = iteration + solver.check_every
        z = solver.z.double()
        found = [z, polish(z, gram, drive[left], alpha)]
        if iterations[left[0]] == solver.search_after:
            rows = zip(found[1], drive[left], strict=True)
            found.append(torch.stack([feature_sign(y, gram, d, alpha) for y, d in rows]))
        for candidate in found:
            rounded = candidate.to(obs.dtype)
            new_gap = duality_gap(dictionary, obs[left], rounded, alpha, exact=candidate)
            better = new_gap < gap[left]
            codes[left[better]] = rounded[better]
            gap[left[better]] = new_gap[better]
    raise NotConverged(
        f"optimum: {len(left)} of {len(obs)} problems have a relative duality gap above "
        f"{tolerance:g} after {max_iterations} iterations (worst {gap[left].max().item():.1e}); "
        "take a larger alpha, a larger tolerance, or check the data for values that are not finite"
    )
