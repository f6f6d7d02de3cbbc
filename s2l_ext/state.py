"""Controller state beside verl's checkpoint: written atomically, refused when it belongs to another run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2l_ext.config import S2LConfig
from s2l_ext.errors import ConfigError, StateMismatch

SCHEMA_VERSION = 1
FILE_NAME = "s2l_state.json"
TRACKER_FILE = "latest_checkpointed_iteration.txt"


EXPLORER_SETTINGS = ("mix_steps", "temperature", "top_p", "top_k", "baseline", "correction", "is_cap")


def fingerprint(s2l: S2LConfig, cfg: DictConfig) -> dict[str, Any] | None:
    """Settings a resumed run must share for its schedules to continue the interrupted one; None when all is off."""
    if s2l.explorer is None:
        return None
    return {
        "explorer.model": Path(s2l.explorer.model_path).name,
        **{f"explorer.{name}": getattr(s2l.explorer, name) for name in EXPLORER_SETTINGS},
        "group_size": cfg.actor_rollout_ref.rollout.n,
        "prompts_per_step": cfg.data.train_batch_size,
        "train_files": _names(cfg.data.train_files),
    }


def _names(files: Any) -> list[str]:
    """File names without their folders: a run may be resumed from another mount."""
    return [Path(path).name for path in ([files] if isinstance(files, str) else files)]


def checkpoint_folder(cfg: DictConfig) -> Path | None:
    """The ``global_step_N`` folder that verl is about to load, None for a fresh run."""
    if cfg.trainer.resume_mode == "disable":
        return None
    if cfg.trainer.resume_mode == "resume_path":
        if not cfg.trainer.resume_from_path:
            raise ConfigError("trainer.resume_mode=resume_path needs trainer.resume_from_path=.../global_step_N.")
        return Path(cfg.trainer.resume_from_path)
    run_folder = Path(cfg.trainer.default_local_dir)
    tracker = run_folder / TRACKER_FILE
    return run_folder / f"global_step_{tracker.read_text().strip()}" if tracker.is_file() else None


def resume_state(s2l: S2LConfig, cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Controllers' states of the checkpoint that this run resumes; empty for a fresh run or with everything off.

    Raises:
        StateMismatch: the checkpoint belongs to other settings, or to a run in which a feature was on that is off now.
    """
    folder = checkpoint_folder(cfg)
    if folder is None or not folder.is_dir():
        return {}
    current = fingerprint(s2l, cfg)
    if current is None and not (folder / FILE_NAME).exists():
        return {}
    return load_state(folder, current or {})


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader or a crash sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_state(folder: Path, fingerprint: dict[str, Any], controllers: dict[str, dict[str, Any]]) -> None:
    """Write ``s2l_state.json`` into a ``global_step_N`` folder."""
    document = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "controllers": controllers}
    write_atomically(folder / FILE_NAME, json.dumps(document, indent=1, sort_keys=True))


def load_state(folder: Path, fingerprint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the controllers' states back.

    Raises:
        StateMismatch: the file is missing or unreadable, has another schema, or another fingerprint.
    """
    path = folder / FILE_NAME
    document = _read(path)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise StateMismatch(
            f"{path}: schema_version is {document.get('schema_version')!r}, this version reads {SCHEMA_VERSION}. "
            "Resume with the version that wrote it, or start over with trainer.resume_mode=disable."
        )
    _compare(path, document.get("fingerprint", {}), fingerprint)
    return document["controllers"]


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
        return document if isinstance(document, dict) else {}
    except FileNotFoundError:
        raise StateMismatch(
            f"{path} is missing: the checkpoint was written by verl alone or with every s2l feature off, so the "
            "controllers cannot be resumed exactly. Start over with trainer.resume_mode=disable."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StateMismatch(
            f"{path} cannot be read ({error}). Resume from an earlier checkpoint with "
            "trainer.resume_mode=resume_path trainer.resume_from_path=.../global_step_N."
        ) from None


def _compare(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    different = sorted(key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key))
    if different:
        lines = [f"  {key}: checkpoint {saved.get(key)!r}, this run {current.get(key)!r}" for key in different]
        raise StateMismatch(
            f"{path} belongs to a run with other settings:\n" + "\n".join(lines) + "\n"
            "Set them back, or start over with trainer.resume_mode=disable and another trainer.default_local_dir."
        )
