"""Files that are whole or not there."""

import threading
from pathlib import Path

import pytest

from oaem.errors import UserError
from oaem.runtime.atomic import atomic_path, read_json, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_never_mix(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    texts = [letter * 200_000 for letter in "abcd"]
    writers = [threading.Thread(target=write_text, args=(target, text)) for text in texts * 3]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert target.read_text() in texts


def test_damaged_json_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json.*delete it"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
