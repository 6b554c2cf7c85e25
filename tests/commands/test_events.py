"""The history as TensorBoard events."""

import csv
import io
import sys

import pytest
from PIL import Image

from tests.conftest import TINY, TINY_OF

LOGGED = {
    "loss/train": "train_loss",
    "loss/validation": "val_loss",
    "distance/validation": "val_distance",
    "lr": "lr",
    **{f"slack/layer_{layer}": f"slack_{layer}" for layer in (1, 2, 3)},
    **{f"multiplier/layer_{layer}": f"multiplier_{layer}" for layer in (1, 2, 3)},
}


def read(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    return events.Reload()


def history(run):
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_events_are_the_history_also_of_a_resumed_run(sdunroll):
    run = sdunroll("train", *TINY, "logger=tensorboard", "training.stop_after=1").run
    assert sdunroll("train", f"resume={run}").status == 0
    rows, events = history(run), read(run)
    assert len(rows) == 2
    for tag, column in LOGGED.items():
        logged = events.Scalars(tag)
        assert [event.step for event in logged] == [1, 2]
        expected = [float(row[column]) for row in rows]
        assert [event.value for event in logged] == pytest.approx(expected, rel=1e-6), tag
    assert len(events.Scalars("slack_validation/layer_3")) == 2
    assert not events.Tags()["images"]


def test_pictures_of_inpainting(sdunroll):
    run = sdunroll("train", *TINY_OF["glow_prox"], "logger=tensorboard").run
    restored = read(run).Images("restored")
    assert [event.step for event in restored] == [1, 2]
    picture = Image.open(io.BytesIO(restored[0].encoded_image_string))
    assert picture.size == (8 * (3 + 2), 8 * 4)  # y_0 .. y_3 and the clean one, of four pictures
    assert len(picture.getcolors(10**6)) > 100


def test_nothing_is_logged_unless_asked(sdunroll):
    assert not (sdunroll("train", *TINY).run / "tensorboard").exists()


def test_logging_can_begin_with_a_resume(sdunroll):
    run = sdunroll("train", *TINY, "training.stop_after=1").run
    assert sdunroll("train", f"resume={run}", "++logger=tensorboard").status == 0
    assert [event.step for event in read(run).Scalars("loss/train")] == [2]


def test_another_logger_or_none_installed_is_refused(sdunroll, monkeypatch):
    outcome = sdunroll("train", *TINY, "logger=wandb")
    assert outcome.status == 1
    assert "logger: expected one of csv, tensorboard, got 'wandb'" in outcome.err
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = sdunroll("train", *TINY, "logger=tensorboard")
    assert outcome.status == 1
    assert "pip install 'sdunroll[log]', or take logger=csv" in outcome.err
