import os
import warnings
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from sdunroll.checks import InvalidValue, UserError
from sdunroll.data import SPLITS, ImageFolder


def save(folder, name, pixels=None, mode="RGB"):
    """A picture whose red is its number."""
    folder.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.zeros((10, 12, 3), np.uint8)
        pixels[..., 0] = int("".join(filter(str.isdigit, name)) or 0) % 256
    if mode == "I;16":  # Pillow 10 does not convert to it
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16))
    else:
        picture = Image.fromarray(pixels).convert(mode)
    picture.save(folder / name)


@pytest.fixture
def pictures(tmp_path):
    for number in range(200):
        save(tmp_path / "pictures", f"{number}.png")
    return tmp_path / "pictures"


def reds(source, split):
    return (source.signals(split)[:, 0, 0, 0] * 255).round().int().tolist()


def test_splits_are_disjoint_whole_and_sorted_by_number(pictures):
    source = ImageFolder(root=str(pictures), size=4)
    found = {split: reds(source, split) for split in SPLITS}
    assert sorted(chain(*found.values())) == list(range(200))
    assert all(numbers == sorted(numbers) for numbers in found.values())
    assert 160 <= len(found["train"]) <= 195
    assert source.signals("val").shape[1:] == (3, 4, 4)


def test_a_picture_stays_in_its_split_when_others_are_added(pictures):
    before = reds(ImageFolder(root=str(pictures), size=4), "test")
    for number in range(200, 230):
        save(pictures, f"{number}.png")
    after = reds(ImageFolder(root=str(pictures), size=4), "test")
    assert set(before) <= set(after)


def test_the_official_split_of_celeba(pictures):
    """Picture i of CelebA-HQ is picture orig_idx of CelebA, whose part is listed."""
    rows = [f"{i:>8} {1000 + i:>8} {1000 + i:06d}.jpg" for i in range(200)]
    (pictures.parent / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "\n".join(["idx orig_idx orig_file", *rows]) + "\n"
    )
    parts = [f"{1000 + i:06d}.jpg {i % 3}" for i in range(200)]
    (pictures.parent / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    source = ImageFolder(root=str(pictures), size=4)
    assert reds(source, "train") == list(range(0, 200, 3))
    assert reds(source, "val") == list(range(1, 200, 3))
    assert reds(source, "test") == list(range(2, 200, 3))


def test_counts_take_the_first(pictures):
    source = ImageFolder(root=str(pictures), size=4, num_train=7)
    everything = reds(ImageFolder(root=str(pictures), size=4), "train")
    assert reds(source, "train") == everything[:7]


def test_pictures_are_cropped_in_the_middle_and_resized(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 255  # the middle square is white
    for number in range(30):
        save(tmp_path, f"{number}.png", pixels)
    source = ImageFolder(root=str(tmp_path), size=4)
    assert torch.equal(source.signals("train"), torch.ones_like(source.signals("train")))


def test_bits(tmp_path):
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None], 3, 2)
    for number in range(30):
        save(tmp_path, f"{number}.png", ramp)
    values = ImageFolder(root=str(tmp_path), size=16, bits=5).signals("train")
    assert len(values.unique()) == 32
    assert values.min() == 0
    assert values.max() == 1


def test_the_official_split_takes_numbered_pictures_alone_and_all_of_them(pictures):
    """Masks in folders beside them are no faces; a picture that is not listed is named."""
    for number in range(5):
        save(pictures / "masks", f"{number:05d}_hair.png")
    rows = [f"{i} {i} {i:06d}.jpg" for i in range(200)]
    (pictures / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(["header", *rows]))
    lines = [f"{i:06d}.jpg {0 if i < 150 else 1 if i < 175 else 2}" for i in range(200)]
    (pictures.parent / "list_eval_partition.txt").write_text("\n".join(lines))
    source = ImageFolder(root=str(pictures), size=4)
    assert [len(source.signals(split)) for split in SPLITS] == [150, 25, 25]
    save(pictures, "200.png")
    with pytest.raises(UserError, match=r"200\.png: expected a picture that CelebA-HQ"):
        ImageFolder(root=str(pictures), size=4).signals("train")


