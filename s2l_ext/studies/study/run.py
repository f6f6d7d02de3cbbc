"""The runs of a study, one after another or several at a time; what is there already is kept."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from s2l_ext.config.modes import mode_of
from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import DataError, S2LError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.report.ledger import sum_of
from s2l_ext.studies.study.file import FIRST, LEARNING_RATE, Arm, Study
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
from s2l_ext.training.checkpoint_files import exported, last_step
from s2l_ext.training.needed import TRACKER_FILE
from s2l_ext.training.preflight import check_inputs, check_own_pool
from s2l_ext.training.rules import check_against_verl
from s2l_ext.utils.clone import code_version
from s2l_ext.utils.digests import digest_of
from s2l_ext.utils.follow import last_lines
from s2l_ext.utils.processes import run_supervised

RESULT = "result.json"
LOOP_KEY, SEEDED_LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop", "s2l_seeded"
KEEPING = {
    "local": ("trainer.save_freq=1",),
    "verl": ("trainer.save_freq=1000000000", "actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]"),
}
"""Settings of a run whose model another takes: it is saved once, at the end."""
MOST_CHARACTERS = 300
"""Of the last line of a failed run's log."""


@dataclass(frozen=True)
class Job:
    """One run: an arm and a seed."""

    arm: Arm
    seed: int

    @property
    def learning_rate(self) -> float:
        return float(OmegaConf.select(self.arm.cfg, LEARNING_RATE))

    @property
    def place(self) -> Path:
        return Path("runs" if self.arm.row else "first") / self.arm.name / f"lr{self.learning_rate:g}-seed{self.seed}"


