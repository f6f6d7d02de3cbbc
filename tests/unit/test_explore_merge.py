"""Several stores as one, and what is in a store in numbers."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from s2l_ext import cli
from s2l_ext.errors import ConfigError, DataError, StateMismatch
from s2l_ext.store import shards
from s2l_ext.store.merge import merge
from s2l_ext.store.reader import Rollout, RolloutStore
from s2l_ext.store.stats import as_lines, stats
from s2l_ext.store.writer import StoreWriter

FINGERPRINT: dict[str, Any] = {
    "model": "m1",
    "model_name": "toy",
    "tokenizer": "t1",
    "dtype": "float32",
    "log_probs": "processed_logprobs",
    "sampling": {"temperature": 0.7, "seed": 0},
    "data": [{"name": "a", "sha256": "1"}],
    "reward": ["r"],
}


def rollout(prompt: str, index: int, acc: float = 0.0, tokens: int = 2, truncated: bool = False) -> Rollout:
    ids, log_probs = list(range(tokens)), [-0.25] * tokens
    return Rollout(prompt, index, 1, [1, 2, 3], ids, log_probs, truncated, acc, acc, f"{prompt}{index}")


def write(
    folder: Path, rows: list[Rollout], n: int = 2, finish: bool = True, problem: str = "p", **changes: Any
) -> Path:
    problems = {row.prompt_id: problem for row in rows}
    with StoreWriter(folder, FINGERPRINT | changes, n, problems) as store:
        for row in rows:
            store.add(row)
        if finish:
            store.finish()
        else:
            store.compact()
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    a = write(tmp_path / "a", [rollout("x", 0), rollout("x", 1, 1.0), rollout("y", 0), rollout("y", 1)])
    other = [{"name": "b", "sha256": "2"}]
    return [
        a,
        write(tmp_path / "b", [rollout("y", 0), rollout("y", 1), rollout("z", 0, 1.0), rollout("z", 1)], data=other),
    ]


def test_merge(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "c"
    assert merge(two, out, shard_rows=4) == {"responses": 6, "prompts": 3, "duplicates": 2}
    store = RolloutStore(out)
    assert store.counts() == {"x": 2, "y": 2, "z": 2} and store.complete
    assert [shard.rows for shard in store.manifest.shards] == [4, 2]
    for folder in two:
        source = RolloutStore(folder)
        assert all(store.rollouts(name) == source.rollouts(name) for name in source.counts())
    assert [each["name"] for each in store.fingerprint["data"]] == ["a", "b"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["c"]
    with StoreWriter(out, FINGERPRINT, 2, dict.fromkeys("xyz", "p")) as again:
        assert again.manifest.complete and sum(map(len, again.have.values())) == 6


def test_a_merged_store_is_complete_only_if_all_is_there(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [rollout("x", 0), rollout("x", 1)])
    b = write(tmp_path / "b", [rollout("y", 0)], n=1)
    merge([a, b], tmp_path / "c")
    assert not RolloutStore(tmp_path / "c").complete and RolloutStore(tmp_path / "c").manifest.request["n"] == 2
    write(tmp_path / "d", [rollout("y", 1)], finish=False)
    merge([a, b, tmp_path / "d"], tmp_path / "e")
    assert not RolloutStore(tmp_path / "e").complete


def test_what_cannot_be_merged(two: list[Path], tmp_path: Path) -> None:
    def refused(kind: type[Exception], words: str, *folders: Path, out: str = "c") -> None:
        with pytest.raises(kind, match=words):
            merge(folders, tmp_path / out)
        assert not (tmp_path / "c").exists()

    refused(ConfigError, "expected two or more different stores", two[0])
    refused(ConfigError, "expected two or more different stores", two[0], two[0])
    refused(ConfigError, "--out .*b is there already", *two, out="b")
    refused(DataError, "--merge=.*none: no such folder", two[0], tmp_path / "none")
    other = write(tmp_path / "other", [rollout("q", 0)], model="m2", model_name="big")
    refused(StateMismatch, r"another model: m1 \(toy\), in .*other m2 \(big\)", two[0], other)
    hot = write(tmp_path / "hot", [rollout("q", 0)], sampling={"temperature": 1.0, "seed": 0})
    refused(StateMismatch, "another temperature: 0.7", two[0], hot)
    changed = write(tmp_path / "changed", [rollout("x", 1, 0.0)])
    refused(DataError, "hold different responses 1 of prompt x", two[0], changed)
    truth = write(tmp_path / "truth", [rollout("x", 5)], problem="q")
    refused(DataError, "prompt x of .*truth was drawn or graded with another prompt", two[0], truth)
    shard = two[1] / "shard-000000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(DataError, r"--merge=.*b: shard shard-000000\.parquet .* is truncated", *two)


def stop_early(folder: Path, rows: list[Rollout], n: int = 2) -> Path:
    """A store as a kill leaves it: no shard has a response whose slice was not whole."""
    with StoreWriter(folder, FINGERPRINT, n, {row.prompt_id: "p" for row in rows}) as store:
        for row in rows:
            store.add(row)
    return folder


def test_responses_that_only_a_journal_has_are_not_dropped(two: list[Path], tmp_path: Path) -> None:
    stopped = stop_early(tmp_path / "stopped", [rollout("q", 0), rollout("q", 1, 1.0), rollout("r", 0)])
    with pytest.raises(DataError, match="--merge .*stopped: 3 graded responses are in journal.jsonl .*Finish it with"):
        merge([two[0], stopped], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with StoreWriter(stopped, FINGERPRINT, 2, {"q": "p", "r": "p"}) as store:
        store.add(rollout("r", 1))
        store.finish()
    assert merge([two[0], stopped], tmp_path / "c") == {"responses": 8, "prompts": 4, "duplicates": 0}


def test_a_full_disk_leaves_no_half_merged_store(two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*rest: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards.pq, "write_table", no_space)
    with pytest.raises(DataError, match="No space left on device"):
        merge(two, tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_merge_command(two, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c"
    words = ["explore", "--merge", *map(str, two), "--out", str(out)]
    assert cli.main(words) == 0
    assert "6 responses to 3 prompts, 2 identical ones left out" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert f"--out {out} is there already" in capsys.readouterr().err
    assert cli.main([*words[:-1], str(tmp_path / "d"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"responses": 6, "prompts": 3, "duplicates": 2}


# ---- stats --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Pass rates 0, 1/2, 1 and 1; lengths 1, 2, ..., 8; the longest is truncated."""
    accs = [0, 0, 0, 1, 1, 1, 1, 1]
    rows = [
        rollout("wxyz"[at // 2], at % 2, float(acc), tokens=at + 1, truncated=at == 7) for at, acc in enumerate(accs)
    ]
    return write(tmp_path / "store", rows)


def test_stats(store: Path) -> None:
    found = stats(store)
    assert found["prompts"] == 4 and found["responses"] == 8 and found["complete"] and found["asked"] == 2
    assert found["responses_per_prompt"] == {"min": 2, "max": 2}
    assert found["pass_rate"] == 0.625 and found["mean_score"] == 0.625
    assert found["pass_rate_histogram"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert found["never_right"] == 1 and found["always_right"] == 2
    assert found["response_tokens"] == 36 and found["prompt_tokens"] == 24
    assert found["length"] == {"mean": 4.5, "p50": 4.5, "p90": pytest.approx(7.3), "p99": pytest.approx(7.93), "max": 8}
    assert found["truncation_rate"] == 0.125
    assert found["log_prob_per_token"] == -0.25
    assert found["shards"] == 1 and found["bytes"] == (store / "shard-000000.parquet").stat().st_size
    assert found["fingerprint"] == FINGERPRINT


def test_a_pass_rate_at_the_edge_of_a_bin_begins_it(tmp_path: Path) -> None:
    """0, 1, ... 10 right of ten: one prompt in each bin, and the last has that of 1 too."""
    rows = [rollout(f"q{right}", at, float(at < right)) for right in range(11) for at in range(10)]
    assert stats(write(tmp_path / "store", rows, n=10))["pass_rate_histogram"] == [1] * 9 + [2]


def test_stats_for_a_person(store: Path, tmp_path: Path) -> None:
    text = "\n".join(as_lines(stats(store)))
    assert "8, 2 for each of 4 prompts (complete)" in text
    assert "0.6250; 1 prompts never right, 2 always" in text
    assert "  0.9 to 1.0        2 ########################################" in text
    assert "  0.5 to 0.6        1 ####################\n" in text
    assert "mean 4.5, median 4.5, 90 % within 7.3, longest 8; 12.5% truncated" in text
    half = write(tmp_path / "half", [rollout("x", 0), rollout("x", 1), rollout("y", 0)], finish=False)
    assert "3, 1 to 2 for each of 2 prompts (not complete: 2 of each were requested)" in as_lines(stats(half))[1]
    empty = write(tmp_path / "empty", [], finish=False)
    assert as_lines(stats(empty)) == ["toy: no response yet"]


def test_stats_count_what_only_the_journal_has(tmp_path: Path) -> None:
    stopped = stop_early(tmp_path / "stopped", [rollout("q", 0), rollout("q", 1), rollout("r", 0)])
    found = stats(stopped)
    assert (found["journal"], found["responses"]) == (3, 0)
    first, second = as_lines(found)
    assert first == "toy: no response in a shard yet" and "3 graded responses in the journal" in second
    with StoreWriter(stopped, FINGERPRINT, 2, {"q": "p", "r": "p"}) as store:
        store.compact()
        store.add(rollout("r", 1))
    found = stats(stopped)
    assert (found["journal"], found["responses"]) == (1, 3)
    assert "1 graded responses in the journal" in as_lines(found)[-1]
    (stopped / "journal.jsonl").unlink()
    assert stats(stopped)["journal"] == 0 and "journal" not in "".join(as_lines(stats(stopped)))


def test_stats_command(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explore", "--stats", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["responses"] == 8
    assert cli.main(["explore", "--stats", str(store)]) == 0
    assert "log-prob     -0.2500 a token" in capsys.readouterr().out
    assert cli.main(["explore", "--stats", str(store.parent)]) == 2
    assert "--stats=" in capsys.readouterr().err
