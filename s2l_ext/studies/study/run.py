"""The runs of a study, one after another or several at a time; what is there already is kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from s2l_ext.errors import DataError, S2LError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.report.ledger import sum_of
from s2l_ext.studies.study.file import LEARNING_RATE, Arm, Study
from s2l_ext.studies.study.results import (
    MODEL,
    VALIDATIONS,
    Result,
    fingerprint,
    measured,
    planned,
    read_result,
    write_result,
)
from s2l_ext.training.preflight import check_inputs
from s2l_ext.training.rules import check_against_verl
from s2l_ext.utils.clone import git_of_clone
from s2l_ext.utils.digests import digest_of
from s2l_ext.utils.follow import last_lines
from s2l_ext.utils.processes import run_supervised

RESULT = "result.json"
SEEDED_LOOP = "s2l_seeded"
MOST_CHARACTERS = 300
"""Of the last line of a failed run's log."""


@dataclass(frozen=True)
class Job:
    """One run: an arm and a seed; those of ``first`` leave a model for others."""

    arm: Arm
    seed: int
    first: bool = False

    @property
    def learning_rate(self) -> float:
        return float(OmegaConf.select(self.arm.cfg, LEARNING_RATE))

    @property
    def place(self) -> Path:
        return Path("first" if self.first else "runs") / self.arm.name / f"lr{self.learning_rate:g}-seed{self.seed}"


