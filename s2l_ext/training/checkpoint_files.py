"""Is every file of a checkpoint there, as long as it was when it was written?

verl names a checkpoint the latest after all of its files, so a killed run leaves none that is half written and named.
A disk that lost its cache, a copy that was cut short or a cleared folder does; torch then fails inside a worker.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import gpus_at, setting
from s2l_ext.errors import ResourceError, StateMismatch
from s2l_ext.training.needed import TRACKER_FILE
from s2l_ext.training.verl_command import FSDP
from s2l_ext.utils import json_text
from s2l_ext.utils.files import write_atomically

FILE_NAME = "s2l_files.json"
WORKERS_FILE = re.compile(r"actor/model_world_size_(\d+)_rank_\d+\.pt")


def note_files(folder: Path) -> None:
    """Write names and sizes in bytes of a finished ``global_step_N`` folder, as seen from this machine."""
    write_atomically(folder / FILE_NAME, json.dumps({"bytes": dict(_sizes(folder))}, indent=1) + "\n")


def check_files(folder: Path | None) -> None:
    """Compare the folder that a run resumes with what was noted; nothing was noted in checkpoints of verl alone. Raises
    StateMismatch: the folder or a file is gone, or a file has another size. An older complete checkpoint is named where
    there is one."""
    if folder is None:
        return
    wrong = next(_differences(folder), None) if folder.is_dir() else ("", "no such folder")
    if wrong is None:
        return
    older = _complete_before(folder)
    fix = (
        f"Write {_step(older)} into {folder.parent / TRACKER_FILE} and run the same command; later steps are run again."
        if older
        else "No older checkpoint beside it is complete: restore the file, or start afresh in another folder."
    )
    raise StateMismatch(f"{folder / wrong[0]}: {wrong[1]}. The checkpoint that this run resumes is damaged. {fix}")


def leave_for_older(folder: Path) -> None:
    """Before a checkpoint is written over, let verl's tracker name the whole one before it: a run that is killed in
    between must not resume from files of two runs. Where none is whole, it starts afresh. The old sizes go too."""
    tracker = folder.parent / TRACKER_FILE
    if tracker.is_file() and tracker.read_text(errors="replace").strip() == str(_step(folder)):
        older = _complete_before(folder)
        if older:
            write_atomically(tracker, str(_step(older)))
        else:
            tracker.unlink()
    (folder / FILE_NAME).unlink(missing_ok=True)


def check_workers(folder: Path | None, cfg: DictConfig) -> None:
    """verl's FSDP checkpoints hold one file of each worker, and only as many workers can read them. Raises
    StateMismatch: another number of workers wrote the folder that the run resumes."""
    if folder is None or setting(cfg, "actor_rollout_ref.actor.strategy") not in FSDP:
        return
    now = gpus_at(cfg, "trainer")
    names = {*_read_sizes(folder), *(path.relative_to(folder).as_posix() for path in folder.glob("*/*.pt"))}
    found = sorted((int(match[1]), name) for name in names if (match := WORKERS_FILE.fullmatch(name)))
    if not found and (folder / "actor").is_dir():
        raise StateMismatch(
            f"{folder / 'actor'} has no model_world_size_*.pt, so verl would go on from step {_step(folder)} with the "
            "weights of the start. actor.checkpoint.save_contents must have held model. Start a new run from a folder "
            "with weights as actor_rollout_ref.model.path, in another trainer.default_local_dir."
        )
    if not found or any(workers == now for workers, _ in found):
        return
    workers, name = found[0]
    raise StateMismatch(
        f"{folder / name}: {workers} workers wrote this checkpoint, and this run has {now} (trainer.nnodes x "
        f"trainer.n_gpus_per_node), which verl cannot resume from it. Resume with {workers}, or start a new run from "
        f"its weights: `python -m verl.model_merger merge --backend fsdp --local_dir {folder / 'actor'} --target_dir "
        "DIR`, then actor_rollout_ref.model.path=DIR in another trainer.default_local_dir."
    )


def last_step(run: Path) -> int | None:
    """Step of verl's last complete checkpoint; None without one."""
    try:
        return int((run / TRACKER_FILE).read_text())
    except (OSError, ValueError):
        return None


