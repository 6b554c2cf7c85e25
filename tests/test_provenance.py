"""Where a run was made: in a checkout, from a wheel, without git."""

import subprocess
from pathlib import Path

import pytest
import torch

from sdunroll import provenance


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    git("init", "--quiet")
    (tmp_path / "runs.py").write_text("")
    git("add", "runs.py")
    git("commit", "--quiet", "-m", "one")
    return tmp_path


def test_a_checkout_and_its_changes(checkout):
    clean = provenance._git_state(checkout)
    assert len(clean["revision"]) == 40
    assert not clean["dirty"]
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "table.md").write_text("results are no changes")
    assert provenance._git_state(checkout) == clean
    (checkout / "runs.py").write_text("changed")
    assert provenance._git_state(checkout) == clean | {"dirty": True}


def test_installed_inside_the_repository_of_somebody_else(checkout):
    package = checkout / "site-packages"
    package.mkdir()
    (package / "runs.py").write_text("")
    assert provenance._git_state(package) is None


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux forgets its peak alone"
)
def test_the_peak_of_memory_is_counted_anew_for_each_run():
    block = bytearray(300 * 2**20)
    assert len(block) > 0
    del block
    before = provenance.peak_memory_bytes()
    provenance.forget_peak_memory()
    assert provenance.peak_memory_bytes() < before - 200 * 2**20


def test_the_peak_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert provenance.peak_gpu_memory_bytes() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    assert provenance.peak_gpu_memory_bytes() == 5


def test_no_repository(tmp_path):
    assert provenance._git_state(tmp_path) is None


def test_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance._git_state(tmp_path) is None


def test_a_package_that_is_not_installed_has_no_version():
    assert provenance._version("torch")
    assert provenance._version("no-such-package") is None
