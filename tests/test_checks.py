import math
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sdunroll import checks


@pytest.mark.parametrize("value", [1, 7])
def test_integer_accepts(value):
    assert checks.integer("n", value) == value


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True])
def test_integer_refuses(value):
    with pytest.raises(checks.InvalidValue, match=r"n: expected a whole number of at least 1, got"):
        checks.integer("n", value)


@pytest.mark.parametrize("value", [0.5, 0.001, 0.999])
def test_number_accepts(value):
    assert checks.number("eps", value, above=0, below=1) == value


@pytest.mark.parametrize("value", [0, 1, -0.1, 2, math.nan, math.inf, "0.1", None, True])
def test_number_refuses(value):
    with pytest.raises(checks.InvalidValue, match=r"eps: expected a number > 0 and < 1, got"):
        checks.number("eps", value, above=0, below=1)


def test_number_includes_closed_bounds():
    assert checks.number("p", 0, low=0, high=1) == 0
    assert checks.number("p", 1, low=0, high=1) == 1


def test_choice():
    assert checks.choice("mode", "a", ("a", "b")) == "a"
    with pytest.raises(checks.InvalidValue, match="mode: expected one of a, b, got 'c'"):
        checks.choice("mode", "c", ("a", "b"))


def test_folder():
    assert checks.folder("run", "a b") == "a b"
    assert checks.folder("run", 0) == "0"  # as jobs of sweeps are named
    for value in (None, True, 1e-3, ["a"], ""):
        with pytest.raises(checks.InvalidValue, match="run: expected a directory, got"):
            checks.folder("run", value)


@pytest.mark.parametrize(
    "path",
    ["out/run-1.a", "a b", "lr=1e-3,x=[0]", "it's", 'a "b"', "back\\slash", 'a\\"b\\\\', "ü"],
)
def test_an_override_is_read_as_it_was_meant(path):
    (word,) = shlex.split(checks.override("run", path))
    parsed = OverridesParser.create().parse_override(word)
    assert str(parsed.value()) == path


def test_an_override_that_needs_no_quotes_has_none():
    assert checks.override("run", "out/run-1") == "run=out/run-1"


def test_boolean():
    assert checks.boolean("flag", False) is False
    with pytest.raises(checks.InvalidValue, match="flag: expected true or false, got 'yes'"):
        checks.boolean("flag", "yes")