class Runner:
    """Runs the jobs of a study in a folder.

    Args:
        jobs: runs at a time, each in its own process.
    """

    def __init__(self, study: Study, out: Path, jobs: int = 1) -> None:
        self.study, self.out, self.jobs = study, out, jobs
        self.commit = git_of_clone("rev-parse", "--short=12", "HEAD")
        self.fingerprints: dict[str, str] = {}

    def check(self) -> None:
        """Check settings, models and data of every arm. Raises S2LError, as `s2l check` does, with the arm."""
        for arm in (*self.study.first, *self.study.arms):
            cfg = self._configuration(Job(arm, self.study.seeds[0]))
            s2l = parse_s2l(cfg.s2l)
            try:
                if self.study.block.engine == "verl":
                    check_against_verl(s2l, cfg)
                check_inputs(cfg, s2l)
            except S2LError as error:
                raise type(error)(f"arm {arm.name}: {error}") from error

    def planned_lines(self) -> list[str]:
        """What :meth:`run` would do: arms, seeds, and what of it is there already."""
        engine = self.study.block.engine
        lines = [f"study        {self.study.name}, engine {engine}, {len(self.study.seeds)} seeds, in {self.out}"]
        for arm in self.study.first:
            lines.append(f"first        {arm.name}: {arm.recipe}, a model for others")
        for arm in self.study.arms:
            there = sum(self._kept(job) is not None for job in self._wanted(arm))
            counted = ", ".join(f"{value} {name}" for name, value in planned(arm.cfg, engine).items())
            lines.append(f"arm          {arm.name}: {arm.recipe}, {counted}; {there} runs are there")
        return lines

    def run(self) -> dict[str, list[Result]]:
        """Results by arm, in the order of the seeds; a failed run has an ``error``."""
        wanted = {arm.name: self._wanted(arm) for arm in self.study.arms}
        # seed by seed, so that a study that is stopped has whole pairs
        by_seed = sorted((job for jobs in wanted.values() for job in jobs), key=lambda job: job.seed)
        done = self._all(by_seed, "runs")
        return {name: [done[job.place] for job in jobs] for name, jobs in wanted.items()}

    def _wanted(self, arm: Arm) -> list[Job]:
        return [Job(arm, seed) for seed in self.study.seeds]

    def _all(self, jobs: Sequence[Job], what: str) -> dict[Path, Result]:
        kept = {job.place: self._kept(job) for job in jobs}
        missing = [job for job in jobs if kept[job.place] is None]
        for arm in self.study.first if not all(job.first for job in jobs) else ():
            seeds = {job.seed: job for job in missing if arm in self.study.first_of(job.arm)}
            self._all([Job(arm, seed, first=True) for seed in seeds], f"first: {arm.name}")
        found = {place: result for place, result in kept.items() if result is not None}
        with (
            tqdm(total=len(kept), initial=len(found), desc=what, unit="run", disable=not jobs) as bar,
            ThreadPoolExecutor(max(1, self.jobs)) as pool,
        ):
            running = {pool.submit(self._run, job): job for job in missing}
            for future in as_completed(running):
                found[running[future].place] = future.result()
                bar.update()
        return found

    def _kept(self, job: Job) -> Result | None:
        """What an earlier call or another machine left; failed runs are done again.

        Raises:
            DataError: it is of another study, seed, learning rate, configuration, data or commit.
        """
        path = self.out / job.place / RESULT
        if not path.is_file():
            return None
        result = read_result(path)
        wanted = self._bare(job)
        for name in ("study", "arm", "engine", "seed", "learning_rate", "fingerprint", "commit"):
            own, other = getattr(wanted, name), getattr(result, name)
            if own != other:
                raise DataError(
                    f"{path}: is of another {name} ({other!r}, this study has {own!r}). Runs of one table must agree. "
                    "Remove the folder to run it again, or choose another --out."
                )
        # a result that was copied alone has no model
        return None if result.error or (job.first and not (self.out / job.place / MODEL).is_dir()) else result

    def _bare(self, job: Job) -> Result:
        engine, key = self.study.block.engine, job.arm.name
        if key not in self.fingerprints:
            needed = [fingerprint(one.cfg) for one in self.study.first_of(job.arm)]
            own = fingerprint(self._configuration(job))
            self.fingerprints[key] = digest_of([own, needed])[:16] if needed else own
        who = (self.study.name, job.arm.name, engine, job.seed, job.learning_rate)
        return Result(*who, self.fingerprints[key], self.commit)

    def _configuration(self, job: Job) -> DictConfig:
        starts = {one.name: str(one.cfg.actor_rollout_ref.model.path) for one in self.study.first}
        return compose_config(job.arm.recipe, self.overrides(job, starts))

    def overrides(self, job: Job, models: Mapping[str, str]) -> list[str]:
        """Of the run, beside where it writes; ``models`` in the place of names of ``first``."""
        seeded = [f"data.seed={job.seed}", "trainer.resume_mode=disable"]
        if self.study.block.engine == "verl":
            seeded += [f"actor_rollout_ref.rollout.agent.default_agent_loop={SEEDED_LOOP}"]
            seeded += [f"actor_rollout_ref.rollout.seed={job.seed}"]
        return [*job.arm.filled(models.__getitem__), *seeded, *(["trainer.save_freq=1"] if job.first else [])]

    def _run(self, job: Job) -> Result:
        folder, bare = self.out / job.place, self._bare(job)
        where = [f"trainer.default_local_dir={folder}", f"trainer.validation_data_dir={folder / VALIDATIONS}"]
        module = "s2l_ext.studies.local" if self.study.block.engine == "local" else "s2l_ext.cli"
        needed = {one.name: self.out / Job(one, job.seed, first=True).place for one in self.study.first_of(job.arm)}
        models = {name: str(place / MODEL) for name, place in needed.items()}
        words = ["train", "--config-name", job.arm.recipe, *self.overrides(job, models), *where]
        for old in (folder / "metrics.jsonl", *(folder / VALIDATIONS).glob("*.jsonl")):
            old.unlink(missing_ok=True)
        earlier = {name: read_result(place / RESULT) for name, place in needed.items()}
        if failed_first := next((name for name, one in earlier.items() if one.error), None):
            return replace(bare, error=f"first:{failed_first} failed: {earlier[failed_first].error}")
        threads = {"OMP_NUM_THREADS": "1"} if self.study.block.engine == "local" else {}
        ended = run_supervised([sys.executable, "-m", module, *words], folder / "log.txt", lambda: None, threads)
        try:
            said = "".join(last_lines(folder / "log.txt", 1)).strip()[:MOST_CHARACTERS]
            error = f"exit code {ended.returncode}: {said} (see {folder / 'log.txt'})" if ended.returncode else ""
            result = replace(bare, error=error) if error else replace(bare, **measured(folder))
            parts = [result.spent, *(one.spent for one in earlier.values())]
            result = replace(result, spent={name: sum_of(part.get(name) for part in parts) for name in result.spent})
        except S2LError as failed:
            result = replace(bare, error=str(failed))
        write_result(folder / RESULT, result)
        return result
