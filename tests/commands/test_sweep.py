"""Sweeps that are stopped and started again, here and by submitit, and what is said of them meanwhile."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import joblib
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sdunroll import failed, resolvers
from sdunroll.checks import UserError
from sdunroll.cli import config_folder
from sdunroll.commands import sweep
from sdunroll.commands.opening import OF_THE_CALL, begin
from sdunroll.lock import Busy, held
from sdunroll.report.collect import method_key
from sdunroll.runs import Run
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("undrawn")

# minutes, should the tests be killed before they end it
ENDLESS = [item for item in TINY if "epochs" not in item] + ["training.epochs=30000"]


@pytest.fixture(autouse=True)
def _shared_cache(_own_cache, tmp_path_factory, monkeypatch):
    """Dictionary and optima are made once for all tests here."""
    monkeypatch.setenv("SDUNROLL_CACHE", str(tmp_path_factory.getbasetemp() / "sweep_cache"))


def jobs(folder="all"):
    """The directories of a sweep's jobs by the seed in their names."""
    paths = [path for path in Path(folder).glob("*seed-*") if "epsilon-2" not in path.name]
    return {int(re.search(r"seed-(\d)", path.name)[1]): path for path in paths}


def written(folder="all"):
    """When each file of a sweep's jobs was written, but for their logs."""
    return {
        path: path.stat().st_mtime_ns
        for job in jobs(folder).values()
        for path in job.rglob("*")
        if path.is_file() and path.suffix != ".log"
    }


@contextmanager
def started(*arguments):
    """The command line in a process group of its own, killed in the end."""
    environment = {name: os.environ[name] for name in os.environ if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "sdunroll", "train", *arguments]
    process = subprocess.Popen(command, start_new_session=True, env=environment)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(what, seconds=60):
    """The first value of ``what()`` that is true."""
    until = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


def test_what_is_done_is_skipped_and_what_is_missing_is_made(sdunroll):
    assert sdunroll("train", "-m", *TINY, "seed=0,1", "sweep=all").status == 0
    for path in jobs()[0].glob("checkpoints/[lp]*.pt"):  # to make room
        path.unlink()
    again = sdunroll("train", *TINY, f"hydra.run.dir={jobs()[0]}")
    assert again.status == 1
    assert "holds a finished run; take another hydra.run.dir" in again.err
    before = written()
    outcome = sdunroll("train", "-m", "sweep=all", "seed=2,0,1", *TINY)  # in another order
    assert outcome.status == 0, outcome.err
    assert set(jobs()) == {0, 1, 2}
    assert (jobs()[2] / "summary.json").exists()
    assert outcome.err.count("has finished before") == 2
    after = written()
    assert {path: after[path] for path in before} == before


def test_what_left_off_goes_on_in_its_directory(sdunroll):
    whole = sdunroll("train", *TINY, "seed=0").run
    left = sdunroll("train", "-m", *TINY, "seed=0", "sweep=all", "training.stop_after=1")
    assert left.status == 0, left.err
    assert len(Run(jobs()[0]).history()) == 1
    outcome = sdunroll("train", "-m", *TINY, "seed=0", "sweep=all")
    assert outcome.status == 0, outcome.err
    assert len(jobs()) == 1
    one, other = (Run(folder).read_json("summary.json") for folder in (whole, jobs()[0]))
    assert one["final_distance"] == other["final_distance"]


