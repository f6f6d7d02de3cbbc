"""Data sets by name: folders as a clone of the hub has them, the cache that ``datasets`` leaves, and every refusal."""

import argparse
import json
import os
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from s2l_ext import cli
from s2l_ext.data.hub import local_file
from s2l_ext.data.openr1 import OpenR1
from s2l_ext.data.reading import read_rows
from s2l_ext.data.s1k import S1K
from s2l_ext.errors import ConfigError, DataError

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: test, path: main/test.jsonl}
- config_name: socratic
  data_files: [{split: train, path: socratic.jsonl}]
---
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and caches of its own, without a hub."""
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clone(name: str, **files: list[dict]) -> Path:
    """A folder of that name in the working directory, as ``hf download --local-dir`` makes it."""
    folder = Path(name)
    for file, rows in files.items():
        path = folder / f"{file.replace('_', '/')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def gsm8k(name: str = "openai/gsm8k") -> None:
    row = [{"question": f"{n}+1=?", "answer": f"It is {n}+1 = {n + 1}.\n#### {n + 1}"} for n in (5, 6, 7)]
    clone(name, main_train=row[:1], main_test=row[1:2], socratic=row[2:]).joinpath("README.md").write_text(CARD)


def rows_of(address: str, prefer: str | None = None) -> list[dict]:
    return [row for _, row in read_rows(local_file(address, "--input", prefer))]


# ---- what is read -------------------------------------------------------------------------------------------------


def test_config_and_split_choose_the_rows_and_name_the_file() -> None:
    gsm8k()
    assert rows_of("hf://openai/gsm8k:main@test")[0]["question"] == "6+1=?"
    assert rows_of("hf://openai/gsm8k:socratic")[0]["question"] == "7+1=?"  # its only split
    assert rows_of("hf://openai/gsm8k:main", prefer="test") == rows_of("hf://openai/gsm8k:main@test")
    path = local_file("hf://openai/gsm8k:main@train", "--input")
    assert path.name == "openai--gsm8k--main--train.parquet"
    assert [entry.name for entry in path.parent.iterdir() if "partial" in entry.name] == []


def test_a_path_is_itself() -> None:
    assert local_file("~/a.jsonl", "--input") == Path.home() / "a.jsonl"


def test_the_cache_of_an_earlier_call_is_read_without_the_hub(here: Path) -> None:
    clone("org/set", train=[{"q": "ñ"}])
    datasets.load_dataset("org/set")
    [built] = (here / "datasets" / "set" / "default" / "0.0.0").glob("*/dataset_info.json")
    of_the_hub = here / "datasets" / "org___set" / "default" / "0.0.0"
    of_the_hub.mkdir(parents=True)
    built.parent.rename(of_the_hub / ("a" * 40))
    (here / "org" / "set").rename(here / "elsewhere")
    assert rows_of("hf://org/set") == [{"q": "ñ"}]


# ---- converters ---------------------------------------------------------------------------------------------------

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def dapo_row(problem: str, answer: str) -> dict:
    prompt = [{"role": "user", "content": DAPO.format(problem)}]
    return {"prompt": prompt, "reward_model": {"ground_truth": answer, "style": "rule"}}


ROWS: dict[str, tuple[dict, list[str]]] = {
    "gsm8k": ({"question": "5+1=?", "answer": "It is 5+1 = 6.\n#### 6"}, []),
    "dapo": (dapo_row("5+1=?", "6"), []),
    "openr1": (
        {
            "problem": "5+1=?",
            "answer": "6",
            "source": "olympiads",
            "generations": ["<think>5 and 1 is 6.</think>\\boxed{6}"],
            "correctness_math_verify": [True],
        },
        ["--data-source", "r1"],
    ),
    "humaneval": (
        {
            "task_id": "T/0",
            "prompt": "def f():\n",
            "canonical_solution": "    return 6\n",
            "test": "def check(candidate):\n    assert candidate() == 6\n",
            "entry_point": "f",
        },
        [],
    ),
    "s1k": (
        {
            "question": "5+1=?",
            "solution": "6",
            "deepseek_thinking_trajectory": "6",
            "deepseek_attempt": "It is \\boxed{6}",
        },
        ["--without-trace", "keep"],
    ),
    "jsonl": ({"prompt": "5+1=?", "answer": 6}, ["--data-source", "mine"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ROWS)
def test_every_converter_takes_a_name(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row, words = ROWS[command]
    clone("org/set", train=[row])
    assert cli.main(["data", command, "--input", "hf://org/set@train", "--out", "out", "--json", *words]) == 0
    [file] = json.loads(capsys.readouterr().out)["files"]
    assert file["rows"] == 1
    truth = next(row for _, row in read_rows(Path(file["path"])))["reward_model"]["ground_truth"]
    assert truth == "6" or "candidate() == 6" in truth


def s1k_row(question: str, solution: str, said: str, **more: str) -> dict:
    """The columns of the published file."""
    unread = {"cot_type": "math", "metadata": "{}", "gemini_thinking_trajectory": "", "gemini_attempt": ""}
    trace = {"deepseek_thinking_trajectory": "5 and 1 is 6.", "deepseek_attempt": f"So \\boxed{{{said}}}."}
    grade = {"deepseek_grade": "No", "deepseek_grade_reason": ""}
    return {"question": question, "solution": solution, "source_type": "aime", **unread, **trace, **grade, **more}


def test_s1k_has_thinking_and_attempt_as_trace_and_counts_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        s1k_row("5+1=?", "6", "6"),
        s1k_row("5+1+0=?", "It is long, and \\boxed{6} in the end.", "6"),
        s1k_row("wrong", "7", "6"),
        s1k_row("Prove it.", "By induction, as n=1 gives 6.", "6"),
        s1k_row("no text", "7", "6", deepseek_thinking_trajectory=""),
    ]
    clone("simplescaling/s1K-1.1", train=rows)
    words = ["--input", "hf://simplescaling/s1K-1.1", "--out", "out", "--json"]
    assert cli.main(["data", "s1k", *words]) == 0
    [file] = json.loads(capsys.readouterr().out)["files"]
    assert (file["rows"], file["dropped_rows"], file["tiers"]) == (2, {"no usable trace": 3}, {"aime": 2})
    written = [row for _, row in read_rows(Path(file["path"]))]
    assert [row["reward_model"]["ground_truth"] for row in written] == ["6", "6"]
    assert written[0]["extra_info"]["trace"] == "<think>\n5 and 1 is 6.\n</think>\n\nSo \\boxed{6}."
    assert cli.main(["data", "s1k", *words, "--trust-labels", "--overwrite"]) == 2  # every grade says No


def test_s1k_needs_its_columns() -> None:
    row = s1k_row("5+1=?", "6", "6")
    del row["deepseek_attempt"]
    clone("org/set", train=[row])
    with pytest.raises(DataError, match=r":0: column 'deepseek_attempt' is missing\. Found: question, solution"):
        S1K().convert("hf://org/set", "out")


def test_dapo_keeps_each_problem_once(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [dapo_row("5+1=?", "6"), dapo_row("7+1=?", "8"), dapo_row(" 5+1=?", "6"), dapo_row("7+1=?", "9")]
    clone("BytedTsinghua-SIA/DAPO-Math-17k", train=rows)
    words = ["--input", "hf://BytedTsinghua-SIA/DAPO-Math-17k", "--out", "data", "--name", "dapo-math-17k", "--json"]
    assert cli.main(["data", "dapo", *words]) == 0
    [file] = json.loads(capsys.readouterr().out)["files"]
    assert (file["path"], file["rows"]) == ("data/dapo-math-17k.parquet", 2)
    assert file["dropped_rows"] == {"repeated problem": 1, "repeated problem with another answer": 1}


def test_gsm8k_makes_a_file_of_each_split() -> None:
    gsm8k()
    words = ["--input", "hf://openai/gsm8k:main@train", "hf://openai/gsm8k:main@test", "--out", "out"]
    assert cli.main(["data", "gsm8k", *words]) == 0
    assert sorted(path.name for path in Path("out").glob("*.parquet")) == ["test.parquet", "train.parquet"]


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["hf://", "hf://a/b/c", "hf://a/b@", "hf://a/b@x:y", "hf://a b"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"--input {address}: expected hf://owner/name"):
        local_file(address, "--input")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (":mian@test", ["there is no config 'mian'", "Did you mean 'main'?", "hf://openai/gsm8k:socratic"]),
        ("", ["it has several configs", "hf://openai/gsm8k:main, hf://openai/gsm8k:socratic"]),
        (":main@tets", ["there is no split 'tets'", "Did you mean 'test'?", "hf://openai/gsm8k:main@train"]),
        (":main", ["it has several splits", "hf://openai/gsm8k:main@train, hf://openai/gsm8k:main@test"]),
    ],
)
def test_config_and_split_are_looked_up_before_rows_are_loaded(
    address: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gsm8k()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("rows were loaded"))
    with pytest.raises(DataError) as refusal:
        local_file(f"hf://openai/gsm8k{address}", "--input")
    assert all(word in str(refusal.value) for word in (f"--input hf://openai/gsm8k{address}: ", *words))


def refused(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    def raising(name: str) -> list[str]:
        raise error

    monkeypatch.setattr(datasets, "get_dataset_config_names", raising)
    with pytest.raises(DataError) as refusal:
        local_file("hf://org/set", "--data")
    return str(refusal.value)


def test_an_id_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    error = DatasetNotFoundError("Dataset 'org/set' doesn't exist on the Hub or cannot be accessed.")
    message = refused(monkeypatch, error)
    assert message.startswith("--data hf://org/set: ") and "doesn't exist" in message
    assert "https://huggingface.co/datasets/org/set" in message and "private set needs HF_TOKEN" in message


def test_a_gated_set_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    error = DatasetNotFoundError(
        "Dataset 'org/set' is a gated dataset on the Hub. You must be authenticated to access it."
    )
    message = refused(monkeypatch, error)
    assert "Accept its terms at https://huggingface.co/datasets/org/set, and set HF_TOKEN" in message


@pytest.mark.parametrize("offline", ["", "1"])
def test_without_a_network(offline: str, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """The message of ``datasets`` itself, which asks nobody here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with pytest.raises(DataError) as refusal:
        local_file("hf://org/absent", "--input")
    fix = "HF_HUB_OFFLINE is set" if offline else "Set HF_ENDPOINT to a mirror or HTTPS_PROXY"
    words = ["Couldn't reach 'org/absent'", fix, "hf download org/absent --repo-type dataset", str(here / "org/absent")]
    assert all(word in str(refusal.value) for word in words)


def test_a_refusal_leaves_no_output(here: Path) -> None:
    with pytest.raises(DataError):
        OpenR1(data_source="r1").convert("hf://org/absent", here / "out")
    assert not (here / "out").exists()


def test_a_full_disk_leaves_the_old_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    clone("org/set", test=[{"q": "x"}])
    path = local_file("hf://org/set", "--data")
    before = path.read_bytes()

    def full(*rest: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"hf://org/set: .*cannot be written \(No space left"):
        local_file("hf://org/set", "--data")
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_command_line_keeps_the_address() -> None:
    parser = argparse.ArgumentParser()
    __import__("s2l_ext.data.dapo", fromlist=["add_arguments"]).add_arguments(parser)
    args = parser.parse_args(["--input", "hf://a/b@train", "c.jsonl", "--out", "o"])
    assert args.input == ["hf://a/b@train", Path("c.jsonl")]
