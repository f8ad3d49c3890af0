"""Image folders in every container: decoded as Pillow decodes them, and refused with one clear sentence."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from clframe.data import DataRoot, ImageFolder
from clframe.errors import ConfigurationError, DataError

KINDS = ["folder", "zip", "deflated.zip", "tar", "tar.gz"]


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_images_equal_pillows_in_order_of_class_and_name(files, pack, root, kind):
    shuffled = dict(sorted(files.items(), key=lambda item: item[1][40:]))
    data = ImageFolder(path=pack(shuffled, kind)).open(root)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.shape == (3, 6, 6)
    for split, opened in (("train", data.train), ("test", data.test)):
        names = sorted(name for name in files if f"/{split}/" in name)
        expected = np.stack([by_pillow(files[name]) for name in names])
        np.testing.assert_array_equal(opened.images.gather(torch.arange(len(names))).numpy(), expected)
        assert [data.class_names[t] for t in opened.targets] == [name.split("/")[2] for name in names]


def test_every_container_gives_the_same_content_fingerprint(files, pack, root):
    found = {kind: ImageFolder(path=pack(files, kind)).open(root).fingerprint for kind in KINDS}
    assert len(set(found.values())) == 1
    changed = {**files, "set/test/bee/01.png": files["set/test/bee/00.png"]}
    assert ImageFolder(path=pack(changed, "other.zip")).open(root).fingerprint not in found.values()


def test_streams_of_every_container_have_one_fingerprint_too(files, pack, root):
    kinds = [kind for kind in KINDS if kind != "tar.gz"]
    assert len({ImageFolder(path=pack(files, kind), mode="stream").open(root).fingerprint for kind in kinds}) == 1


def test_the_real_cifar100_equals_pillow(shared_data, own_cache, monkeypatch, cache_dir):
    monkeypatch.setenv("CLFRAME_CACHE", str(cache_dir))  # the session's: other tests may have decoded it
    path = shared_data / "cifar100.zip"
    data = ImageFolder(path=path).open(DataRoot(folders=(shared_data,), download_folder=shared_data))
    assert (len(data.train), len(data.test), len(data.class_names)) == (50_000, 10_000, 100)
    draws = np.random.RandomState(1)
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())
        for split, opened in (("train", data.train), ("test", data.test)):
            members = [name for name in names if name.startswith(f"cifar100/{split}/")]
            assert torch.bincount(opened.targets).unique().numel() == 1
            for index in draws.choice(len(members), 50, replace=False):
                expected = by_pillow(archive.read(members[index]))
                np.testing.assert_array_equal(opened.images.gather(torch.tensor([index]))[0].numpy(), expected)
                assert data.class_names[opened.targets[index]] == members[index].split("/")[2]


def test_val_serves_as_test_without_a_folder_on_top(files, pack, root):
    renamed = {name.replace("set/", "").replace("test/", "val/"): data for name, data in files.items()}
    plain = ImageFolder(path=pack(files, "zip")).open(root)
    assert ImageFolder(path=pack(renamed, "folder")).open(root).fingerprint == plain.fingerprint


def test_junk_beside_the_images_is_ignored(files, pack, root):
    junk = {
        "__MACOSX/set/train/ant/._00.png": b"x",
        "set/train/.DS_Store": b"x",
        "set/train/ant/.hidden.png": b"x",
        "set/class_names.txt": b"ant",
        "set/train/ant/notes.txt": b"x",
    }
    plain = ImageFolder(path=pack(files, "zip")).open(root)
    assert ImageFolder(path=pack({**files, **junk}, "tar")).open(root).fingerprint == plain.fingerprint


def test_tiny_imagenets_own_layout(files, pack, root):
    plain = ImageFolder(path=pack(files, "zip")).open(root)
    tiny, table = {}, ""
    for number, (name, data) in enumerate(files.items()):
        _, split, label, base = name.split("/")
        if split == "train":
            tiny[f"tiny/train/{label}/images/{base}"] = data
        else:
            tiny[f"tiny/val/images/val_{number}.png"] = data
            table += f"val_{number}.png\t{label}\t0\t0\t5\t5\n"
    tiny |= {
        "tiny/val/val_annotations.txt": table.encode(),
        "tiny/test/images/test_0.png": files["set/test/ant/00.png"],
    }
    for kind in ("folder", "tar.gz"):
        assert ImageFolder(path=pack(tiny, kind)).open(root).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("1", "PNG")]
)
def test_other_modes_become_rgb(files, pack, root, encode, mode, form):
    pixels = np.random.RandomState(3).randint(0, 256, (6, 6, 3), np.uint8)
    data = encode(pixels, mode, form)
    files["set/train/ant/00.png"] = data
    opened = ImageFolder(path=pack(files, "zip")).open(root)
    np.testing.assert_array_equal(opened.train.images.gather(torch.tensor([0]))[0].numpy(), by_pillow(data))


def test_sixteen_bit_grey_keeps_its_high_byte(files, pack, root, encode):
    deep = np.random.RandomState(3).randint(0, 65536, (6, 6)).astype(np.uint16)
    files["set/train/ant/00.png"] = encode(deep)
    opened = ImageFolder(path=pack(files, "zip")).open(root)
    expected = np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(opened.train.images.gather(torch.tensor([0]))[0].numpy(), expected)


def test_odd_sizes_need_a_size(files, pack, root, encode):
    files["set/train/bee/01.png"] = encode(np.zeros((9, 5, 3), np.uint8))
    path = pack(files, "zip")
    with pytest.raises(DataError, match=r"5×9 pixels in set/train/bee/01\.png and 6×6 .* give a size"):
        ImageFolder(path=path).open(root)
    assert ImageFolder(path=path, size=4).open(root).shape == (3, 4, 4)


def test_resizing_takes_the_shorter_side_and_the_centre(files, pack, root, encode):
    """A wide image of three stripes, whose middle one is the centre square, becomes that stripe alone."""
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, :10], stripes[:, 10:20], stripes[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    files["set/train/ant/00.png"] = encode(stripes)
    opened = ImageFolder(path=pack(files, "zip"), size=5).open(root)
    image = opened.train.images.gather(torch.tensor([0]))[0]
    assert image.shape == (5, 5, 3)
    assert (image[:, 1:4] == torch.tensor([0, 255, 0])).all()


@pytest.mark.parametrize("shape", [(17, 23), (23, 17), (5, 8), (31, 30), (8, 8), (9, 100)])
def test_resizing_equals_torchvisions_resize_and_centre_crop(files, pack, root, encode, shape):
    from torchvision.transforms import v2

    pixels = np.random.RandomState(4).randint(0, 256, (*shape, 3), np.uint8)
    files["set/train/ant/00.png"] = encode(pixels)
    opened = ImageFolder(path=pack(files, "zip"), size=8).open(root)
    expected = np.asarray(v2.Compose([v2.Resize(8), v2.CenterCrop(8)])(Image.fromarray(pixels)))
    np.testing.assert_array_equal(opened.train.images.gather(torch.tensor([0]))[0].numpy(), expected)


def test_a_corrupt_file_is_named_and_skipped_only_when_asked(files, pack, root, make_files):
    files["set/train/bee/02.png"] = files["set/train/bee/02.png"][:60]
    path = pack(files, "zip")
    with pytest.raises(DataError, match=r"set/train/bee/02\.png .* is corrupt .*skip_corrupt"):
        ImageFolder(path=path).open(root)
    with pytest.warns(UserWarning, match=r"^1 of 21 images .* were left out: set/train/bee/02\.png\.$"):
        data = ImageFolder(path=path, skip_corrupt=True).open(root)
    whole = ImageFolder(path=pack(make_files(), "tar")).open(root)
    kept = torch.tensor([i for i in range(15) if i != 7])
    assert torch.equal(data.train.images.gather(torch.arange(14)), whole.train.images.gather(kept))
    assert torch.equal(data.train.targets, whole.train.targets[kept])
    with pytest.warns(UserWarning, match="1 of 21"):  # from the store as well
        ImageFolder(path=path, skip_corrupt=True).open(root)
    with pytest.raises(DataError, match="1 of 21"):  # what was skipped once is no excuse later
        ImageFolder(path=path).open(root)


def test_a_flipped_byte_in_a_zip_is_found(files, pack, root):
    path = pack(files, "zip")
    data = bytearray(path.read_bytes())
    data[data.index(files["set/train/cat/03.png"]) + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"set/train/cat/03\.png .* checksum"):
        ImageFolder(path=path).open(root)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_classes_asked_for_are_read(files, pack, root, kind):
    files["set/train/ant/00.png"] = b"never read"
    whole = ImageFolder(path=pack({n: d for n, d in files.items() if "/ant/" not in n}, "other.zip")).open(root)
    path = pack(files, kind)
    some = ImageFolder(path=path, classes=["cat", "bee"]).open(root)
    assert some.class_names == ("bee", "cat")
    assert some.fingerprint == whole.fingerprint
    with pytest.raises(DataError, match="is corrupt"):  # what was stored for some classes isn't the whole
        ImageFolder(path=path).open(root)
    with pytest.raises(DataError, match=r"received 3 classes without cow, dog\."):
        ImageFolder(path=path, classes=["dog", "bee", "cow"]).open(root)


@pytest.mark.parametrize("name", ["../evil.png", "set/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_escaping_paths_refuse_the_archive_before_a_read(files, pack, root, monkeypatch, kind, name):
    path = pack({**files, name: files["set/test/ant/00.png"]}, kind)
    monkeypatch.setattr("clframe.data.folders.decode_image", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(DataError, match=r"holds .*evil.* nothing of it was read"):
        ImageFolder(path=path).open(root)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_a_tar_are_refused(files, pack, root, kind):
    path = pack(files, "tar")
    info = tarfile.TarInfo("set/train/ant/link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(path, "a") as archive:
        archive.addfile(info)
    with pytest.raises(DataError, match=r"link.*nothing of it was read"):
        ImageFolder(path=path).open(root)


def test_links_in_a_zip_are_refused(files, pack, root):
    path = pack(files, "zip")
    info = zipfile.ZipInfo("set/train/ant/link.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"a link .*nothing of it was read"):
        ImageFolder(path=path).open(root)


def test_nothing_is_extracted(files, pack, root, tmp_path):
    path = pack(files, "tar.gz")
    ImageFolder(path=path).open(root)
    assert not list(tmp_path.rglob("*.png"))


def test_different_classes_are_named(files, pack, root):
    files = {name.replace("test/cat", "test/cow"): data for name, data in files.items()}
    with pytest.raises(DataError, match=r"only in train: cat; only in test: cow; add or remove"):
        ImageFolder(path=pack(files, "zip")).open(root)


@pytest.mark.parametrize(
    ("keep", "message"),
    [("train", r"Expected train/CLASS.*received set;"), ("nothing", r"received no file;")],
)
def test_another_layout_is_described(files, pack, root, keep, message):
    kept = {name: data for name, data in files.items() if keep in name}
    with pytest.raises(DataError, match=message):
        ImageFolder(path=pack(kept, "zip")).open(root)


def test_a_cut_archive_is_damaged(files, pack, root):
    for kind in ("zip", "tar.gz"):
        path = pack(files, kind)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(DataError, match="is not a complete"):
            ImageFolder(path=path).open(root)


def test_a_cut_plain_tar_is_damaged(files, pack, root):
    path = pack(files, "tar")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(files["set/test/cat/01.png"]) + 10])
    with pytest.raises(DataError, match=r"complete|corrupt"):
        ImageFolder(path=path).open(root)


def test_an_encrypted_zip_says_so(files, pack, root):
    path = pack(files, "zip")
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<H", data, entry + 8, 1)
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        ImageFolder(path=path).open(root)


def test_a_missing_path_says_where_it_looked(root):
    with pytest.raises(DataError, match=r"nowhere\.zip doesn't exist here or in .*root"):
        ImageFolder(path="nowhere.zip").open(root)


def test_a_relative_path_is_found_in_the_data_root(files, pack, root):
    pack(files, "zip").rename(root.folders[0] / "mine.zip")
    assert ImageFolder(path="mine.zip").open(root).name == "mine"


def test_auto_streams_what_is_too_large_for_the_store(files, pack, root):
    from clframe.data import MemoryReader, StreamingReader

    path = pack(files, "zip")
    decoded = 21 * 6 * 6 * 3
    assert isinstance(ImageFolder(path=path, max_store_bytes=decoded - 1).open(root).train.images, StreamingReader)
    assert isinstance(ImageFolder(path=path, max_store_bytes=decoded).open(root).train.images, MemoryReader)


def test_what_cannot_stream_says_so(files, pack, root):
    with pytest.raises(DataError, match=r"compressed tar .* can't be streamed"):
        ImageFolder(path=pack(files, "tar.gz"), mode="stream").open(root)
    with pytest.raises(ConfigurationError, match="skip_corrupt needs mode 'store'"):
        ImageFolder(path=pack(files, "zip"), mode="stream", skip_corrupt=True).open(root)


def test_a_folder_that_links_to_itself_is_walked_once(files, pack, root):
    path = pack(files, "folder")
    plain = ImageFolder(path=path).open(root).fingerprint
    (path / "set" / "train" / "ant" / "loop").symlink_to(path)
    assert ImageFolder(path=path).open(root).fingerprint == plain
