"""Writing a store: a kill at any moment loses and repeats nothing, and nothing foreign gets in."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError, DataError, StateMismatch
from s2l_ext.store import shards
from s2l_ext.store.reader import Rollout, RolloutStore, read_manifest
from s2l_ext.store.shards import decode, encode
from s2l_ext.store.writer import StoreWriter
from s2l_ext.utils import jsonl

FINGERPRINT = {
    "model": "m1",
    "model_name": "toy",
    "tokenizer": "t1",
    "dtype": "float32",
    "log_probs": "processed_logprobs",
    "sampling": {"temperature": 0.7, "top_p": 0.95, "seed": 0},
    "data": [{"name": "a", "sha256": "1"}],
    "reward": ["r"],
}
PROBLEMS = {"a": "pa", "b": "pb", "c": "pc"}
N = 4
ALL = [(name, index) for index in range(N) for name in PROBLEMS]


def rollout(prompt: str, index: int) -> Rollout:
    return Rollout(prompt, index, index, [1], [2, 3], [-0.5, -1.0], False, 1.0, 1.0, f"{prompt}{index}")


def open_store(folder: Path, n: int = N, problems: dict[str, str] = PROBLEMS, **options: Any) -> StoreWriter:
    return StoreWriter(folder, options.pop("fingerprint", FINGERPRINT), n, problems, shard_rows=5, **options)


def fill(folder: Path, **options: Any) -> list[tuple[str, int]]:
    """Add what is missing and finish; what was added."""
    added = []
    with open_store(folder, **options) as store:
        for name, index in ALL:
            if index not in store.have.get(name, ()):
                added.append((name, index))
                store.add(rollout(name, index))
        store.finish()
    return added


def check_whole(folder: Path) -> None:
    store = RolloutStore(folder)
    found = [(each.prompt_id, each.index) for each in store.every_rollout()]
    assert Counter(found) == Counter(ALL)
    assert all(each == rollout(each.prompt_id, each.index) for each in store.every_rollout())
    assert store.complete
    assert {path.name for path in folder.iterdir() if ".unnamed-" not in path.name} == {
        "store.json",
        "journal.jsonl",
        *(shard.name for shard in store.manifest.shards),
    }


def test_shards_of_the_size_asked_for(tmp_path: Path) -> None:
    assert fill(tmp_path) == ALL
    check_whole(tmp_path)
    assert [shard.rows for shard in RolloutStore(tmp_path).manifest.shards] == [4, 4, 4]
    assert fill(tmp_path) == []
    check_whole(tmp_path)


def test_shards_are_cut_by_bytes_too() -> None:
    """As the longest responses that may come, so that the same request always has the same shards."""
    assert shards.prompts_of_a_shard(32, {"max_tokens": 64}) == 128
    assert shards.prompts_of_a_shard(32, {"max_tokens": 8192}) == 16
    assert shards.prompts_of_a_shard(4096, {"max_tokens": 8192}) == shards.prompts_of_a_shard(9, {}, 8) == 1


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*.parquet")}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.permutations(ALL), st.lists(st.integers(1, 11), max_size=3))
def test_shards_do_not_depend_on_what_ends_first_or_on_kills(
    tmp_path_factory: pytest.TempPathFactory, order: list[tuple[str, int]], moments: list[int]
) -> None:
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    fill(one)
    for stop in [*moments, len(ALL)]:
        with open_store(other) as store:
            for name, index in order[:stop]:
                if index not in store.have.get(name, ()):
                    store.add(rollout(name, index))
    with open_store(other) as store:
        store.finish()
    assert shards_of(other) == shards_of(one) and RolloutStore(other).digest == RolloutStore(one).digest


def test_what_another_request_left_in_the_journal_gets_a_shard_of_its_own(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.add(rollout("a", 0))
    with open_store(tmp_path, problems={"b": "pb", "c": "pc"}, only_missing=True) as store:
        store.add(rollout("b", 0))
        store.add(rollout("c", 0))
        store.compact()
        for name, index in ALL[1:]:
            if name != "a" and index:
                store.add(rollout(name, index))
        store.finish()
    assert fill(tmp_path, only_missing=True) == [("a", 1), ("a", 2), ("a", 3)]
    check_whole(tmp_path)


def test_the_journal_holds_what_no_shard_has_and_keeps_its_lock(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for key in [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("a", 3), ("c", 2)]:
            store.add(rollout(*key))
        lines = (tmp_path / "journal.jsonl").read_bytes().splitlines()
        assert [(decode(line)[0].prompt_id, decode(line)[0].index) for line in lines] == [("b", 0), ("c", 2)]
        with pytest.raises(DataError, match="another `s2l explore` writes this store"):
            open_store(tmp_path)


# ---- kills --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process had ended there."""


