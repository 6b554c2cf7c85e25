"""``scripts/guards.py`` takes guards out of the code, so it must find them there."""

import pytest

from scripts.guards import GUARDS, ROOT, applies


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.what)
def test_the_code_has_the_guard_and_its_tests(guard):
    assert applies(guard)
    assert guard.without != guard.text
    assert all((ROOT / "tests" / name).exists() for name in guard.tests.split())


def test_the_readme_knows_how_many():
    assert f"takes each of {len(GUARDS)} guards out" in (ROOT / "README.md").read_text()
