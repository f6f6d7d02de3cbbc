"""Controller state beside verl's checkpoint: written atomically, refused when it belongs to another run."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig

from s2l_ext.config.modes import draws_ahead, mode_of
from s2l_ext.config.verl_settings import plain_setting, setting
from s2l_ext.errors import StateMismatch
from s2l_ext.methods.base import Method
from s2l_ext.methods.brought import checked_value
from s2l_ext.methods.registry import S2LConfig, methods_of
from s2l_ext.training.needed import EARLIER, checkpoint_folder
from s2l_ext.utils import json_text
from s2l_ext.utils.digests import file_digests
from s2l_ext.utils.files import write_atomically

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
FILE_NAME = "s2l_state.json"
ARRAYS_NAME = "s2l_arrays.npz"
ARRAY_MARK = "__array__"
DATA_SETTINGS = ("train_max_samples", "filter_overlong_prompts", "max_prompt_length", "prompt_key", "shuffle", "seed")
"""verl's settings that decide which rows of the files are prompts, and in which order."""


def fingerprint(s2l: S2LConfig, cfg: DictConfig) -> dict[str, Any] | None:
    """Settings a resumed run must share for its schedules to continue the interrupted one; None when all is off."""
    if not s2l.any_method_on:
        return None
    settings: dict[str, Any] = {}
    for method in methods_of(s2l, cfg):
        settings |= checked_value(method, "fingerprint", method.fingerprint(), dict)
    settings |= {
        "group_size": cfg.actor_rollout_ref.rollout.n,
        "prompts_per_step": cfg.data.train_batch_size,
        **_data(cfg),
        **({"trainer_mode": mode_of(cfg)} if draws_ahead(cfg) else {}),
    }
    return json.loads(json.dumps(settings, default=str))  # as it will be read back


def _data(cfg: DictConfig) -> dict[str, Any]:
    """Files by name and content, without their folders: a run may be resumed from another mount."""
    files = [cfg.data.train_files] if isinstance(cfg.data.train_files, str) else list(cfg.data.train_files)
    return {
        **{f"data.{name}": cfg.data.get(name) for name in DATA_SETTINGS},
        "data.custom_cls": setting(cfg, "data.custom_cls.path"),
        "data.apply_chat_template_kwargs": plain_setting(cfg, "data.apply_chat_template_kwargs"),
        "data.sha256": file_digests(files),
        "train_files": [Path(path).name for path in files],
    }


