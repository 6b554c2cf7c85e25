"""A few trials of the harness of faults; all of them are ``python scripts/withstand.py``."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "withstand.py"


def test_a_training_that_is_killed_goes_on_as_if_it_were_not():
    command = [sys.executable, SCRIPT, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [row[1:] for row in rows] == [["1", "0 |"]] * 3
