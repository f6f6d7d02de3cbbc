"""Sizes of models from metadata, counted by hand."""

from __future__ import annotations

import json
import struct

import pytest

from s2l_ext.config.model_files import is_local, parameter_count


def write_safetensors(path, shapes):
    header = {"__metadata__": {"format": "pt"}}
    header.update({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()})
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_every_shard_is_counted_from_its_header(tmp_path):
    write_safetensors(tmp_path / "model-1.safetensors", {"a": [3, 4], "b": [5]})
    write_safetensors(tmp_path / "model-2.safetensors", {"c": [2, 2, 2], "scalar": []})
    assert parameter_count(str(tmp_path)) == 12 + 5 + 8 + 1


@pytest.mark.parametrize("indexed", [True, False])
def test_a_second_copy_of_the_weights_is_not_counted(tmp_path, indexed):
    write_safetensors(tmp_path / "consolidated.safetensors", {"a": [3, 4], "b": [5]})
    write_safetensors(tmp_path / "model-1.safetensors", {"a": [3, 4]})
    write_safetensors(tmp_path / "model-2.safetensors", {"b": [5]})
    if indexed:
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        write_safetensors(tmp_path / "model.safetensors", {"a": [3, 4], "b": [5]})
    assert parameter_count(str(tmp_path)) == 12 + 5


QWEN3_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}


def test_estimate_from_config_when_there_are_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    # 2 x 151936 x 4096 + 36 x (4096 x 128 x 2 x (32 + 8) + 3 x 4096 x 12288) = 8.190 B; the model card says 8.2 B
    assert parameter_count(str(tmp_path)) == 1_244_659_712 + 36 * (41_943_040 + 150_994_944)


def test_tied_embeddings_count_once(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**QWEN3_8B, "tie_word_embeddings": True}))
    assert parameter_count(str(tmp_path)) == 622_329_856 + 36 * 192_937_984


def test_a_folder_that_tells_nothing(tmp_path):
    assert parameter_count(str(tmp_path)) is None
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    assert parameter_count(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Qwen/Qwen3-1.7B-Base", 1_700_000_000),
        ("Qwen/Qwen3-8B", 8_000_000_000),
        ("internlm/internlm2_5-1_8b", 1_800_000_000),
        ("EleutherAI/pythia-160m", 160_000_000),
        ("gpt2", None),
    ],
)
def test_a_hub_id_tells_by_its_name(name, count):
    assert parameter_count(name) == count


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("Qwen/Qwen3-8B", False),
        ("gpt2", False),
        ("hdfs://cluster/models/a", False),
        ("/models/a", True),
        ("./a", True),
        ("~/a", True),
        ("outputs/toy/models/medium", True),
        ("here/a", True),
    ],
)
def test_local_paths_and_hub_ids(path, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_local(path) is local
