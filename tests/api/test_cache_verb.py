"""``vitrarium cache``: what it lists, what it removes, and what it never touches."""

from __future__ import annotations

import fcntl
import os
import re
import time

import numpy as np
import pytest

from vitrarium.cli import main
from vitrarium.data.batch import Sample
from vitrarium.data.cache import cached
from vitrarium.data.cache_entries import DAY, clear, entries
from vitrarium.data.rows import ABOUT
from vitrarium.data.source import Split


class Noise(Split):
    """Random images; counts how often it is asked for one."""

    def __init__(self, count):
        rng = np.random.default_rng(count)
        self.images = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
        self.labels, self.asked = np.zeros(count, np.int64), 0

    def sample(self, index):
        self.asked += 1
        return Sample(self.images[index], int(self.labels[index]))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Three entries: roses of 5 and 3 examples, lilies of 4, not used for 10 days."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VITRARIUM_CACHE", str(folder))
    for key, count in (("roses-1-train", 5), ("roses-1-val", 3), ("lilies-2-train", 4)):
        cached(Noise(count), folder, key)
    unused = time.time() - 10.5 * DAY
    os.utime(folder / "lilies-2-train" / ABOUT, (unused, unused))
    return folder


def names(folder):
    return sorted(entry.name for entry in entries(folder))


def test_entries_say_their_size_and_when_they_were_used(cache):
    found = entries(cache)
    assert [entry.name for entry in found] == ["roses-1-train", "lilies-2-train", "roses-1-val"]
    assert [entry.count for entry in found] == [5, 4, 3]
    for entry in found:
        assert entry.size == sum(file.stat().st_size for file in entry.path.rglob("*"))
    assert [int(entry.days) for entry in found] == [0, 10, 0]
    # Reading an entry is using it.
    cached(Noise(4), cache, "lilies-2-train")
    assert [int(entry.days) for entry in entries(cache)] == [0, 0, 0]


def test_the_list_at_the_command_line(cache, capsys):
    assert main(["cache"]) == 0
    said = capsys.readouterr().out
    assert "lilies-2-train" in said
    assert "10 days ago" in said
    assert "3 entries" in said
    assert main(["cache", "--folder", str(cache / "nowhere")]) == 0
    assert capsys.readouterr().out.startswith("0 entries, 0.0 MB")


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([], []),
        (["roses-*"], ["lilies-2-train"]),
        (["--older", "10"], ["roses-1-train", "roses-1-val"]),
        (["--older", "11"], ["lilies-2-train", "roses-1-train", "roses-1-val"]),
        (["roses-*", "--older", "1"], ["lilies-2-train", "roses-1-train", "roses-1-val"]),
    ],
)
def test_what_is_cleared(arguments, left, cache, capsys):
    assert main(["cache", "clear", *arguments]) == 0
    assert names(cache) == left
    assert sorted(path.name for path in cache.iterdir()) == sorted([*left, *(f"{name}.lock" for name in left)])
    count = 3 - len(left)
    assert f"{count} {'entry' if count == 1 else 'entries'} removed" in capsys.readouterr().out


def test_what_is_cleared_is_made_again(cache):
    split = Noise(5)
    assert cached(split, cache, "roses-1-train").folder is not None
    assert split.asked == 0
    clear(cache)
    assert np.array_equal(cached(split, cache, "roses-1-train").sample(2).image, split.images[2])
    assert split.asked == 5


def test_the_folder_may_stand_before_and_behind(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("VITRARIUM_CACHE", str(tmp_path / "other"))
    assert main(["cache", "--folder", str(cache), "clear", "roses-1-val"]) == 0
    assert main(["cache", "clear", "roses-1-train", "--folder", str(cache)]) == 0
    assert names(cache) == ["lilies-2-train"]


def test_nothing_else_is_touched(cache, tmp_path):
    """Files of the user's, other programs' folders, entries with foreign files in them, links."""
    (cache / "letters.txt").write_text("dear")
    (cache / "photos").mkdir()
    (cache / "photos" / "a.jpg").write_bytes(b"x")
    (cache / "other").mkdir()
    (cache / "other" / ABOUT).write_text('{"format": 1, "count": 3}')
    (cache / "list").mkdir()
    (cache / "list" / ABOUT).write_text("[1]")
    (cache / "roses-1-val" / "notes.txt").write_text("mine")
    (cache / "roses-1-train.host.1.abc.part").mkdir()
    outside = tmp_path / "outside"
    (cache / "lilies-2-train").rename(outside)
    (cache / "lilies-2-train").symlink_to(outside, target_is_directory=True)
    before = sorted(str(path) for path in tmp_path.rglob("*") if "roses-1-train" not in path.parts)
    removed, busy = clear(cache)
    assert [entry.name for entry in removed] == ["roses-1-train"]
    assert not busy
    after = sorted(str(path) for path in tmp_path.rglob("*"))
    assert after == [path for path in before if not path.endswith("roses-1-train.lock")]


def test_an_entry_that_is_being_written_stays(cache, capsys):
    with (cache / "roses-1-val.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["cache", "clear"]) == 0
        assert names(cache) == ["roses-1-val"]
        assert "in use, not removed: roses-1-val" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert names(cache) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["lilys*"], "no entry of .* is called 'lilys\\*'"), (["--older", "-1"], "give 0 or more days")],
)
def test_what_cannot_be_meant_is_refused(arguments, said, cache, capsys):
    assert main(["cache", "clear", *arguments]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert len(names(cache)) == 3
