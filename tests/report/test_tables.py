from sdunroll.report import tables


def figure(mean):
    return {"mean": mean, "std": 0.0, "ci95": [mean - 0.01, mean + 0.01]}


LAYERS = [
    {"layer": 0, "measured": figure(4.0)},
    {
        "layer": 1,
        "measured": figure(3.9),
        "slack": figure(0.075),
        "descent_frequency": figure(0.5),
    },
    {
        "layer": 2,
        "measured": figure(1.95),
        "slack": figure(-0.4),
        "descent_frequency": figure(1.0),
    },
    {
        "layer": 3,
        "measured": figure(1.9),
        "slack": figure(0.0743),
        "descent_frequency": figure(0.25),
    },
]


def rows(text):
    return [line.split() for line in text.splitlines()]


def test_layer_table():
    metrics = {"measure": "distance", "first_layer": 2, "layers": LAYERS}
    metrics |= {"form": "ratio", "epsilon": 0.1}
    header, _, *body = rows(tables.layer_table(metrics))
    assert header[:2] == ["layer", "distance"]
    assert body[0] == ["0", "4"]
    assert body[1] == ["1", "3.9", "0.975", "+0.0750", "[+0.0650,", "+0.0850]", "50.0", "%", "free"]
    assert body[2] == ["2", "1.95", "0.500", "-0.4000", "[-0.4100,", "-0.3900]", "100.0", "%", "ok"]
    assert body[3][-1] == "violated"


def test_baseline_table_says_when_a_solver_does_not_get_there():
    row = {"iterations": 3, "distance": figure(2.0), "objective_gap": figure(0.5)}
    metrics = {
        "layers": [{"layer": 3, "distance": figure(1.0), "objective_gap": figure(0.1)}],
        "baselines": {
            "ista": row | {"iterations_to_final_distance": None},
            "fista": row | {"iterations_to_final_distance": 77},
        },
    }
    _, _, network, ista, fista = rows(tables.baseline_table(metrics))
    assert network == ["network", "3", "1", "0.1"]
    assert ista == ["ista", "3", "2", "0.5", "not", "reached"]
    assert fista[-1] == "77"


def test_level_table_with_a_second_run():
    level = {
        "level": 2,
        "final_distance": 1.5,
        "objective_gap": 0.25,
        "l1_norm": 8.0,
        "descent_frequency": [0.9, 0.75],
        "ci95": {"final_distance": [1.4, 1.6]},
    }
    result = {
        "first_layer": 1,
        "levels": [level],
        "against": {"levels": [level | {"final_distance": 3.0}]},
    }
    _, _, row = rows(tables.level_table(result))
    assert row == ["2", "1.5", "[1.4,", "1.6]", "0.25", "8", "75.0", "%", "3", "0.500"]
    result["against"] = {"levels": [level | {"final_distance": 0.0}]}
    assert rows(tables.level_table(result))[2][-2:] == ["0", "-"]


def test_layer_table_of_the_difference_form_shows_plain_ratios():
    """Of what the layer itself received and returned, though the row before may tell another measure."""
    received = (4.0, 3.9, 10.0)  # E[after] - (1 - epsilon) E[before] is the slack
    layers = [
        row | {"slack": figure(row["measured"]["mean"] - (1 - epsilon) * before)}
        for row, before, epsilon in zip(LAYERS[1:], received, (0.1, 0.2, 0.1), strict=True)
    ]
    metrics = {"measure": "distance", "first_layer": 1, "layers": [LAYERS[0], *layers]}
    metrics |= {"form": "difference", "epsilon": [0.1, 0.2, 0.1]}
    body = rows(tables.layer_table(metrics))[2:]
    assert [row[2] for row in body[1:]] == ["0.975", "0.500", "0.190"]
    layers[0] |= {"measured": figure(0.0), "slack": figure(0.0)}  # from 0 to 0
    assert rows(tables.layer_table(metrics))[3][2] == "-"


def test_cost_table_says_when_a_solver_does_not_get_there():
    solvers = {
        "oracle": {"seconds": 0.5},
        "fista": {"to_distance": {"seconds": 0.25}, "to_objective": None},
    }
    _, _, *body = tables.cost_table(
        [{"problems": 1000, "seconds": 0.125, "solvers": solvers}]
    ).splitlines()
    assert [line.split() for line in body] == [
        ["1000", "125", "ms", "oracle", "500", "ms", "4"],
        ["1000", "125", "ms", "fista", "to", "the", "same", "distance", "250", "ms", "2"],
        ["1000", "125", "ms", "fista", "to", "the", "same", "objective", "not", "reached"],
    ]
