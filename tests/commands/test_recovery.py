"""The commands on sparse recovery."""

import json
import math

import pytest

from sdunroll import metrics
from tests.conftest import TINY_OF

RECOVERY = TINY_OF["synthetic"]


@pytest.fixture
def trained(train_once):
    return train_once(*RECOVERY)


def read(path):
    return json.loads(path.read_text())


def test_eval_knows_both_nmse_the_support_and_the_oracle(sdunroll, trained):
    outcome = sdunroll("eval", f"run={trained}")
    assert outcome.status == 0, outcome.err
    for title in ("NMSE dB (ratio of means)", "NMSE dB (mean of samples)", "recall", "oracle"):
        assert title in outcome.out
    result = read(trained / "eval" / "metrics.json")
    assert set(result["baselines"]) == {"ista", "fista", "amp", "oracle"}
    for row in result["layers"]:
        assert {"nmse_db", "sample_nmse_db", "precision", "recall", "false_positives"} <= set(row)
    assert result["layers"][0]["nmse_db"]["mean"] == pytest.approx(0, abs=1e-6)  # y_0 = 0
    assert result["baselines"]["oracle"]["precision"]["mean"] == 1
    assert (trained / "eval" / "figures" / "per_layer.png").stat().st_size > 1000


def test_eval_names_a_layer_whose_estimates_are_not_finite(sdunroll, monkeypatch, train_once):
    run = train_once(*RECOVERY)
    evaluate = metrics.evaluate

    def overflowing(*arguments, **settings):
        found = evaluate(*arguments, **settings)
        found.states["distance"][2, 0] = math.inf
        return found

    monkeypatch.setattr(metrics, "evaluate", overflowing)
    outcome = sdunroll("eval", f"run={run}")
    assert outcome.status == 1
    assert "expected finite values, got others after layer 2; train on to the end" in outcome.err


@pytest.mark.parametrize(
    ("name", "levels"),
    [("snr", "[10,20]"), ("sparsity", "[0.1,0.2]"), ("dictionary", "[0,0.1]"),
     ("coefficients", "[1,2]")],
)  # fmt: skip
def test_perturb_by_a_shift(sdunroll, trained, name, levels):
    outcome = sdunroll("perturb", f"run={trained}", f"perturbation={name}", f"levels={levels}")
    assert outcome.status == 0, outcome.err
    rows = read(trained / "perturb" / f"{name}.json")["levels"]
    assert all({"nmse_db", "sample_nmse_db", "final_distance"} <= set(row) for row in rows)
    assert all(len(row["quantiles"]["sample_nmse_db"]) == 5 for row in rows)
    assert rows[0]["nmse_db"] != rows[1]["nmse_db"]


def test_a_shift_of_other_runs_is_refused_in_one_line(sdunroll):
    run = sdunroll("train", *TINY_OF["lista"]).run
    outcome = sdunroll("perturb", f"run={run}", "perturbation=snr")
    assert outcome.status == 1
    assert "expected a run of sparse recovery" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


@pytest.mark.usefixtures("undrawn")
def test_report_compares_networks_by_nmse(sdunroll, trained):
    other = sdunroll("train", *RECOVERY, "network=lista_cp").run
    for run in (trained, other):
        assert sdunroll("eval", f"run={run}").status == 0
    outcome = sdunroll("report", f"runs=[{trained},{other}]")
    assert outcome.status == 0, outcome.err
    assert "NMSE (dB)" in outcome.out


def test_a_stopped_stagewise_run_on_fresh_data_goes_on_exactly(sdunroll):
    whole = sdunroll("train", *RECOVERY).run
    part = sdunroll("train", *RECOVERY, "training.stop_after=4").run
    assert sdunroll("train", f"resume={part}").status == 0
    one, other = (read(run / "summary.json") for run in (whole, part))
    assert one["final_distance"] == other["final_distance"]


def test_fresh_data_need_a_source_that_can_draw(sdunroll):
    outcome = sdunroll("train", *TINY_OF["lista"], "training.fresh=true")
    assert outcome.status == 1
    assert "training.fresh: expected data that can be drawn without end" in outcome.err
