"""Overrides at random: one line or a run, no traceback, no file outside the working directory."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdunroll import cli
from sdunroll.suggest import known_keys
from tests.conftest import TINY

KEYS = sorted(
    key
    for key in known_keys(cli.config_folder(), "train")
    if not key.startswith(("hydra", "resume"))
)
ODD = [
    "", "null", "nan", "inf", "-inf", "-1", "0", "1", "0.5", "true", "???", "[]", "{}", "[1,2]",
    "{a:1}", "{_target_:os.getcwd}", "os.system", "../../out", "/dev/null", "${seed}", "${data}",
    "${oc.env:HOME}", "${sdunroll.run_dir:a,b}", "${", "'", '"', "a=b", "1e400", "9" * 30, "é", "\x00",
]  # fmt: skip
VALUES = st.one_of(st.sampled_from(ODD), st.text(max_size=8))
OVERRIDES = st.one_of(
    st.builds(
        "{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), st.sampled_from(KEYS), VALUES
    ),
    st.text(max_size=20),
)


@pytest.mark.parametrize("command", ["train", "eval", "perturb", "report"])
def test_any_override_is_one_line_or_a_run(sdunroll, tmp_path, command):
    base = {"train": TINY, "report": ["runs=nowhere"]}.get(command, ["run=nowhere"])
    before = set(tmp_path.parent.iterdir())

    @settings(
        max_examples=12,
        deadline=20_000,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(OVERRIDES, min_size=1, max_size=3))
    def run(overrides):
        outcome = sdunroll(command, *base, *overrides)
        assert outcome.status in (0, 1), (overrides, outcome.err)
        assert "Traceback" not in outcome.err + outcome.out
        if outcome.status == 1:
            lines = [line for line in outcome.err.splitlines() if line.startswith("error:")]
            assert len(lines) == 1, (overrides, outcome.err)
            assert "SDUNROLL_TRACEBACK" not in lines[0], (overrides, lines)

    run()
    assert set(tmp_path.parent.iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "cache"}
    assert {path.name for path in Path(tmp_path / "work").iterdir()} <= {"outputs"}
    assert not os.path.exists(tmp_path.parent.parent / "out")
