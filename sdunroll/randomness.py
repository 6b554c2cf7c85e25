"""Random streams: one independent generator a purpose, all derived from one seed."""

import zlib

import numpy as np
import torch

from sdunroll import checks


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on ``seed`` and ``purpose`` alone.

    Streams of different purposes (weights, noise, order of the data, ...) are independent, so that
    drawing more of one does not shift another. Errors: a ``seed`` that is not a whole number >= 0.
    """
    checks.integer("seed", seed, low=0)
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    state = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(state)
