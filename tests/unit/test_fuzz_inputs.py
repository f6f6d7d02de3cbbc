"""Malformed input of every kind: whatever it is, one error of this package that says something, and soon.

11,600 examples in all, the same each time; S2L_FUZZ=10 draws ten times as many, and others every time.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from s2l_ext.config.parse import valid_keys
from s2l_ext.data import gsm8k, humaneval, openr1, reading, user_jsonl
from s2l_ext.data.checks import check_parquet
from s2l_ext.data.prompts import parquet_table, prompt_ids, read_pass_rates
from s2l_ext.errors import S2LError
from s2l_ext.evaluation.benchmarks import load_benchmark
from s2l_ext.evaluation.forms import _decode_tests
from s2l_ext.evaluation.samples import SampleFile
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import S2LConfig, parse_s2l
from s2l_ext.pipeline.file import read_pipeline
from s2l_ext.pipeline.plan import Entry, Manifest
from s2l_ext.store.reader import Rollout, RolloutStore
from s2l_ext.store.shards import encode
from s2l_ext.store.writer import StoreWriter, read_journal
from s2l_ext.training.controller_state import load_state, save_state
from s2l_ext.utils.refusal import printable

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
TIMES = int(os.environ.get("S2L_FUZZ", "1"))
SLOWEST_MS = 30_000
"""Of one example, on a machine that has much else to do; the slowest takes 0.1 s alone."""


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples * TIMES,
        deadline=SLOWEST_MS,
        derandomize=TIMES == 1,
        database=None,
        phases=(Phase.generate, Phase.shrink) if TIMES > 1 else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def refuses_or_works(run: Callable[[], object]) -> None:
    """Nothing but an S2LError may come out, and it says something on few lines."""
    try:
        run()
    except S2LError as error:
        assert str(error).strip() and len(printable(str(error))) < 10_000


# ---- what is malformed --------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [0, 1, 2, -1, 7, 64, 2**31, 2**63, 2**64, 10**30, 0.0, -0.0, 0.5, 1.5, -1e-9, 1e308, float("inf"), float("nan")]
)
TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "\0", "\x1b[2J", "..", "../../x", "/", "a" * 3000, "1e999", "nan", "null", "\ud800", "é\u2028"]
    ),
    st.text(max_size=6),
)
PLAIN = st.one_of(st.sampled_from([None, True, False]), NUMBERS, TEXTS)
ODD: st.SearchStrategy[Any] = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=2),
    st.dictionaries(st.sampled_from(["", "a", "b", "type", "\0"]), PLAIN, max_size=2),
    st.sampled_from([[[]], {"a": {"b": [{}]}}, [[1, [2, {"a": None}]]]]),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every value inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in items for place in places(item, (*at, key)))]


def put(document: Any, place: tuple[Any, ...], value: Any, drop: bool) -> Any:
    if not place:
        return value
    copy = json.loads(json.dumps(document)) if isinstance(document, dict | list) else document
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if drop:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return copy


@st.composite
def mutated(draw: Any, document: Any) -> Any:
    """The document with one or two values replaced by anything, or left out, or a key added."""
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(document)))
        document = put(document, place, draw(ODD), draw(st.booleans()))
        if isinstance(document, dict) and draw(st.integers(0, 5)) == 0:
            document = {**document, draw(st.text(max_size=5)): draw(ODD)}
    return document


BROKEN_PIECES = (
    b"[" * 5_000,
    b'{"a":' * 2000,
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"\xff\xfe",
    b"\0",
    b'"',
    b"\n",
    b"\\ud800",
)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes flipped, cut off, put in, or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "put", "again"]))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "put":
            content = content[:at] + draw(st.sampled_from(BROKEN_PIECES)) + content[at:]
        else:
            content = content[:at] + content
    return content


def documents(valid: Any) -> st.SearchStrategy[bytes]:
    """JSON files: a valid one with wrong values, or with wrong bytes."""
    whole = json.dumps(valid).encode()
    return st.one_of(mutated(valid).map(lambda value: json.dumps(value).encode()), damaged(whole))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---- configuration ------------------------------------------------------------------------------------------------


@st.composite
def blocks(draw: Any) -> Any:
    """Known keys with any values, and unknown keys."""
    block: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(sorted(valid_keys(S2LConfig, "s2l"))), max_size=4)):
        inner = block
        *parents, last = key.split(".")[1:]
        for name in parents:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[last] = draw(ODD)
    return draw(ODD) if draw(st.integers(0, 9)) == 0 else block


@fuzz(3000)
@given(blocks())
def test_the_s2l_block(block: Any) -> None:
    refuses_or_works(lambda: parse_s2l(block))


WORDS = st.sampled_from(
    [
        *("a", "a.b", "a.c", "s2l", "s2l.kl.beta", "list", "+", "++", "~", "=", "@", "/", ",", ":", "[", "]", "{", "}"),
        *("(", ")", "'", '"', "\\", "$", "${", "${a.b}", "${oc.env:X}", "${no:1}", " ", "\n", "\0", "1e999", "null"),
        "!!python/name:os.system",
    ]
)
OVERRIDES = st.one_of(
    st.lists(WORDS, max_size=6).map("".join),
    TEXTS,
    st.tuples(st.sampled_from(["a.b=", "+a.d=", "s2l.kl="]), TEXTS).map("".join),
)


@fuzz(250)
@given(st.lists(OVERRIDES, max_size=3))
def test_overrides(folder: Path, overrides: list[str]) -> None:
    (folder / "own").mkdir(exist_ok=True)
    recipe = folder / "own" / "recipe.yaml"
    recipe.write_text('a: {b: 1, c: "${a.b}"}\nlist: [1, 2]\ns2l: {}\n')
    refuses_or_works(lambda: compose_config(str(recipe), overrides))


# ---- rows ---------------------------------------------------------------------------------------------------------

USER_ROW = {"prompt": "2+2?", "answer": "4", "trace": "So 4.", "tier": 1, "id": "p1"}
GSM8K_ROW = {"question": "2+2?", "answer": "It is <<2+2=4>>4.\n#### 4"}
HUMANEVAL_ROW = {
    "task_id": "t/1",
    "prompt": "def f():\n",
    "entry_point": "f",
    "canonical_solution": "    return 1\n",
    "test": "def check(f):\n    assert f() == 1\n",
}
OPENR1_ROW = {
    "problem": "2+2?",
    "answer": "4",
    "source": "olympiads",
    "question_type": "math-word-problem",
    "messages": [],
    "generations": ["<think>4</think> \\boxed{4}"],
    "is_reasoning_complete": [True],
    "correctness_math_verify": [True],
}


def lines(row: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """One to three rows, some malformed."""
    good = json.dumps(row).encode()
    return st.lists(st.one_of(documents(row), st.just(good)), min_size=1, max_size=3).map(b"\n".join)


@fuzz(900)
@given(lines(USER_ROW))
def test_json_lines_of_ones_own(folder: Path, content: bytes) -> None:
    path, fields = folder / "user.jsonl", {"trace_field": "trace", "tier_field": "tier", "id_field": "id"}
    path.write_bytes(content)
    options = {"trace_check": "form"}
    refuses_or_works(
        lambda: user_jsonl.UserJsonl(data_source="own", **fields, **options).convert(
            path, folder / "user", overwrite=True
        )
    )


@fuzz(400)
@given(lines(GSM8K_ROW))
def test_gsm8k(folder: Path, content: bytes) -> None:
    path = folder / "train.jsonl"
    path.write_bytes(content)
    refuses_or_works(lambda: gsm8k.Gsm8k().convert(path, folder / "gsm8k", overwrite=True))


@fuzz(250)
@given(lines(HUMANEVAL_ROW))
def test_humaneval(folder: Path, content: bytes) -> None:
    path = folder / "humaneval.jsonl"
    path.write_bytes(content)
    refuses_or_works(lambda: humaneval.HumanEval().convert(path, folder / "humaneval", overwrite=True))


@fuzz(300)
@given(lines(OPENR1_ROW))
def test_openr1(folder: Path, content: bytes) -> None:
    path, options = folder / "openr1.jsonl", {"trust_labels": True}
    path.write_bytes(content)
    refuses_or_works(lambda: openr1.OpenR1(**options).convert(path, folder / "openr1", overwrite=True))


@fuzz(500)
@given(lines({"prompt_id": "a", "pass_rate": 0.5}))
def test_pass_rates(folder: Path, content: bytes) -> None:
    path = folder / "rates.jsonl"
    path.write_bytes(content)
    refuses_or_works(lambda: read_pass_rates(str(path)))


@fuzz(400)
@given(st.one_of(ODD, damaged(b"[1]"), damaged(zlib.compress(b"\x80\x04\x8c\x02[]\x94."))))
def test_published_tests(value: Any) -> None:
    text = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    refuses_or_works(lambda: _decode_tests(text, "tests", "row 1"))


# ---- parquet ------------------------------------------------------------------------------------------------------

VERL_ROW = {
    "data_source": "own",
    "prompt": [{"role": "user", "content": "2+2?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 0, "id": "p1"},
}


def reads(path: Path) -> None:
    refuses_or_works(lambda: check_parquet(path))
    refuses_or_works(lambda: list(reading.read_parquet(path, list(VERL_ROW))))
    refuses_or_works(lambda: prompt_ids(parquet_table([path])))


@fuzz(350)
@given(st.lists(mutated(VERL_ROW), min_size=1, max_size=2))
def test_parquet_rows(folder: Path, rows: list[Any]) -> None:
    path = folder / "rows.parquet"
    try:
        table = pa.Table.from_pylist([row if isinstance(row, dict) else {"row": row} for row in rows])
        pq.write_table(table, path)
    except (pa.ArrowException, TypeError, UnicodeError, OverflowError):
        return  # arrow itself writes no such file
    reads(path)


@pytest.fixture(scope="module")
def parquet_bytes(folder: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist([VERL_ROW] * 20), folder / "good.parquet", compression="none")
    return (folder / "good.parquet").read_bytes()


@fuzz(500)
@given(st.data())
def test_parquet_bytes(folder: Path, parquet_bytes: bytes, data: st.DataObject) -> None:
    path = folder / "bytes.parquet"
    path.write_bytes(data.draw(damaged(parquet_bytes)))
    reads(path)


# ---- manifests and states -----------------------------------------------------------------------------------------

ENTRY = {
    "status": "done",
    "fingerprint": "f",
    "parts": {"a": "b"},
    "result": {"output": {"files": {}}},
    "cost": {"wall_seconds": 1.0, "attempts": 1},
}
PIPELINE_MANIFEST = {"schema_version": 1, "pipeline": "p", "stages": {"one": ENTRY}}


@fuzz(800)
@given(documents(PIPELINE_MANIFEST))
def test_the_manifest_of_a_pipeline(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)

    def use() -> None:
        manifest = Manifest(folder, "p")
        manifest.to_dict()
        assert all(isinstance(entry, Entry) for entry in manifest.entries.values())

    refuses_or_works(use)


STATE = {
    "schema_version": 1,
    "fingerprint": {"a": 1},
    "arrays_sha256": None,
    "controllers": {"kl": {"beta": 0.02}, "curriculum": {"rates": {"__array__": "x"}}},
}


@fuzz(700)
@given(documents(STATE))
def test_the_state_in_a_checkpoint(folder: Path, content: bytes) -> None:
    (folder / "s2l_state.json").write_bytes(content)
    refuses_or_works(lambda: load_state(folder, {"a": 1}))
    refuses_or_works(lambda: load_state(folder, {"a": 1}, reset_curriculum=True))


@fuzz(250)
@given(st.data())
def test_the_arrays_of_a_checkpoint(folder: Path, data: st.DataObject) -> None:
    import hashlib

    import numpy as np

    (folder / "arrays").mkdir(exist_ok=True)
    save_state(folder / "arrays", {}, {"a": {"x": np.arange(3)}})
    path, document = folder / "arrays" / "s2l_arrays.npz", folder / "arrays" / "s2l_state.json"
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    if data.draw(st.booleans()):  # as if it had been written so
        state = json.loads(document.read_text())
        document.write_text(json.dumps(state | {"arrays_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    refuses_or_works(lambda: load_state(folder / "arrays", {}))


@fuzz(400)
@given(lines({"s2l_samples": 1, "fingerprint": {"model": "m"}}))
def test_files_of_samples(folder: Path, content: bytes) -> None:
    (folder / "samples.jsonl").write_bytes(content)
    refuses_or_works(lambda: SampleFile(folder / "samples.jsonl", {"model": "m"}).close())


# ---- stores -------------------------------------------------------------------------------------------------------

FINGERPRINT = {
    "model": "m",
    "model_name": "small",
    "tokenizer": "t",
    "dtype": "float32",
    "log_probs": "x",
    "sampling": {"temperature": 1.0},
    "data": ["d"],
    "reward": ["r"],
}
ROLLOUT = Rollout("p1", 0, 1, [1, 2], [3, 4], [-0.5, -0.25], False, 1.0, 1.0, "four")


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    with StoreWriter(folder / "store", FINGERPRINT, 1, {"p1": "d"}) as writer:
        writer.add(ROLLOUT)
        writer.finish()
    return folder / "store"


def opens(place: Path, verify: bool = True) -> None:
    def use() -> None:
        opened = RolloutStore(place, verify=verify)
        list(opened.every_rollout())
        opened.pass_rates()
        opened.correct_texts()

    refuses_or_works(use)


@fuzz(500)
@given(st.data())
def test_the_manifest_of_a_store(store: Path, data: st.DataObject) -> None:
    path = store / "store.json"
    whole, shards = path.read_bytes(), {file: file.read_bytes() for file in store.glob("shard-*")}
    path.write_bytes(data.draw(documents(json.loads(whole))))
    try:
        opens(store)
        refuses_or_works(lambda: StoreWriter(store, FINGERPRINT, 1, {"p1": "d"}).close())
    finally:
        for other in store.glob("journal*"):
            other.unlink()
        path.write_bytes(whole)
        for file, content in shards.items():  # a writer removes what its manifest does not name
            file.write_bytes(content)


@fuzz(400)
@given(st.data(), st.booleans())
def test_the_shards_of_a_store(store: Path, data: st.DataObject, verify: bool) -> None:
    path = store / "shard-000000.parquet"
    whole = path.read_bytes()
    path.write_bytes(data.draw(damaged(whole)))
    try:
        opens(store, verify)
    finally:
        path.write_bytes(whole)


JOURNAL = encode(ROLLOUT, "d") * 2


@fuzz(1000)
@given(st.one_of(damaged(JOURNAL), documents(json.loads(encode(ROLLOUT, "d"))).map(lambda line: line + b"\n")))
def test_the_journal_of_a_store(folder: Path, content: bytes) -> None:
    (folder / "journal.jsonl").write_bytes(content)
    refuses_or_works(lambda: list(read_journal(folder)))


# ---- YAML ---------------------------------------------------------------------------------------------------------

PIPELINE = {
    "name": "p",
    "output_dir": "outputs/p",
    "models": {"small": "toy/small"},
    "splits": {"easy": "a.parquet"},
    "stages": [
        {"name": "one", "kind": "train", "recipe": "grpo/toy", "inputs": {"model": "small", "train": ["easy"]}},
        {"name": "two", "kind": "evaluate", "inputs": {"model": {"from": "one", "keys": ["a.b"]}}, "options": {"n": 4}},
    ],
}
BENCHMARK = {"name": "b", "prompt": "{question}", "answer": "answer", "reward": "math"}


def yamls(valid: Any) -> st.SearchStrategy[bytes]:
    """JSON is YAML; and so is a document whose every line may be damaged."""
    import yaml

    return st.one_of(documents(valid), damaged(yaml.safe_dump(valid, sort_keys=False).encode()))


@fuzz(400)
@given(yamls(PIPELINE), st.lists(OVERRIDES, max_size=2))
def test_pipeline_files(folder: Path, content: bytes, overrides: list[str]) -> None:
    path = folder / "pipeline.yaml"
    path.write_bytes(content)

    refuses_or_works(lambda: read_pipeline(path, folder / "out", overrides))


@fuzz(300)
@given(yamls(BENCHMARK))
def test_benchmark_files(folder: Path, content: bytes) -> None:
    (folder / "benchmark.yaml").write_bytes(content)
    refuses_or_works(lambda: load_benchmark(str(folder / "benchmark.yaml")))
