"""What the curves of a report show, read back from matplotlib's own objects."""

import matplotlib
import pytest
from matplotlib.figure import Figure

from sdunroll.report import curves, figures
from sdunroll.report.table import Cell, Column, Table

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


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.6, 30, ["0.5", "1", "2", "5", "10", "20"]),
        (1e-3, 1e3, ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]),
        (2.6, 4.4, ["2.75", "3", "3.25", "3.5", "3.75", "4", "4.25", "4.5"]),
        (2.45, 2.68, ["2.45", "2.5", "2.55", "2.6", "2.65"]),
    ],
)
def test_plain_numbers_on_a_log_axis(low, high, shown):
    figure = Figure()
    axes = figure.subplots()
    figures.log_axis(axes)
    axes.plot([0, 1], [low, high])
    figure.draw_without_rendering()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    bottom, top = axes.get_ylim()
    texts = [tick.label1.get_text() for tick in ticks if bottom <= tick.get_loc() <= top]
    assert [text for text in texts if text] == shown


def kept(monkeypatch, draw):
    """The figure that ``draw`` would save."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: found.append(self))
    monkeypatch.setattr(figures, "write_atomically", lambda path, write: write(path))
    draw()
    return found[0]


def test_one_epoch_stands_at_1(monkeypatch, tmp_path):
    row = {"epoch": 1, "train_loss": 2.0, "val_loss": 3.0, "slack_1": 0.098173, "multiplier_1": 0.1}
    figure = kept(monkeypatch, lambda: figures.training([row], tmp_path))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert [text.get_text() for text in axes.get_xticklabels()] == ["1"]


def test_each_run_under_its_own_name_by_its_own_first_layer(monkeypatch, tmp_path):
    def run(label, first_layer, shares):
        level = {"level": 0, "final_distance": 1.0, "descent_frequency": shares}
        level["ci95"] = {"final_distance": [0.9, 1.1]}
        return {"label": label, "first_layer": first_layer, "levels": [level]}

    result = run("_own $1 to $2", 3, [0.0, 0.1, 0.9]) | {"notice": None, "perturbation": "noise"}
    result["against"] = run("other", 1, [0.5, 0.6])
    figure = kept(monkeypatch, lambda: figures.levels(result, tmp_path / "levels.png"))
    left, right = figure.axes
    assert [line.get_ydata().tolist() for line in right.lines] == [[0.9], [0.5]]
    shown = [text.get_text() for text in left.get_legend().get_texts()]
    assert shown == [r" _own \$1 to \$2", "other"]


def test_no_history_no_picture(tmp_path):
    figures.training([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_two_of_a_page_of_lines_look_alike(monkeypatch, tmp_path):
    axes = draw(monkeypatch, tmp_path, [[3.0, 2.0]] * 30)
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 30