class Runner:
    """Runs the jobs of a study in a folder.

    Args:
        jobs: runs at a time, each in its own process.
    """

    def __init__(self, study: Study, out: Path, jobs: int = 1) -> None:
        self.study, self.out, self.jobs = study, out, jobs
        self.commit = code_version()
        self.fingerprints: dict[str, str] = {}
        self.stopping = threading.Event()

    def check(self) -> None:
        """Check settings, models and data of every arm. Raises S2LError, as `s2l check` does, with the arm."""
        for arm in self.study.runs:
            cfg = self._configuration(Job(arm, self.study.seeds[0]))
            s2l = parse_s2l(cfg.s2l)
            try:
                if self.study.block.engine == "verl":
                    check_against_verl(s2l, cfg)
                    check_own_pool(cfg, s2l)
                check_inputs(cfg, s2l)
            except S2LError as error:
                raise type(error)(f"arm {arm.name}: {error}") from error

    def planned_lines(self) -> list[str]:
        """What :meth:`run` would do: arms, seeds, and what of it is there already."""
        engine = self.study.block.engine
        lines = [f"study        {self.study.name}, engine {engine}, {len(self.study.seeds)} seeds, in {self.out}"]
        for arm in self.study.runs:
            if arm not in self.study.arms:
                lines.append(f"first        {arm.name}: {arm.recipe}, a model for others")
        for arm in self.study.arms:
            there = sum(self._kept(Job(arm, seed)) is not None for seed in self.study.seeds)
            counted = ", ".join(f"{value} {name}" for name, value in planned(arm.cfg, engine).items())
            lines.append(f"arm          {arm.name}: {arm.recipe}, {counted}; {there} runs are there")
        return lines

    def run(self) -> dict[str, list[Result]]:
        """Results by arm, in the order of the seeds; a failed run has an ``error``."""
        # seed by seed, so that a study that is stopped has whole pairs
        jobs = [Job(run, seed) for seed in self.study.seeds for run in self.study.runs]
        missing = self._missing(jobs)
        with (
            tqdm(total=len(missing), desc="runs", unit="run", disable=not missing) as bar,
            ThreadPoolExecutor(max(1, self.jobs)) as pool,
        ):
            running: dict[Path, Future[Result]] = {}
            for job in missing:
                earlier = [running[place] for place in self._places(job).values() if place in running]
                running[job.place] = pool.submit(self._run, job, earlier)
            try:
                for future in as_completed(running.values()):
                    future.result()
                    bar.update()
            except BaseException:
                self.stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {
            arm.name: [read_result(self.out / Job(arm, seed).place / RESULT) for seed in self.study.seeds]
            for arm in self.study.arms
        }

    def _missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Those without a result, and those whose model one of these takes and that left none, in their order."""
        missing: set[Path] = set()
        taken: set[Path] = set()
        models: set[Path] = set()
        for job in reversed(jobs):
            if job.place not in taken and job.arm not in self.study.arms:
                continue
            left = job.place not in models or (self.out / job.place / MODEL).is_dir()  # a copied result has no model
            if self._kept(job) is None or not left:
                missing.add(job.place)
                places = self._places(job)
                taken |= set(places.values())
                models |= {places[name] for name in job.arm.needs}
        return [job for job in jobs if job.place in missing]

    def _places(self, job: Job) -> dict[str, Path]:
        """Folders of the runs whose models it takes, and of those that they take, by name."""
        return {one.name: Job(one, job.seed).place for one in self.study.first_of(job.arm)}

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
        return None if result.error else result

    def _bare(self, job: Job) -> Result:
        engine, key = self.study.block.engine, job.arm.name
        if key not in self.fingerprints:
            needed = [fingerprint(one.cfg) for one in self.study.first_of(job.arm)]
            takes = [
                word for one in (*self.study.first_of(job.arm), job.arm) for word in one.overrides if FIRST.search(word)
            ]
            own = fingerprint(compose_config(job.arm.recipe, self._words(job, self._starts())))
            self.fingerprints[key] = digest_of([own, needed, takes])[:16] if needed else own
        who = (self.study.name, job.arm.name, engine, job.seed, job.learning_rate)
        return Result(*who, self.fingerprints[key], self.commit)

    def _configuration(self, job: Job) -> DictConfig:
        return compose_config(job.arm.recipe, self.overrides(job, self._starts()))

    def _starts(self) -> dict[str, str]:
        return {one.name: str(one.cfg.actor_rollout_ref.model.path) for one in self.study.runs}

    def overrides(self, job: Job, models: Mapping[str, str]) -> list[str]:
        """Of the run, beside where it writes; ``models`` in the place of names of runs. A run begins anew, so it keeps
        no checkpoint but the model that another takes."""
        keeping = KEEPING[self.study.block.engine] if self._is_taken(job) else ("trainer.save_freq=-1",)
        return [*self._words(job, models), *keeping]

    def _words(self, job: Job, models: Mapping[str, str]) -> list[str]:
        """What says which run it is."""
        cfg = job.arm.cfg
        words = [*job.arm.filled(models.__getitem__), f"data.seed={job.seed}", "trainer.resume_mode=disable"]
        if self.study.block.engine == "verl":
            words.append(f"actor_rollout_ref.rollout.seed={job.seed}")
            if setting(cfg, LOOP_KEY) == "single_turn_agent" and mode_of(cfg) == "sync":
                words.append(f"{LOOP_KEY}={SEEDED_LOOP}")
        return words

    def _is_taken(self, job: Job) -> bool:
        """Whether another run starts from its model, or reads it."""
        return any(job.arm.name in run.needs for run in self.study.runs)

    def _run(self, job: Job, earlier: Sequence[Future[Result]]) -> Result:
        """Run it once ``earlier`` have ended, which began before it."""
        wait(earlier)
        before = {name: read_result(self.out / place / RESULT) for name, place in self._places(job).items()}
        failed = next((name for name, one in before.items() if one.error), None)
        result = self._bare(job)
        result = replace(result, error=f"first:{failed} failed: {before[failed].error}") if failed else self._ran(job)
        spent = {name: sum_of(one.own.get(name) for one in (result, *before.values())) for name in result.own}
        result = replace(result, spent=spent)
        write_result(self.out / job.place / RESULT, result)
        return result

    def _go_on(self) -> None:
        if self.stopping.is_set():
            raise InterruptedError("the study was stopped")

    def _ran(self, job: Job) -> Result:
        folder, bare = self.out / job.place, self._bare(job)
        where = [f"trainer.default_local_dir={folder}", f"trainer.validation_data_dir={folder / VALIDATIONS}"]
        module = "s2l_ext.studies.local" if self.study.block.engine == "local" else "s2l_ext.cli"
        models = {name: str(self.out / place / MODEL) for name, place in self._places(job).items()}
        words = ["train", "--config-name", job.arm.recipe, *self.overrides(job, models), *where]
        for old in (folder / "metrics.jsonl", *(folder / VALIDATIONS).glob("*.jsonl")):
            old.unlink(missing_ok=True)
        threads = {"OMP_NUM_THREADS": "1"} if self.study.block.engine == "local" else {}
        ended = run_supervised([sys.executable, "-m", module, *words], folder / "log.txt", self._go_on, threads)
        if code_version() != self.commit:
            return replace(
                bare, error=f"the code changed while it ran: it began at {self.commit}, now {code_version()}"
            )
        if ended.returncode:
            said = "".join(last_lines(folder / "log.txt", 1)).strip()[:MOST_CHARACTERS]
            return replace(bare, error=f"exit code {ended.returncode}: {said} (see {folder / 'log.txt'})")
        try:
            result = replace(bare, **measured(folder))
            if self.study.block.engine == "verl" and self._is_taken(job):
                keep_model(folder, Path(job.arm.cfg.actor_rollout_ref.model.path))
        except (S2LError, OSError) as error:
            return replace(bare, error=str(error))
        return result


def keep_model(folder: Path, start: Path) -> None:
    """Of the checkpoint of a run through verl, leave the model alone, where the local engine has it. Raises DataError:
    there is none. ``start``: the model that the run started from."""
    step = last_step(folder)
    if step is None or not (found := exported(folder, step, start)).is_dir():
        raise DataError(f"{folder}: the run left no model for the runs that take it. Its log says why: log.txt")
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    found.rename(folder / MODEL)
    shutil.rmtree(folder / f"global_step_{step}", ignore_errors=True)
    (folder / TRACKER_FILE).unlink()
