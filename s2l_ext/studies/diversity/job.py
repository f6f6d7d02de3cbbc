"""Sample each model on the same problems, or take stored samples, and compare how they differ."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2l_ext.config.resolve import resolve
from s2l_ext.data import tokenizers
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation import arguments as command
from s2l_ext.evaluation import run
from s2l_ext.evaluation.engines import Machine
from s2l_ext.evaluation.model_folder import Model, model_digest, open_model
from s2l_ext.evaluation.run import Evaluation
from s2l_ext.studies.diversity.measure import measure
from s2l_ext.studies.diversity.models import Settings
from s2l_ext.studies.diversity.sets import EXPLORER, RowSet, noise_name, read_set, role_of
from s2l_ext.studies.diversity.text import require_libraries
from s2l_ext.toy.coherence import steps_that_follow
from s2l_ext.utils.files import writable, write_atomically

RESULT, SAMPLES = "diversity.json", "samples"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HIGH_TEMPERATURE = 1.5
COHERENCE = {"toy": steps_that_follow}
DEFAULTS = command.DEFAULTS | {"n": 16, "temperature": 1.0, "top_p": 1.0}
SAMPLING_ONLY = (
    *("data", "benchmark", "reward", "limit", "drop_repeats", "chat_option", "temperature", "top_p", "top_k"),
    *("max_tokens", "seed", "engine", "dtype", "tensor_parallel"),
    *("explorer_temperature", "explorer_top_p", "high_temperature"),
)


@dataclass(frozen=True)
class Job:
    """What to compare: ``files`` of samples by set's name, which ``evaluations`` draw first where they are given."""

    learner: str
    out: Path
    models: dict[str, str]
    files: dict[str, Path]
    n: int | None
    settings: Settings
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    trust: tokenizers.Trust = tokenizers.NO_TRUST


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Sample what is missing, measure, write ``diversity.json`` and return what it holds.

    Raises:
        ConfigError, DataError, StateMismatch, ResourceError: with the value, the reason and the fix.
    """
    require_libraries()
    job = job_of(args)
    opened = {name: open_model(path, f"--models {name}", job.trust) for name, path in job.models.items()}
    foreign = _of_another_tokenizer(job, opened)
    wanted = {}  # a file of samples may hold more problems, of an earlier, larger --limit
    for name, evaluation in job.evaluations.items():
        if not args.json:
            print(f"sampling {name}", flush=True)
        wanted[name] = [row["prompt_id"] for row in run.evaluate(evaluation, progress=not args.json)["problems"]]
    sets = [read_set(name, job.learner, path, job.n, wanted.get(name)) for name, path in job.files.items()]
    _require_drawn_by(sets, opened)
    folders = {name: model.folder for name, model in opened.items()}
    result = measure(sets, job.learner, folders, job.settings, foreign)
    with writable(job.out, "The samples are kept."):
        write_atomically(job.out / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def job_of(args: argparse.Namespace) -> Job:
    """Raises ConfigError for arguments that cannot be, alone or together; no file is opened."""
    models = _models(args.models)
    files = _named_files(args.from_samples or [])
    names = [*models, *(name for name in files if "@" not in name and name not in models)]
    learner = _learner(args.learner, names)
    settings, trust = _settings(args, bool(models)), tokenizers.trust_option(args.trust_remote_code)
    if files:
        _refuse_sampling(args)
        _check_files(files, models, learner)
        return Job(learner, args.out, models, files, args.n, settings, trust=trust)
    evaluations = _evaluations(args, models, learner)
    paths = {name: evaluation.samples_path for name, evaluation in evaluations.items()}
    count = next(iter(evaluations.values())).sampling.n
    settings.compared_of(count)
    return Job(learner, args.out, models, paths, count, settings, evaluations, trust)


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


def _named_files(words: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not path or not NAME.fullmatch(name.partition("@")[0]):
            raise ConfigError(f"--from-samples {word}: expected NAME=FILE, such as small=small.json.samples.jsonl.")
        if name in files:
            raise ConfigError(f"--from-samples {name}: given twice, {files[name]} and {path}. Keep one file a name.")
        files[name] = Path(path)
    return files


def _learner(chosen: str | None, names: list[str]) -> str:
    if len(names) < 2:
        raise ConfigError(f"--models {','.join(names) or '(none)'}: a learner and at least one explorer are needed.")
    if chosen is not None and chosen not in names:
        raise ConfigError(f"--learner {chosen}: no such name. Names: {', '.join(names)}.")
    return chosen or names[-1]


def _settings(args: argparse.Namespace, has_models: bool) -> Settings:
    for name, low in (("n", 2), ("compared", 2), ("gradient_problems", 0)):
        if (value := getattr(args, name)) is not None and value < low:
            why = " (pairs of samples are compared)" if low == 2 else ""
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least {low}{why}.")
    given = {name: value for name, value in _given(args).items() if name.startswith("gradient_")}
    if given and not has_models:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')}: gradients need --models beside --from-samples.")
    if given.get("gradient_problems") == 0 and "gradient_parameters" in given:
        raise ConfigError("--gradient-parameters with --gradient-problems 0: there are no gradients. Leave one out.")
    machine = {"on_cpu": Machine().on_cpu, "progress": not args.json, "trust_remote_code": args.trust_remote_code}
    if args.coherence and not has_models:
        raise ConfigError("--coherence: prompts are read with the learner's tokenizer. Give --models too.")
    judge = COHERENCE.get(args.coherence)
    if args.coherence and judge is None:
        judge = resolve(args.coherence, "--coherence", tuple(COHERENCE))
    return Settings(args.compared, **given, **machine, coherence=judge)


def _refuse_sampling(args: argparse.Namespace) -> None:
    given = [name for name in SAMPLING_ONLY if getattr(args, name) not in (None, False)]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} with --from-samples: nothing is sampled, so it cannot apply. Leave it out."
        )


def _check_files(files: dict[str, Path], models: dict[str, str], learner: str) -> None:
    roles = {name: role_of(name, learner) for name in files}
    if learner not in files:
        raise ConfigError(f"--from-samples: the learner {learner} has no samples. Add --from-samples {learner}=FILE.")
    if EXPLORER not in [role for _, role in roles.values()]:
        raise ConfigError("--from-samples: no explorer has samples. Add --from-samples NAME=FILE for one.")
    if models and (different := models.keys() ^ {model for model, _ in roles.values()}):
        name = min(different)
        lack = "no samples; add --from-samples" if name in models else "no model; add it to --models"
        raise ConfigError(f"{name} has {lack} {name}=..., or leave --models out for what needs no model.")


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


def _of_another_tokenizer(job: Job, models: dict[str, Model]) -> list[str]:
    """Models whose token ids are not the learner's. Those that share them must make the same prompts: raises
    TokenizerMismatch before hours of sampling."""
    if not models:
        return []
    first, key = str(models[job.learner].folder), f"--models {job.learner}"
    tokens = tokenizers.snapshot(first, key, job.trust)
    foreign = []
    for name, model in ((name, model) for name, model in models.items() if name != job.learner):
        other = tokenizers.snapshot(str(model.folder), f"--models {name}", job.trust)
        if tokenizers.describe_token_differences(tokens, other):
            foreign.append(name)
        else:
            tokenizers.compare(first, str(model.folder), key, f"--models {name}", job.trust)
    return foreign


def _require_drawn_by(sets: list[RowSet], models: dict[str, Model]) -> None:
    digests = {name: model_digest(model.folder) for name, model in models.items()}
    for drawn in sets:
        if drawn.model in digests and drawn.fingerprint.get("model") != digests[drawn.model]:
            raise DataError(
                f"{drawn.path}: drawn by a model with fingerprint {drawn.fingerprint.get('model')}, but --models "
                f"{drawn.model} has {digests[drawn.model]}. Name the model that drew them, or sample again."
            )
