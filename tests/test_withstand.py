"""A few trials of the harness of faults; all of them are ``python scripts/withstand.py``."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "withstand.py"

LONG = """
import sys
from pathlib import Path
import torch
from long_run import long_training
torch.set_num_threads(1)
print(long_training(Path.cwd(), 150, timed=False))
"""


def test_a_training_that_is_killed_goes_on_as_if_it_were_not():
    command = [sys.executable, SCRIPT, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [row[1:] for row in rows] == [["1", "0 |"]] * 3


def test_nothing_grows_with_the_epochs(tmp_path):
    """Memory, open files and the run directory over 150 epochs; 2,000 are the harness's."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, "-c", LONG]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "None\n"


def test_a_leak_is_told_from_a_file_that_is_just_being_written(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    long_run = importlib.import_module("long_run")

    def samples(open_files):
        return [
            long_run.Sample(epoch, memory=2**20, open_files=open_files(epoch), files={"last.pt": 9})
            for epoch in range(100)
        ]

    assert long_run.grown(samples(lambda epoch: 6 + (epoch == 85)), 100) is None
    leak = long_run.grown(samples(lambda epoch: 6 + epoch // 10 + epoch % 2), 100)
    assert leak == "open files went from 8 to 14"
