"""Reading a store of stored responses: what it answers, how it refuses damage, and who reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.data.prompts import read_pass_rates
from s2l_ext.errors import DataError
from s2l_ext.methods.guidance.trace_checks import read_teacher_rollouts
from s2l_ext.store.reader import SCHEMA, Manifest, Rollout, RolloutStore, Shard, is_store
from s2l_ext.store.shards import write_manifest, write_shard

FINGERPRINT = {"model": "m", "model_name": "toy", "tokenizer": "t", "sampling": {"temperature": 0.7}}


def rollout(prompt: str, index: int, acc: float | None = 0.0) -> Rollout:
    log_probs = [-0.5, -0.25]
    return Rollout(prompt, index, 7, [1, 2, index], [3, 4], log_probs, False, 0.5, acc, f"{prompt}/{index}")


ROWS = [
    [rollout("a", 2, 1.0), rollout("a", 0), rollout("b", 0, None)],
    [rollout("a", 1, 1.0), rollout("c", 5), rollout("a", 3)],
]


def write(folder: Path, parts: list[list[Rollout]] = ROWS) -> Path:
    folder.mkdir()
    shards = [write_shard(folder, number, [(row, "p") for row in part]) for number, part in enumerate(parts)]
    write_manifest(folder, Manifest(FINGERPRINT, {"n": 4, "prompts": 3, "problems": "x"}, True, tuple(shards)))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "store")


def test_what_a_store_answers(folder: Path) -> None:
    store = RolloutStore(folder)
    assert store.fingerprint == FINGERPRINT and store.complete and store.folder == folder
    assert store.counts() == {"a": 4, "b": 1, "c": 1}
    assert store.pass_rates() == {"a": 0.5, "c": 0.0}  # b's reward did not say
    assert store.correct_texts() == {"a": "a/1"}  # index 1 comes before index 2, in whichever shard
    assert store.rollouts("a") == [rollout("a", i, acc) for i, acc in enumerate([0.0, 1.0, 1.0, 0.0])]
    assert store.rollouts("b") == [rollout("b", 0, None)]
    assert [store.rollout("a", number) for number in range(4)] == store.rollouts("a")
    assert store.rollout("c", 0).index == 5  # numbered by what is there, as counts() counts
    assert store.rollouts("nobody") == [] and store.indices("nobody") == set()
    assert "nobody" not in store.counts()
    assert len(list(store.every_rollout())) == 6


def test_only_the_groups_that_hold_a_prompt_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"p{number:03d}" for number in range(200)]
    folder = write(tmp_path / "big", [[rollout(name, index) for name in prompts for index in range(4)]])
    store, read = RolloutStore(folder), []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **kw: read.append(group) or original(self, group, **kw)
    )
    assert [each.index for each in store.rollouts("p100")] == [0, 1, 2, 3]
    assert read == [100 * 4 // 64]
    store.rollouts("p101")
    assert len(read) == 1, "the group is still in memory"
    for name in prompts:
        store.rollouts(name)
    assert store._group.cache_info().currsize <= 16


def test_an_empty_store_has_no_pass_rate(tmp_path: Path) -> None:
    folder = write(tmp_path / "empty", [])
    assert RolloutStore(folder).counts() == {}
    with pytest.raises(DataError, match=r"s2l.curriculum.warm_start=.*empty.*no graded response"):
        read_pass_rates(str(folder))


# ---- damage -------------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    path = folder / "shard-000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])


def edit(folder: Path) -> None:
    path = folder / "shard-000001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(folder: Path) -> None:
    (folder / "shard-000001.parquet").unlink()


def change(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "store.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def cut_manifest(folder: Path) -> None:
    path = folder / "store.json"
    path.write_text(path.read_text()[:-20])


def name_twice(folder: Path) -> None:
    path = folder / "store.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "shards": document["shards"] * 2}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, ["shard-000001.parquet (3 responses) is truncated", "--only-missing"]),
        (edit, ["shard-000001.parquet", "was changed: its SHA-256 is"]),
        (remove, ["shard-000001.parquet", "is missing"]),
        (change(s2l_store=2), ["schema 2", "reads 1"]),
        (change(more=1), ["store.json is damaged"]),
        (change(shards=[{"name": "../x", "sha256": "", "size": 0, "rows": 0}]), ["store.json is damaged", "outside"]),
        (cut_manifest, ["store.json is damaged"]),
        (name_twice, ["shard-000000.parquet", "response 0 of prompt a a second time"]),
    ],
)
def test_a_damaged_store_is_refused_and_named(folder: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(folder)
    with pytest.raises(DataError) as refusal:
        RolloutStore(folder, "s2l.explorer.store")
    assert all(word in str(refusal.value) for word in (f"s2l.explorer.store={folder}: ", *words))


def test_every_changed_byte_is_found(folder: Path) -> None:
    path = folder / "shard-000000.parquet"
    content = path.read_bytes()
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        with pytest.raises(DataError, match=r"shard-000000\.parquet .* was changed"):
            RolloutStore(folder)
    path.write_bytes(content)
    RolloutStore(folder)


def test_without_verifying_a_broken_file_is_still_named(folder: Path) -> None:
    truncate(folder)
    with pytest.raises(DataError, match=r"shard-000001\.parquet .* cannot be read"):
        RolloutStore(folder, verify=False)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "other")
    table = pa.table({"prompt_id": ["a"], "index": [0]})
    pq.write_table(table, folder / "shard-000002.parquet")
    shard = Shard("shard-000002.parquet", "", 1, 1)
    store = RolloutStore(folder)
    write_manifest(folder, replace(store.manifest, shards=(*store.manifest.shards, shard)))
    with pytest.raises(DataError, match=r"shard-000002\.parquet .* has other columns: prompt_id, index"):
        RolloutStore(folder, verify=False)
    assert "text" in SCHEMA.names


def test_no_store(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert not is_store(tmp_path / "folder") and not is_store(tmp_path / "none")
    with pytest.raises(DataError, match=r"key=.*none: no such folder. Expected a folder that `s2l explore --out`"):
        RolloutStore(tmp_path / "none", "key")
    with pytest.raises(DataError, match=r"key=.*folder: no store: it has no store\.json"):
        RolloutStore(tmp_path / "folder", "key")


# ---- who reads it -------------------------------------------------------------------------------------------------


def test_a_curriculum_starts_from_a_store(folder: Path) -> None:
    assert read_pass_rates(str(folder)) == {"a": 0.5, "c": 0.0}
    with pytest.raises(DataError, match=r"s2l\.curriculum\.warm_start=.*: no store: it has no store\.json"):
        read_pass_rates(str(folder.parent))
    edit(folder)
    with pytest.raises(DataError, match=r"s2l\.curriculum\.warm_start=.*shard-000001"):
        read_pass_rates(str(folder))


def test_guidance_starts_from_a_stores_right_answers(folder: Path, tmp_path: Path) -> None:
    assert read_teacher_rollouts(str(folder)) == {"a": "a/1"}
    wrong = write(tmp_path / "wrong", [[rollout("a", 0)]])
    with pytest.raises(DataError, match=r"s2l\.guidance\.teacher_rollouts=.*wrong.*nothing to start from"):
        read_teacher_rollouts(str(wrong))
    truncate(folder)
    with pytest.raises(DataError, match=r"s2l\.guidance\.teacher_rollouts=.*is truncated"):
        read_teacher_rollouts(str(folder))