def test_a_failure_is_kept_and_tried_again_when_asked(sdunroll, monkeypatch):
    call = ["train", "-m", *TINY, "seed=0,1", "sweep=all"]
    learn = sweep.standing

    def fail(folder, config, *, retry):
        if config.seed == 1:
            raise OSError(28, "No space left on device")
        return learn(folder, config, retry=retry)

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "standing", fail)
        outcome = sdunroll(*call)
    assert outcome.status == 1
    assert outcome.err.count("error: job 1") == 1
    reason = json.loads((jobs()[1] / "failed.json").read_text())["reason"]
    assert reason.startswith("[Errno 28] No space left on device; check")
    outcome = sdunroll(*call)
    assert outcome.status == 1
    assert f"failed before: {reason}; put that right and add retry=true" in outcome.err
    assert json.loads((jobs()[1] / "failed.json").read_text())["reason"] == reason

    assert f"{jobs()[1]}: failed: {reason}" in sdunroll("report", "runs=all").err

    outcome = sdunroll(*call, "retry=true")
    assert outcome.status == 0, outcome.err
    assert (jobs()[1] / "summary.json").exists()
    assert not (jobs()[1] / "failed.json").exists()
    assert outcome.err.count("has finished before") == 1

    assert sdunroll(*call, "retry=maybe").status == 1  # a wrong call leaves what is done as it is
    assert not list(Path("all").rglob("failed.json"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"reason'])
def test_a_reason_that_cannot_be_read_is_still_one(tmp_path, text):
    assert failed.reason(tmp_path) is None
    (tmp_path / failed.NAME).write_text(text)
    assert "does not tell" in (failed.reason(tmp_path) or "")


def test_a_job_of_other_settings_is_not_taken_for_done(sdunroll):
    call = ["train", "-m", *TINY, "seed=0", "sweep=all"]
    assert sdunroll(*call).status == 0
    first = jobs()[0]
    sdunroll("train", "-m", *TINY, "seed=0", "network.start=zero", "sweep=all")
    (second,) = set(Path("all").glob("*seed*")) - {first}
    for path in (first, second):
        path.rename(path.with_name("swapped")) if path == first else path.rename(first)
    outcome = sdunroll(*call)
    assert outcome.status == 1
    assert "expected the run of this job, found one of other settings" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sweep=all"], "sweep: expected -m or a launcher beside it"),
        (["-m", "sweep=all", "network=lista,listo"], "did you mean network=lista?"),
        (["-m", "sweep=all", "retry=maybe"], "retry: expected true or false, got 'maybe'"),
    ],
)
def test_refusals(sdunroll, arguments, line):
    outcome = sdunroll("train", *arguments, *TINY)
    assert outcome.status == 1
    assert line in outcome.err


def test_jobs_in_processes_killed_and_started_again(sdunroll):
    """Several at once, one of which fails; the cores shared out among them; a report meanwhile."""
    call = [*ENDLESS, "device=cpu", "seed=0,1", "constraint.epsilon=0.1,2", "sweep=all"]
    assert sdunroll("train", "-m", *TINY, "seed=2", "sweep=all").status == 0
    with started("launcher=local", *call):
        for seed in (0, 1):
            wait_for(lambda seed=seed: seed in jobs() and len(histories(seed)) > 1)
        report = sdunroll("report", "runs=all")
        assert report.status == 0, report.err
        for seed in (0, 1):
            assert re.search(rf"seed-{seed}.*: running: \d+ of 30000 epochs", report.err)
        assert re.search(r"epsilon-2.*: failed: constraint.epsilon: expected a number", report.err)
        busy = sdunroll("train", "-m", *ENDLESS, "seed=0", "constraint.epsilon=0.1", "sweep=all")
        assert busy.status == 1
        assert "in use by process" in busy.err
    assert "not finished" in sdunroll("report", "runs=all").err
    for folder in jobs().values():
        assert not (folder / "failed.json").exists()
    cores = joblib.cpu_count()
    for seed in (0, 1):
        assert Run(jobs()[seed]).provenance["threads"] == cores // min(4, cores)
    for seed in (0, 1):
        done = Run(jobs()[seed]).load_last()["epochs_done"]
        before = histories(seed)[:done]
        same = [*ENDLESS, "constraint.epsilon=0.1", f"seed={seed}", "sweep=all"]
        again = sdunroll("train", "-m", *same, f"training.stop_after={done + 1}")
        assert again.status == 0, again.err
        assert histories(seed)[:done] == before
        assert len(histories(seed)) == done + 1


def histories(seed):
    return Run(jobs()[seed]).history() if (jobs()[seed] / "config.yaml").exists() else []


def test_a_job_that_is_to_make_room_is_queued_again_by_submitit(sdunroll):
    call = [*ENDLESS, "threads=1", "seed=0", "sweep=all"]
    with started("-m", "hydra/launcher=submitit_local", *call):
        wait_for(lambda: 0 in jobs() and len(histories(0)) > 1)
        lock = jobs()[0] / "train.lock"
        owner = int(lock.read_text().split()[1])
        os.kill(owner, signal.SIGTERM)  # of which submitit takes no notice
        count = len(histories(0))
        wait_for(lambda: len(histories(0)) > count + 1)
        assert int(lock.read_text().split()[1]) == owner
        os.kill(owner, signal.SIGUSR2)
        wait_for(lambda: not lock.exists())
        saved = Run(jobs()[0]).load_last()["epochs_done"]
        rows = histories(0)[:saved]
        wait_for(lambda: len(histories(0)) > saved + 1)
        assert int(lock.read_text().split()[1]) != owner
    assert histories(0)[:saved] == rows
    assert list(jobs()) == [0]


