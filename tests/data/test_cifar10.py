import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

from sdunroll.checks import UserError
from sdunroll.data import SPLITS, Cifar10, cifar10

COUNTS = {"num_train": 20, "num_val": 10, "num_test": 10}


@pytest.fixture
def archive(tmp_path):
    """A small archive in the real one's format: 5 batches of 10 pictures; its settings."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 10, cifar10.ROW), dtype=np.uint8)
    with tarfile.open(tmp_path / cifar10.ARCHIVE, "w:gz") as file:
        for name, batch in zip(cifar10.MEMBERS, pictures, strict=True):
            member = tarfile.TarInfo(name)
            member.size = batch.nbytes
            file.addfile(member, io.BytesIO(batch.tobytes()))
    sha256 = hashlib.sha256((tmp_path / cifar10.ARCHIVE).read_bytes()).hexdigest()
    settings = {"root": str(tmp_path), "sha256": sha256}
    return settings, pictures.reshape(50, cifar10.ROW)[:, 1:].reshape(50, 3, 32, 32)


def test_reads_every_picture_once_into_disjoint_splits(archive):
    settings, pictures = archive
    source = Cifar10(**settings, color=True, num_train=30, num_val=10, num_test=10)
    read = torch.cat([source.signals(split) for split in SPLITS]).mul(255).round().byte().numpy()
    assert read.shape == (50, 3, 32, 32)
    assert {row.tobytes() for row in read} == {row.tobytes() for row in pictures}


def test_grey(archive):
    settings, _ = archive
    color = Cifar10(**settings, **COUNTS, color=True).signals("val")
    grey = Cifar10(**settings, **COUNTS).signals("val")
    assert grey.shape == (10, 1, 32, 32)
    weights = torch.tensor([0.2125, 0.7154, 0.0721]).view(1, 3, 1, 1)
    assert torch.allclose(grey, (weights * color).sum(1, keepdim=True), atol=1e-6)
    assert 0 <= grey.min() < grey.max() <= 1


def test_refuses_more_pictures_than_there_are(archive):
    settings, _ = archive
    with pytest.raises(UserError, match="expected at most 50, got 60"):
        Cifar10(**settings, num_train=40, num_val=10, num_test=10).signals("val")


def test_without_archive_and_network_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "ADDRESS", "http://127.0.0.1:9/nothing")
    with pytest.raises(
        UserError, match=r"^data: expected .* set data.root to the folder that holds"
    ):
        Cifar10(root=str(tmp_path)).signals("val")


def test_a_download_that_breaks_off_leaves_nothing_and_is_begun_again(
    archive, tmp_path, monkeypatch
):
    settings, _ = archive
    whole = (tmp_path / cifar10.ARCHIVE).read_bytes()
    sent = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            sent.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole if len(sent) > 1 else whole[:1000])

        def log_message(self, *_):
            pass

    folder = tmp_path / "downloaded"
    source = Cifar10(root=str(folder), sha256=settings["sha256"], **COUNTS)
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar10, "ADDRESS", f"http://127.0.0.1:{server.server_port}/archive")
        with pytest.raises(UserError, match=r"^data: expected .* could not download it from "):
            source.signals("val")
        assert list(folder.iterdir()) == []
        there = source.signals("val")
        server.shutdown()
    assert torch.equal(there, Cifar10(**settings, **COUNTS).signals("val"))
    assert len(sent) == 2


def test_a_damaged_archive_is_not_read(archive, tmp_path, monkeypatch):
    settings, _ = archive
    monkeypatch.setattr(cifar10, "ADDRESS", "http://127.0.0.1:9/nothing")
    with (tmp_path / cifar10.ARCHIVE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="data: expected"):
        Cifar10(**settings, **COUNTS).signals("val")


def pack(folder, members):
    """An archive of ``members``, (TarInfo, bytes) each; the settings that read it."""
    path = folder / cifar10.ARCHIVE
    folder.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as file:
        for member, content in members:
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return {"root": str(folder), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def link(name, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


GOOD = [(name, bytes(10 * cifar10.ROW)) for name in cifar10.MEMBERS]
HOSTILE = {
    "a link out of the archive": ([(link(GOOD[0][0], "/etc/passwd"), b""), *GOOD[1:]], "no file"),
    "a member is missing": (GOOD[1:], "not found"),
    "half a picture": ([*GOOD[1:], (GOOD[0][0], b"half")], "whole pictures"),
    "a member too large": ([*GOOD[1:], (GOOD[0][0], bytes(2 * cifar10.ROW * 10_000))], "whole"),
    "a bomb": ([*GOOD, ("bomb", bytes(8 * cifar10.LARGEST))], "when unpacked"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_is_not_what_it_says(tmp_path, name):
    members, reason = HOSTILE[name]
    named = [(tarfile.TarInfo(m) if isinstance(m, str) else m, content) for m, content in members]
    source = Cifar10(**pack(tmp_path, named), **COUNTS)
    with pytest.raises(UserError, match=f"expected CIFAR-10 as it is distributed.*{reason}"):
        source.signals("train")


def test_nothing_is_unpacked(tmp_path):
    members = [*GOOD, ("../escaped", b"x"), ("/tmp/escaped", b"x")]
    settings = pack(tmp_path / "archive", [(tarfile.TarInfo(m), content) for m, content in members])
    assert len(Cifar10(**settings, **COUNTS).signals("train")) == 20
    assert [path.name for path in tmp_path.rglob("*")] == ["archive", cifar10.ARCHIVE]