@pytest.mark.parametrize("line", ["one two three", "000001.jpg", "000001.jpg 7"])
def test_a_broken_list_is_named(pictures, line):
    (pictures / "CelebA-HQ-to-CelebA-mapping.txt").write_text("header\n0 1 000001.jpg\n")
    (pictures / "list_eval_partition.txt").write_text(line + "\n")
    with pytest.raises(UserError, match="that fit together, got others"):
        ImageFolder(root=str(pictures), size=4).signals("train")


def test_sixteen_bits_keep_their_shades(tmp_path):
    ramp = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    for number in range(30):
        Image.fromarray(ramp).save(tmp_path / f"{number}.png")
    values = ImageFolder(root=str(tmp_path), size=16, color=False).signals("train")[0, 0]
    assert torch.allclose(values.flatten(), torch.arange(256) / 255, atol=1e-6)


def test_orientation_is_heeded(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # to be shown upside down
    for number in range(30):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", exif=exif)
    values = ImageFolder(root=str(tmp_path), size=8).signals("train")
    assert values[:, :, :4].max() == 0
    assert values[:, :, 4:].min() == 1


def test_reading_leaves_the_warnings_of_the_process_alone(pictures):
    before = list(warnings.filters)
    ImageFolder(root=str(pictures), size=4).signals("train")
    assert warnings.filters == before


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_modes_are_converted(tmp_path, mode):
    ending = "tif" if mode in ("CMYK", "I;16") else "png"
    for number in range(30):
        save(tmp_path, f"{number}.{ending}", mode=mode)
    for color in (True, False):
        values = ImageFolder(root=str(tmp_path), size=4, color=color).signals("train")
        assert values.shape[1] == (3 if color else 1)


def spoil(path, kind):
    """Put something at ``path`` that is no picture to learn from."""
    whole = path.read_bytes()
    if kind == "bomb":
        Image.new("1", (12_000, 10_000)).save(path)  # Pillow itself refuses only twice as many
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "floats":
        Image.fromarray(np.ones((4, 4), np.float32)).save(path, format="TIFF")
    elif kind == "a program's input":  # an EPS file has Ghostscript called
        Image.new("RGB", (4, 4)).save(path, format="EPS")
    else:
        path.write_bytes({"truncated": whole[:45], "empty": b"", "text": b"a picture"}[kind])


NO_PICTURES = ["truncated", "empty", "text", "bomb", "floats", "a program's input"]


@pytest.mark.parametrize("kind", [*NO_PICTURES, "pipe", "folder"])
def test_what_is_no_picture_is_named_and_left_out(pictures, caplog, kind):
    whole = reds(ImageFolder(root=str(pictures), size=4), "train")
    spoil(pictures / f"{whole[2]}.png", kind)
    left = reds(ImageFolder(root=str(pictures), size=4), "train")
    assert left == whole[:2] + whole[3:]
    if kind in NO_PICTURES:
        assert f"{whole[2]}.png is left out: could not be read (" in caplog.text
    assert len(reds(ImageFolder(root=str(pictures), size=4, num_train=5), "train")) == 5


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_what_is_no_fault_of_a_picture_is_not_remembered(pictures, monkeypatch, error):
    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "_read", fail)
        with pytest.raises((UserError, MemoryError)) as raised:
            ImageFolder(root=str(pictures), size=4).signals("train")
    if isinstance(error, OSError):
        assert ".png could not be read (Permission denied); put that right" in str(raised.value)
    assert len(reds(ImageFolder(root=str(pictures), size=4), "train")) > 5


def test_other_pictures_of_the_same_names_sizes_and_times_are_read(tmp_path):
    for level in (10, 200):
        for number in range(40):
            pixels = np.full((8, 8, 3), level, np.uint8)
            save(tmp_path / str(level), f"{number}.bmp", pixels)
            os.utime(tmp_path / str(level) / f"{number}.bmp", (0, 0))
        assert set(reds(ImageFolder(root=str(tmp_path / str(level)), size=4), "train")) == {level}


