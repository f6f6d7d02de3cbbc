"""``s2l eval`` with real vLLM: killed, continued, and checked against transformers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROBLEMS = 256
TIMEOUT_S = 600


def start(toy_dir: Path, out: Path, engine: str) -> subprocess.Popen:
    words = ["--model", toy_dir / "models" / "small", "--data", toy_dir / "val.parquet", "--out", out]
    words += ["--temperature", "0", "--max-tokens", "48", "--limit", PROBLEMS, "--engine", engine]
    command = [sys.executable, "-m", "s2l_ext.cli", "eval", *map(str, words)]
    with open(out.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(process: subprocess.Popen, out: Path) -> dict:
    assert process.wait(TIMEOUT_S) == 0, out.with_suffix(".log").read_text()[-4000:]
    return json.loads(out.read_text())


def lines(out: Path) -> list[str]:
    path = out.with_name(f"{out.name}.samples.jsonl")
    return path.read_text().split("\n")[:-1] if path.exists() else []


def texts(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in lines(out)[1:]]
    assert len({row["prompt_id"] for row in rows}) == len(rows)
    return {row["prompt_id"]: row["text"] for row in rows}


@pytest.fixture(scope="module")
def killed(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A vLLM evaluation that was killed between its first and its last sample; what it left."""
    out = tmp_path_factory.mktemp("eval") / "vllm.json"
    process = start(toy_dir, out, "vllm")
    deadline = time.monotonic() + TIMEOUT_S
    while len(lines(out)) < 10:
        assert process.poll() is None, out.with_suffix(".log").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    return out, lines(out)


def test_killed_and_continued_it_gives_what_transformers_gives(killed: tuple[Path, list[str]], toy_dir: Path) -> None:
    out, before = killed
    assert 10 <= len(before) <= PROBLEMS, "the kill came too late"
    assert not out.exists()
    other = out.with_name("transformers.json")
    check = start(toy_dir, other, "transformers")
    result, expected = finish(start(toy_dir, out, "vllm"), out), finish(check, other)
    assert lines(out)[: len(before)] == before
    assert len(lines(out)) == 1 + PROBLEMS
    assert texts(out) == texts(other)
    assert result["accuracy"] == expected["accuracy"] > 0.3
    assert result["problems"] == expected["problems"]
