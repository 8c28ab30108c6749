"""What lies beside results: it tells whether they hold what was written, and nothing else does."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from neuropeft import records
from neuropeft.errors import UserError
from neuropeft.records import (
    Digests,
    check_whole,
    link_results,
    read_record,
    record_of,
    write_record,
    written_files,
)

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def result(tmp_path: Path) -> Path:
    files = [tmp_path / "made" / name for name in ("first.bin", "second.bin")]
    files[0].parent.mkdir()
    for path in files:
        path.write_bytes(CONTENT)
    write_record(files, {"code": "a version"})
    return files[0]


def overwrite(path: Path, content: bytes) -> None:
    """Change a file and give it back its time."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["first.bin", "second.bin"])
@pytest.mark.parametrize(
    ("content", "what"),
    [(CONTENT[:-500], "has 1548 bytes of 2048"), (b"\1" + CONTENT[1:], "does not hold what was written")],
)
def test_a_cut_and_a_flipped_bit_are_noticed_whatever_the_time(
    result: Path, name: str, content: bytes, what: str
) -> None:
    assert Digests().damage(result) is None
    overwrite(result.with_name(name), content)
    said = Digests().damage(result)
    assert said is not None
    assert f"{result.with_name(name)} is damaged: it {what}" in said
    if name == result.name:
        with pytest.raises(UserError, match=r"first\.bin is damaged: .*start the workflow again"):
            check_whole(result)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"files": {"first.bin": 1}, "made_from": {}}'])
def test_without_a_record_nothing_is_known_and_nothing_breaks(result: Path, text: str | None) -> None:
    record_of(result).unlink() if text is None else record_of(result).write_text(text)
    assert read_record(result) is None
    assert "first.bin.json is not there or damaged" in (Digests().damage(result) or "")


def test_files_are_read_once_wherever_they_are_copied_to(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    digest: Callable[[object], str] = records.file_digest
    monkeypatch.setattr(records, "file_digest", lambda path: (read.append(path), digest(path))[1])
    saved = tmp_path / "state/digests.json"
    assert Digests(saved).damage(result) is None
    assert read == [], "nobody has touched them since they were written"
    shutil.copytree(result.parent, tmp_path / "copy")
    copy = tmp_path / "copy/first.bin"
    digests = Digests(saved)
    digests.read_ahead(written_files([copy]))
    assert len(read) == 2
    assert digests.damage(copy) is None
    digests.save()
    assert Digests(saved).damage(copy) is None
    assert len(read) == 2
    saved.write_text(json.dumps([]))
    assert Digests(saved).damage(copy) is None


def test_that_much_is_read_is_said_of_files_that_were_touched_alone(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(records, "SAID_FROM", 5)
    files = [tmp_path / name for name in ("touched", "as it was", "cut")]
    for file in files:
        file.write_bytes(b"0123456789")
    stamps = [records.stamp(file) for file in files]
    os.utime(files[0], (0, 0))
    files[2].write_bytes(b"0")
    asked = []
    monkeypatch.setattr(Digests, "of", lambda _, path: asked.append(path))
    Digests().read_ahead(zip(files, stamps, strict=True))
    assert asked == files[:1], "a file of another size is another one"
    assert "of files that have been written or moved" in capsys.readouterr().out


def test_results_that_are_taken_over_keep_their_record(result: Path, tmp_path: Path) -> None:
    link_results(result, tmp_path / "out")
    taken = tmp_path / "out/first.bin"
    assert taken.samefile(result)
    assert Digests().damage(taken) is None
    assert read_record(taken).made_from == {"code": "a version"}
