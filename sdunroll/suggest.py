"""What a refused override most likely meant."""

import re
from difflib import get_close_matches
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from sdunroll.checks import override


def explain(error: Exception, configs: Path, command: str, arguments: list[str]) -> str:
    """One line for an error of Hydra or OmegaConf: what came, what was expected, what to do."""
    text = " ".join(str(error).split())
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        name = missing.group(1)
        return (
            f"{name}: expected a value, got none; give {name}=... (see sdunroll {command} --help)"
        )
    where = re.search(r"full_key: (\S+)", text)
    if where and not isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"{where.group(1)}: {text.partition(' full_key:')[0]}"
    if key := re.search(r"Could not override '([^']+)'|full_key: (\S+)|Key '([^']+)'", text):
        return _unknown_key(next(filter(None, key.groups())), configs, command)
    if plugin := re.search(r"Could not find 'hydra/(\w+/\w+)'", text):
        return _missing_plugin(plugin.group(1), text)
    if choice := re.search(r"Could not find '([^']+)'", text):
        return _unknown_choice(choice.group(1), [configs, *own_configs(arguments)])
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, command)
    return f"{text} (see sdunroll {command} --help)"


def _unreadable(typed: str, command: str) -> str:
    """An override that Hydra's grammar does not know."""
    name, equals, value = typed.partition("=")
    if equals and re.fullmatch(r"[+~]*[\w./@]+", name):
        remedy = f"quote text for Hydra and for the shell: {override(name, value)}"
        if value.startswith(("[", "(")):
            remedy = f"a list is written '{name}=[1,2]'"
        return f"{name}: expected a value that Hydra can read, got {value}; {remedy}"
    if not equals and command != "train":
        key = "runs" if command == "report" else "run"
        return f"{typed}: expected key=value; did you mean {key}={typed}?"
    return (
        f"override {typed!r}: expected key=value, got something else; quote it for the shell if it holds "
        "spaces, brackets or commas"
    )


PLUGINS = {  # what a choice of ours needs, the extra that brings it
    "launcher/joblib": ("launcher=local", "sweep"),
    "launcher/submitit_slurm": ("launcher=slurm", "slurm"),
    "launcher/submitit_local": ("hydra/launcher=submitit_local", "slurm"),
    "sweeper/optuna": ("sweeper=optuna", "optuna"),
}


def _missing_plugin(choice: str, text: str) -> str:
    if choice not in PLUGINS:
        return text
    name, extra = PLUGINS[choice]
    return f"{name}: expected a plugin of Hydra's that is not installed; pip install 'sdunroll[{extra}]'"


def _unknown_key(key: str, configs: Path, command: str) -> str:
    known = known_keys(configs, command)
    if owners := known.get(key):
        return f"{key}: belongs to {' or '.join(owners)}; choose that too, or leave the key out"
    last = key.split(".")[-1]
    same = [name for name in known if name.split(".")[-1] == last]  # a right name in a wrong place
    near = same[:1] or get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{key}: no such key{hint} (sdunroll {command} --cfg job shows all keys)"


def own_configs(arguments: list[str]) -> list[Path]:
    """The folders that the user gave with ``--config-dir``, if any."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    return [
        Path(following if argument in ("--config-dir", "-cd") else argument.split("=", 1)[1])
        for argument, following in pairs
        if argument in ("--config-dir", "-cd") or argument.startswith("--config-dir=")
    ]


def _unknown_choice(choice: str, folders: list[Path]) -> str:
    group, _, name = choice.rpartition("/")
    options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    if not options:
        return f"{choice}: no such config; see --help for the groups"
    near = get_close_matches(name, options, n=1)
    hint = f"; did you mean {group}={near[0]}?" if near else ""
    return f"{group}: expected one of {', '.join(options)}, got {name!r}{hint}"


def known_keys(configs: Path, command: str) -> dict[str, list[str]]:
    """Every dotted key of the command's configuration, with the choices it needs (none: any)."""
    keys: dict[str, list[str]] = {}
    main = OmegaConf.load(configs / f"{command}.yaml")
    assert isinstance(main, DictConfig)
    defaults = main.pop("defaults")
    main.pop("hydra", None)
    for key in _flatten(main, ""):
        keys[key] = []
    for entry in defaults:
        group = str(next(iter(entry))) if isinstance(entry, DictConfig) else "override"
        if group.startswith("override"):
            continue
        keys[group] = []
        if group == "experiment":  # settings of keys that belong to others
            continue
        for path in sorted((configs / group).glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            config = OmegaConf.create(text)
            assert isinstance(config, DictConfig)
            config.pop("defaults", None)
            config.pop("hydra", None)
            prefix = "" if "@package _global_" in text else f"{group}."
            for key in _flatten(config, prefix):
                if keys.get(key) != []:  # not one of the command's own
                    keys.setdefault(key, []).append(f"{group}={path.stem}")
    return keys


def _flatten(config: DictConfig, prefix: str) -> list[str]:
    keys = []
    for name in map(str, config):
        keys.append(f"{prefix}{name}")
        value = config._get_node(name)
        if isinstance(value, DictConfig):
            keys += _flatten(value, f"{prefix}{name}.")
    return keys
