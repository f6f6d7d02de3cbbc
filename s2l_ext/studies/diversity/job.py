"""Sample each model on the same problems, and compare how they differ."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2l_ext.config.resolve import resolve
from s2l_ext.data import tokenizers
from s2l_ext.errors import ConfigError
from s2l_ext.evaluation import arguments as command
from s2l_ext.evaluation import run
from s2l_ext.evaluation.engines import Machine
from s2l_ext.evaluation.model_folder import Model, open_model
from s2l_ext.evaluation.run import Evaluation
from s2l_ext.studies.diversity.measure import measure
from s2l_ext.studies.diversity.models import Settings
from s2l_ext.studies.diversity.sets import noise_name, read_set
from s2l_ext.studies.diversity.text import require_libraries
from s2l_ext.toy.coherence import steps_that_follow
from s2l_ext.utils.files import writable, write_atomically

RESULT, SAMPLES = "diversity.json", "samples"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HIGH_TEMPERATURE = 1.5
COHERENCE = {"toy": steps_that_follow}
DEFAULTS = command.DEFAULTS | {"n": 16, "temperature": 1.0, "top_p": 1.0}


@dataclass(frozen=True)
class Job:
    """What to compare: ``evaluations`` draw the samples, by set's name."""

    learner: str
    out: Path
    models: dict[str, str]
    evaluations: dict[str, Evaluation]
    settings: Settings
    trust: tokenizers.Trust


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Sample what is missing, measure, write ``diversity.json`` and return what it holds.

    Raises:
        ConfigError, DataError, StateMismatch, ResourceError: with the value, the reason and the fix.
    """
    require_libraries()
    job = job_of(args)
    opened = {name: open_model(path, f"--models {name}", job.trust) for name, path in job.models.items()}
    _require_one_tokenizer(job, opened)
    sets = []
    for name, evaluation in job.evaluations.items():
        if not args.json:
            print(f"sampling {name}", flush=True)
        problems = [row["prompt_id"] for row in run.evaluate(evaluation, progress=not args.json)["problems"]]
        sets.append(read_set(name, job.learner, evaluation.samples_path, evaluation.sampling.n, problems))
    folders = {name: model.folder for name, model in opened.items()}
    result = measure(sets, job.learner, folders, job.settings)
    with writable(job.out, "The samples are kept."):
        write_atomically(job.out / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def job_of(args: argparse.Namespace) -> Job:
    """Raises ConfigError for arguments that cannot be, alone or together; no file is opened."""
    models = _models(args.models)
    learner = _learner(args.learner, list(models))
    settings, trust = _settings(args), tokenizers.trust_option(args.trust_remote_code)
    evaluations = _evaluations(args, models, learner)
    settings.compared_of(evaluations[learner].sampling.n)
    return Job(learner, args.out, models, evaluations, settings, trust)


def _models(text: str | None) -> dict[str, str]:
    models: dict[str, str] = {}
    for word in (text or "").split(",") if text else []:
        name, equals, path = word.strip().partition("=")
        if not equals:
            name, path = Path(name).name, name
        if not NAME.fullmatch(name) or not path:
            raise ConfigError(f"--models {word}: expected NAME=MODEL with a name of letters, digits, '.', '_' and '-'.")
        if name in models:
            raise ConfigError(f"--models: two models are named {name}. Name them: first={models[name]},second={path}.")
        models[name] = path
    return models


def _learner(chosen: str | None, names: list[str]) -> str:
    if len(names) < 2:
        raise ConfigError(f"--models {','.join(names) or '(none)'}: a learner and at least one explorer are needed.")
    if chosen is not None and chosen not in names:
        raise ConfigError(f"--learner {chosen}: no such name. Names: {', '.join(names)}.")
    return chosen or names[-1]


def _settings(args: argparse.Namespace) -> Settings:
    for name, low in (("n", 2), ("compared", 2), ("gradient_problems", 0)):
        if (value := getattr(args, name)) is not None and value < low:
            why = " (pairs of samples are compared)" if low == 2 else ""
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least {low}{why}.")
    given = {name: value for name, value in _given(args).items() if name.startswith("gradient_")}
    if given.get("gradient_problems") == 0 and "gradient_parameters" in given:
        raise ConfigError("--gradient-parameters with --gradient-problems 0: there are no gradients. Leave one out.")
    machine = {"on_cpu": Machine().on_cpu, "progress": not args.json, "trust_remote_code": args.trust_remote_code}
    judge = COHERENCE.get(args.coherence)
    if args.coherence and judge is None:
        judge = resolve(args.coherence, "--coherence", tuple(COHERENCE))
    return Settings(args.compared, **given, **machine, coherence=judge)


def _evaluations(args: argparse.Namespace, models: dict[str, str], learner: str) -> dict[str, Evaluation]:
    value = {**DEFAULTS, "high_temperature": HIGH_TEMPERATURE} | _given(args)
    temperature, top_p, high = value["temperature"], value["top_p"], value["high_temperature"]
    explorers = value.get("explorer_temperature", temperature), value.get("explorer_top_p", top_p)
    own = {name: (temperature, top_p) if name == learner else explorers for name in models}
    found = {name: _evaluation(args, name, models[name], *drawn) for name, drawn in own.items()}
    if high != 0:
        if not high > temperature:
            raise ConfigError(
                f"--high-temperature {high}: expected more than --temperature {temperature}, or 0 for no noise."
            )
        name = noise_name(learner, high)
        found[name] = _evaluation(args, name, models[learner], high, top_p)
    for evaluation in found.values():
        run.check(evaluation)
    return found


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if value is not None}


def _evaluation(args: argparse.Namespace, name: str, path: str, temperature: float, top_p: float) -> Evaluation:
    """What ``s2l eval`` would make of these options."""
    own = {"model": path, "out": args.out / SAMPLES / f"{name}.json", "temperature": temperature, "top_p": top_p}
    options = command.shared(argparse.Namespace(**vars(args) | own), DEFAULTS)
    return Evaluation(**options, engine=args.engine or "vllm")


def _require_one_tokenizer(job: Job, models: dict[str, Model]) -> None:
    """Raises TokenizerMismatch before hours of sampling: numbers in tokens need one tokenizer and the same prompts."""
    first, key = str(models[job.learner].folder), f"--models {job.learner}"
    for name, model in models.items():
        if name != job.learner:
            tokenizers.compare(first, str(model.folder), key, f"--models {name}", job.trust)
