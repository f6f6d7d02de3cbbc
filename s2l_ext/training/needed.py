"""What a start of a run needs: a resumed one may be past its explorer, and a validation has no other model.

The block of a run stays as it is; what is looked up, loaded and counted at a start is :func:`needed_now`'s part of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from s2l_ext.config.modes import lag_limit
from s2l_ext.config.verl_settings import GROUP_SIZE, setting, whole_number
from s2l_ext.errors import ConfigError, StateMismatch
from s2l_ext.methods.registry import S2LConfig

TRACKER_FILE = "latest_checkpointed_iteration.txt"


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
    return run_folder / f"global_step_{_latest(tracker)}" if tracker.is_file() else None


EARLIER = f"To resume from an earlier checkpoint, write its step into the run's {TRACKER_FILE}."


def _latest(tracker: Path) -> str:
    step = tracker.read_text(errors="replace").strip()
    if not step.isdigit():
        raise StateMismatch(
            f"{tracker}: {step!r} is no step. Write the number of the newest complete global_step_N into it, or delete "
            "it to start afresh."
        )
    return step


def only_validates(cfg: DictConfig) -> bool:
    """verl returns after its first validation; ``val_only`` without that validation does nothing."""
    return bool(setting(cfg, "trainer.val_only")) and setting(cfg, "trainer.val_before_train") is not False


def steps_done(cfg: DictConfig) -> int:
    """Steps of the checkpoint that the run resumes; 0 for a fresh one."""
    folder = checkpoint_folder(cfg)
    step = folder.name.rpartition("_")[2] if folder is not None else ""
    return int(step) if step.isdigit() else 0


def needed_now(cfg: DictConfig, s2l: S2LConfig) -> S2LConfig:
    """The block without a live explorer that will sample nothing, and without a teacher where no loss is taken."""
    if only_validates(cfg):
        return replace(_without_live_explorer(s2l), distill=None)
    return s2l if _explorer_samples(cfg, s2l) else _without_live_explorer(s2l)


def _without_live_explorer(s2l: S2LConfig) -> S2LConfig:
    return replace(s2l, explorer=s2l.offline_explorer)


def _explorer_samples(cfg: DictConfig, s2l: S2LConfig) -> bool:
    """Whether a step to come may have explorer sessions; prompts in an asynchronous queue follow an older plan."""
    explorer, done = s2l.explorer, steps_done(cfg)
    if explorer is None:
        return False
    lag, schedule = lag_limit(cfg), explorer.build(whole_number(cfg, GROUP_SIZE))
    return schedule.slots(1 if lag is None else max(1, done + 1 - lag)) > 0
