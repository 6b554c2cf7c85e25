"""Takes each guard out, one at a time, and runs the tests that should notice.

    python scripts/guards.py [--only WORD]

Works on a copy of the checkout, in which these tests must pass while all guards are there. Prints a row a
guard; exit status 1 if one was not missed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("sdunroll", "configs", "tests", "scripts", "README.md", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard: where it stands, what replaces it, and which tests should fail then.

    Attributes:
        what: in words.
        file: in ``sdunroll/``.
        text, without: its code, found once in the file, and the code with the guard taken out.
        tests: below ``tests/``.
    """

    what: str
    file: str
    text: str
    without: str
    tests: str


GUARDS = [
    Guard(
        "a file is put in place whole", "cache.py",
        "        temporary.replace(path)\n",
        "        path.write_bytes(temporary.read_bytes())\n",
        "test_withstand.py test_cache.py",
    ),
    Guard(
        "a record of a checkpoint has a CRC", "cache.py",
        "            damaged = archive.testzip()\n", "            damaged = None\n",
        "test_cache.py commands/test_damage.py",
    ),
    Guard(
        "a cache entry names what it is", "cache.py",
        'entry.get("key") != text', "False", "test_cache.py",
    ),
    Guard(
        "two processes do not make one cache entry", "cache.py",
        "            lock.acquire()\n", "            pass\n", "test_cache.py",
    ),
    Guard(
        "a configuration has a checksum", "seals.py",
        "if line and found.strip() != _sha256(body):", "if False:", "commands/test_damage.py",
    ),
    Guard(
        "results have a checksum", "runs.py",
        "if self.format != UNCHECKED and check != seals.checksum(self.identity, name, value):",
        "if False:", "commands/test_damage.py",
    ),
    Guard(
        "a row of the history has a checksum", "runs.py",
        "if self.format != UNCHECKED and cells[-1] != self._row_check(cells[:-1]):",
        "if False:", "commands/test_damage.py",
    ),
    Guard(
        "a checkpoint belongs to its run", "runs.py",
        "if self.format != UNCHECKED and any(state.get(key) != own[key] for key in own):",
        "if False:", "commands/test_damage.py",
    ),
    Guard(
        "a damaged last checkpoint falls back", "runs.py",
        '                state = self.load_checkpoint("previous")\n', "                raise error\n",
        "commands/test_damage.py",
    ),
    Guard(
        "rows of an unfinished epoch are cut off", "runs.py",
        "kept = lines[: epochs + 1]", "kept = lines", "commands/test_commands.py",
    ),
    Guard(
        "a run directory that is gone is not made again", "runs.py",
        '        if not (self.folder / "config.yaml").is_file():\n            raise RunError(\n'
        '                f"{self.folder}: the run directory is gone',
        '        if False:\n            raise RunError(\n'
        '                f"{self.folder}: the run directory is gone',
        "commands/test_damage.py",
    ),
    Guard(
        "a run directory is not overwritten", "runs.py",
        'for name in ("last", "previous")):', "for name in ()):", "commands/test_failures.py",
    ),
    Guard(
        "one process at a time", "lock.py",
        "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "            pass\n",
        "test_lock.py",
    ),
    Guard(
        "a signal waits for the end of a step", "interrupt.py",
        "            caught.append(number)\n", "            act(number)\n", "test_interrupt.py",
    ),
    Guard(
        "a configuration names nothing but what is trusted", "trust.py",
        "    if strangers:\n", "    if False:\n", "test_trust.py",
    ),
    Guard(
        "a module's attribute is not what the module imports", "trust.py",
        '    if not _within(f"{found.__module__}.{name}", allowed):\n', "    if False:\n",
        "test_trust.py",
    ),
    Guard(
        "checkpoints hold weights alone", "cache.py",
        'torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)',
        'torch.load(path, map_location="cpu", weights_only=False, mmap=mapped)',
        "test_cache.py commands/test_damage.py",
    ),
    Guard(
        "a packed checkpoint does not fill the memory", "cache.py",
        "            if any(record.compress_type for record in archive.infolist()):\n",
        "            if False:\n", "test_cache.py commands/test_damage.py",
    ),
    Guard(
        "a configuration is plain YAML", "seals.py", "    _check_plain(text)\n", "",
        "commands/test_damage.py test_trust.py",
    ),
    Guard(
        "an archive does not fill the memory", "data/cifar10.py",
        "    if len(unpacked) > LARGEST_ARCHIVE:\n", "    if False:\n", "data/test_cifar10.py",
    ),
    Guard(
        "a member of an archive is a file of whole pictures", "data/cifar10.py",
        "if file is None or member.size > LARGEST or member.size % ROW:", "if file is None:",
        "data/test_cifar10.py",
    ),
    Guard(
        "a picture does not fill the memory", "data/image_folder.py",
        '            warnings.simplefilter("error", Image.DecompressionBombWarning)\n',
        '            warnings.simplefilter("ignore", Image.DecompressionBombWarning)\n',
        "data/test_image_folder.py",
    ),
    Guard(
        "16 bits are not cut off at 255", "data/image_folder.py",
        'if not picture.mode.startswith("I"):', "if True:", "data/test_image_folder.py",
    ),
    Guard(
        "data are finite", "commands/assemble.py", "    if not finite.all():\n", "    if False:\n",
        "test_limits.py",
    ),
    Guard(
        "the Lagrangian is finite", "primal_dual.py",
        "        if not math.isfinite(lagrangian):\n", "        if False:\n",
        "test_primal_dual.py training/test_loop.py",
    ),
    Guard(
        "the gradient is finite", "primal_dual.py",
        "        if not math.isfinite(total):\n", "        if False:\n",
        "test_primal_dual.py training/test_loop.py",
    ),
    Guard(
        "the slack of a dual step is finite", "primal_dual.py",
        '        if (self.waits or self.dual.every == "epoch") and not slack.isfinite().all():\n',
        "        if False:\n", "test_primal_dual.py",
    ),
    Guard(
        "a broken step on a GPU is noted", "primal_dual.py",
        "        finite = value.isfinite() & norm.isfinite()\n",
        "        finite = torch.ones_like(value, dtype=torch.bool)\n",
        "test_primal_dual.py",
    ),
    Guard(
        "a flow's inverse is finite", "metrics.py",
        "            if not math.isfinite(value):\n", "            if False:\n",
        "test_metrics.py commands/test_imaging.py",
    ),
    Guard(
        "a multiplier that grows without end is named", "commands/saving.py",
        "        for row in set(stalled(multipliers, slack)) - self.warned:\n",
        "        for row in ():\n", "test_limits.py",
    ),
    Guard(
        "0 / 0 is descent", "constraints/base.py",
        "        return after / _floor(before, after) - keep\n", "        return after / before - keep\n",
        "test_limits.py constraints",
    ),
]  # fmt: skip


