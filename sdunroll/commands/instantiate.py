"""From a group of a configuration to the object that it describes, a class of one's own included."""

import functools
import sys
import traceback
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sdunroll import checks
from sdunroll.constraints import DescentConstraint
from sdunroll.data import Source
from sdunroll.networks import UnrolledNetwork
from sdunroll.perturbations import Perturbation
from sdunroll.primal_dual import DualUpdate
from sdunroll.problems import Problem
from sdunroll.training import TrainingSettings

KINDS: dict[str, type] = {
    "constraint": DescentConstraint,
    "data": Source,
    "dual": DualUpdate,
    "network": UnrolledNetwork,
    "perturbation": Perturbation,
    "problem": Problem,
    "training": TrainingSettings,
}


def instantiate(config: DictConfig, group: str, **arguments: Any) -> Any:
    """Build the object of ``config[group]``, calling it with ``arguments`` if there are any.

    Errors: :class:`checks.InvalidValue` that names the setting, for values it refuses;
    :class:`checks.UserError` for settings that make nothing, or something else, and of what they call.
    """
    import hydra.utils
    from hydra.errors import InstantiationException

    settings = config.get(group)
    if not isinstance(settings, DictConfig):
        raise checks.UserError(
            f"config.yaml: expected settings under {group!r}, found {settings!r}"
        )
    if "_target_" not in settings:
        raise checks.UserError(
            f"{group}: expected _target_, what is to be called, among its settings, got "
            f"{', '.join(map(str, settings)) or 'none'}; add it to the yaml"
        )
    try:
        built = hydra.utils.instantiate(settings, _convert_="all")
        if arguments and (isinstance(built, KINDS[group]) or not callable(built)):
            raise checks.UserError(
                f"{group}: expected _partial_: true beside _target_, since {', '.join(arguments)} come "
                "later; add it to the yaml"
            )
        built = built(**arguments) if arguments else built
    except checks.InvalidValue as error:
        named = str(error).startswith(f"{group}:")  # the choice, rather than one of its settings
        raise checks.InvalidValue(str(error) if named else f"{group}.{error}") from error
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, checks.InvalidValue):
            place = (
                str(error).split("full_key: ")[-1].strip() if "full_key: " in str(error) else group
            )
            # the problem's operator is configured in a group of its own
            place = place.replace("problem.operator", "operator")
            raise checks.InvalidValue(f"{place}.{cause}") from error
        if isinstance(cause, checks.UserError):
            raise cause from error
        raise _unfit(settings, group, cause or error, arguments) from error
    except TypeError as error:
        raise _unfit(settings, group, error, arguments) from error
    _check_kind(built, settings, group)
    return built


def _unfit(
    settings: DictConfig, group: str, error: BaseException, arguments: dict[str, Any]
) -> checks.UserError:
    """What is wrong with settings that made nothing; a failure inside what they call is not theirs."""
    reason, target = " ".join(str(error).split()), settings["_target_"]
    frames = traceback.extract_tb(error.__traceback__)
    if frames and _is_callee(frames[-1].filename):
        module = sys.modules.get(str(target).rpartition(".")[0])
        own = [frame for frame in frames if frame.filename == getattr(module, "__file__", None)]
        frame = (own or frames)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        return checks.UserError(
            f"{group}: {target} failed in {place}: {type(error).__name__}: {reason}; "
            "set SDUNROLL_TRACEBACK=1 to see where"
        )
    hint = ""
    if arguments and not settings.get("_partial_"):
        hint = f"; is _partial_: true missing beside _target_? {', '.join(arguments)} come later"
    return checks.UserError(f"{group}: expected settings that make {target}, got: {reason}{hint}")


def _is_callee(file: str) -> bool:
    """Whether code in ``file`` was called, rather than calling."""
    import hydra

    callers = (Path(__file__), *Path(hydra.__file__).parents[:1])
    return not (
        file.startswith("<frozen") or any(Path(file).is_relative_to(one) for one in callers)
    )


def _check_kind(built: object, settings: DictConfig, group: str) -> None:
    kind, target = KINDS[group], settings["_target_"]
    if isinstance(getattr(built, "_orig_mod", built), kind):  # as torch.compile wraps it
        return
    room = f"{kind.__module__.removesuffix('.base')}.{kind.__name__}"
    found, remedy = f"a {type(built).__name__}", f"derive its class from {room}"
    if isinstance(built, functools.partial):
        found, remedy = "what is still to be called", "leave _partial_ out"
    raise checks.UserError(
        f"{group}: expected {target} to make a {kind.__name__}, got {found}; {remedy}"
    )
