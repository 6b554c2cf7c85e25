import logging
import multiprocessing
import os
import time
import zipfile
from pathlib import Path

import pytest
import torch

from sdunroll import cache as caching
from sdunroll.cache import Cache, WriteError, digest, load_checked, write_atomically
from sdunroll.checks import UserError

KEY = {"what": "numbers", "seed": 1}


def make():
    return {"numbers": torch.arange(1000.0)}


def entry_of(folder):
    (path,) = folder.glob("*.pt")
    return path


class Counter:
    """Computes the numbers and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return make()


def test_computes_once_a_key(tmp_path):
    compute = Counter()
    for _ in range(3):
        assert torch.equal(Cache(tmp_path).tensors(KEY, compute)["numbers"], make()["numbers"])
    assert compute.calls == 1
    Cache(tmp_path).tensors({**KEY, "seed": 2}, compute)
    assert compute.calls == 2


def cut(path):
    path.write_bytes(path.read_bytes()[:-700])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """Flip one bit inside the tensor's own bytes."""
    with zipfile.ZipFile(path) as archive:
        (record,) = (info for info in archive.infolist() if info.filename.endswith("data/0"))
    data = bytearray(path.read_bytes())
    data[record.header_offset + 2000] ^= 1
    path.write_bytes(data)


def replace(path):
    torch.save({"key": "another", "tensors": make()}, path)


def evil(path):
    torch.save({"key": "", "tensors": os.system}, path)  # a global that weights_only refuses


def pack(path):
    """The same records, but packed: a small file that could be one without end."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("damage", [cut, empty, flip, replace, evil, pack])
def test_a_damaged_entry_is_noticed_and_rebuilt(tmp_path, damage, caplog):
    compute = Counter()
    Cache(tmp_path).tensors(KEY, compute)
    damage(entry_of(tmp_path))
    with caplog.at_level(logging.WARNING):
        found = Cache(tmp_path).tensors(KEY, compute)
    assert compute.calls == 2
    assert torch.equal(found["numbers"], make()["numbers"])
    assert "is rebuilt" in caplog.text
    Cache(tmp_path).tensors(KEY, compute)
    assert compute.calls == 2


def test_any_flipped_bit_is_noticed_or_without_effect(tmp_path):
    path = tmp_path / "entry"
    torch.save({"numbers": torch.arange(10.0)}, path)
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 5):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert torch.equal(load_checked(path)["numbers"], torch.arange(10.0))
        except ValueError:
            noticed += 1
    assert noticed > 100


def test_another_format_is_another_entry(tmp_path, monkeypatch):
    compute = Counter()
    Cache(tmp_path).tensors(KEY, compute)
    monkeypatch.setattr(caching, "FORMAT", caching.FORMAT + 1)
    Cache(tmp_path).tensors(KEY, compute)
    assert compute.calls == 2


def test_a_failed_computation_leaves_nothing_behind(tmp_path):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Cache(tmp_path).tensors(KEY, fail)
    assert not list(tmp_path.glob("*.pt"))


def _compute_slowly(folder, log, ready):
    def compute():
        with open(log, "a") as file:
            file.write("x")
        time.sleep(0.5)
        return make()

    ready.wait()  # for all processes to have come so far
    assert torch.equal(Cache(folder).tensors(KEY, compute)["numbers"], make()["numbers"])


def test_processes_at_once_compute_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    arguments = (tmp_path / "cache", log, context.Barrier(3, timeout=60))
    processes = [context.Process(target=_compute_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "x"


def test_without_a_folder_every_call_computes():
    compute = Counter()
    Cache(None).tensors(KEY, compute)
    Cache(None).tensors(KEY, compute)
    assert compute.calls == 2


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cache: cannot use .* set SDUNROLL_CACHE"):
        Cache(tmp_path / "file" / "cache").tensors(KEY, make)


def test_default_folder(monkeypatch):
    monkeypatch.setenv("SDUNROLL_CACHE", "/somewhere")
    assert str(Cache.default_folder()) == "/somewhere"
    monkeypatch.delenv("SDUNROLL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(Cache.default_folder()) == "/xdg/sdunroll"


def test_digest_depends_on_values_shape_and_dtype():
    numbers = torch.arange(6.0)
    others = [numbers + 1, numbers.view(2, 3), numbers.double()]
    assert digest(numbers) == digest(numbers.clone())
    assert len({digest(tensor) for tensor in [numbers, *others]}) == 4


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda target: target.write_text("old"))

    def fail(target):
        target.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match=r"could not be written \(No space left on device"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_load_checked_runs_no_code(tmp_path):
    evil(tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"[Ww]eights"):
        load_checked(tmp_path / "evil.pt")


def test_a_full_disk_while_saving_tensors():
    """What torch.save raises then is no OSError."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.raises(RuntimeError):
        torch.save(make(), "/dev/full")
    path = Path("/dev/shm") / "sdunroll-test" / "entry"
    path.parent.mkdir()
    with pytest.raises(WriteError, match="make room"):
        write_atomically(path, lambda _: torch.save(make(), "/dev/full"))
    assert not list(path.parent.iterdir())
    path.parent.rmdir()


@pytest.mark.parametrize("mapped", [True, False])
def test_mapped_tensors_stay_in_their_file(tmp_path, mapped):
    key = {"what": "numbers"}
    cache = Cache(tmp_path)
    made = cache.tensors(key, lambda: {"values": torch.arange(1000)})
    read = cache.tensors(key, lambda: pytest.fail("made again"), mapped=mapped)
    maps = Path("/proc/self/maps").read_text()
    assert (f"{tmp_path}/numbers-" in maps) == mapped
    assert torch.equal(read["values"], made["values"])
