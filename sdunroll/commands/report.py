"""``sdunroll report``: tables, figures and a page over any set of runs, from their saved results."""

import json
import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from sdunroll import checks
from sdunroll.cache import write_atomically
from sdunroll.lock import held
from sdunroll.report import aggregate, collect, curves, grouping
from sdunroll.report.collect import Record
from sdunroll.report.grouping import Method
from sdunroll.report.page import page
from sdunroll.report.writers import WRITERS, markdown

log = logging.getLogger(__name__)


def main(config: DictConfig) -> None:
    """Gather the runs at and below ``config.runs`` and write a report directory."""
    records = collect.find(_patterns(config.runs))
    methods = grouping.methods(records)
    for record in records:
        for note in record.notes:
            log.warning("%s: %s", record.folder, note)
    if not methods:
        raise checks.UserError(
            f"runs: expected at least one finished run, got {len(records)} that are not; wait for "
            "them, or go on with `sdunroll train resume=DIR`"
        )
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    with held(folder / "report.lock"):
        _report(records, methods, folder)
    print(folder)


def _report(records: list[Record], methods: list[Method], folder: Path) -> None:
    """Write the tables, figures and the page of ``methods`` into ``folder``."""
    tables = aggregate.tables(methods)
    notices = sorted({
        notice
        for record in records
        if record.metrics is not None and (notice := record.metrics.get("notice"))
    })  # fmt: skip
    figures, written = {}, set()
    for table in tables:
        for ending, write in WRITERS.items():
            path = folder / "tables" / f"{table.name}.{ending}"
            _write(path, write(table))
            written.add(path)
        if table.axis is not None:
            drawn = curves.draw(table, folder / "figures", axis=table.axis, notices=notices)
            figures[table.name] = drawn[0]
            written.update(drawn)
    _write(folder / "index.html", page(tables, figures, methods, records, notices))
    _remove_old(folder, {path.relative_to(folder).as_posix() for path in written})
    for table in tables:
        if table.name.endswith("methods"):
            print(markdown(table))
    for notice in notices:
        print(f"data: {notice}")


def _remove_old(folder: Path, written: set[str]) -> None:
    """Remove tables and figures that an earlier report has left here and this one has not ``written``,
    which ``files.json`` lists."""
    listing = folder / "files.json"
    try:
        before = set(json.loads(listing.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        before = set()
    for name in before - written:
        path = folder / str(name)
        if path.parent in (folder / "tables", folder / "figures"):
            path.unlink(missing_ok=True)
    _write(listing, f"{json.dumps(sorted(written), indent=1)}\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


def _patterns(given: object) -> list[str]:
    patterns = list(given) if isinstance(given, ListConfig) else [given]
    if not patterns:
        raise checks.InvalidValue(
            f"runs: expected a directory, a glob or a list of them, got {given!r}"
        )
    return [checks.folder("runs", pattern) for pattern in patterns]
