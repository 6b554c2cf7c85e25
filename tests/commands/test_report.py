"""`sdunroll report` over runs as users leave them: several seeds, unfinished ones, stale results."""

import csv
import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sdunroll.commands.report import _remove_old
from sdunroll.runs import Run
from tests.conftest import TINY, TINY_OF


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the runs of this module are kept once they are made."""
    return tmp_path_factory.mktemp("made") / "runs"


@pytest.fixture
def runs(sdunroll, made):
    """Two seeds constrained and one standard, evaluated and perturbed, and one that left off."""
    if not made.exists():
        _make(sdunroll)
        shutil.copytree("runs", made)
    return Path(shutil.copytree(made, "runs", dirs_exist_ok=True))


def _make(sdunroll):
    for name, overrides in {
        "c0": ["seed=0"],
        "c1": ["seed=1"],
        "s0": ["seed=0", "constrained=false"],
        "half": ["seed=2", "training.stop_after=1"],
    }.items():
        outcome = sdunroll("train", *TINY, *overrides, f"hydra.run.dir=runs/{name}")
        assert outcome.status == 0, outcome.err
    for name in ("c0", "c1", "s0"):
        assert sdunroll("eval", f"run=runs/{name}").status == 0
        assert sdunroll("perturb", f"run=runs/{name}", "levels=[0,1]").status == 0


def read(path):
    return json.loads(Path(path).read_text())


class Page(HTMLParser):
    """The links, pictures, ids and texts of a page, and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_report(runs, sdunroll):
    outcome = sdunroll("report", f"runs={runs}", "hydra.run.dir=out")
    assert outcome.status == 0, outcome.err
    assert outcome.out.strip().splitlines()[-1] == "out"
    assert "half: not finished: 1 of 2 epochs" in outcome.err
    names = {path.name for path in Path("out/tables").iterdir()}
    tables = ("methods", "layers", "perturb_layer_noise", "theory", "cost")
    assert names == {f"{table}.{ending}" for table in tables for ending in ("md", "csv", "tex")}
    figures = {path.name for path in Path("out/figures").iterdir()}
    assert figures == {
        f"{name}.{ending}"
        for name in ("layers", "perturb_layer_noise")
        for ending in ("png", "pdf")
    }
    with Path("out/tables/methods.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == {
        "constrained",
        "constrained=false",
        "ISTA, 3 iterations",
        "FISTA, 3 iterations",
        "ISTA, 1,000 iterations",
        "FISTA, 1,000 iterations",
    }
    distances = [read(runs / name / "summary.json")["final_distance"] for name in ("c0", "c1")]
    row = rows["constrained"]
    assert float(row["final distance"]) == pytest.approx(statistics.mean(distances))
    assert row["final distance seeds"] == "2"
    half = 12.706 * statistics.stdev(distances) / 2**0.5
    assert float(row["final distance half width"]) == pytest.approx(half, rel=1e-3)


def test_the_page_stands_alone_and_tells_how_to_repeat(runs, sdunroll):
    sdunroll("report", f"runs={runs}", "hydra.run.dir=out")
    text = Path("out/index.html").read_text()
    page = Page(text)
    assert not page.open
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == 2
    words = " ".join(page.words)
    assert "4 runs, 2 methods, 1 of the runs not finished" in words
    assert re.search(r"sdunroll train -m .*seed=0,1", words)
    assert re.search(r"sdunroll train .*constrained=false.*seed=0", words)


def test_the_same_results_give_the_same_report(runs, sdunroll):
    for folder in ("one", "two"):
        sdunroll("report", f"runs={runs}", f"hydra.run.dir={folder}")
    files = sorted(path for path in Path("one").rglob("*") if path.is_file())
    assert len(files) == 15 + 4 + 2
    for path in files:
        assert path.read_bytes() == (Path("two") / path.relative_to("one")).read_bytes(), path


