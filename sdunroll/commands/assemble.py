"""From a config to objects: the only place where configs are read, with the commands themselves."""

import copy
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from sdunroll import checks, trust
from sdunroll.allocator import keep_freed_memory
from sdunroll.cache import Cache, WriteError
from sdunroll.commands.instantiate import instantiate
from sdunroll.constraints import DescentConstraint
from sdunroll.data import Batch, Source, Split
from sdunroll.distributed import own_device
from sdunroll.lock import held
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
        """The problem's instances of a split, on the device.

        Errors: :class:`checks.UserError` for signals that are no float32 tensor, for values that are not
        finite, and for other than a target an observation.
        """
        signals = self.source.signals(split)
        check_rows(signals, f"data: the {split} split", signals=True)
        instances = self.reference.instances(signals)
        if not isinstance(instances, Batch):
            raise checks.UserError(
                f"problem: expected {type(self.reference).__name__}.instances to give a Batch, got a "
                f"{type(instances).__name__}"
            )
        check_rows(instances.obs, f"problem: the observations of the {split} split")
        check_rows(instances.target, f"problem: the targets of the {split} split")
        if len(instances.obs) != len(instances.target):
            raise checks.UserError(
                f"problem: expected as many targets as observations in the {split} split, "
                f"{len(instances.obs)}, got {len(instances.target)}"
            )
        return instances.to(self.device)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """New instances, on the device."""
        signals = self.source.draw(count, generator)
        return self.reference.instances(signals, keep=False).to(self.device)


def check_rows(values: object, what: str, *, signals: bool = False) -> None:
    """Errors: anything but finite numbers, an instance a row, at least one; of signals, in float32."""
    if not isinstance(values, torch.Tensor):
        raise checks.UserError(f"{what}: expected a tensor, got a {type(values).__name__}")
    kind = str(values.dtype).removeprefix("torch.")
    if values.ndim < 2 or not len(values) or (signals and values.dtype != torch.float32):
        raise checks.UserError(
            f"{what}: expected a {'float32 ' * signals}tensor with an instance a row, got a {kind} "
            f"tensor of shape {tuple(values.shape)}"
        )
    finite = values.flatten(1).isfinite().all(1)
    if not finite.all():
        raise checks.UserError(
            f"{what}: expected finite values, got others in {int((~finite).sum())} of {len(finite)}, "
            f"first in instance {int(finite.int().argmin())}; check the data"
        )


def set_up_torch(config: DictConfig) -> torch.device:
    """Set the number of threads and how memory is kept; the device that ``config`` asks for.

    Errors: ``device=cuda`` where there is none, or not one for each process.
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
    return own_device(torch.device("cuda" if available and name != "cpu" else "cpu"))


def assemble(
    config: DictConfig, device: torch.device, state: dict[str, Any] | None = None
) -> Experiment:
    """Build the objects of a run; with ``state``, a checkpoint, as they were then.

    Args:
        config: of ``sdunroll train``.
    """
    checks.integer("seed", config.seed, low=0)
    if config.get("operator") is not None and "operator" not in (config.problem or ()):
        raise checks.InvalidValue(
            "operator: expected none, since this problem observes its signals as they are; leave it "
            "out or take problem=glow_prox"
        )
    cache = Cache(Cache.default_folder())
    source = instantiate(config, "data")
    # some render or decode their signals, which several ask for
    source.signals = functools.cache(source.signals)
    constraint = instantiate(config, "constraint")
    problem_state = None if state is None else state["problem"]
    problem = instantiate(config, "problem", source=source, cache=cache, state=problem_state)
    reference = copy.deepcopy(problem)  # before a network takes the problem along to its device
    weights_rng = generator(part_seed(config, "weights"), "weights")
    network = instantiate(config, "network", problem=problem, generator=weights_rng)
    if not any(weight.requires_grad for weight in network.parameters()):
        raise checks.UserError(
            f"network: expected weights to train, got none from {type(network).__name__}"
        )
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


def trusted_run(folder: str, trusted: Any) -> Run:
    """The run in ``folder``, whose configuration names nothing but what may be called.

    Args:
        trusted: the setting ``trust`` of the command that loads it.
    """
    run = Run(folder)
    trust.check(run.config, trust.packages(trusted), str(run.folder / "config.yaml"))
    return run


def load_best(folder: str, device: torch.device, trusted: Any = ()) -> tuple[Run, Experiment]:
    """The run in ``folder`` with the weights of its best epoch; see :func:`trusted_run`."""
    run = trusted_run(folder, trusted)
    return run, assemble(run.config, device, run.load_checkpoint("best"))


def seed_of(config: DictConfig, run: Run) -> int:
    """The seed that an evaluation asks for, by default the run's own."""
    seed = run.config.seed if config.seed is None else config.seed
    return checks.integer("seed", seed, low=0)


def part_seed(config: DictConfig, part: str, default: int | None = None) -> int:
    """The seed of one part of the randomness, ``config.seeds[part]``; without it ``default``, by
    default ``config.seed``, as in the runs of before there were parts."""
    parts = config.get("seeds", {})
    if not isinstance(parts, DictConfig | dict):
        raise checks.InvalidValue(
            f"seeds: expected a number for each part, such as seeds.{part}=1, got {parts!r}; "
            "seed=1 sets them all"
        )
    seed = parts.get(part)
    if seed is None:
        seed = config.seed if default is None else default
    return checks.integer(f"seeds.{part}", seed, low=0)


@contextmanager
def working_in(folder: Path, name: str) -> Iterator[None]:
    """Work on the results ``name`` in a run directory, such as ``eval/eval``, as the only process.

    An exception that passes leaves its traceback in the log beside them. Nothing is written into a
    folder that is no run's. Errors: :class:`sdunroll.lock.Busy`.
    """
    if not (folder / "config.yaml").is_file():
        yield
        return
    part = folder / Path(name).parent
    try:
        part.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(part, error) from error
    with held(folder / f"{name}.lock"), _log_to(part / f"{part.name}.log"):
        yield


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
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
