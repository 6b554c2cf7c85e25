"""From a config to objects: the only place where configs are read, with the commands themselves."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from sdunroll import checks
from sdunroll.allocator import keep_freed_memory
from sdunroll.cache import Cache
from sdunroll.constraints import DescentConstraint
from sdunroll.data import Batch, Source, Split
from sdunroll.networks import UnrolledNetwork
from sdunroll.problems import Problem
from sdunroll.randomness import generator
from sdunroll.runs import Run, RunError

log = logging.getLogger(__name__)

DEFAULT_THREADS = torch.get_num_threads()  # before another job of a sweep has changed it


@dataclass(frozen=True, slots=True)
class Experiment:
    """The objects of a run, problem and network on the device.

    ``reference`` is the problem on the CPU, where instances are made and optima are solved, so that
    they are the same wherever the network runs.
    """

    source: Source
    reference: Problem
    problem: Problem
    network: UnrolledNetwork
    constraint: DescentConstraint
    device: torch.device
    epoch: int | None  # of the weights that were loaded

    def instances(self, split: Split) -> Batch:
        """The problem's instances of a split, on the device."""
        return self.reference.instances(self.source.signals(split)).to(self.device)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """New instances, on the device."""
        return self.reference.instances(self.source.draw(count, generator)).to(self.device)


def instantiate(config: DictConfig, group: str, **arguments: Any) -> Any:
    """Build the object of ``config[group]``, calling it with ``arguments`` if there are any.

    Errors: :class:`checks.InvalidValue` that names the setting, for values it refuses.
    """
    import hydra.utils
    from hydra.errors import InstantiationException

    if group not in config:
        raise checks.UserError(
            f"config.yaml: expected settings under {group!r}, found none; train again"
        )

    try:
        built = hydra.utils.instantiate(config[group], _convert_="all")
        return built(**arguments) if arguments else built
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
        reason = " ".join(str(cause or error).split())
        raise checks.UserError(
            f"{group}: expected settings that make {config[group].get('_target_')}, got: {reason}"
        ) from error


def set_up_torch(config: DictConfig) -> torch.device:
    """Set the number of threads and how memory is kept; the device that ``config`` asks for.

    Errors: ``device=cuda`` where there is none.
    """
    threads = (
        DEFAULT_THREADS if config.threads is None else checks.integer("threads", config.threads)
    )
    torch.set_num_threads(threads)
    keep_freed_memory()
    name = checks.choice("device", config.device, ("auto", "cpu", "cuda"))
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise checks.InvalidValue(
            "device: expected a CUDA device, found none that PyTorch can use; take device=cpu"
        )
    # a flow's inverse needs all digits, and a resumed run the same bits
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def assemble(
    config: DictConfig, device: torch.device, state: dict[str, Any] | None = None
) -> Experiment:
    """Build the objects of a run; with ``state``, a checkpoint, as they were then.

    Args:
        config: of ``sdunroll train``.
    """
    checks.integer("seed", config.seed, low=0)
    if config.get("operator") is not None and "operator" not in config.problem:
        raise checks.InvalidValue(
            "operator: expected none, since this problem observes its signals as they are; leave it "
            "out or take problem=glow_prox"
        )
    cache = Cache(Cache.default_folder())
    source = instantiate(config, "data")
    constraint = instantiate(config, "constraint")
    problem_state = None if state is None else state["problem"]
    problem = instantiate(config, "problem", source=source, cache=cache, state=problem_state)
    reference = copy.deepcopy(problem)  # before a network takes the problem along to its device
    weights_rng = generator(config.seed, "weights")
    network = instantiate(config, "network", problem=problem, generator=weights_rng)
    try:
        constraint.layers(network.num_layers)
    except checks.InvalidValue as error:
        raise checks.InvalidValue(f"constraint.{error}") from error
    if state is not None:
        try:
            network.load_state_dict(state["network"])
        except (RuntimeError, KeyError) as error:
            raise RunError(
                f"{state['path']}: does not fit the network that config.yaml beside it describes; "
                "restore the file that belongs there, or train again"
            ) from error
    epoch = None if state is None else state.get("epoch")
    return Experiment(
        source, reference, problem.to(device), network.to(device), constraint, device, epoch
    )


def load_best(folder: str, device: torch.device) -> tuple[Run, Experiment]:
    """The run in ``folder`` with the weights of its best epoch."""
    run = Run(folder)
    return run, assemble(run.config, device, run.load_checkpoint("best"))


def seed_of(config: DictConfig, run: Run) -> int:
    """The seed that an evaluation asks for, by default the run's own."""
    seed = run.config.seed if config.seed is None else config.seed
    return checks.integer("seed", seed, low=0)


@contextmanager
def log_to(folder: Path, name: str) -> Iterator[None]:
    """Log to ``name`` in a run directory as well; an exception that passes leaves its traceback there.

    Nothing is written into a folder that is no run's.
    """
    if not (folder / "config.yaml").is_file():
        yield
        return
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    logger = logging.getLogger()
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        failure = (type(error), error, error.__traceback__)
        record = logger.makeRecord(
            __name__, logging.ERROR, __file__, 0, "failed", (), exc_info=failure
        )
        handler.handle(record)  # to this file alone: the console shows one line
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
