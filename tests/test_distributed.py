"""Two processes on the CPU: the same training as in one, and what happens when one of them dies."""

import csv
import logging
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hydra._internal.utils import get_args_parser
from torch.distributed import HashStore

from sdunroll import cli, distributed
from sdunroll.checks import InvalidValue
from sdunroll.constraints import Distance, Objective
from sdunroll.distributed import Ranks
from sdunroll.networks import FlowProximal, ProximalGradient, StepLista
from sdunroll.primal_dual import Ascent
from sdunroll.problems import Inpainting, InverseImaging
from sdunroll.randomness import generator
from sdunroll.training import Training
from tests.conftest import TINY
from tests.training.test_loop import PROBLEM, draw, make, same

ROOT = Path(__file__).parent.parent
TIMEOUT = 120


def inpainting(epochs=2, **changes):
    """Flows that start from the first batch, and layers with objectives of their own."""
    # not Adam, which makes whole steps of gradients that are 0 but for rounding
    training = make(**changes, epochs=epochs, batch_size=5, lr=1e-3, optimizer=torch.optim.SGD)
    problem = InverseImaging(Inpainting(size=3))
    images = torch.rand(14, 3, 8, 8, generator=generator(0, "images"))
    proximal = partial(FlowProximal, depth=1, levels=1, width=4)
    return Training(
        training.settings,
        network=ProximalGradient(problem, generator(0, "weights"), proximal=proximal, num_layers=2),
        problem=problem,
        constraint=Objective(epsilon=0.1),
        constrained=True,
        dual=Ascent(rate=0.1, every="batch"),
        train=problem.instances(images[:9]),
        val=problem.instances(images[9:]),
        order_seed=0,
        noise_seed=0,
        ranks=training.forward.ranks,
    )


class OfAllWeights(torch.optim.SGD):
    """Steps by a norm of all gradients together, so each process needs them all."""

    def step(self, closure=None):
        gradients = [weight.grad for weight in self.param_groups[0]["params"]]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_div_(gradients, norm)
        return super().step(closure)


def one_weight(**changes):
    """A network of fewer weights than there are processes."""
    training = make(**changes)
    training = Training(
        training.settings,
        network=StepLista(PROBLEM, generator(0, "weights"), num_layers=3),
        problem=PROBLEM,
        constraint=training.constraint,
        constrained=True,
        dual=Ascent(rate=1.0),
        train=training.train,
        val=training.val,
        order_seed=0,
        noise_seed=0,
        ranks=training.forward.ranks,
    )
    assert len(list(training.network.parameters())) == 1
    return training


# 60 instances in batches of 16 leave 12, in batches of 7 leave 4, and in batches of 59 leave one alone
CASES = {
    "ratio": make,
    "difference through both": partial(
        make, constraint=Distance(epsilon=0.3, form="difference", detach_previous=False)
    ),
    "mean ratio, odd batches": partial(
        make, constraint=Distance(epsilon=0.3, form="mean_ratio"), batch_size=7, epochs=2
    ),
    "spare descent": partial(make, constraint=Distance(epsilon=0.01, margin=0.0, spare=0.0)),
    "a last batch of one": partial(make, batch_size=59),
    "dual step a batch": partial(make, dual=Ascent(rate=1.0, every="batch", smoothing=0.5)),
    "drawn instances": partial(make, draw=draw, epochs=2),
    "layer by layer": partial(make, stages="layerwise", constrained=False),
    "clipped": partial(make, clip_norm=0.1),
    "weights that depend on each other": partial(make, optimizer=OfAllWeights),
    "one weight, clipped": partial(one_weight, clip_norm=0.01),
    "inpainting": inpainting,
    "inpainting, layer by layer": partial(inpainting, epochs=3, stages="layerwise"),
}


# by which gradients are summed, and how many of the processes are said to be on this machine
WAYS = {"sockets": "1", "memory": "all"}


def train(case, ranks):
    torch.set_num_threads(1)
    training = CASES[case](ranks=ranks)
    losses = [(epoch.train_loss, epoch.val_loss, *epoch.val_slack) for epoch in training.run()]
    shared = training.primal_dual.shared
    loads = [0] * ranks.size  # how many numbers each process stepped last
    if shared is not None and shared.owners is not None:
        for index in shared.stepped:
            loads[shared.owners[index]] += shared.weights[index].numel()
    return {
        "loads": loads,
        "state": training.state_dict(),
        "losses": torch.tensor(losses),
        "way": "memory" if shared is not None and shared.slots is not None else "sockets",
    }


