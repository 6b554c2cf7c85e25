"""The page of a report: one HTML file that opens from disk, without a network."""

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from omegaconf import OmegaConf

from sdunroll.report.collect import Record
from sdunroll.report.grouping import Method
from sdunroll.report.table import Table
from sdunroll.report.writers import interval_note, shown

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #0a64ad; }
@media (prefers-color-scheme: dark) { :root { --accent: #7fc1ff; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 90rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
a, th button { color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 14rem;
  overflow-wrap: break-word; }
th button { all: unset; cursor: pointer; color: var(--accent); }
th button:focus-visible { outline: 2px solid var(--accent); }
td.best { font-weight: 700; }
p, summary, pre { overflow-wrap: anywhere; } pre { white-space: pre-wrap; background: var(--soft);
  padding: .7rem; font-size: .85rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #fff; cursor: zoom-in;
  border-radius: 4px; }
dialog { max-width: 98vw; max-height: 98vh; padding: .5rem; } dialog img { width: 92vw;
  max-height: 92vh; object-fit: contain; background: #fff; cursor: zoom-out; }
.notice { border-left: 3px solid var(--accent); padding-left: .7rem; }
"""

SCRIPT = """
for (const button of document.querySelectorAll('th button')) {
  button.addEventListener('click', () => {
    const head = button.closest('th'), table = head.closest('table');
    const place = [...head.parentNode.children].indexOf(head);
    const up = head.getAttribute('aria-sort') !== 'ascending';
    for (const other of table.querySelectorAll('th')) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const value = row => row.children[place].dataset.value ?? row.children[place].textContent;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  });
}
const dialog = document.querySelector('dialog');
for (const image of document.querySelectorAll('figure img')) {
  image.addEventListener('click', () => {
    dialog.replaceChildren(image.cloneNode());
    dialog.showModal();
  });
}
dialog.addEventListener('click', () => dialog.close());
"""


def page(
    tables: Sequence[Table],
    figures: Mapping[str, Path],
    methods: Sequence[Method],
    records: Sequence[Record],
    notices: Sequence[str],
) -> str:
    """The HTML of a report.

    Args:
        figures: the PNG that belongs to a table, by the table's name.
        records: all runs, finished or not.
        notices: what must be said of the data.
    """
    unfinished = sum(record.summary is None for record in records)
    count = f"{len(records)} runs, {len(methods)} methods"
    count += f", {unfinished} of the runs not finished" if unfinished else ""
    parts = [f"<h1>sdunroll report</h1><p>{escape(count)}</p>"]
    parts += [f'<p class="notice">Data: {escape(notice)}.</p>' for notice in notices]
    for table in tables:
        parts.append(_table(table))
        if table.name in figures:
            parts.append(_figure(table, figures[table.name]))
    parts += ["<h2>Methods and how to repeat them</h2>", *map(_method, methods)]
    parts += ["<h2>Runs</h2>", *map(_run, records)]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>sdunroll report</title><style>{STYLE}</style></head><body>",
            *parts,
            f"<dialog></dialog><script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def _table(table: Table) -> str:
    titles = ["method", *(column.title for column in table.columns)]
    head = "".join(f"<th><button>{escape(title)}</button></th>" for title in titles)
    rows = []
    for row, name in enumerate(table.rows):
        cells = [f"<td>{escape(name)}</td>"]
        for column in table.columns:
            cell = column.cells[row]
            best = ' class="best"' if row in column.best() else ""
            value = "" if cell is None else repr(cell.mean)
            cells.append(f'<td{best} data-value="{value}">{escape(shown(column, row))}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title = table.name.replace("perturb_", "perturbation: ").replace("_", " ")
    return (
        f'<h2 id="{table.name}">{escape(title.capitalize())}</h2>'
        f"<p>{escape(table.caption)} {interval_note(table)}</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(table: Table, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(table.caption, quote=True)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"></figure>'


def _method(method: Method) -> str:
    alone = [record.seeds for record in method.records]
    if all(len(seeds) == 1 for seeds in alone):
        values = ",".join(str(seeds[0][1]) for seeds in alone)
        calls = [("-m " if len(alone) > 1 else "", [f"seed={values}"])]
    else:  # a sweep would be of all their combinations
        calls = [("", [f"{key}={value}" for key, value in seeds]) for seeds in alone]
    first = method.records[0]
    commands = [
        f"sdunroll train {several}{shlex.join([*first.config_folder, *first.overrides, *seeds])}"
        for several, seeds in calls
    ]
    return f"<p>{escape(method.name)}</p><pre>{escape(chr(10).join(commands))}</pre>"


def _run(record: Record) -> str:
    state = "finished" if record.summary is not None else "not finished"
    notes = "".join(f"<p>{escape(note)}</p>" for note in record.notes)
    config = OmegaConf.to_yaml(OmegaConf.create(record.config))
    provenance = json.dumps(record.provenance, indent=1)
    return (
        f"<details><summary>{escape(str(record.folder))}: {state}</summary>{notes}"
        f"<pre>{escape(config)}</pre><pre>{escape(provenance)}</pre></details>"
    )
