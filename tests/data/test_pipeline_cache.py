"""Decoded once, read by all; nothing that happens while it is built leaves it wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import ArraySplit, same_samples

from vitrarium.configs.errors import UserError
from vitrarium.data import reading, rows
from vitrarium.data.cache import GIB, CachedSplit, cached, default_folder


class Untouchable(ArraySplit):
    """A split that nobody may decode."""

    def sample(self, index):
        raise AssertionError("decoded again")


class Bare(ArraySplit):
    """Images and labels only."""

    def sample(self, index):
        sample = super().sample(index)
        sample.concepts = sample.concept_weight = sample.human_map = sample.part_masks = sample.keypoints = None
        return sample


def equal(one, other) -> bool:
    return len(one) == len(other) and all(same_samples(one.sample(i), other.sample(i)) for i in range(len(one)))


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    return tmp_path / "cache" if request.param == "disk" else None


@pytest.mark.parametrize("kind", [ArraySplit, Bare])
def test_holds_every_field_as_it_was(place, kind):
    split = kind(10)
    kept = cached(split, place, "key")
    assert equal(kept, split)
    assert kept.labels is split.labels
    assert kept.truth is split.truth
    assert kept.origin(3) == "generated/3.png"
    assert ("memory-mapped" if place else "in memory") in kept.describe()
    assert kept.describe().startswith("10 examples")


def test_decodes_each_example_once(place):
    split = ArraySplit(10)
    kept = cached(split, place, "key")
    for _ in range(3):
        for index in range(10):
            kept.sample(index)
    assert split.asked == 10


def test_a_second_process_or_run_decodes_nothing(tmp_path):
    first = cached(ArraySplit(6), tmp_path, "key")
    assert equal(cached(Untouchable(6), tmp_path, "key"), first)
    with pytest.raises(AssertionError, match="decoded again"):
        cached(Untouchable(6), tmp_path, "another")


def test_what_is_shared_cannot_be_written_to(place):
    kept = cached(ArraySplit(4), place, "key")
    with pytest.raises(ValueError, match="read-only"):
        kept.sample(0).image[0, 0, 0] = 1


def test_keys_may_hold_any_character(tmp_path):
    cached(ArraySplit(2), tmp_path, "../my set/é:1")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [".._my_set___1"]


def test_too_large_a_split_is_decoded_on_demand(place):
    split = ArraySplit(10)
    whole = sum(array.nbytes for array in cached(ArraySplit(10), place, "size").rows.values())
    assert cached(split, place, "fits", whole).rows is not None
    for limit in (whole - 1, whole // 2, 0):
        kept = cached(split, place, f"limit{limit}", limit)
        assert kept.rows is None
        assert equal(kept, split)
        assert "on demand (it takes more than the limit" in kept.describe()
    if place:
        assert not list(place.glob("*.part"))
        assert not list(place.glob("limit*/"))


def test_an_obviously_too_large_split_is_not_decoded_first(place):
    split = ArraySplit(10)
    cached(split, place, "key", 2000)
    assert split.asked == 1


def test_an_empty_split_stays_itself(place):
    assert len(cached(ArraySplit(0), place, "key")) == 0


@pytest.mark.parametrize("harm", ["short", "gone", "garbled", "other"])
def test_a_damaged_cache_is_built_again(tmp_path, harm):
    split = ArraySplit(5)
    cached(split, tmp_path, "key")
    images, about = tmp_path / "key" / "image.bin", tmp_path / "key" / "about.json"
    if harm == "short":
        images.write_bytes(images.read_bytes()[:-1])
    elif harm == "gone":
        images.unlink()
    elif harm == "garbled":
        about.write_text("{")
    else:
        about.write_text("[]")
    assert equal(cached(split, tmp_path, "key"), split)
    assert equal(cached(Untouchable(5), tmp_path, "key"), split)


def test_another_number_of_examples_is_another_cache(tmp_path):
    cached(ArraySplit(5), tmp_path, "key")
    assert equal(cached(ArraySplit(6, seed=9), tmp_path, "key"), ArraySplit(6, seed=9))


def in_children(count: int, work) -> list[int]:
    """Run ``work(child)`` in forked processes at the same time; their exit codes."""
    children = []
    for child in range(count):
        process = os.fork()
        if process == 0:
            code = 1
            with contextlib.suppress(BaseException):
                work(child)
                code = 0
            os._exit(code)
        children.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_build_is_removed_and_built_again(tmp_path):
    class Killed(ArraySplit):
        def sample(self, index):
            if index == 3:
                os._exit(9)
            return super().sample(index)

    assert in_children(1, lambda child: cached(Killed(6), tmp_path, "key")) == [9]
    assert len(list(tmp_path.glob("*.part"))) == 1
    assert equal(cached(ArraySplit(6), tmp_path, "key"), ArraySplit(6))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_build_at_once_agree(tmp_path, monkeypatch, locks):
    if not locks:
        import fcntl

        def unsupported(*args):
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "flock", unsupported)
    log = tmp_path / "log"

    class Told(ArraySplit):
        def sample(self, index):
            with log.open("a") as file:
                file.write(".")
            return super().sample(index)

    def build(child):
        assert equal(cached(Told(40), tmp_path / "cache", "key"), ArraySplit(40))

    assert in_children(3, build) == [0, 0, 0]
    assert equal(cached(Untouchable(40), tmp_path / "cache", "key"), ArraySplit(40))
    assert not list((tmp_path / "cache").glob("*.part"))
    if locks:
        assert len(log.read_text()) == 40


def test_a_folder_that_cannot_be_written_means_memory_and_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(
        UserWarning, match=r"the cache '.*file.*' cannot be written: .*; decoded images are kept in memory"
    ):
        kept = cached(ArraySplit(4), tmp_path / "file" / "cache", "key")
    assert equal(kept, ArraySplit(4))
    assert "in memory (the cache" in kept.describe()


@pytest.mark.parametrize("moment", ["writing", "naming"])
def test_a_full_disk_means_memory_and_a_warning(tmp_path, monkeypatch, moment):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "writing":
        append = rows.FolderWriter.write

        def write(writer, name, array):
            with rows.writing():
                if writer.count == 2:
                    full()
            append(writer, name, array)

        monkeypatch.setattr(rows.FolderWriter, "write", write)
    else:
        monkeypatch.setattr("pathlib.Path.rename", full)
    with pytest.warns(UserWarning, match="No space left"):
        kept = cached(ArraySplit(4), tmp_path, "key")
    assert equal(kept, ArraySplit(4))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_met_by_a_write_and_not_by_a_signal(tmp_path):
    writer = rows.FolderWriter(tmp_path / "a.part", tmp_path / "a")
    with Path("/dev/full").open("wb", buffering=0) as device:
        writer._files["image"] = device
        with pytest.raises(rows.NotWritable, match="No space left"):
            writer.append(ArraySplit(1).sample(0))


def test_the_failure_of_an_example_is_not_taken_for_one_of_the_cache(tmp_path):
    class Unreadable(ArraySplit):
        def sample(self, index):
            if index == 2:
                raise PermissionError(errno.EACCES, "not yours")
            return super().sample(index)

    with pytest.raises(PermissionError) as caught:
        cached(Unreadable(4), tmp_path, "key")
    assert caught.value.__notes__ == ["while reading example 2: generated/2.png"]
    assert not list(tmp_path.glob("*.part"))


class Broken(ArraySplit):
    """Example 50 is damaged."""

    def sample(self, index):
        if index == 50:
            raise UserError("'generated/50.png' cannot be decoded", "replace it")
        return super().sample(index)


@pytest.mark.parametrize("worth", [-1.0, 1e9], ids=["processes", "alone"])
def test_a_damaged_example_is_told_by_name_whoever_met_it(place, monkeypatch, worth):
    monkeypatch.setattr(reading, "WORTH", worth)
    monkeypatch.setattr(reading, "_workers", lambda: 2)
    with pytest.raises(UserError) as caught:
        cached(Broken(80), place, "key")
    assert str(caught.value) == "'generated/50.png' cannot be decoded; replace it"


def test_several_processes_keep_the_order_and_the_random_state(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(reading, "WORTH", -1.0)
    monkeypatch.setattr(reading, "_workers", lambda: 2)
    before = torch.get_rng_state()
    assert equal(cached(ArraySplit(100), tmp_path, "key"), ArraySplit(100))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupted_build_leaves_nothing(tmp_path):
    class Stopped(ArraySplit):
        def sample(self, index):
            if index == 2:
                raise KeyboardInterrupt
            return super().sample(index)

    with pytest.raises(KeyboardInterrupt):
        cached(Stopped(4), tmp_path, "key")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("field", ["image", "keypoints", "part_masks", "concepts"])
def test_examples_of_different_shape_are_a_mistake_of_the_data_set(place, field):
    class Uneven(ArraySplit):
        def sample(self, index):
            sample = super().sample(index)
            if index == 3:
                setattr(sample, field, getattr(sample, field)[1:])
            return sample

    with pytest.raises(ValueError, match="sample 3 has"):
        cached(Uneven(5), place, "key")


@pytest.mark.parametrize("first", [True, False])
def test_a_field_that_only_some_examples_have_is_a_mistake_too(place, first):
    class Patchy(ArraySplit):
        def sample(self, index):
            sample = super().sample(index)
            if (index == 0) == first:
                sample.keypoints = None
            return sample

    with pytest.raises(ValueError, match="sample 1 has"):
        cached(Patchy(5), place, "key")


def test_a_worker_opens_the_files_again_instead_of_getting_the_rows(tmp_path):
    split = ArraySplit(50)
    kept = cached(split, tmp_path, "key")
    sent = pickle.dumps(kept)
    assert len(sent) < len(pickle.dumps(split)) + 10_000
    assert pickle.loads(sent).rows is not None
    assert equal(pickle.loads(sent), split)
    shutil.rmtree(tmp_path)
    assert equal(kept, split)
    assert equal(pickle.loads(sent), split)
    assert equal(pickle.loads(pickle.dumps(cached(split, None, "key"))), split)


def test_progress_reaches_the_end(place):
    told = []
    cached(ArraySplit(9), place, "key", progress=lambda done, count: told.append((done, count)))
    assert told[-1] == (9, 9)
    assert told == sorted(told)


def test_masks_take_one_bit_a_pixel(tmp_path):
    kept = cached(ArraySplit(8, size=16, parts=3), tmp_path, "key")
    assert kept.rows["part_masks"].nbytes == 8 * 3 * 16 * 16 // 8


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VITRARIUM_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    monkeypatch.delenv("VITRARIUM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "vitrarium"


def test_the_limit_in_words():
    split = cached(ArraySplit(10), None, "key", 1000)
    assert isinstance(split, CachedSplit)
    assert f"{1000 / GIB:.3g} GiB" in split.describe()
    assert np.array_equal(split.sample(1).image, ArraySplit(10).images[1])