STEPS = [
    (shards.pq, "write_table"),
    (shards, "to_disk"),
    (jsonl.os, "replace"),
    (shards, "write_atomically"),
    (jsonl.os, "write"),
    (jsonl.os, "fsync"),
]


def kill_at(patch: pytest.MonkeyPatch, place: Any, name: str, count: int, before: bool) -> None:
    original, calls = getattr(place, name), iter(range(1000))

    def killed(*args: Any, **named: Any) -> Any:
        last = next(calls) == count
        if last and before:
            raise Killed
        result = original(*args, **named)
        if last:
            raise Killed
        return result

    patch.setattr(place, name, killed)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("place", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_kill_around_any_step_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, before: bool
) -> None:
    for count in range(1000):
        folder = tmp_path / str(count)
        kept: set[tuple[str, int]] = set()
        with monkeypatch.context() as patch:
            kill_at(patch, place, name, count, before)
            try:
                with open_store(folder) as store:
                    for key in ALL:
                        store.add(rollout(*key))
                        kept.add(key)
                    store.finish()
            except Killed:
                pass
            else:
                break
        assert not kept & set(fill(folder)), "what was acknowledged is not drawn again"
        check_whole(folder)
    assert count >= 2, "the step was never reached"


def test_a_cut_journal_loses_the_cut_line_only(tmp_path: Path) -> None:
    with open_store(tmp_path / "whole") as store:
        for index in range(3):
            store.add(rollout("a", index))
    content = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    manifest = (tmp_path / "whole" / "store.json").read_bytes()
    line = len(content) // 3
    for cut in {*range(0, len(content), 41), line - 1, line, line + 1, len(content)}:
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(content[:cut])
        (folder / "store.json").write_bytes(manifest)
        with open_store(folder) as store:
            assert store.have.get("a", set()) == set(range(cut // line))
        assert (folder / "journal.jsonl").stat().st_size == cut // line * line


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for index in range(3):
            store.add(rollout("a", index))
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for line in (b"{}\n", b"\xff\n", b"[1]\n", lines[1].replace(b'"log_probs": "', b'"log_probs": "AAAA')):
        path.write_bytes(lines[0] + line + lines[2])
        with pytest.raises(DataError, match=r"journal\.jsonl:2: not a response .* Remove that line"):
            open_store(tmp_path)


def test_a_response_twice_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.add(rollout("a", 0))
        with pytest.raises(DataError, match="response 0 of prompt a came twice"):
            store.add(rollout("a", 0))


def test_a_shard_taken_out_of_the_list_is_drawn_again(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "shard-000001.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"shard-000001\.parquet \(4 responses\) is truncated"):
        open_store(tmp_path)
    manifest = read_manifest(tmp_path)
    shards.write_manifest(tmp_path, replace(manifest, shards=manifest.shards[::2]))
    assert len(fill(tmp_path, only_missing=True)) == 4
    check_whole(tmp_path)


# ---- what does not belong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "m2"}, "another model: m1 (toy), now m2 (toy)"),
        ({"tokenizer": "t2"}, "another tokenizer: t1"),
        ({"dtype": "auto"}, "another dtype: float32"),
        ({"sampling": {"temperature": 1.0, "top_p": 0.95, "seed": 0}}, "another temperature: 0.7"),
        ({"sampling": {"temperature": 0.7, "top_p": 0.95, "seed": 3}}, "another seed: 0 (toy), now 3"),
    ],
)
@pytest.mark.parametrize("only_missing", [True, False])
def test_another_explorer_is_refused(tmp_path: Path, change: dict[str, Any], words: str, only_missing: bool) -> None:
    fill(tmp_path)
    with pytest.raises(StateMismatch) as refusal:
        open_store(tmp_path, fingerprint=FINGERPRINT | change, only_missing=only_missing)
    assert words in str(refusal.value) and f"--out={tmp_path}" in str(refusal.value)
    check_whole(tmp_path)


def test_another_request_needs_only_missing(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(StateMismatch, match="made for 4 responses a prompt, now 6 .*--only-missing"):
        open_store(tmp_path, n=6)
    with pytest.raises(StateMismatch, match="made for 3 prompts, .*, now 4 prompts"):
        open_store(tmp_path, problems=PROBLEMS | {"d": "pd"})
    check_whole(tmp_path)
    other = FINGERPRINT | {"data": [{"name": "b", "sha256": "2"}], "reward": ["r", "s"]}
    with open_store(tmp_path, n=6, problems={"d": "pd"}, only_missing=True, fingerprint=other) as store:
        assert store.have == {name: set(range(N)) for name in PROBLEMS}
        store.add(rollout("d", 0))
        store.finish()
    found = RolloutStore(tmp_path)
    assert found.counts() == {"a": 4, "b": 4, "c": 4, "d": 1}
    assert [each["name"] for each in found.fingerprint["data"]] == ["a", "b"]
    assert found.fingerprint["reward"] == ["r", "s"]


@pytest.mark.parametrize("only_missing", [True, False])
def test_fewer_than_before_is_too_small(tmp_path: Path, only_missing: bool) -> None:
    fill(tmp_path)
    with pytest.raises((ConfigError, StateMismatch), match=r"4 responses a prompt"):
        open_store(tmp_path, n=3, only_missing=only_missing)
    with pytest.raises(ConfigError, match=r"--n 3 is too small: .*Give --n 4 or more"):
        open_store(tmp_path, n=3, only_missing=True)


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_id_with_another_problem_is_refused(tmp_path: Path, finished: bool) -> None:
    with open_store(tmp_path) as store:
        store.add(rollout("a", 0))
        if finished:
            store.finish()
    with pytest.raises(StateMismatch, match="1 prompts have responses .* another prompt, ground truth or reward .*: a"):
        open_store(tmp_path, problems=PROBLEMS | {"a": "changed"}, only_missing=True)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"holds thesis\.tex and no store\.json"):
        open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_kill_left_before_the_first_manifest_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".store.json.1.partial").write_text("{")
    (tmp_path / "journal.jsonl").touch()
    fill(tmp_path)
    check_whole(tmp_path)


