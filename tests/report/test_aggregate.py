from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sdunroll.report.aggregate import main_figure, tables
from sdunroll.report.collect import Record
from sdunroll.report.grouping import Method, blocks
from sdunroll.report.table import Cell, Column, Table
from sdunroll.report.writers import comma_separated, latex, markdown


def test_a_cell_has_the_interval_of_student():
    values = [1.0, 1.2, 1.7]
    cell = Cell.of(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert cell.mean - cell.half == pytest.approx(low)
    assert cell.mean + cell.half == pytest.approx(high)
    assert Cell.of([3.0]) == Cell(3.0, None, 1)
    assert Cell.of([]) is None


@pytest.fixture
def table():
    columns = [
        Column("distance", [Cell(1.25, 0.5, 3), Cell(1.0, 0.125, 3), None], 2, "low"),
        Column(
            "psnr_x & y", [Cell(20.0, None, 1), Cell(10.0, None, 1), Cell(30.0, None, 1)], 1, "high"
        ),
        Column("seeds", [Cell(3, None, 1)] * 3, 0),
    ]
    return Table("name", "A caption.", ["a=1", "b_2", "c|d"], columns)


def test_best(table):
    assert [column.best() for column in table.columns] == [{1}, {2}, set()]
    assert Column("one", [Cell(1.0, None, 1), None], better="low").best() == set()


@pytest.mark.parametrize(
    ("means", "better", "best"),
    [
        ([1.0, 1.0, 0.5], "high", {0, 1}),
        ([0.5, 0.50001, 1.0], "low", {0, 1}),  # the same as written
        ([2.0, 2.0, 2.0], "low", set()),
    ],
)
def test_of_equal_bests_all_are_best_and_none_where_all_are_equal(means, better, best):
    cells = [Cell(mean, None, 1) for mean in means]
    assert Column("one", cells, 2, better).best() == best


def test_markdown(table):
    lines = markdown(table).splitlines()
    assert lines[2] == "| method | distance | psnr_x & y | seeds |"
    assert lines[4] == "| a=1 | 1.25 ± 0.50 | 20.0 | 3 |"
    assert lines[5] == "| b_2 | **1.00 ± 0.12** | 10.0 | 3 |"
    assert lines[6] == r"| c\|d |  | **30.0** | 3 |"


def test_csv_keeps_all_digits(table):
    lines = comma_separated(table).splitlines()
    assert lines[0].startswith("method,distance,distance half width,distance seeds,")
    assert lines[2] == "b_2,1.0,0.125,3,10.0,,1,3,,1"
    assert lines[3].startswith("c|d,,,,30.0")


def test_latex_is_escaped(table):
    text = latex(table)
    assert r"psnr\_x \& y" in text
    assert r"b\_2 & \textbf{1.00 $\pm$ 0.12} & 10.0 & 3 \\" in text
    assert r"c\textbar{}d" in text  # which the standard encoding would print as a dash
    assert text.count("{") == text.count("}")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text


def a_method(alpha, **of_the_data):
    config = {
        "problem": {"_target_": "problems.sparse_coding", "alpha": alpha},
        "data": {"_target_": "data.Photos", "crops": {"size": 8, **of_the_data}},
        "seed": 0,
    }
    summary = {"worst_slack": -0.1, "feasible": True, "final_distance": 1.0}
    return Method(f"alpha {alpha}", [Record(Path("run"), config, {}, summary)])


def test_problems_of_the_same_code_are_told_apart_by_what_differs():
    assert [title for title, _ in blocks([a_method(0.1)])] == ["sparse coding, photos"]
    several = [a_method(0.1), a_method(0.2), a_method(0.2), a_method(0.2, root="x")]
    assert [(title, len(group)) for title, group in blocks(several)] == [
        ("sparse coding, photos, problem.alpha 0.1", 1),
        ("sparse coding, photos, problem.alpha 0.2", 2),
        ("sparse coding, photos, data.crops.root x, problem.alpha 0.2", 1),
    ]


@pytest.mark.parametrize(("count", "end"), [(2000, "layer; solvers on the first 2,000 of its 10,000 "
                                            "instances."), (10000, "layer.")])  # fmt: skip
def test_a_table_says_that_solvers_had_fewer_instances(count, end):
    method = a_method(0.1)
    figures = {"iterations": 2, "distance": {"mean": 2.0}}
    evaluated = {"num_samples": 10000, "baseline_samples": count, "baselines": {"ista": figures}}
    record = replace(method.records[0], metrics=evaluated | {"layers": [{}, {}]})
    found = tables([replace(method, records=[record])])[0]
    assert found.rows == ["alpha 0.1", "ISTA, 2 iterations"]
    assert found.caption.endswith(end)


@pytest.mark.parametrize(
    "roots", [[f"{'x' * 300}{end}" for end in "yz"], ["界" * 80, "x"], ["a-1", "a_1"], ["A", "a"]]
)
def test_the_names_of_their_files_are_not_too_long_nor_alike(roots):
    several = [a_method(0.1, root=root) for root in roots]
    names = [table.name.lower() for table in tables(several)]
    assert len(set(names)) == len(names) > 1
    assert all(len(name.encode()) < 200 for name in names)


def test_what_is_not_evaluated_yet_does_not_change_the_main_figure():
    evaluated, pending = a_method(0.1), a_method(0.1)
    row = {"psnr": {"mean": 20.0}, "distance": {"mean": 2.0}}
    record = replace(evaluated.records[0], metrics={"layers": [row]})
    both = [replace(evaluated, records=[record]), pending]
    assert main_figure(both)[0] == "psnr"
    assert main_figure([pending])[0] == "distance"
