"""How the reproduce scripts run their commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
ENDLESS = [item for item in TINY if "epochs" not in item] + ["training.epochs=30000"]

TRAINS = f"""
import commands
commands.IMPORTED = ["own_session"]  # no more for one command
call = commands.Commands(threads=1)
commands.run_script(lambda: call(["train", *{ENDLESS}, "hydra.run.dir=run"]))
"""


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_command_ends_in_good_order_with_the_script(tmp_path, number, status):
    script = subprocess.Popen(
        [sys.executable, "-c", TRAINS], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = tmp_path / "run"
    try:
        wait_for((run / "checkpoints" / "last.pt").exists)
        script.send_signal(number)
        said, errors = script.communicate(timeout=60)
    finally:
        script.kill()
    assert script.returncode == status
    assert said.startswith("sdunroll train data.size=6 ")
    if number != signal.SIGKILL:
        assert errors == "interrupted; the same command goes on from here\n"
    wait_for(lambda: not (run / "train.lock").exists())
    assert "interrupted in epoch" in (run / "train.log").read_text()


def run_beside_scripts(code, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True,
    )  # fmt: skip


GROUPED = """
import json
from pathlib import Path
import studies
levels = {
    "layer_noise": "[0,0.5,1,2,5]", "input_noise": "[0,1]", "adversarial": "[0,0.1,0.2,0.4,0.8]",
    "initial": "[0,1]", "mask_size": "[8,10,12,14,16]", "snr": "[10]",
}
job = studies.Job(studies.Study("name", []), 0, Path("run"), ["seed=0"], levels)
calls = []
studies._call_missing(job, calls.append)
print(json.dumps(calls))
"""


def test_perturbations_share_a_process_where_their_levels_allow(tmp_path):
    """Those that take their own levels, and those that take the same."""
    (tmp_path / "run" / "perturb").mkdir(parents=True)
    (tmp_path / "run" / "perturb" / "mask_size.json").touch()  # done before
    (tmp_path / "run" / "eval").mkdir()
    (tmp_path / "run" / "eval" / "metrics.json").touch()  # stopped before the rest was written
    done = run_beside_scripts(GROUPED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["train", "seed=0", "hydra.run.dir=run"],
        ["perturb", "-m", "run=run", "perturbation=layer_noise,adversarial"],
        ["perturb", "-m", "run=run", "perturbation=input_noise,initial", "levels=[0,1]"],
        ["perturb", "run=run", "perturbation=snr", "levels=[10]"],
        ["eval", "run=run"],
    ]


SEEDED = """
import sys, studies
sys.argv = ["name", "--only", "all", "--seeds", "3"]
parts = {"all": [studies.Study("one", ["problem=lista"])]}
suite = studies.Suite("name", parts, {"small": studies.Scale(["all"], [0, 1], 4, "2 cores")}, "")
studies.Job.state = lambda job: "done" if job.seed in (0, 3) else "missing"
suite.call = lambda arguments: print(arguments[1].count("one_seed"))
print(*[job.seed for job in suite.jobs()], *suite.finished(["all"])["one"])
suite.report("all", ["all"])
"""


def test_seeds_that_are_asked_for_are_reported_beside_the_others(tmp_path):
    done = run_beside_scripts(SEEDED, tmp_path)
    assert done.stdout.split() == ["3", "0", "3", "2"], done.stderr


FEW = """
import sys, studies
sys.argv = ["name", *sys.argv[1:]]
parts = {"all": [studies.Study(name, ["problem=lista"], seeds=seeds)
                 for name, seeds in (("one", None), ("few", [0]))]}
