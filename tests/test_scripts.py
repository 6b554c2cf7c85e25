"""How the reproduce scripts run their commands."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.conftest import TINY

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
ENDLESS = [item for item in TINY if "epochs" not in item] + ["training.epochs=30000"]

TRAINS = f"""
import commands
commands.IMPORTED = []  # for one command
call = commands.Commands(threads=1)
commands.run_script(lambda: call(["train", *{ENDLESS}, "hydra.run.dir=run"]))
"""


def test_a_signal_to_the_script_alone_ends_its_command_too(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    script = subprocess.Popen(
        [sys.executable, "-c", TRAINS], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    try:
        while not checkpoint.exists():
            assert script.poll() is None, script.stderr.read()
            time.sleep(0.05)
        script.send_signal(signal.SIGINT)
        said, errors = script.communicate(timeout=60)
        assert script.returncode == 130
        assert errors == "interrupted; the same command goes on from here\n"
        assert said.startswith("sdunroll train data.size=6 ")
        assert "interrupted in epoch" in (tmp_path / "run" / "train.log").read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
