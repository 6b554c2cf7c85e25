"""The tables of a report as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable

from sdunroll.report.table import Cell, Column, Table


def shown(column: Column, row: int, plus_minus: str = "±") -> str:
    """A cell as text: the mean and the half width of its interval, if it has one."""
    cell = column.cells[row]
    if cell is None:
        return ""
    text = f"{cell.mean:.{column.digits}f}"
    return text if cell.half is None else f"{text} {plus_minus} {cell.half:.{column.digits}f}"


def markdown(table: Table) -> str:
    """A Markdown table, the best of each column in bold."""
    lines = [["method", *(column.title for column in table.columns)]]
    lines.append(["---"] * len(lines[0]))
    for row, name in enumerate(table.rows):
        cells = [
            f"**{shown(column, row)}**" if row in column.best() else shown(column, row)
            for column in table.columns
        ]
        lines.append([name.replace("|", "\\|"), *cells])
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table.caption} {interval_note(table)}\n\n{body}\n"


def interval_note(table: Table) -> str:
    """What the numbers are."""
    if any(cell and cell.half is not None for column in table.columns for cell in column.cells):
        return "Means over the seeds, ± 95 % (Student's t over the seeds); the best in bold."
    return "One seed each; the best in bold."


def comma_separated(table: Table) -> str:
    """CSV: of each column the mean, the half width of the interval and the number of seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    endings = ("", " half width", " seeds")
    writer.writerow(["method", *(c.title + ending for c in table.columns for ending in endings)])
    for row, name in enumerate(table.rows):
        cells = [_numbers(column.cells[row]) for column in table.columns]
        writer.writerow([name, *(number for numbers in cells for number in numbers)])
    return text.getvalue()


def _numbers(cell: Cell | None) -> tuple[str, str, str]:
    if cell is None:
        return "", "", ""
    return repr(cell.mean), "" if cell.half is None else repr(cell.half), str(cell.count)


def latex(table: Table) -> str:
    """A LaTeX table for the booktabs package, the best of each column in bold."""
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escaped(f'{table.caption} {interval_note(table)}')}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        _row(["method", *(column.title for column in table.columns)]),
        r"\midrule",
    ]
    for row, name in enumerate(table.rows):
        cells = []
        for column in table.columns:
            text = shown(column, row, r"$\pm$")
            cells.append(rf"\textbf{{{text}}}" if row in column.best() else text)
        lines.append(" & ".join([_escaped(name), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _row(cells: list[str]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _escaped(text: str) -> str:
    """Text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}
    return "".join(special.get(character, character) for character in text)


WRITERS: dict[str, Callable[[Table], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "tex": latex,
}
