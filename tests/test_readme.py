"""What the README says of results and settings is what the files say."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sdunroll import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


TABLES = "lista settings inference glow_prox lista_family lista_family_snr_20 samples withstand"


@pytest.mark.parametrize("name", TABLES.split())
def test_the_tables_of_results_are_those_that_the_scripts_wrote(name):
    tables = (ROOT / "outputs" / "reference" / f"{name}.md").read_text().strip().split("\n\n")
    assert all(table in README for table in tables)


@pytest.mark.parametrize("name", ["methods", "theory"])
def test_the_tables_of_the_report_are_those_that_it_wrote(name):
    path = ROOT / "outputs" / "reference" / "sparse_coding" / "tables" / f"{name}.md"
    table = [line for line in path.read_text().splitlines() if line.startswith("|")]
    assert len(table) > 10
    assert "\n".join(table) in README


def test_every_picture_is_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(pictures) >= 3
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_the_two_commands_stand_as_they_are():
    assert (
        "pip install -c constraints.txt -e . && sdunroll train problem=lista constrained=true"
        in README
    )
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in README
    assert (
        'pip install --quiet -c constraints.txt -e ".[test]"' in (ROOT / ".ci" / "run").read_text()
    )


def test_the_defaults_in_the_table_of_overrides():
    """Every row with as many defaults as keys is compared with the composed configuration."""
    cli.register_resolvers()
    with initialize_config_dir(str(cli.config_folder()), version_base="1.3"):
        config = compose("train")
    said = {"none": None, "all": None, "true": True, "false": False}
    compared = 0
    for line in README.split("| override |")[1].split("| perturbation | what")[0].splitlines():
        if not line.startswith("| `"):
            continue
        keys, defaults = (cell.strip() for cell in line.split("|")[1:3])
        names = re.findall(r"`([^`]+)`", keys)
        values = [value.strip().strip("`") for value in defaults.split(",")]
        prefix = names[0].rsplit(".", 1)[0] + "." if "." in names[0] else ""
        if len(names) != len(values):
            continue
        for name, value in zip(names, values, strict=True):
            key = name if "." in name or not prefix else prefix + name
            actual = OmegaConf.select(config, key)
            if OmegaConf.is_config(actual) or (actual is None and value not in said):
                continue  # a group's choice
            expected = said.get(value, value)
            assert actual == expected or str(actual) == value or float(actual) == float(value), key
            compared += 1
    assert compared >= 20