def test_responses_without_a_manifest_are_not_thrown_away(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.add(rollout("a", 0))
    (tmp_path / "store.json").unlink()
    with pytest.raises(DataError, match=r"holds journal\.jsonl and no store\.json"):
        open_store(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(DataError, match="another `s2l explore` writes this store"):
        open_store(tmp_path)
    open_store(tmp_path).close()
    with open(tmp_path / "journal.jsonl") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- a full disk --------------------------------------------------------------------------------------------------


def no_space(*rest: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "name", "path"),
    [
        (jsonl.os, "write", "journal.jsonl"),
        (shards.pq, "write_table", "shard-000000.parquet"),
        (shards, "to_disk", "shard-000000.parquet"),
        (shards, "write_atomically", "store.json"),
    ],
)
def test_a_full_disk_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, path: str
) -> None:
    kept = []
    with open_store(tmp_path) as store, monkeypatch.context() as patch:
        patch.setattr(place, name, no_space)
        with pytest.raises(DataError) as refusal:
            for key in ALL:
                store.add(rollout(*key))
                kept.append(key)
    assert f"{path}: cannot be written (No space left on device)" in str(refusal.value)
    assert "run the same command again" in str(refusal.value)
    assert not set(kept) & set(fill(tmp_path))
    check_whole(tmp_path)


