"""How the reproduce scripts run their commands."""

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
