"""Rules of ``s2l.curriculum``: among its own keys, against verl's settings, and against the data."""

from __future__ import annotations

from omegaconf import DictConfig

from s2l_ext.config.run_steps import STEPS_KEY
from s2l_ext.config.verl_settings import setting, total_steps, whole_number
from s2l_ext.data.prompts import match_pass_rates, parquet_table, prompt_ids, read_pass_rates, tiers_of
from s2l_ext.errors import ConfigError
from s2l_ext.methods.curriculum.config import CurriculumConfig, EasyToHardConfig, OwnCurriculumConfig
from s2l_ext.store.reader import is_store
from s2l_ext.training.inputs import Inputs, parquet_files


def check_curriculum(curriculum: CurriculumConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on the impossible, return warnings."""
    if isinstance(curriculum, OwnCurriculumConfig):
        curriculum.named()
    _refuse_other_prompts(cfg)
    _check_order(curriculum, cfg)
    custom = setting(cfg, "trainer.v1.sampler.custom_sampler.name")
    if custom:
        return [f"trainer.v1.sampler.custom_sampler={custom} must return the prompts that s2l.curriculum drew."]
    return []


def _refuse_other_prompts(cfg: DictConfig) -> None:
    """A step must train on the prompts that were drawn for it, all of them and no others."""
    reasons = {
        "algorithm.filter_groups.enable": "replaces dropped groups by other prompts than the curriculum drew",
        "trainer.v1.sampler.sync_refill_failed_groups": "draws other prompts in place of failed groups",
        "skip.rollout_tq.enable": "replays stored rollouts of other prompts",
    }
    for key, reason in reasons.items():
        if setting(cfg, key):
            raise ConfigError(f"{key}=True {reason}. Set {key}=False, or s2l.curriculum=null.")


def _check_order(curriculum: CurriculumConfig, cfg: DictConfig) -> None:
    if curriculum.shuffles and setting(cfg, "data.shuffle") is False:
        raise ConfigError(
            f"data.shuffle=False asks for the order of the file, s2l.curriculum.type={curriculum.type} draws another. "
            "Set s2l.curriculum.type=file_order, or leave data.shuffle out."
        )
    shuffled_subset = (setting(cfg, "data.train_max_samples") or -1) > 0 and setting(cfg, "data.shuffle")
    if shuffled_subset and setting(cfg, "data.seed") is None:
        raise ConfigError(
            "data.train_max_samples without data.seed takes other rows at every start, so saved pass rates would "
            "belong to other prompts. Set data.seed."
        )


def check_last_pass(curriculum: CurriculumConfig, cfg: DictConfig, rows: int) -> list[str]:
    """verl's epoch is ``rows // batch`` steps: where passes continue inside a step, its last epoch ends before them."""
    batch, epochs = whole_number(cfg, "data.train_batch_size"), whole_number(cfg, "trainer.total_epochs")
    if not curriculum.laps or total_steps(cfg) is not None or rows % batch == 0 or rows < batch:
        return []
    per_epoch = rows // batch
    wanted = -(-rows * epochs // batch)
    return [
        f"s2l.curriculum.type={curriculum.type}: trainer.total_epochs={epochs} is {per_epoch * epochs} steps of "
        f"{batch} prompts. The last pass over {rows} prompts misses its last {(rows - per_epoch * batch) * epochs}. "
        f"Set {STEPS_KEY}={wanted} and trainer.total_epochs={-(-wanted // per_epoch)} to finish it."
    ]


def check_tiers(curriculum: CurriculumConfig, inputs: Inputs) -> None:
    """Raise DataError where ``easy_to_hard`` finds no usable tiers."""
    if isinstance(curriculum, EasyToHardConfig) and inputs.table is not None:
        tiers_of(inputs.table, curriculum.tier_column, curriculum.tier_order)


def check_warm_start(curriculum: CurriculumConfig, cfg: DictConfig) -> None:
    """Does the file of start values belong to these prompts? Raises DataError: the file is missing or unreadable, or
    has prompt ids that the training data lacks."""
    path, files = curriculum.start_file, parquet_files(cfg)
    if path is None or not files:
        return
    ids = prompt_ids(parquet_table(files), cfg.data.prompt_key)
    match_pass_rates(read_pass_rates(path), ids, path, strict=not is_store(path))  # a store may be of more prompts
