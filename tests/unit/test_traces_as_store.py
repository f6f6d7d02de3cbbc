"""Reasoning traces as a store: its rows are the traces' own tokens, and only SFT may read it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.cli import main
from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.inputs import check_store
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.store.reader import RolloutStore
from s2l_ext.toy.models import ModelSize, build_model
from s2l_ext.toy.tokenizer import build_tokenizer

TRACES = ["<think>1+1=2</think>\\boxed{2}", "<think>2+1=3</think>\\boxed{3}", "<think>3+1=4</think>\\boxed{4}"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    build_model(ModelSize(32, 1), 0).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def data(path: Path, traces: list) -> Path:
    rows = [
        {
            "data_source": "toy",
            "prompt": [{"role": "user", "content": f"{n}+1=?"}],
            "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
            "extra_info": {"index": n, "trace": trace},
        }
        for n, trace in enumerate(traces, start=1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def words(model: str, file: Path, out: Path, *more: str) -> list[str]:
    return ["data", "traces-as-store", "--model", model, "--data", str(file), "--out", str(out), *more]


def test_a_row_is_the_prompts_tokens_the_traces_tokens_and_one_end_token(model, tmp_path, capsys) -> None:
    file, out = data(tmp_path / "train.parquet", TRACES), tmp_path / "store"
    assert main(words(model, file, out, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3
    store, tokenizer = RolloutStore(str(out), "store"), build_tokenizer()
    assert store.complete and set(store.counts().values()) == {1}
    for name, trace, n in zip(prompt_ids(parquet_table([file])), TRACES, (1, 2, 3), strict=True):
        row = store.rollout(name, 0)
        chat = [{"role": "user", "content": f"{n}+1=?"}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert row.prompt_ids == prompt
        said = trace.removeprefix("<think>") if tokenizer.decode(prompt).rstrip().endswith("<think>") else trace
        assert row.token_ids == [*tokenizer.encode(said, add_special_tokens=False), tokenizer.eos_token_id]
        assert not row.truncated and row.acc is None


def test_rows_without_a_trace_are_an_error_or_dropped_and_counted(model, tmp_path, capsys) -> None:
    file = data(tmp_path / "train.parquet", [TRACES[0], "", TRACES[2]])
    assert main(words(model, file, tmp_path / "a")) == 2
    assert "row 2 has no trace" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main(words(model, file, tmp_path / "b", "--without-trace", "drop")) == 0
    assert "2 traces" in capsys.readouterr().out
    assert main(words(model, file, tmp_path / "b")) == 2
    assert "the folder holds a store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("1+1=?", "row 0, column 'prompt': the prompt is str '1+1=?', not a list of messages"),
        (["1+1=?"], "row 0, column 'prompt'"),
        ([{"role": "user"}], "row 1, column 'prompt'"),
        ([], "row 1, column 'prompt'"),
    ],
    ids=str,
)
def test_a_prompt_that_no_template_renders_is_named_and_no_store_begun(
    model, tmp_path, capsys, prompt, message
) -> None:
    rows = pq.read_table(data(tmp_path / "train.parquet", TRACES)).to_pylist()
    kept = [] if isinstance(prompt, str) or prompt[:1] == ["1+1=?"] else rows[:1]
    pq.write_table(pa.Table.from_pylist([*kept, rows[1] | {"prompt": prompt}]), tmp_path / "train.parquet")
    assert main(words(model, tmp_path / "train.parquet", tmp_path / "a")) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "a").exists()


def test_a_trace_that_is_a_list_written_as_text_is_no_trace(model, tmp_path, capsys) -> None:
    file = data(tmp_path / "train.parquet", [TRACES[0], json.dumps(TRACES[1:2])])
    assert main(words(model, file, tmp_path / "a")) == 2
    assert "row 2 has a trace that is a list written as text" in capsys.readouterr().err


def test_the_file_that_is_no_parquet_is_the_one_that_is_named(model, tmp_path, capsys) -> None:
    file = data(tmp_path / "train.parquet", TRACES)
    assert main(words(model, file, tmp_path / "a", "--data", str(file), str(tmp_path / "b.jsonl"))) == 2
    assert "b.jsonl: expected verl parquet" in capsys.readouterr().err
    assert main(words(model, tmp_path / "gone.parquet", tmp_path / "a")) == 2
    assert "gone.parquet: no such file." in capsys.readouterr().err


@pytest.mark.slow
def test_only_sft_reads_it(model, tmp_path, configured) -> None:
    file, out = data(tmp_path / "train.parquet", TRACES), tmp_path / "store"
    assert main(words(model, file, out)) == 0
    settings = {
        "actor_rollout_ref__model__path": model,
        "data__train_files": str(file),
        "data__train_batch_size": 3,
        "s2l__explorer__store": str(out),
    }
    cfg = configured("g2rpo_a/sft_on_traces", **settings)
    assert check_store(cfg, parse_s2l(cfg.s2l), [file]) == []
    for loss, name in ((None, "the policy gradient"), ("forward_kl", "s2l.distill.loss=forward_kl")):
        block = None if loss is None else {"loss": loss, "teacher_path": model}
        cfg = configured("g2rpo_a/sft_on_traces", **settings, s2l__distill=block)
        with pytest.raises(ConfigError) as refused:
            check_store(cfg, parse_s2l(cfg.s2l), [file])
        assert str(refused.value) == (
            f"s2l.explorer.store={out} holds reasoning traces that no model sampled, which {name} cannot use. Set "
            "s2l.distill.loss=sft, or sample a store with `s2l explore`."
        )
