"""The words that a stage gives to ``s2l eval`` or ``s2l explore``, understood and checked before anything runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NoReturn

from s2l_ext.errors import ConfigError
from s2l_ext.pipeline.kinds import in_stage

EVALUATION, EXPLORATION = "s2l_ext.evaluation", "s2l_ext.explore"
"""Imported by name when a stage is checked, as the command line does: their engines can import vLLM."""


@dataclass(frozen=True)
class Asked:
    """``accelerators`` of one evaluation, and local ``files`` besides the data that decide what it finds."""

    accelerators: int
    files: list[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"options.args: {message}. `{self.prog} --help` lists the words.")


def understand(stage: str, words: Sequence[str], room: str = EVALUATION, command: str = "s2l eval") -> Asked:
    """Parse and check the words after ``s2l eval`` (or another command that samples); no model or data is opened.

    Args:
        room: package with the command's ``arguments.job_of`` and ``run.check``.

    Raises:
        ConfigError, DataError: for what the command would refuse, with the stage's name.
    """
    module = importlib.import_module(f"{room}.arguments")
    check = importlib.import_module(f"{room}.run").check
    parser = _Parser(prog=command, add_help=False)
    module.add_arguments(parser)
    with in_stage(stage):
        args = parser.parse_intermixed_args(list(words))
        job = module.job_of(args)
        check(job)
    engines = job.placement.engines if room == EXPLORATION else 1
    return Asked(job.machine.tensor_parallel * engines, list(_files(args, job)))


def _files(args: argparse.Namespace, job: Any) -> Iterator[str]:
    if job.benchmark is not None and Path(args.benchmark).expanduser().is_file():
        yield args.benchmark
    for reward in (job.reward, job.benchmark and job.benchmark.reward):
        if reward and (file := module_file(reward.partition(":")[0])):
            yield file


def module_file(name: str) -> str | None:
    """Source file of a module, found without importing it; None when there is none."""
    path: Sequence[str] | None = [os.getcwd(), *sys.path]
    spec, parts = None, name.split(".")
    for number in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:number]), path) if path is not None else None
        path = spec.submodule_search_locations if spec else None
    return spec.origin if spec and spec.origin and Path(spec.origin).is_file() else None
