"""Checksums by which the files of a run tell that they are what was written, and of which run.

They are against damage and mistakes, not against malice: whoever forges a file can forge its checksum.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

LARGEST, DEEPEST = 2**18, 50  # bytes and levels of a config.yaml
CHECKSUM_LINE = "# sha256 of the lines above: "
# settings that may change while a run stays what it is
FREE = ("training.stop_after", "device", "threads", "cuda_graph", "logger", "resume", "data.root")


class Broken(ValueError):
    """A checksum that does not match."""


def identity(config: DictConfig) -> str:
    """A hash of all settings that make a run what it is."""
    kept = json.loads(json.dumps(OmegaConf.to_container(config), default=str))
    for key in FREE:
        *groups, name = key.split(".")
        inner: Any = kept
        for group in groups:
            inner = inner.get(group)
            inner = inner if isinstance(inner, dict) else {}
        inner.pop(name, None)
    return _sha256(json.dumps(kept, sort_keys=True))[:16]


def checksum(run: str, name: str, value: Mapping[str, Any]) -> str:
    """Of what a JSON file holds, with its name and the :func:`identity` of its run."""
    plain = json.loads(json.dumps(value))  # as it will be read: keys are text, tuples are lists
    return _sha256(json.dumps([run, name, plain], sort_keys=True))[:16]


def stamped(run: str, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` with its :func:`checksum` as ``check``."""
    return {**value, "check": checksum(run, name, value)}


def config_text(config: DictConfig) -> str:
    """``config`` as YAML, its checksum in the last line."""
    body = OmegaConf.to_yaml(config)
    return f"{body}{CHECKSUM_LINE}{_sha256(body)}\n"


def read_config(path: Path) -> DictConfig:
    """The configuration in ``path``, without calling anything.

    Errors: :class:`Broken` if its last line is a checksum that does not match; ``ValueError`` for what
    is no plain YAML; what the YAML parser raises.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"larger than {LARGEST} bytes")
    text = path.read_text(encoding="utf-8")
    body, line, found = text.rpartition(CHECKSUM_LINE)
    if line and found.strip() != _sha256(body):
        raise Broken
    _check_plain(text)
    config = OmegaConf.load(io.StringIO(text))
    if not isinstance(config, DictConfig):
        raise ValueError("not a mapping")
    return config


def _check_plain(text: str) -> None:
    """Errors: ``ValueError`` for YAML that does more than say: a configuration is saved resolved, and
    what is nested without end, refers to itself or to the environment was put there by others."""
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("an alias, where all is written out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
    if "${" in text:
        raise ValueError("an interpolation ${...}, where all is resolved")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