def test_the_name_of_a_job_is_what_it_does():
    def name(*overrides):
        return resolvers.job_folder("all", 7, overrides)

    here = (
        "launcher=local",
        "sweep=all",
        "retry=true",
        "threads=1",
        "device=cpu",
        "cuda_graph=true",
        "logger=tensorboard",
    )
    assert name("seed=0", "training.lr=1e-3", *here) == name("training.lr=1e-3", "seed=0")
    assert name("seed=0").startswith("seed-0-")
    assert len({name("seed=0"), name("seed=1"), name("data.seed=0"), name("seed=-0"), name()}) == 5
    assert len(name(*(f"constraint.epsilon={'0.1' * 99}" for _ in range(99)))) < 120
    assert len(name(f"data.root={'界' * 120}").encode()) < 120
    assert resolvers.job_folder(None, 7, ["seed=0"]) == "7"


@pytest.mark.parametrize(
    ("overrides", "threads", "gpus", "jobs"),
    [
        (["seed=0,1", "constrained=true,false", "data=photos"], None, 0, 4),
        (["seed=range(0,20)"], None, 0, 8),
        (["seed=range(0,20)"], 3, 0, 2),
        (["seed=range(0,20)"], 16, 0, 1),
        (["training.lr=interval(1e-4,1e-2)"], None, 0, 8),
        (["network=glob(*)"], None, 0, 8),
        (["seed=range(0,20)"], None, 3, 3),
    ],
)
def test_how_many_jobs_run_at_once(monkeypatch, overrides, threads, gpus, jobs):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert resolvers.parallel_jobs(overrides, "auto", threads) == jobs
    if gpus:
        assert resolvers.parallel_jobs(overrides, "cpu", threads) == 8


def test_a_search_shares_the_cores_among_the_trials_that_it_asks_for(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    search, grid = ["training.lr=interval(1e-4,1e-2)"], ["seed=0,1,2,3"]
    assert resolvers.parallel_jobs(search, "cpu", None, 2) == 2
    assert resolvers.parallel_jobs(search, "cpu", 3, 4) == 2
    assert resolvers.parallel_jobs(grid, "cpu", None, 2) == 4


def test_a_gpu_a_job(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with sweep.own_gpu(tmp_path, 0):
        with sweep.own_gpu(tmp_path, 5), sweep.own_gpu(tmp_path, 6):  # one more than there are
            assert chosen == [0, 1, 0]
            with pytest.raises(Busy), held(tmp_path / "gpu1.lock"):
                pass
        with sweep.own_gpu(tmp_path, 8):
            assert chosen[3:] == [1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with sweep.own_gpu(tmp_path, 0):
        assert len(chosen) == 4


@pytest.mark.filterwarnings("ignore")  # of Optuna's, of the versions that it uses
def test_optuna_minimises_the_loss_of_the_best_feasible_epoch(sdunroll, monkeypatch):
    begun = []

    def fail_first(*arguments):
        begun.append(arguments)
        if len(begun) == 1:
            raise UserError("the loss is not finite")
        return begin(*arguments)

    monkeypatch.setattr("sdunroll.commands.train.begin", fail_first)
    search = "training.lr=tag(log,interval(1e-4,1e-2))"
    call = ["train", "sweeper=optuna", "hydra.sweeper.n_trials=3", "sweep=all", *TINY, search]
    outcome = sdunroll(*call)
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("error: job 0") == 1  # which does not end the search
    best = OmegaConf.load("all/optimization_results.yaml").best_value
    found = []
    for summary in Path("all").glob("*lr-*/summary.json"):
        run = Run(summary.parent)
        epoch = run.read_json("summary.json")["best_epoch"]
        row = run.history()[epoch - 1]
        found.append(row["val_loss"] + 1e6 * (1 - row["feasible"]))
    assert len(found) == 2
    assert best == min(found)


def test_settings_of_the_call_make_no_other_method():
    plain, named = (
        OmegaConf.to_container(composed(*TINY, *given), resolve=False)
        for given in ([], ["sweep=all", "retry=true", "dry_run=true"])
    )
    assert plain != named
    saved = {name: value for name, value in plain.items() if name not in OF_THE_CALL}
    assert method_key(plain) == method_key(named) == method_key(saved)
    # neither does how it is computed or logged
    recorded = plain | {"cuda_graph": True, "logger": "tensorboard"}
    before = {name: value for name, value in plain.items() if name not in ("cuda_graph", "logger")}
    assert method_key(recorded) == method_key(before) == method_key(plain)


@pytest.mark.parametrize(
    ("launcher", "quiet"),
    [([], False), (["launcher=local"], True), (["hydra/launcher=submitit_local"], True)],
)
def test_jobs_at_once_show_no_progress_bars(launcher, quiet):
    HydraConfig.instance().set_config(composed(*launcher, hydra=True))
    assert sweep.at_once() is quiet


def composed(*overrides, hydra=False):
    resolvers.register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=hydra)
