r"""Online dictionary learning.

    min over D, codes of mean 1/2 ||x - D y||^2 + alpha ||y||_1   with ||d_j||_2 = 1

Reference: Mairal, Bach, Ponce, Sapiro, "Online Dictionary Learning for Sparse Coding", ICML 2009,
https://doi.org/10.1145/1553374.1553463. Legend: N signals, B a batch, m features, n atoms.
"""

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.randomness import generator
from sdunroll.solvers.lasso import Admm

REVISION = 2  # one more when the same settings give another dictionary, as by another rho of Admm


class DictionaryLearning:
    """Learns a dictionary from signals; the settings, to be called with the data.

    Args:
        alpha: weight of the l1 norm while learning.
        passes: how often each signal is seen.
        batch_size: B.
        code_iterations: ADMM iterations for the codes of a batch.
        seed: of the atoms at the start (signals drawn at random) and of the order.
    """

    def __init__(
        self,
        *,
        alpha: float,
        passes: int = 5,
        batch_size: int = 512,
        code_iterations: int = 30,
        seed: int = 0,
    ) -> None:
        self.alpha = checks.number("alpha", alpha, above=0)
        self.passes = checks.integer("passes", passes)
        self.batch_size = checks.integer("batch_size", batch_size)
        self.code_iterations = checks.integer("code_iterations", code_iterations)
        self.seed = checks.integer("seed", seed, low=0)

    def cache_key(self) -> str:
        """All that decides the dictionary, but for the signals and its size."""
        return f"{type(self).__qualname__} {REVISION} {sorted(vars(self).items())}"

    @torch.no_grad()
    def __call__(self, signals: Tensor, num_atoms: int) -> Tensor:
        """The dictionary (m, n) with unit columns, on the device and in the dtype of ``signals`` (N, m).

        Errors: fewer signals that are not 0 than atoms.
        """
        rng = generator(self.seed, "dictionary_learning")
        usable = signals[signals.norm(dim=1) > 0]
        if len(usable) < num_atoms:
            raise checks.UserError(
                f"dictionary: expected at least {num_atoms} training signals that are not 0, one an "
                f"atom, got {len(usable)}; take more signals or fewer atoms"
            )
        chosen = torch.randperm(len(usable), generator=rng)[:num_atoms].to(signals.device)
        dictionary = torch.nn.functional.normalize(usable[chosen].T, dim=0)
        gram = signals.new_zeros(num_atoms, num_atoms)  # sum of y y^T, older batches fading
        cross = signals.new_zeros(signals.shape[1], num_atoms)  # sum of x y^T, likewise
        seen = 0
        for _ in range(self.passes):
            order = torch.randperm(len(signals), generator=rng).to(signals.device)
            for index in order.split(self.batch_size):
                batch = signals[index]
                codes = self._codes(dictionary, batch)
                seen += 1
                fade = (1 - 1 / seen) ** 2  # early batches were coded with a poor dictionary
                gram.mul_(fade).addmm_(codes.T, codes)
                cross.mul_(fade).addmm_(batch.T, codes)
                _update_atoms(dictionary, gram, cross, batch, rng)
        return dictionary

    def _codes(self, dictionary: Tensor, batch: Tensor) -> Tensor:
        solver = Admm(dictionary, batch, self.alpha)
        for _ in range(self.code_iterations):
            solver.step()
        return solver.z


def _update_atoms(
    dictionary: Tensor, gram: Tensor, cross: Tensor, batch: Tensor, rng: torch.Generator
) -> None:
    """One pass of block coordinate descent over the columns of ``dictionary``, in place.

    An atom that no code uses is replaced by a signal of the batch, drawn at random, that is none yet.
    """
    atoms = dictionary.T.contiguous()  # (n, m): rows are contiguous
    targets = cross.T.contiguous()
    used = gram.diagonal() > 1e-10 * gram.diagonal().amax()
    drawn = iter(()) if used.all() else iter(torch.randperm(len(batch), generator=rng).tolist())
    for j, is_used in enumerate(used.tolist()):
        if is_used:
            atom = atoms[j] + (targets[j] - gram[j] @ atoms) / gram[j, j]
            norm = atom.norm()
            if norm > 0:
                atoms[j] = atom / norm
            continue
        for place in drawn:
            signal = batch[place] / batch[place].norm()
            if (atoms @ signal).abs().max() < 1 - 1e-6:  # False for a signal of zeros
                atoms[j] = signal
                break
    dictionary.copy_(atoms.T)