def applies(guard: Guard) -> bool:
    """Whether the code still has the guard, once."""
    return (ROOT / "sdunroll" / guard.file).read_text().count(guard.text) == 1


def status(tests: Iterable[str], copy: Path) -> int:
    """pytest's exit status: 0 if the tests pass in ``copy``, 1 if some fail, more if they do not run."""
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *(f"tests/{name}" for name in tests)],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, check=False,
    ).returncode  # fmt: skip


def missed(guard: Guard, copy: Path) -> bool:
    """Whether tests fail in ``copy`` without the guard."""
    path = copy / "sdunroll" / guard.file
    whole = path.read_text()
    path.write_text(whole.replace(guard.text, guard.without))
    try:
        return status(guard.tests.split(), copy) == 1
    finally:
        path.write_text(whole)


def main() -> int:
    """Print the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="guards with this in their name")
    chosen = [guard for guard in GUARDS if parser.parse_args().only in guard.what]
    if not chosen:
        sys.exit("error: --only: expected a word in the name of a guard, got one in none")
    everyone = True
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
        if status(sorted({name for guard in chosen for name in guard.tests.split()}), copy):
            sys.exit("error: expected tests that pass while all guards are there; mend them first")
        print("| guard | missed |\n| --- | --- |")
        for guard in chosen:
            found = missed(guard, copy)
            everyone &= found
            print(f"| {guard.what} | {'yes' if found else 'NO'} |", flush=True)
    return 0 if everyone else 1


if __name__ == "__main__":
    sys.exit(main())
