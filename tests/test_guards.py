"""``scripts/guards.py`` takes guards out of the code, so it must find them there."""

import sys

import pytest

from scripts import guards
from scripts.guards import GUARDS, ROOT, applies


def test_a_word_that_no_guard_has_is_refused(monkeypatch):
    monkeypatch.setattr(guards, "status", lambda *_: pytest.fail("runs tests"))
    monkeypatch.setattr(sys, "argv", ["guards.py", "--only", "zzz"])
    with pytest.raises(SystemExit, match="--only: expected a word in the name of a guard"):
        guards.main()


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.what)
def test_the_code_has_the_guard_and_its_tests(guard):
    assert applies(guard)
    assert guard.without != guard.text
    assert all((ROOT / "tests" / name).exists() for name in guard.tests.split())


def test_the_readme_knows_how_many():
    assert f"takes each of {len(GUARDS)} guards out" in (ROOT / "README.md").read_text()
