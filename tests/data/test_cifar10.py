"""``cifar10``: the original pickles, read without executing them, and the packed copy; the real one where it lies."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from archives import CIFAR_CLASSES, noise, python2_pickle, write_cifar10, write_packed
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.data.sets.safe_pickle import read_pickle
from vitrarium.data.source import LAYOUTS


def build(root, **options):
    return build_source({"name": "cifar10", "root": str(root), "val_fraction": 0.2, **options})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Five batches and a test batch of six images, and what they hold."""
    root = tmp_path_factory.mktemp("cifar")
    return root, write_cifar10(root)


@pytest.fixture
def copy(original, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(original[0], tmp_path / "cifar")


def test_the_builder_writes_what_python_reads(original):
    root, batches = original
    raw = (root / "cifar-10-batches-py" / "data_batch_2").read_bytes()
    plain = pickle.loads(raw, encoding="latin1")
    assert plain["filenames"] == batches["data_batch_2"]["filenames"]
    assert np.array_equal(plain["data"], batches["data_batch_2"]["data"])


def test_original_batches(original):
    root, batches = original
    source = build(root)
    assert source.class_names == CIFAR_CLASSES
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 24, "val": 6, "test": 6}
    assert source.concepts is None
    assert source.gives == frozenset()
    assert source.pictures is None
    by_name = {n: (b["data"][i], b["labels"][i]) for b in batches.values() for i, n in enumerate(b["filenames"])}
    seen = []
    for name, split in source.splits.items():
        for index in range(len(split)):
            data, label = by_name[split.origin(index)]
            sample = split.sample(index)
            planes = data.reshape(3, 32, 32)
            assert np.array_equal(sample.image, np.dstack([planes[0], planes[1], planes[2]]))
            assert sample.label == label == split.labels[index]
            assert sample.concepts is sample.human_map is None
            assert split.origin(index).startswith("test_batch") == (name == "test")
            seen.append(split.origin(index))
    assert sorted(seen) == sorted(by_name)
    assert np.bincount(source.splits["val"].labels).tolist() == [2, 2, 2]
    assert "data_batch_" in source.splits["train"].where(0)


def test_the_folder_itself_will_do_and_other_sizes(original):
    root, _ = original
    whole, inner = build(root), build(root / "cifar-10-batches-py")
    assert whole.fingerprint == inner.fingerprint
    small = build(root, size=16)
    image = Image.fromarray(whole.splits["test"].sample(0).image)
    assert np.array_equal(small.splits["test"].sample(0).image, Preprocessing(16).pixels(image))
    assert len({whole.fingerprint, small.fingerprint, build(root, split_seed=1).fingerprint}) == 3


def test_batches_written_by_python_3(copy, original):
    folder = copy / "cifar-10-batches-py"
    for path in folder.iterdir():
        held = pickle.loads(path.read_bytes(), encoding="latin1")
        if "filenames" in held:
            held["filenames"] = [name.encode() for name in held["filenames"]]
        path.write_bytes(pickle.dumps({key.encode(): value for key, value in held.items()}, protocol=2))
    assert build(copy).fingerprint == build(original[0]).fingerprint