def test_whole_numbers_of_32_bits_are_refused(pictures, caplog):
    Image.fromarray(np.full((8, 8), 200, np.int32)).save(pictures / "7.tif")
    ImageFolder(root=str(pictures), size=4).signals("train")
    ImageFolder(root=str(pictures), size=4).signals("val")
    ImageFolder(root=str(pictures), size=4).signals("test")
    assert "whole numbers of 32 bits, whose range is not known" in caplog.text


def test_pictures_are_decoded_once(pictures, monkeypatch, caplog):
    spoil(pictures / "7.png", "text")
    sizes = {"size": 4, "bits": 5}
    first = ImageFolder(root=str(pictures), **sizes).signals("train")
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "_read", lambda *_: pytest.fail("decoded again"))
        again = ImageFolder(root=str(pictures), **sizes).signals("train")
        moved = pictures.rename(pictures.parent / "moved")
        caplog.clear()
        assert torch.equal(ImageFolder(root=str(moved), **sizes).signals("train"), first)
    assert torch.equal(first, again)
    assert f"{moved}/7.png is left out: could not be read (" in caplog.text


def test_changed_pictures_and_a_damaged_cache_are_decoded_again(pictures, tmp_path, caplog):
    first = ImageFolder(root=str(pictures), size=4).signals("train")
    (entry,) = (tmp_path / "cache").glob("pictures-*.pt")
    entry.write_bytes(entry.read_bytes()[:-50])
    assert torch.equal(ImageFolder(root=str(pictures), size=4).signals("train"), first)
    assert "is rebuilt" in caplog.text
    number = round(float(first[3, 0, 0, 0]) * 255)
    save(pictures, f"{number}.png", np.full((10, 12, 3), 200, np.uint8))
    changed = ImageFolder(root=str(pictures), size=4).signals("train")
    assert (changed[3] * 255).round().unique().tolist() == [200]
    assert torch.equal(changed[4:], first[4:])


def test_a_changed_picture_of_the_same_size_is_noticed_by_its_time(tmp_path):
    for number in range(30):
        save(tmp_path, f"{number}.bmp")
    first = ImageFolder(root=str(tmp_path), size=4).signals("train")
    for number in range(30):
        before = (tmp_path / f"{number}.bmp").stat()
        save(tmp_path, f"{number}.bmp", np.full((10, 12, 3), 200, np.uint8))
        assert (tmp_path / f"{number}.bmp").stat().st_size == before.st_size
        os.utime(tmp_path / f"{number}.bmp", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = ImageFolder(root=str(tmp_path), size=4).signals("train")
    assert not torch.equal(first, changed)
    assert (changed * 255).round().unique().tolist() == [200]


def test_thousands_that_are_no_pictures(tmp_path, caplog):
    for number in range(3000):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"expected some readable pictures .* got 0 of the 2\d\d\d"):
        ImageFolder(root=str(tmp_path), size=4).signals("train")
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 11
    assert "pictures more are left out" in caplog.text


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (3, 4000)])
def test_pictures_of_any_shape(tmp_path, shape):
    for number in range(30):
        save(tmp_path, f"{number}.png", np.full((*shape, 3), 255, np.uint8))
    values = ImageFolder(root=str(tmp_path), size=4).signals("train")
    assert values.shape[1:] == (3, 4, 4)
    assert values.min() == 1


def test_refuses(tmp_path, pictures):
    with pytest.raises(UserError, match="expected a folder of pictures"):
        ImageFolder(root=str(tmp_path / "none")).signals("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="got 0 of the 0 below"):
        ImageFolder(root=str(tmp_path / "empty")).signals("train")
    with pytest.raises(UserError, match=r"expected 1000 pictures .* lower data\.num_train"):
        ImageFolder(root=str(pictures), num_train=1000).signals("train")
    with pytest.raises(InvalidValue, match="bits: expected 1 to 8"):
        ImageFolder(root=str(pictures), bits=9)
