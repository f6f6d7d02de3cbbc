"""The file of samples: nothing lost, nothing twice, nothing mixed."""

import errno
import os
from pathlib import Path

import pytest

from s2l_ext.errors import DataError, StateMismatch
from s2l_ext.evaluation.samples import Sample, SampleFile, read_samples

FINGERPRINT = {"model": "m", "temperature": 0.6, "chat_options": {}}


def sample(index: int, text: str = "ü\u2028\n") -> Sample:
    return Sample("p", index, [1, 2], [3] * (index + 1), text, False, 1.0, True, "7")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "a.json.samples.jsonl"


@pytest.fixture
def three(path: Path) -> bytes:
    with SampleFile(path, FINGERPRINT) as file:
        for index in range(3):
            file.add(sample(index))
    return path.read_bytes()


def test_what_was_added_comes_back(path: Path, three: bytes) -> None:
    assert list(read_samples(path)) == [sample(0), sample(1), sample(2)]
    with SampleFile(path, FINGERPRINT) as file:
        assert file.outcomes == {("p", index): sample(index).outcome for index in range(3)}


def test_a_cut_anywhere_loses_at_most_the_line_it_is_in(path: Path, three: bytes) -> None:
    for cut in (*range(0, len(three), 7), *range(len(three) - 9, len(three) + 1)):
        path.write_bytes(three[:cut])
        whole = three[:cut].count(b"\n")
        with SampleFile(path, FINGERPRINT) as file:
            assert len(file.outcomes) == max(0, whole - 1)
            for index in range(3):
                if ("p", index) not in file.outcomes:
                    file.add(sample(index))
        assert path.read_bytes() == three


def test_a_reader_leaves_a_torn_line_alone(path: Path, three: bytes) -> None:
    path.write_bytes(three[:-5])
    assert len(list(read_samples(path))) == 2
    assert path.read_bytes() == three[:-5]


@pytest.mark.parametrize("name", list(FINGERPRINT))
def test_another_fingerprint_is_refused_by_name(path: Path, three: bytes, name: str) -> None:
    with pytest.raises(StateMismatch) as refusal:
        SampleFile(path, FINGERPRINT | {name: "other"})
    assert f"another {name}" in str(refusal.value) and "--out" in str(refusal.value)
    assert path.read_bytes() == three


def test_a_damaged_line_is_named(path: Path, three: bytes) -> None:
    lines = three.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[2:]]))
    with pytest.raises(DataError, match=r":3: not a sample"):
        SampleFile(path, FINGERPRINT)


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"no line end", b'{"s2l_samples": 9, "fingerprint": {}}\n'])
def test_somebody_elses_file_is_kept(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match="--out"):
        SampleFile(path, FINGERPRINT)
    assert path.read_bytes() == content


def test_two_evaluations_of_one_file_are_refused(path: Path) -> None:
    with SampleFile(path, FINGERPRINT), pytest.raises(DataError, match="another evaluation writes"):
        SampleFile(path, FINGERPRINT)
    SampleFile(path, FINGERPRINT).close()


def test_a_full_disk_says_so_and_what_was_written_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.write, [600]

    def write(file: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = data[: room[0]]
        room[0] -= len(part)
        return real(file, part)

    monkeypatch.setattr(os, "write", write)
    with SampleFile(path, FINGERPRINT) as file, pytest.raises(DataError, match=r"No space left.*same command again"):
        for index in range(9):
            file.add(sample(index))
    assert len(file.outcomes) >= 2
    before = dict(file.outcomes)
    room[0] = 10_000
    with SampleFile(path, FINGERPRINT) as file:
        assert file.outcomes == before
        file.add(sample(8))
    assert len(list(read_samples(path))) == len(before) + 1


def test_unwritable_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        SampleFile(tmp_path / "file" / "a", FINGERPRINT)
    with pytest.raises(DataError, match="no such file"):
        read_samples(tmp_path / "none")
