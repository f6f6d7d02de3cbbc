"""What the curriculum reads from the data, before verl filters it: the trainer asks again afterwards."""

from __future__ import annotations

from omegaconf import DictConfig

from s2l_ext.data.prompts import match_pass_rates, parquet_table, prompt_ids, read_pass_rates, tiers_of
from s2l_ext.methods.curriculum.config import CurriculumConfig, EasyToHardConfig
from s2l_ext.store.reader import is_store
from s2l_ext.training.inputs import Inputs, parquet_files


def check_tiers(curriculum: CurriculumConfig, inputs: Inputs) -> None:
    """Raise DataError where ``easy_to_hard`` finds no usable tiers."""
    if isinstance(curriculum, EasyToHardConfig) and inputs.table is not None:
        tiers_of(inputs.table, curriculum.tier_column, curriculum.tier_order)


def check_warm_start(curriculum: CurriculumConfig, cfg: DictConfig) -> None:
    """Does the file of start values belong to these prompts?

    Raises:
        DataError: the file is missing or unreadable, or has prompt ids that the training data lacks.
    """
    path, files = curriculum.start_file, parquet_files(cfg)
    if path is None or not files:
        return
    ids = prompt_ids(parquet_table(files), cfg.data.prompt_key)
    match_pass_rates(read_pass_rates(path), ids, path, strict=not is_store(path))  # a store may be of more prompts