def resume(ranks):
    """The state after a training that is stopped on its way and goes on."""
    first = make(ranks=ranks, stop_after=2)
    list(first.run())
    second = make(ranks=ranks)
    checkpoint = [first.state_dict()]
    dist.broadcast_object_list(checkpoint)  # as all read the first one's
    second.load_state_dict(checkpoint[0])
    list(second.run())
    return second.state_dict()


def together(folder, cases=tuple(CASES)):
    """What each of the processes of the first tests does."""
    ranks, found = distributed.launched(), {}
    with distributed.connected(torch.device("cpu")):
        for way, here in WAYS.items():
            os.environ["LOCAL_WORLD_SIZE"] = str(ranks.size) if here == "all" else here
            found[way] = {case: train(case, ranks) for case in cases}
            found[way]["resumed"] = resume(ranks)
    torch.save(found, Path(folder) / f"{ranks.rank}.pt")


def environment(**variables):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def pair(*arguments, cwd):
    return start(2, *arguments, cwd=cwd)


def start(count, *arguments, cwd):
    """Run a command in processes that know of each other; their exit statuses and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(RANK=str(rank), **place),
            cwd=cwd,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes trained, each."""
    folder = tmp_path_factory.mktemp("together")
    code = f"from tests.test_distributed import together; together({str(folder)!r})"
    statuses, errors = pair("-c", code, cwd=ROOT)
    assert statuses == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def without_moments(found):
    """Without the optimizer's state, of which the first process alone has all."""
    rest = dict(found["state"]["primal_dual"])
    del rest["optimizer"]
    return {**found, "state": found["state"] | {"primal_dual": rest}}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_does(both, case, way):
    through = "sockets" if "depend" in case else way
    assert [found[way][case]["way"] for found in both] == [through] * 2
    one = train(case, Ranks())
    first, second = (found[way][case] for found in both)
    assert same(without_moments(first), without_moments(second))
    moments, others, expected = (
        each["state"]["primal_dual"]["optimizer"] for each in (first, second, one)
    )
    assert through == "memory" or same(moments, others)
    torch.testing.assert_close(moments, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first["losses"], one["losses"], rtol=1e-5, atol=1e-6)
    for name, weight in one["state"]["network"].items():
        torch.testing.assert_close(first["state"]["network"][name], weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        first["state"]["primal_dual"]["multipliers"],
        one["state"]["primal_dual"]["multipliers"],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_training_of_two_processes_goes_on_bit_for_bit(both, way):
    assert same(both[0][way]["resumed"], both[0][way]["ratio"]["state"])


def test_the_weights_of_one_layer_are_shared_out_too(both):
    """Where they are trained by themselves, as in the last stage of this case."""
    for found in both:
        loads = found["memory"]["inpainting, layer by layer"]["loads"]
        assert min(loads) > 0.4 * sum(loads)
        assert found["memory"]["one weight, clipped"]["loads"] == [3, 0]


def test_more_than_two_processes(tmp_path):
    code = f"from tests.test_distributed import together; together({str(tmp_path)!r}, ['clipped'])"
    statuses, errors = start(3, "-c", code, cwd=ROOT)
    assert statuses == [0] * 3, errors
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)]
    one = train("clipped", Ranks())["losses"]
    assert [each["memory"]["clipped"]["way"] for each in found] == ["memory"] * 3
    for each in found:
        runs = (run["memory"]["clipped"] for run in (each, found[0]))
        assert same(*map(without_moments, runs))
        for way in WAYS:
            torch.testing.assert_close(each[way]["clipped"]["losses"], one, rtol=1e-5, atol=1e-6)


def test_the_parts_of_a_batch_are_the_batch():
    for size in (1, 2, 3, 7):
        shares = [Ranks(rank, size).share(5) for rank in range(size)]
        rows = [row for share in shares for row in range(share.start, share.stop)]
        assert rows == [0, 1, 2, 3, 4]
        assert all(len(range(5)[share.rows]) > 0 for share in shares)


MORTAL = """
import os, pathlib, signal
from sdunroll.networks import Lista


class Mortal(Lista):
    # the second process dies in the third epoch of two batches, once
    passes = 0

    def precompute(self, obs):
        self.passes += self.training and not self.passes > 11
        if os.environ.get("RANK") == "1" and self.passes == 11 and not os.path.exists("died"):
            pathlib.Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().precompute(obs)
"""


