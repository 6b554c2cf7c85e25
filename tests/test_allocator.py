import ctypes
import subprocess
import sys

import pytest

from sdunroll.allocator import keep_freed_memory

COUNT = """
import resource, sys
import torch
from sdunroll.allocator import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(7)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    command = [sys.executable, "-c", COUNT, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 7:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_is_not_asked_for_again():
    """Twenty blocks of 64 MiB, one after the other: most pages are touched anew only without it."""
    assert page_faults("keep") < 0.5 * page_faults("leave")


def test_another_c_library_is_left_as_it_is(monkeypatch):
    def without_mallopt(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", without_mallopt)
    assert keep_freed_memory() is False