suite = studies.Suite("name", parts, {"small": studies.Scale(["all"], [0, 1], 4, "2 cores")}, "")
print(*[f"{job.study.name}{job.seed}" for job in suite.jobs()])
"""


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], "one0 few0 one1"), (["--seeds", "3"], "one3 few3")]
)
def test_a_study_of_few_seeds_is_made_with_those_that_are_asked_for(arguments, expected, tmp_path):
    done = run_beside_scripts(FEW, tmp_path, *arguments)
    assert done.stdout.strip() == expected, done.stderr


ALONE = """
import sys, studies
sys.argv = ["name", *sys.argv[1:]]
parts = {"all": [studies.Study("one", ["problem=lista"])]}
parts["other"] = parts["paper"] = parts["all"]
scales = {"small": studies.Scale(["all"], [0], 4, "2 cores")}
scales["paper"] = studies.Scale(["paper"], [0], 8200, "a GPU", alone=True)
suite = studies.Suite("name", parts, scales, "")
print("good")
suite.run()
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "paper"], "--only: expected of all, other at --scale small, got paper"),
        (["--scale", "paper", "--only", "all"], "expected of paper at --scale paper, got all"),
        (["--status", "--jobs", "0"], "argument --jobs: expected 1 or more, got 0"),
    ],
)
def test_what_a_scale_does_not_have_is_refused(tmp_path, arguments, said):
    done = run_beside_scripts(ALONE, tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_status_leaves_nothing_behind(tmp_path):
    done = run_beside_scripts(ALONE, tmp_path, "--only", "other", "--status")
    assert done.stdout.startswith("good\nmissing"), done.stderr
    assert not list(tmp_path.iterdir())


SHARED = """
import sys, studies
sys.argv = ["name", "--only", "all", "first"]
one, other = (studies.Study(name, ["problem=lista"]) for name in ("one", "other"))
parts = {"all": [one, other], "first": [one]}
suite = studies.Suite("name", parts, {"small": studies.Scale(["all"], [0], 4, "2 cores")}, "")
print(*[job.study.name for job in suite.jobs()])
"""


def test_a_study_of_several_parts_is_made_once(tmp_path):
    done = run_beside_scripts(SHARED, tmp_path)
    assert done.stdout.split() == ["one", "other"], done.stderr


@pytest.mark.parametrize(
    ("overrides", "then", "message"),
    [
        (
            ["network=prox_cnn", "network.proximal.depth=1"],
            "",
            "one does not exist at this scale: ",
        ),
        (["network.num_layers=0"], "", "sdunroll train network.num_layers=0 seed=0"),
        ([], "suite.call(['report', 'runs=nowhere'])", "sdunroll report runs=nowhere failed:"),
    ],
)
def test_a_failure_is_no_traceback(tmp_path, overrides, then, message):
    code = f"""
import sys, commands, studies
commands.IMPORTED = ["own_session"]  # no more for one command
sys.argv = ["name", "--jobs", "1"]
parts = {{"all": [studies.Study("one", {overrides})]}}
suite = studies.Suite("name", parts, {{"small": studies.Scale(["all"], [0], 4, "2 cores")}}, "")
commands.run_script(lambda: {then or "suite.run()"})
"""
    done = run_beside_scripts(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


COUNTED = """
import sys, studies
sys.argv = ["name", "--jobs", "1"]
studies._make = lambda job, call: job.seed != 1
parts = {"all": [studies.Study("one", ["problem=lista"])]}
scales = {"small": studies.Scale(["all"], [0, 1, 2], 4, "2 cores")}
studies.Suite("name", parts, scales, "").run()
"""


def test_a_suite_says_how_far_it_is_and_goes_on_past_a_failure(tmp_path):
    done = run_beside_scripts(COUNTED, tmp_path)
    assert done.stdout.splitlines() == [
        "3 runs, 3 to do, about 12 minutes on 2 cores",
        "1 of 3 finished, about 0 minutes left",
        "2 of 3 finished, about 0 minutes left",
        "3 of 3 finished, about 0 minutes left",
    ]
    assert done.stderr.startswith("not done: outputs/name/small/one_seed1_")
    assert done.returncode == 1