def exported(run: Path, step: int, *starts: Path) -> Path:
    """The folder of weights, configuration and tokenizer that verl writes with ``hf_model`` in ``save_contents``.
    ``starts``: the model that the run started from."""
    folder = run / f"global_step_{step}" / "actor" / "huggingface"
    for start in starts:
        keep_dtype(folder, start)
    return folder


def keep_dtype(folder: Path, model: Path) -> None:
    """Let the exported configuration name the dtype of the model that the run started from.

    verl 0.9.1 writes bfloat16, whatever the weights are; a float32 model would be loaded rounded.
    """
    ours, given = (path / "config.json" for path in (folder, model))
    if not (ours.is_file() and given.is_file()):
        return
    config, wanted = json_text.loads(ours.read_text()), json_text.loads(given.read_text())
    dtype = wanted.get("dtype", wanted.get("torch_dtype"))
    if dtype is not None and config.get("dtype") != dtype:
        write_atomically(ours, json.dumps(config | {"dtype": dtype}, indent=2, sort_keys=True) + "\n")


def last_complete(run: Path) -> int:
    """Step of the checkpoint that verl names the latest, or of the newest whole one before it; 0 where none is."""
    tracker = run / TRACKER_FILE
    named = tracker.read_text(errors="replace").strip() if tracker.is_file() else ""
    latest = run / f"global_step_{named if named.isdigit() else sys.maxsize}"
    if latest.is_dir() and next(_differences(latest), None) is None:
        return _step(latest)
    older = _complete_before(latest)
    return _step(older) if older else 0


def saved_before(loaded: Path, new: Path) -> list[str]:
    """Workers' folders of a run up to the one that was loaded, oldest first; none where ``new`` is of another run: a
    start from a checkpoint must not delete it."""
    run, name = loaded.resolve().parent.parent, new.name
    if run != new.resolve().parent.parent:
        return []
    steps = [path for path in run.glob("global_step_*") if _step(path) <= _step(loaded.parent)]
    return [str(path / name) for path in sorted(steps, key=_step) if (path / name).is_dir()]


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != FILE_NAME:
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def _differences(folder: Path) -> Iterator[tuple[str, str]]:
    """File and what is wrong with it."""
    for name, size in _read_sizes(folder).items():
        path = folder / name
        if not path.is_file():
            yield name, "is gone"
        elif path.stat().st_size != size:
            yield name, f"has {path.stat().st_size} bytes, {size} were written"


def _read_sizes(folder: Path) -> dict[str, int]:
    path = folder / FILE_NAME
    if not path.is_file():
        return {}
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))["bytes"]
        return {str(name): int(size) for name, size in sizes.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateMismatch(f"{path}: unreadable ({error}). Delete it to resume without this check.") from error


def _complete_before(folder: Path) -> Path | None:
    """The newest checkpoint before ``folder`` whose files are all there."""
    before = [path for path in folder.parent.glob("global_step_*") if _step(path) < _step(folder)]
    for path in sorted(before, key=_step, reverse=True):
        if _read_sizes(path) and next(_differences(path), None) is None:
            return path
    return None


def _step(folder: Path) -> int:
    number = folder.name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1


FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def disk_full_explained(run: Path, step: int) -> Iterator[None]:
    """Turn the failure of a write to a full disk into one message; other errors pass as they are. Raises ResourceError:
    the disk that holds ``run`` has too little free space for the checkpoint of ``step``."""
    try:
        yield
    except Exception as error:
        last, free = last_complete(run), shutil.disk_usage(run).free
        files = (run / f"global_step_{last}").rglob("*")
        wanted = sum(path.stat().st_size for path in files if path.is_file())
        if not (_says_full(error) or free < wanted):
            raise
        kept = f"Step {last} is the last complete one." if last else "No checkpoint is complete yet."
        raise ResourceError(
            f"the checkpoint of step {step} could not be written to {run}: {_mib(free)} are free on that disk"
            f"{f', the last one takes {_mib(wanted)}' if wanted else ''}. {kept} Free space there "
            "and run the same command again. trainer.max_actor_ckpt_to_keep=2 keeps the last two."
        ) from error


def _says_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if "No space left on device" in str(error):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