def test_results_of_other_weights_are_left_out(runs, sdunroll):
    run = Run(runs / "c0")
    run.write_json("eval/metrics.json", run.read_json("eval/metrics.json") | {"epoch": 99})
    outcome = sdunroll("report", f"runs={runs}", "hydra.run.dir=out")
    assert "left out: eval; call eval and perturb again" in outcome.err
    with Path("out/tables/layers.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["method"] == "constrained")
    assert row["layer 1 seeds"] == "1"


def test_damaged_files_are_named_and_the_rest_is_reported(runs, sdunroll):
    (runs / "c0" / "summary.json").write_text("{")
    (runs / "c1" / "config.yaml").write_text("a: [1")
    outcome = sdunroll("report", f"runs={runs}", "hydra.run.dir=out")
    assert outcome.status == 0
    assert "summary.json: damaged" in outcome.err
    assert "config.yaml: damaged" in outcome.err
    assert "| standard | 1 |" in outcome.out  # the only method that is left
    assert "1 methods" in Path("out/index.html").read_text()


def test_globs_and_lists(runs, sdunroll):
    outcome = sdunroll("report", "runs=runs/c*", "hydra.run.dir=out")
    assert outcome.status == 0
    assert "| 2 |" in outcome.out
    outcome = sdunroll("report", "runs=[runs/c0,runs/s0]", "hydra.run.dir=out2")
    assert "constrained=false" in outcome.out


def test_runs_below_a_run_are_found(runs, sdunroll):
    shutil.copytree(runs / "s0", runs / "c0" / "more")
    outcome = sdunroll("report", "runs=runs/c0", "hydra.run.dir=out")
    assert outcome.status == 0, outcome.err
    assert "constrained=false" in outcome.out


def test_figures_of_cost_and_theory(runs, sdunroll):
    sdunroll("report", f"runs={runs}", "hydra.run.dir=out")
    with Path("out/tables/theory.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    theories = [read(runs / name / "eval/metrics.json")["theory"] for name in ("c0", "c1")]
    for title, values in {
        "zeta": [theory["zeta"] for theory in theories],
        "its bound": [theory["bound"][-1] for theory in theories],
        "share of layers below the bound": [sum(theory["holds"]) / 4 for theory in theories],
    }.items():
        assert float(rows["constrained"][title]) == pytest.approx(statistics.mean(values))
    with Path("out/tables/cost.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    (cost,) = read(runs / "s0/eval/cost.json")["rows"]  # no 1,000 problems in this split
    row = rows["constrained=false"]
    assert float(row["1 problem (ms)"]) == pytest.approx(1000 * cost["seconds"])
    ratio = cost["solvers"]["fista"]["to_objective"]["seconds"] / cost["seconds"]
    assert float(row["1 problem: fista to the same objective (times)"]) == pytest.approx(ratio)


def test_problems_are_reported_apart(sdunroll):
    for name, overrides in {"one": TINY, "two": TINY_OF["glow_prox"]}.items():
        outcome = sdunroll("train", *overrides, f"hydra.run.dir=runs/{name}")
        assert outcome.status == 0, outcome.err
    outcome = sdunroll("report", "runs=runs", "hydra.run.dir=out")
    assert outcome.status == 0, outcome.err
    names = {path.stem for path in Path("out/tables").glob("*methods.md")}
    assert names == {
        "sparse_coding_photos_methods",
        "inverse_imaging_inpainting_faces_methods",
    }
    for name in names:
        assert "| standard |" not in Path(f"out/tables/{name}.md").read_text()


def test_pictures(sdunroll):
    run = sdunroll("train", *TINY_OF["glow_prox"]).run
    assert sdunroll("eval", f"run={run}").status == 0
    outcome = sdunroll("report", f"runs={run}", "hydra.run.dir=out")
    assert outcome.status == 0, outcome.err
    for text in ("PSNR in the hole (dB)", "biharmonic", "data: synthetic faces"):
        assert text in outcome.out
    assert "Data: synthetic faces" in Path("out/index.html").read_text()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("runs=nowhere", "runs: expected run directories at or below nowhere, found none"),
        ("runs=[runs/c0,runs/nope]", "run directories at or below runs/nope, found none"),
        ("runs=3", "runs: expected run directories at or below 3, found none"),
        ("runs=true", "runs: expected a directory, got True"),
        ("runs=[]", "runs: expected a directory"),
    ],
)
def test_refuses(runs, sdunroll, argument, message):
    outcome = sdunroll("report", argument)
    assert outcome.status == 1
    (line,) = outcome.err.strip().splitlines()
    assert message in line


def test_tables_of_an_earlier_report_are_removed_and_no_other_files(tmp_path):
    for name in ("tables", "figures"):
        (tmp_path / name).mkdir()
    names = ["tables/old.md", "tables/new.md", "figures/old.png", "tables/mine.md"]
    for name in [*names, "notes.md"]:
        (tmp_path / name).write_text("")
    for damaged in ("", "[1", '{"a": 1}', "[3]"):
        (tmp_path / "files.json").write_text(damaged)
        _remove_old(tmp_path, {*names[:3], "../notes.md", "notes.md"})
    _remove_old(tmp_path, {"tables/new.md"})
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"tables/new.md", "tables/mine.md", "notes.md", "files.json"}
    assert read(tmp_path / "files.json") == ["tables/new.md"]


def test_nothing_is_finished(sdunroll):
    run = sdunroll("train", *TINY, "training.stop_after=1").run
    outcome = sdunroll("report", f"runs={run}")
    assert outcome.status == 1
    assert "expected at least one finished run, got 1 that are not" in outcome.err