def test_a_disk_that_fills_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    left = iter([400, 0])

    def until_full(file: int, content: bytes) -> int:
        room = next(left)
        return write(file, content[:room]) if room else no_space()  # type: ignore[func-returns-value,return-value]

    with open_store(tmp_path) as store:
        store.add(rollout("a", 0))
        with monkeypatch.context() as patch:
            patch.setattr(jsonl.os, "write", until_full)
            with pytest.raises(DataError, match="No space left"):
                store.add(replace(rollout("b", 0), text="long " * 99))
    assert ("a", 0) not in fill(tmp_path)
    check_whole(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/store.*: cannot be written \(Not a directory\)"):
        open_store(tmp_path / "file" / "store")


# ---- the journal's lines ------------------------------------------------------------------------------------------


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    ints = st.lists(st.integers(0, 2**31 - 1), max_size=20)
    tokens = draw(ints)
    floats = st.floats(-(2.0**99), 0.0, width=32)
    text = st.text(st.characters(codec="utf-8"))
    return Rollout(
        prompt_id=draw(text),
        index=draw(st.integers(0, 2**31 - 1)),
        seed=draw(st.integers(0, 2**31 - 1)),
        prompt_ids=draw(ints),
        token_ids=tokens,
        log_probs=draw(st.lists(floats, min_size=len(tokens), max_size=len(tokens))),
        truncated=draw(st.booleans()),
        score=draw(st.floats(allow_nan=False)),
        acc=draw(st.none() | st.sampled_from([0.0, 1.0])),
        text=draw(text),
    )


@pytest.mark.slow
@given(rollouts(), st.text(st.characters(codec="utf-8")))
def test_a_line_gives_back_what_it_was_made_from(each: Rollout, problem: str) -> None:
    line = encode(each, problem)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode(line) == (each, problem)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(rollouts(), max_size=8, unique_by=lambda each: (each.prompt_id, each.index)))
def test_a_shard_gives_back_what_it_was_made_from(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Rollout]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    problems = {each.prompt_id: "p" for each in rows}
    with open_store(folder, problems=problems) as store:
        for each in rows:
            store.add(each)
        store.finish()
    assert sorted(RolloutStore(folder).every_rollout(), key=key) == sorted(rows, key=key)


def key(each: Rollout) -> tuple[str, int]:
    return each.prompt_id, each.index


def test_log_probs_are_kept_as_vllm_gives_them() -> None:
    given_ = [float(np.float32(-0.1)), 0.0]
    assert decode(encode(Rollout("a", 0, 0, [], [1, 2], given_, False, 0.0, None, ""), ""))[0].log_probs == given_


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hundreds of small stores: what fsync adds is for a machine that loses power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    yield


def test_a_shard_that_an_older_manifest_does_not_name_is_kept(tmp_path) -> None:
    """Somebody restored an older ``store.json``: what it does not know must not be deleted."""
    rollouts = [Rollout("p", index, 0, [1], [2], [0.0], False, 1.0, 1.0, "x") for index in range(2)]
    named, forgotten = (shards.write_shard(tmp_path, number, [(one, "")]) for number, one in enumerate(rollouts))
    content = (tmp_path / forgotten.name).read_bytes()
    for again in range(2):
        shards.clear_leftovers(tmp_path, [named])
        kept = tmp_path / f"{forgotten.name}.unnamed-{again}"
        assert kept.read_bytes() == content and not (tmp_path / forgotten.name).exists()
        assert (tmp_path / named.name).exists()
        (tmp_path / forgotten.name).write_bytes(content)