class Evil:
    """Makes a folder when it is unpickled by anyone who executes pickles."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_pickles_are_not_executed(copy, tmp_path):
    place = tmp_path / "made"
    pickle.loads(pickle.dumps(Evil(place)))
    assert place.is_dir()
    place.rmdir()
    path = copy / "cifar-10-batches-py" / "data_batch_3"
    eval_it = f"c__builtin__\neval\n(V__import__('os').mkdir({str(place)!r})\ntR.".encode()
    in_array = python2_pickle({"data": np.zeros((1, 3), np.uint8)}).replace(b"cnumpy\ndtype\n", b"cposix\nmkdir\n")
    for raw, named in (
        (pickle.dumps({"data": Evil(place)}, protocol=2), r"mkdir"),
        (pickle.dumps([Evil(place)], protocol=4), r"mkdir"),
        (eval_it, r"__builtin__\.eval"),
        (b"(S'x'\nios\nsystem\n.", r"os\.system"),
        (in_array, r"posix\.mkdir"),
        (b"cnumpy.core.multiarray\nscalar\n.", r"numpy\.core\.multiarray\.scalar"),
    ):
        path.write_bytes(raw)
        with pytest.raises(UserError, match=rf"data_batch_3' asks for '.*{named}' while it is unpickled.*do not trust"):
            build(copy)
        assert not place.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no pickle",
        b"\x80\x02}(U\x01",
        b"\x80\x02]q\x00.",
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02Pabc\n.",
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x7f.",
    ],
)
def test_damaged_pickles_are_refused(tmp_path, raw):
    (tmp_path / "batch").write_bytes(raw)
    with pytest.raises(UserError, match=r"batch' cannot be unpickled \(.*the file is damaged: get it again"):
        read_pickle(tmp_path / "batch")


def test_arrays_of_objects_and_wrong_lengths_are_refused(tmp_path):
    good = python2_pickle({"data": np.arange(6, dtype=np.uint8).reshape(2, 3)})
    (tmp_path / "batch").write_bytes(good)
    assert read_pickle(tmp_path / "batch")["data"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for old, new in ((b"U\x02u1", b"U\x01O"), (b"U\x06", b"U\x05"), (b"U\x02u1", b"U\x02u9")):
        assert old in good
        (tmp_path / "batch").write_bytes(good.replace(old, new, 1))
        with pytest.raises(UserError, match="cannot be unpickled"):
            read_pickle(tmp_path / "batch")


def test_incomplete_sets_are_refused_by_name(copy, tmp_path, monkeypatch):
    folder = copy / "cifar-10-batches-py"
    held = read_pickle(folder / "data_batch_2")
    for change, words in (
        ({"labels": held["labels"][:-1]}, "no label from 0 to 2 for each of its 6 images"),
        ({"labels": [9] * 6}, "no label from 0 to 2"),
        ({"data": held["data"][:, :30].copy()}, "no array 'data' of images with 3072 bytes each"),
    ):
        (folder / "data_batch_2").write_bytes(python2_pickle({**held, **change}))
        with pytest.raises(UserError, match=rf"data_batch_2' (has|holds) {words}"):
            build(copy)
    (folder / "data_batch_2").unlink()
    with pytest.raises(UserError, match=r"the file '.*data_batch_2' is missing"):
        build(copy)
    with pytest.raises(UserError, match="holds neither cifar-10-batches-py/ nor cifar10_train_jpeg"):
        build(tmp_path)
    monkeypatch.delenv("VITRARIUM_DATA", raising=False)
    with pytest.raises(UserError, match=r"does not know where its data lie; set data\.root"):
        build_source({"name": "cifar10"})
    for options in ({"size": 0}, {"split_seed": -1}, {"val_fraction": 0}, {"val_fraction": 1}):
        with pytest.raises(UserError, match=next(iter(options))):
            build(folder.parent if "size" in options or "split_seed" in options else tmp_packed(tmp_path), **options)


def tmp_packed(folder: Path, **changes: np.ndarray) -> Path:
    """The packed copy: nine training and three test images; test 0 is train 3 again."""
    root = folder / f"packed{len(list(folder.glob('packed*')))}"
    root.mkdir()
    for name, count in (("train", 9), ("test", 3)):
        images = [noise(32, 32, 3 if (name, i) == ("test", 0) else i + 50 * (name == "test")) for i in range(count)]
        fields = {"labels": np.arange(count, dtype=np.uint8) % 3, "class_names": np.array(CIFAR_CLASSES)}
        write_packed(root / f"cifar10_{name}_jpeg.npz", images, **{**fields, **changes})
    return root


def test_the_packed_copy(tmp_path):
    root = tmp_packed(tmp_path)
    source = build(root)
    assert source.class_names == CIFAR_CLASSES
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "val": 3, "test": 3}
    assert any("lossy JPEG copy of 9 training and 3 test images" in note for note in source.notes)
    assert source.notes[-1].startswith("1 group of exact duplicates")
    assert source.duplicates is not None
    # The JPEG of the same pixels, written here.
    buffer = io.BytesIO()
    Image.fromarray(noise(32, 32, 51)).save(buffer, "JPEG", quality=92, subsampling=0)
    assert np.array_equal(source.splits["test"].sample(1).image, np.asarray(Image.open(buffer)))
    assert source.splits["test"].origin(1) == "cifar10_test_jpeg.npz #1"
    assert source.splits["test"].leaked.tolist() == [True, False, False]


def test_damaged_packed_copies_are_refused(tmp_path):
    for changes, words in (
        ({"labels": np.zeros(4, np.uint8)}, "labels has the shape"),
        ({"labels": np.full(9, 7, np.uint8)}, r"labels has the shape|labels of other classes"),
        ({"labels": np.array([{}] * 9)}, "cannot be read as npz"),
    ):
        with pytest.raises(UserError, match=words):
            build(tmp_packed(tmp_path, **changes))
    root = tmp_packed(tmp_path)
    path = root / "cifar10_test_jpeg.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "offsets": arrays["offsets"] + 9})
    with pytest.raises(UserError, match="offsets do not cut the array jpeg"):
        build(root)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "labels"})
    with pytest.raises(UserError, match=r"has no array 'labels' \(it has: jpeg"):
        build(root)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be read as npz"):
        build(root)
    path.unlink()
    with pytest.raises(UserError, match=r"cifar10_test_jpeg\.npz' is missing"):
        build(root)


def test_both_layouts_are_recognised(original, tmp_path):
    see = LAYOUTS.get("cifar10")
    for root in (original[0], original[0] / "cifar-10-batches-py", tmp_packed(tmp_path)):
        seen = see(root)
        assert seen.spec == {"name": "cifar10", "root": str(root)}
        build_source(seen.spec)
    assert see(tmp_path) is None


def test_the_real_copy(real_data):
    source = build_source({"name": "cifar10", "root": str(real_data / "cifar10")})
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 22500, "val": 2500, "test": 10000}
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(source.splits["val"].labels).tolist() == [250] * 10
    images = np.stack([source.splits["test"].sample(i).image for i in range(50)])
    assert images.shape == (50, 32, 32, 3)
    assert 100 < images.mean() < 140
