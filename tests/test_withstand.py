"""A few trials of the harness of faults; all of them are ``python scripts/withstand.py``."""

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