def history(run):
    with (run / "history.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if name not in ("check", "seconds")}
            for row in csv.DictReader(file)
        ]


def test_a_process_that_dies_ends_the_training_which_goes_on_when_called_again(sdunroll):
    folder = Path.cwd()
    Path("mortal.py").write_text(MORTAL)
    Path("configs/network").mkdir(parents=True)
    Path("configs/network/mortal.yaml").write_text("defaults: [lista]\n_target_: mortal.Mortal\n")
    settings = ["--config-dir", "configs", *TINY, "network=mortal", "training.epochs=5"]
    settings += ["data.num_train=63", "training.noise_level=0.5", "device=cpu"]
    alone = sdunroll("train", *settings, "hydra.run.dir=alone")
    assert alone.status == 0, alone.err

    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*launcher, "-m", "sdunroll", "train", *settings, "hydra.run.dir=both"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode != 0
    told = "whose steps are lost; go on with: sdunroll train resume=both trust=[mortal]"
    lines = [line for line in ended.stderr.splitlines() if line.endswith(told)]
    # torchrun ends the other process, sometimes before that has noticed by itself
    begins = (
        "error: a process of the training has ended or cannot be reached",
        "interrupted in epoch",
    )
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith(begins)
    assert 0 < len(history(Path("both"))) < 5
    assert not list(Path("both").glob("*.lock"))

    go_on = ["train", "resume=both", "trust=[mortal]"]
    statuses, errors = pair("-m", "sdunroll", *go_on, cwd=folder)
    assert statuses == [0, 0], errors
    rows, expected = history(Path("both")), history(Path("alone"))
    assert len(rows) == 5
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    left = {path.name for path in folder.iterdir()} - {"__pycache__"}
    assert left == {"alone", "both", "configs", "died", "mortal.py"}


def test_what_is_left_after_the_last_epoch_the_first_process_does_alone(sdunroll, monkeypatch):
    """The others have nothing to train and are gone."""
    run = sdunroll("train", *TINY).run
    (run / "summary.json").unlink()
    store = HashStore()
    monkeypatch.setattr(distributed, "notes", lambda: store)
    monkeypatch.setattr(distributed, "connected", raises(AssertionError("waits for the others")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        outcome = sdunroll("train", f"resume={run}")
        assert outcome.status == 0, outcome.err
    assert (run / "summary.json").exists()


@pytest.mark.parametrize(
    "arguments", [["train", "-m", "seed=0,1"], ["eval", "run=here"], ["report", "runs=here"]]
)
def test_torchrun_is_for_one_training(sdunroll, monkeypatch, arguments):
    store = HashStore()
    monkeypatch.setattr(distributed, "notes", lambda: store)
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcomes = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        outcomes.append(sdunroll(*arguments))
    first, second = outcomes
    assert first.status == second.status == 1
    assert first.err == (
        "error: torchrun: expected one training for its processes to share, got sdunroll "
        f"{' '.join(arguments)}; call that without torchrun\n"
    )
    assert second.err == ""
    assert not list(Path.cwd().iterdir())


def test_the_directory_of_another_process_stands_beside_the_overrides(monkeypatch):
    monkeypatch.setattr(distributed, "notes", HashStore)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for given in (["network=mine", "--config-dir", "here"], ["--config-dir", "here"]):
        monkeypatch.setattr("sys.argv", ["sdunroll train", *given])
        with cli._beside_others("train", given):
            config = get_args_parser().parse_args(sys.argv[1:])
        assert config.config_dir == "here"
        assert config.overrides[-1].startswith("hydra.run.dir=")
        logging.disable(logging.NOTSET)


def test_a_gpu_for_each_process(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidValue, match=r"expected a GPU for each process, got 1 for 2 or more"):
        distributed.own_device(torch.device("cuda"))
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")


def raises(error):
    def work(*_, **__):
        raise error

    return work


def test_who_tells_why_it_ended(monkeypatch):
    store = HashStore()
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "notes", lambda: store)
    store.set("told", "0")  # by the first process
    assert not distributed.may_tell(KeyboardInterrupt())
    assert not distributed.may_tell(ValueError())
    monkeypatch.setattr(distributed, "notes", raises(RuntimeError("connection reset")))
    assert distributed.may_tell(ValueError())
