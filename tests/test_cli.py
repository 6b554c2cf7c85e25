"""Routing, help, completion, plug-ins and start-up of the command line."""

import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import sdunroll as package
from sdunroll import cli
from sdunroll.interrupt import Terminated
from sdunroll.randomness import generator
from tests.conftest import TINY, TINY_OF

README = Path(__file__).resolve().parents[1] / "README.md"


def python(code, *arguments, cwd=None):
    return subprocess.run(
        [sys.executable, *code.split(), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_names_every_command(sdunroll, arguments):
    outcome = sdunroll(*arguments)
    assert outcome.status == 0
    assert all(re.search(rf"^  {name} ", outcome.out, re.M) for name in cli.COMMANDS)


def test_no_command_is_an_error_with_the_help(sdunroll):
    outcome = sdunroll()
    assert outcome.status == 2
    assert "Commands" in outcome.out


def test_version(sdunroll):
    assert sdunroll("--version").out.strip() == package.__version__


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_a_command(sdunroll, command):
    outcome = sdunroll(command, "--help")
    assert outcome.status == 0
    assert outcome.out.startswith(f"sdunroll {command}")
    for part in ("Examples", "Overrides", "runs=" if command == "report" else "seed="):
        assert part in outcome.out


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_cfg_job_shows_the_configuration(sdunroll, tmp_path, command):
    needed = {"train": [], "report": ["runs=x"]}.get(command, ["run=x"])
    outcome = sdunroll(command, "--cfg", "job", *needed)
    assert outcome.status == 0
    assert ("runs: " if command == "report" else "seed: ") in outcome.out
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(("arguments", "heavy"), [("--help", "hydra"), ("train --help", "torch")])
def test_help_imports_nothing_heavy(arguments, heavy):
    code = (
        "import sys; from sdunroll import cli; "
        f"sys.argv = ['sdunroll', *{arguments.split()}]; "
        "status = cli.main(); "
        f"sys.exit(3 if '{heavy}' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_runs_as_a_module_from_any_directory(tmp_path):
    done = python("-m sdunroll", "--version", cwd=tmp_path)
    assert done.stdout.strip() == package.__version__
    assert python("-m sdunroll", "nonsense", cwd=tmp_path).returncode == 2


def complete(line):
    """What Hydra's completion script gets for a line typed so far."""
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(
        [sys.executable, "-m", "sdunroll", "-sc", "query=bash"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sdunroll ", {"train", "eval", "perturb"}),
        ("sdunroll tr", {"train"}),
        ("sdunroll tarin constr", set()),
        ("sdunroll  train  constr", {"constrained=", "constraint=", "constraint."}),
        ("sdunroll train constr", {"constrained=", "constraint=", "constraint."}),
        ("sdunroll train constraint=", {"constraint=distance", "constraint=gradient"}),
        ("sdunroll perturb perturbation=in", {"perturbation=input_noise", "perturbation=initial"}),
    ],
)
def test_completion(line, expected):
    found = set(complete(line))
    assert expected <= found
    assert found or not expected


def test_completion_script_can_be_installed():
    done = python("-m sdunroll", "-sc", "install=bash")
    assert done.returncode == 0
    assert "COMP_LINE" in done.stdout


def blocks(language):
    """The README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("problem", ["lista", "glow_prox", "synthetic"])
def test_the_tour_of_the_readme(sdunroll, problem):
    """Each command of the tour through a problem as it stands there, but for the sizes of a training."""
    (tour,) = [block for block in blocks("bash") if f"sdunroll train problem={problem} " in block
               and "pip install" not in block]  # fmt: skip
    commands = [shlex.split(line, comments=True) for line in tour.splitlines()]
    commands = [words for words in commands if words]
    assert len(commands) >= 4
    # 8x8 has no room for a hole that moves as far as it does there
    small = [item.replace("data.size=8", "data.size=16") for item in TINY_OF[problem]]
    for program, *arguments in commands:
        assert program == "sdunroll"
        given = {item.split("=")[0] for item in arguments}
        sizes = [item for item in small if item.split("=")[0] not in given]
        outcome = sdunroll(*arguments, *(sizes if arguments[0] == "train" else []))
        assert outcome.status == 0, (arguments, outcome.err)


@pytest.mark.usefixtures("undrawn")
def test_the_plug_in_of_the_readme(sdunroll, tmp_path):
    """The example as it stands: one file, one yaml, trained, evaluated, perturbed."""
    folder = tmp_path / "work"
    (code,) = [block for block in blocks("python") if "class StepSizes" in block]
    (config,) = [block for block in blocks("yaml") if "my_network.StepSizes" in block]
    (folder / "my_network.py").write_text(code)
    (folder / "my_configs" / "network").mkdir(parents=True)
    (folder / "my_configs" / "network" / "step_sizes.yaml").write_text(config)
    (command,) = [block for block in blocks("bash") if "step_sizes" in block]
    outcome = sdunroll(*shlex.split(command)[1:], *TINY)
    assert outcome.status == 0, outcome.err
    for command in ("eval", "perturb"):
        refused = sdunroll(command, f"run={outcome.run}")
        assert "add trust=[my_network]" in refused.err
        done = sdunroll(command, f"run={outcome.run}", "trust=[my_network]")
        assert done.status == 0, done.err


def test_the_constraint_and_the_perturbation_of_the_readme(sdunroll, tmp_path):
    folder = tmp_path / "work"
    for name in ("my_constraint", "my_perturbation"):
        (code,) = [block for block in blocks("python") if block.startswith(f"# {name}.py")]
        (folder / f"{name}.py").write_text(code)
    for target in ("my_constraint", "my_perturbation"):
        (config,) = [block for block in blocks("yaml") if f"{target}." in block]
        path = folder / "my_configs" / re.search(r"# my_configs/(\S+)", config)[1]
        path.parent.mkdir(parents=True)
        path.write_text(config)
    own = ["--config-dir", "my_configs"]
    outcome = sdunroll("train", *own, "constraint=squared", "constraint.epsilon=0.2", *TINY)
    assert outcome.status == 0, outcome.err
    done = sdunroll(
        "perturb",
        *own,
        f"run={outcome.run}",
        "perturbation=dropout",
        "levels=[0,0.5]",
        "trust=[my_constraint]",
    )
    assert done.status == 0, done.err
    assert (outcome.run / "perturb" / "dropout.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_operator_of_the_readme(sdunroll, tmp_path):
    """Its adjoint too, since the text says that A is its own."""
    folder = tmp_path / "work"
    (code,) = [block for block in blocks("python") if block.startswith("# my_operator.py")]
    (folder / "my_operator.py").write_text(code)
    (config,) = [block for block in blocks("yaml") if "my_operator." in block]
    (folder / "my_configs" / "operator").mkdir(parents=True)
    (folder / "my_configs" / "operator" / "super_resolution.yaml").write_text(config)
    kept = [item for item in TINY_OF["glow_prox"] if not item.startswith("operator")]
    own = ["--config-dir", "my_configs", "operator=super_resolution"]
    outcome = sdunroll("train", *own, *kept)
    assert outcome.status == 0, outcome.err
    assert sdunroll("eval", f"run={outcome.run}", "trust=[my_operator]").status == 0
    namespace = {}
    exec(code, namespace)
    operator = namespace["SuperResolution"]()
    y, x = torch.rand(2, 2, 3, 6, 6, generator=generator(0, "x"), dtype=torch.float64)
    left, right = (operator(y, y) * x).sum(), (y * operator.adjoint(x, x)).sum()
    assert left.item() == pytest.approx(right.item())


@pytest.mark.usefixtures("undrawn")
def test_the_problem_of_the_readme(sdunroll, tmp_path):
    """Own data, problem and network as they stand there, and the gradient as finite differences have it."""
    folder = tmp_path / "work"
    for name in ("toy_spectra", "my_unmixing"):
        (code,) = [block for block in blocks("python") if block.startswith(f"# {name}.py")]
        (folder / f"{name}.py").write_text(code)
    configs = [block for block in blocks("yaml") if "my_unmixing." in block]
    assert len(configs) == 3
    for config in configs:
        path = folder / re.search(r"# (my_configs/\S+)", config)[1]
        path.parent.mkdir(parents=True)
        path.write_text(config)
    (commands,) = [block for block in blocks("bash") if "problem=unmixing" in block]
    make, train = (shlex.split(line) for line in commands.splitlines())
    assert python(*make[1:]).returncode == 0
    outcome = sdunroll(*train[1:], "training.epochs=8", "device=cpu")
    assert outcome.status == 0, outcome.err
    loaded = [f"run={outcome.run}", "trust=[my_unmixing]"]
    assert sdunroll("eval", *loaded).status == 0
    attacked = sdunroll(
        "perturb", *loaded, "perturbation=adversarial", "levels=[1]", "num_samples=50"
    )
    assert attacked.status == 0, attacked.err
    figures = json.loads((outcome.run / "eval" / "metrics.json").read_text())
    distances = [row["distance"]["mean"] for row in figures["layers"]]
    assert distances[-1] < figures["baselines"]["projected_gradient"]["distance"]["mean"] / 2

    namespace = {}
    exec((folder / "my_unmixing.py").read_text(), namespace)
    rng = generator(0, "unmixing")
    draw = partial(torch.rand, generator=rng, dtype=torch.float64)
    unmixing = namespace["Unmixing"](draw(6, 4))
    y, obs = draw(3, 4), draw(3, 6)
    shifts = 1e-6 * torch.eye(4, dtype=torch.float64)
    rises = [unmixing.objective(y + e, obs) - unmixing.objective(y - e, obs) for e in shifts]
    assert torch.allclose(unmixing.gradient(y, obs), torch.stack(rises, 1) / 2e-6, atol=1e-8)
    _, target = unmixing.instances(obs)
    assert unmixing.gradient(target.double(), obs).abs().max() < 1e-5


def test_the_overrides_of_the_readme_exist():
    """Every key in the README's table of overrides is a key of some command's configuration."""
    from sdunroll.suggest import known_keys

    known = {key for command in cli.COMMANDS for key in known_keys(cli.config_folder(), command)}
    table = README.read_text().split("| override |")[1].split("| perturbation | what")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    for cell in first_cells:
        prefix = ""
        for key in re.findall(r"`([^`]+)`", cell):
            full = key if "." in key or not prefix else f"{prefix}.{key}"
            assert full in known or key in known, key
            prefix = key.rsplit(".", 1)[0] if "." in key else prefix


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ValueError("Config group override value type cannot be int"),
            "Config group override value type cannot be int; quote a name that reads as a number: "
            "'dual=\"1\"'",
        ),
        (
            RuntimeError("out of memory\nException raised from allocate"),
            "RuntimeError: out of memory; set SDUNROLL_TRACEBACK=1 to see where",
        ),
        (
            OSError(28, "No space left on device"),
            "[Errno 28] No space left on device; check the path, its permissions and the room on the disk",
        ),
    ],
)
def test_errors_of_others_are_one_line_with_a_remedy(error, line):
    assert cli.one_line(error, "train", []) == line


@pytest.mark.parametrize(
    ("stop", "status"), [(KeyboardInterrupt(), 130), (Terminated(), 143), (BrokenPipeError(), 1)]
)
def test_stopped_from_outside(sdunroll, monkeypatch, stop, status):
    def stopped(config):
        raise stop

    monkeypatch.setattr("sdunroll.commands.report.main", stopped)
    monkeypatch.setattr("os.dup2", lambda *_: None)  # would close this process's own output
    outcome = sdunroll("report", "runs=outputs")
    assert outcome.status == status
    assert outcome.err == ("" if status == 1 else "interrupted\n")


@pytest.mark.parametrize("place", ["sdunroll.commands.report.main", "sdunroll.cli._application"])
def test_what_fails_because_of_an_interruption_is_one(sdunroll, monkeypatch, place):
    def in_the_middle(_):
        try:
            raise Terminated
        finally:
            None.flags = 0  # of something half done

    monkeypatch.setattr(place, in_the_middle)
    outcome = sdunroll("report", "runs=outputs")
    assert (outcome.status, outcome.err) == (143, "interrupted\n")


def test_a_reader_that_leaves_is_no_error(tmp_path):
    """`sdunroll train --cfg job | head -1`, where head is gone before we write."""
    command = [sys.executable, "-m", "sdunroll", "train", "--cfg", "job"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1
