"""What the curves of a report show, read back from matplotlib's own objects."""

import matplotlib
import pytest
from matplotlib.figure import Figure

from sdunroll.report import curves, figures
from sdunroll.report.aggregate import Cell, Column, Table

matplotlib.use("agg")


def draw(monkeypatch, tmp_path, rows):
    """The axes of a figure with a line a row, of one number a column; None where there is none."""
    drawn = []
    monkeypatch.setattr(curves, "_save", lambda figure, path: drawn.append(figure) or path)
    cells = [[None if mean is None else Cell(mean, None, 1) for mean in row] for row in rows]
    columns = [
        Column(f"layer {place}", list(column), better="low")
        for place, column in enumerate(zip(*cells, strict=True))
    ]
    names = [f"method {place}" for place in range(len(rows))]
    curves.draw(Table("name", "A caption.", names, columns), tmp_path, axis="layer", notices=[])
    return drawn[0].axes[0]


def test_a_method_without_a_figure_has_no_line(monkeypatch, tmp_path):
    axes = draw(monkeypatch, tmp_path, [[3.0, 2.0], [None, None], [None, 1.0]])
    shown = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert shown == {"method 0": [[0, 3], [1, 2]], "method 2": [[1, 1]]}


@pytest.mark.parametrize(
    ("means", "scale"), [([4.0, 1.0], "log"), ([2.0, 1.0], "linear"), ([4.0, 0.0], "linear")]
)
def test_a_log_axis_where_it_helps_and_can_be(monkeypatch, tmp_path, means, scale):
    assert draw(monkeypatch, tmp_path, [means]).get_yscale() == scale


def test_plain_numbers_on_a_log_axis():
    axes = Figure().subplots()
    figures.log_axis(axes)
    plain = axes.yaxis.get_major_formatter()
    assert [plain(value, 0) for value in (0.02, 1, 30, 0, 500)] == ["0.02", "1", "", "", "500"]


def test_no_history_no_picture(tmp_path):
    figures.training([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_two_of_a_page_of_lines_look_alike(monkeypatch, tmp_path):
    axes = draw(monkeypatch, tmp_path, [[3.0, 2.0]] * 30)
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 30
