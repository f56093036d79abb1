from __future__ import annotations

import pytest

from vitrarium.configs.files import whole_file, write_bytes, write_text


def test_the_file_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with whole_file(path) as beside:
        beside.write_text("half")
        assert beside.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def begin(path, error):
    with whole_file(path) as beside:
        beside.write_text("ha")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, RuntimeError])
def test_what_fails_leaves_the_older_file_and_nothing_beside_it(error, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(error):
        begin(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_before_the_first_byte_is_told_as_it_was(tmp_path):
    with pytest.raises(RuntimeError, match="nothing written"), whole_file(tmp_path / "table.csv"):
        raise RuntimeError("nothing written")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), whole_file(tmp_path / "file" / "table.csv"):
        pass


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_text(tmp_path / "a", "größer\r\nals\n")
    write_bytes(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == "größer\r\nals\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
