"""How much memory tensors take: those that are there, and the most that a piece of work makes."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def total_bytes(tensors: Iterable[object]) -> int:
    """The bytes of those that are tensors."""
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, Tensor))


class LiveMemory(TorchDispatchMode):
    """Follows the tensors that are made while it is entered, on any device, until they are freed.

    Attributes:
        peak: the most bytes of theirs that were alive at once; what an allocator keeps beside is not
            counted, nor what an operation needs inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive = 0
        self._seen: dict[int, Any] = {}  # weak references by the address of the storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if _real(one)}
        for one in tree_leaves(result):
            if (
                _real(one) and one.untyped_storage()._cdata not in given
            ):  # neither view nor in place
                self._follow(one.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def freed(_: object) -> None:
            del self._seen[key]
            self._alive -= size

        self._seen[key] = weakref.ref(storage, freed)
        self._alive += size
        self.peak = max(self.peak, self._alive)


def _real(one: object) -> bool:
    return isinstance(one, Tensor) and one.layout == torch.strided
