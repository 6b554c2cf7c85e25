"""What the configuration of a run may name: a run from elsewhere must not run code that nobody chose.

Hydra calls whatever stands under ``_target_``. In a configuration that was loaded rather than typed,
only these may stand there: classes and functions that are defined in the rooms of this package where
configs find them, a short list of PyTorch's optimizers and schedulers, and those defined in packages
that the user trusts. Nothing else is imported, not even to look at it.
"""

import importlib
import inspect
import sys
from collections.abc import Collection, Iterator

from omegaconf import DictConfig, ListConfig, OmegaConf

from sdunroll.checks import InvalidValue, UserError

ROOMS = tuple(
    f"sdunroll.{room}"
    for room in (
        "adversarial",
        "constraints",
        "data",
        "networks",
        "perturbations",
        "primal_dual",
        "problems",
        "shifts",
        "solvers",
        "training",
    )
)
OPTIMIZERS = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "SGD")
SCHEDULERS = ("ConstantLR", "CosineAnnealingLR", "ExponentialLR", "LinearLR", "StepLR")
# that some networks, or trainings, are put together of in their configuration
BUILDING_BLOCKS = ("torch.nn", "torch.optim", "torch.optim.lr_scheduler")
OF_TORCH = frozenset(
    [f"torch.optim.{name}" for name in OPTIMIZERS]
    + [f"torch.optim.lr_scheduler.{name}" for name in SCHEDULERS]
)


def packages(given: object) -> list[str]:
    """The setting ``trust`` as a list of packages. Errors: anything but a list of dotted names."""
    names = list(given) if isinstance(given, ListConfig | list | tuple) else None
    if names is None or not all(isinstance(name, str) and _is_dotted(name) for name in names):
        raise InvalidValue(f"trust: expected a list of packages such as [my_network], got {given}")
    return names


def check(config: DictConfig, trusted: Collection[str], where: str) -> None:
    """Look at every ``_target_`` in ``config``, at any depth.

    Args:
        config: without interpolations.
        trusted: packages or modules, beside this one.
        where: the file, for messages.

    Errors: :class:`UserError` that names the first target that is not allowed and, if the user could
    trust it, the override to add.
    """
    allowed = (*ROOMS, *trusted)
    found, strangers = _found(config, allowed)
    for key, target in strangers:
        if not _may_be_trusted(target):
            raise UserError(
                f"{where}: {key} names {target!r}, which no run of sdunroll needs; do not use this run"
            )
    if strangers:
        key, target = strangers[0]
        used = [name for name in trusted if any(_within(target, (name,)) for _, target in found)]
        modules = [str(target).rpartition(".")[0] for _, target in strangers]
        wanted = ",".join(dict.fromkeys([*used, *modules]))
        raise UserError(
            f"{where}: {key} names {target!r}, which is not part of sdunroll, and code that comes with a "
            f"run is called only if you trust it; look into it, then add trust=[{wanted}]"
        )
    for key, target in found:
        if not _of_torch(target):
            _check_definition(str(target), allowed, f"{where}: {key}")


def override(config: DictConfig) -> str:
    """`` trust=[...]``, with which a command loads a run of ``config``; empty where that is not needed.

    For configurations that the user typed: of others, this would trust whatever they name.
    """
    _, strangers = _found(config, ROOMS)
    modules = dict.fromkeys(str(target).rpartition(".")[0] for _, target in strangers)
    return f" trust=[{','.join(modules)}]" if modules else ""


def _found(
    config: DictConfig, allowed: Collection[str]
) -> tuple[list[tuple[str, object]], list[tuple[str, object]]]:
    """Every ``_target_`` in ``config`` with its key, and those of them that are not allowed."""
    found = list(_targets(OmegaConf.to_container(config, resolve=False), ""))
    return found, [
        (key, target)
        for key, target in found
        if not (_of_torch(target) or _within(target, allowed))
    ]


def _targets(value: object, key: str) -> Iterator[tuple[str, object]]:
    """Every ``_target_`` below ``value``, with its dotted key."""
    if isinstance(value, dict):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    for name, entry in items:
        inner = f"{key}.{name}".lstrip(".")
        if name == "_target_":
            yield inner, entry
        yield from _targets(entry, inner)


def _may_be_trusted(target: object) -> bool:
    """Whether a run may need ``target``: nobody is told to trust what is no network's."""
    if not isinstance(target, str) or not _is_dotted(target):
        return False
    module = target.rpartition(".")[0]
    return bool(module) and (module in BUILDING_BLOCKS or not _is_common(module))


def _is_common(module: str) -> bool:
    """Whether ``module`` is of the standard library, of this package or of what it is built on."""
    return module.split(".")[0] in {
        *sys.stdlib_module_names, "builtins", "sdunroll", "torch", "hydra", "omegaconf", "numpy",
    }  # fmt: skip


def _check_definition(target: str, allowed: Collection[str], where: str) -> None:
    """Errors: a target that is no class or function, or that is defined elsewhere: a module's
    attributes reach everything that the module imports."""
    module, _, name = target.rpartition(".")
    try:
        found = vars(importlib.import_module(module)).get(name)
    except ImportError as error:
        raise UserError(
            f"{where}: expected {target}, but {error}; call this in the folder that holds it, or put "
            "that on PYTHONPATH"
        ) from error
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise UserError(f"{where}: expected a class or function of {module}, got {target!r}")
    if not _within(f"{found.__module__}.{name}", allowed):
        raise UserError(
            f"{where} names {target!r}, which {found.__module__} defines; name it there"
        )


def _of_torch(target: object) -> bool:
    return isinstance(target, str) and target in OF_TORCH


def _within(target: object, allowed: Collection[str]) -> bool:
    return (
        isinstance(target, str)
        and _is_dotted(target)
        and any(target.startswith(f"{name}.") for name in allowed)
    )


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