def resume_state(s2l: S2LConfig, cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Controllers' states of the checkpoint that this run resumes; empty for a fresh run or with everything off. With
    ``s2l.curriculum.on_mismatch=reset`` a curriculum of another data set or another order is left out, with a warning,
    and the rest is resumed. Raises StateMismatch: the checkpoint belongs to other settings, or to a run in which a
    feature was on that is off now."""
    folder = checkpoint_folder(cfg)
    if folder is None or not folder.is_dir():
        return {}
    current = fingerprint(s2l, cfg)
    has_state = (folder / FILE_NAME).exists()
    if current is None and not has_state:
        return {}
    reset = _resets(s2l)
    if reset and not has_state and list(s2l.blocks) == ["curriculum"]:
        logger.warning(
            "%s has no controller state; s2l.curriculum.on_mismatch=reset starts the curriculum afresh", folder
        )
        return {}
    return load_state(folder, current or {}, reset_curriculum=reset)


def refuse_lost(method: Method) -> None:
    """For a method without a saved state. Raises StateMismatch: it keeps one, and the run is resumed."""
    folder, resets = checkpoint_folder(method.cfg), method.block == "curriculum" and _resets(method.s2l)
    if folder is not None and not resets and method.state_dict():
        raise StateMismatch(f"{folder / FILE_NAME} has no state of {method.block}, which would start afresh. {EARLIER}")


def _resets(s2l: S2LConfig) -> bool:
    return s2l.curriculum is not None and s2l.curriculum.on_mismatch == "reset"


def save_state(folder: Path, fingerprint: dict[str, Any], controllers: dict[str, dict[str, Any]]) -> None:
    """Write ``s2l_state.json`` into a ``global_step_N`` folder, and before it ``s2l_arrays.npz`` if a state has arrays.
    ``controllers``: state by controller; values are JSON values, numpy arrays, and mappings of these."""
    plain, arrays = check_saveable(controllers)
    document = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "controllers": plain}
    document["sha256"] = _digest(plain, folder / FILE_NAME)
    if arrays:
        buffer = io.BytesIO()
        np.savez(buffer, **cast(dict[str, Any], arrays))
        write_atomically(folder / ARRAYS_NAME, buffer.getvalue())
        document["arrays_sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_atomically(folder / FILE_NAME, _to_json(document))


def check_saveable(controllers: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The plain part and the arrays of the controllers' states. Raises StateMismatch: a state holds something that
    could not be written, or not be read back."""
    arrays: dict[str, np.ndarray] = {}
    plain = _pop_arrays(controllers, "", arrays)
    _to_json(plain)
    return plain, arrays


def _to_json(document: dict[str, Any]) -> str:
    try:
        return json.dumps(document, indent=1, sort_keys=True, default=_plain_number)
    except TypeError as error:
        raise StateMismatch(
            f"the controllers' state cannot be saved ({error}): state_dict() may hold numbers, text, lists, mappings "
            "with text keys and numpy arrays."
        ) from None


def _digest(plain: dict[str, Any], path: Path) -> str:
    """SHA-256 of the controllers' plain part as it is read back. Raises StateMismatch: a number is NaN."""

    def number(name: str) -> float:
        if name == "NaN":
            raise StateMismatch(f"{path}: a controller's state holds NaN, from which no run can go on. {EARLIER}")
        return float(name)

    read = json.loads(json.dumps(plain, default=_plain_number), parse_constant=number)
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _pop_arrays(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` with every array moved to ``arrays`` and its place marked."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise StateMismatch(f"the controllers' state cannot be saved: {path} is an array of Python objects.")
        arrays[path] = value
        return {ARRAY_MARK: path}
    if isinstance(value, dict):
        return {key: _pop_arrays(item, f"{path}.{key}" if path else str(key), arrays) for key, item in value.items()}
    return value


def _restore_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {ARRAY_MARK}:
            return arrays[value[ARRAY_MARK]]
        return {key: _restore_arrays(item, arrays) for key, item in value.items()}
    return value


def load_state(folder: Path, fingerprint: dict[str, Any], reset_curriculum: bool = False) -> dict[str, dict[str, Any]]:
    """Read the controllers' states back. Raises StateMismatch: a file is missing, unreadable or damaged, has another
    schema, or another fingerprint."""
    path = folder / FILE_NAME
    document = _read(path)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise StateMismatch(
            f"{path}: schema_version is {document.get('schema_version')!r}, this version reads {SCHEMA_VERSION}. "
            "Resume with the version that wrote it, or start over with trainer.resume_mode=disable."
        )
    if not isinstance(document.get("fingerprint"), dict) or not _is_states(document.get("controllers")):
        raise _unreadable(path, "fingerprint and controllers are no mappings")
    digest = _digest(document["controllers"], path)
    if document.get("sha256", digest) != digest:
        raise _unreadable(path, "its controllers are not what was written")
    different = _differences(document["fingerprint"], fingerprint)
    if different and reset_curriculum and all(map(_is_curriculums, different)):
        _refuse_other_positions(path, different, document["controllers"])
        logger.warning("%s: the curriculum starts afresh, it had other settings:\n%s", path, _describe(different))
        document["controllers"].pop("curriculum", None)
    elif different:
        raise StateMismatch(_refusal(path, different, has_curriculum="curriculum.type" in fingerprint))
    controllers, arrays = document["controllers"], _read_arrays(folder, document.get("arrays_sha256"))
    try:
        return _restore_arrays(controllers, arrays)
    except (KeyError, TypeError) as error:
        raise _unreadable(path, f"no array {error}") from None


def _refuse_other_positions(path: Path, different: dict[str, tuple[Any, Any]], controllers: dict[str, Any]) -> None:
    """A prompt in flight is known by its position in the data, which means another prompt, or none, in other data."""
    plans = list(controllers.get("in_flight", {}).get("plans", {}).values())
    if plans and (any(map(_is_datas, different)) or any(plan.get("index") is None for plan in plans)):
        raise StateMismatch(
            f"{path}: {len(plans)} prompts of the asynchronous run were drawn and not trained on yet, from other data "
            f"or without a curriculum:\n{_describe(different)}\n"
            "s2l.curriculum.on_mismatch=reset cannot take them over. Set these back, or start over with "
            "trainer.resume_mode=disable and the saved model as actor_rollout_ref.model.path."
        )


def _read_arrays(folder: Path, sha256: str | None) -> dict[str, np.ndarray]:
    if sha256 is None:
        return {}
    path = folder / ARRAYS_NAME
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StateMismatch(
            f"{path} is missing or damaged: its content is not what {FILE_NAME} was written with. {EARLIER}"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, str(error)) from None


def _is_states(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(state, dict) for state in value.values())


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json_text.loads(path.read_bytes())
        return document if isinstance(document, dict) else {}
    except FileNotFoundError:
        raise StateMismatch(
            f"{path} is missing: the checkpoint was written by verl alone or with every s2l feature off, so the "
            "controllers cannot be resumed exactly. Start over with trainer.resume_mode=disable."
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from None


def _unreadable(path: Path, reason: str) -> StateMismatch:
    return StateMismatch(f"{path} cannot be read ({reason}). {EARLIER}")


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with the checkpoint's value and this run's."""
    keys = sorted(saved.keys() | current.keys())
    return {key: (saved.get(key), current.get(key)) for key in keys if saved.get(key) != current.get(key)}


def _is_datas(key: str) -> bool:
    return key.startswith("data.") or key == "train_files"


def _is_curriculums(key: str) -> bool:
    return key.startswith("curriculum.") or _is_datas(key)


def _describe(different: dict[str, tuple[Any, Any]]) -> str:
    return "\n".join(f"  {key}: checkpoint {old!r}, this run {new!r}" for key, (old, new) in different.items())


def _refusal(path: Path, different: dict[str, tuple[Any, Any]], has_curriculum: bool) -> str:
    fix = "Set them back, or start over with trainer.resume_mode=disable and another trainer.default_local_dir."
    if has_curriculum and all(map(_is_curriculums, different)):
        fix += (
            " Only data or curriculum changed: s2l.curriculum.on_mismatch=reset keeps the model and starts the "
            "curriculum afresh."
        )
    return f"{path} belongs to a run with other settings:\n{_describe(different)}\n{fix}"
