"""``s2l eval`` with real vLLM: killed, continued, compared with a whole run, and checked against transformers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROBLEMS = 192  # their prompts are more tokens than vLLM takes at once
TIMEOUT_S = 600
RUN_ALL = "import json, sys; from s2l_ext import cli; sys.exit(max(map(cli.main, json.loads(sys.argv[1]))))"
SAMPLED, GREEDY = ("--temperature", "1", "--n", "2"), ("--temperature", "0")


@pytest.fixture(scope="module")
def start(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """``start(("a", SAMPLED), ...)``: a process that evaluates into a.json, then the next."""
    folder = tmp_path_factory.mktemp("eval")

    def launch(*jobs: tuple[str, tuple[str, ...]]) -> tuple[subprocess.Popen, list[Path]]:
        outs = [folder / f"{name}.json" for name, _ in jobs]
        base = ["eval", "--model", toy_dir / "models" / "small", "--data", toy_dir / "val.parquet"]
        base += ["--max-tokens", "48", "--limit", PROBLEMS]
        words = [[*map(str, base), "--out", str(out), *more] for out, (_, more) in zip(outs, jobs, strict=True)]
        with open(outs[0].with_suffix(".log"), "a") as log:
            command = [sys.executable, "-c", RUN_ALL, json.dumps(words)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment), outs

    return launch


def finish(process: subprocess.Popen, outs: list[Path]) -> list[dict]:
    assert process.wait(TIMEOUT_S) == 0, outs[0].with_suffix(".log").read_text()[-4000:]
    return [json.loads(out.read_text()) for out in outs]


def lines(out: Path) -> list[str]:
    path = out.with_name(f"{out.name}.samples.jsonl")
    return path.read_text().split("\n")[:-1] if path.exists() else []


def samples(out: Path) -> dict[tuple[str, int], list[int]]:
    rows = [json.loads(line) for line in lines(out)[1:]]
    assert len({(row["prompt_id"], row["index"]) for row in rows}) == len(rows)
    return {(row["prompt_id"], row["index"]): row["token_ids"] for row in rows}


@pytest.fixture(scope="module")
def runs(start) -> dict[str, tuple[dict, Path]]:
    process, outs = start(("sampled", SAMPLED), ("greedy", GREEDY), ("check", (*GREEDY, "--engine", "transformers")))
    return {out.stem: (result, out) for result, out in zip(finish(process, outs), outs, strict=True)}


def test_greedy_vllm_and_greedy_transformers_say_the_same(runs) -> None:
    (greedy, out), (check, other) = runs["greedy"], runs["check"]
    assert samples(out) == samples(other)
    assert greedy["problems"] == check["problems"]
    assert greedy["accuracy"] == check["accuracy"] > 0.3


def test_killed_and_continued_it_gives_what_it_would_have_given(runs, start) -> None:
    whole, whole_out = runs["sampled"]
    process, (out,) = start(("killed", SAMPLED))
    deadline = time.monotonic() + TIMEOUT_S
    while len(lines(out)) < 10:
        assert process.poll() is None, out.with_suffix(".log").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    before = lines(out)
    assert len(before) <= 2 * PROBLEMS, "the kill came too late"
    assert not out.exists()
    (result,) = finish(*start(("killed", SAMPLED)))
    assert lines(out)[: len(before)] == before
    assert samples(out) == samples(whole_out)
    assert result["problems"] == whole["problems"]
