"""Responses to read: of training rollouts by source, and of held-out problems that a run learned to solve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from s2l_ext.errors import DataError
from s2l_ext.report.held_out import HeldOut
from s2l_ext.report.page import empty, parts, table
from s2l_ext.report.results import SLOTS, dump_files, read_json_lines
from s2l_ext.report.run import Run
from s2l_ext.training.sources import EXPLORER, LEARNER
from s2l_ext.utils import json_text

LOGGED = "samples.jsonl"
ROLLOUT_DIR, FOLDER = "trainer.rollout_data_dir", "rollouts"
LEARNED, UNFOLDED, PREVIEW, LONGEST = 3, 400, 200, 25_000
ROLES = re.compile(r"^(system|user)\n|\n?assistant\n?$")
ROLLOUTS, LEARNED_TITLE = "Training rollouts", "Held-out problems it learned to solve"
NO_ROLLOUTS = (
    "No training rollouts were kept: the folder has neither samples.jsonl nor dumps of trainer.rollout_data_dir."
)
NO_LEARNED = (
    "No held-out responses to compare: the run left fewer than two validation dumps (trainer.validation_data_dir), or "
    "solved no problem at its end that it failed at first."
)
RISEN = "The first by their text among the problems whose accuracy rose from the first to the last validation."
CHOICE = "The first row of each source and verdict among those kept, at the first, a middle and the last step."


@dataclass(frozen=True)
class Sample:
    """One response. ``guidance`` is the part that was placed and not sampled; None where the dump does not say."""

    step: int
    source: str
    verdict: str
    prompt: str
    guidance: str | None
    response: str
    truth: str


def rollout_files(run: Run) -> list[Path]:
    """Dumps of training rollouts, by step."""
    places = [*run.places(ROLLOUT_DIR), run.folder / FOLDER]
    return next((files for files in map(dump_files, places) if files), [])


def chosen_rollouts(run: Run) -> list[Sample]:
    """The first row of every source and verdict at the first, a middle and the last step.

    Raises:
        DataError: a line is not what the run writes.
    """
    logged = _logged(run)
    if logged:
        return [sample for index in _picked(len(logged)) for sample in logged[sorted(logged)[index]]]
    files = rollout_files(run)
    return [sample for index in _picked(len(files)) for sample in _kinds(read_rollouts(files[index], run))]


def _picked(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1}) if count else []


def _kinds(samples: Iterable[Sample]) -> list[Sample]:
    """The first of each source and verdict."""
    kinds: dict[tuple[str, str], Sample] = {}
    for sample in samples:
        kinds.setdefault((sample.source, sample.verdict), sample)
    return [kinds[kind] for kind in sorted(kinds)]


def _logged(run: Run) -> dict[int, list[Sample]]:
    """By step, from the run's own file, which holds some whole groups of each; the last line of a step wins."""
    path = run.folder / LOGGED
    found = dict(read_json_lines(path, _step_of_samples, "a line of samples")) if path.is_file() else {}
    return {step: samples for step, samples in found.items() if samples}


def _step_of_samples(record: dict[str, Any]) -> tuple[int, list[Sample]]:
    """The kinds alone: a long run has more rows than need to be held."""
    step = int(record["step"])
    return step, _kinds(_logged_sample(row, step) for row in record["rows"])


def _logged_sample(row: dict[str, Any], step: int) -> Sample:
    guidance, truth = str(row.get("guidance") or ""), row.get("ground_truth")
    source = f"{row['source']}, guided" if guidance else str(row["source"])
    prompt, response = str(row["prompt"]), str(row["response"])
    return Sample(step, source, _verdict(row), prompt, guidance or None, response, "" if truth is None else str(truth))


def read_rollouts(path: Path, run: Run) -> list[Sample]:
    """Every row of a dump. A dump that does not name the source is read by the plan: the explorer's sessions come
    first in every group."""
    slots = dict(run.series(SLOTS)).get(int(path.stem), 0.0)
    found = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                found.append(_sample(json_text.loads(line), int(path.stem), slots))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}:{number}: not a row of a rollout dump ({error!r}). Remove the file, or that line."
                ) from error
    return found


def _sample(row: dict[str, Any], step: int, slots: float) -> Sample:
    guidance, response = row.get("guidance"), str(row["output"])
    if guidance and response.startswith(guidance):
        response = response[len(guidance) :]
    source = row.get("s2l_source") or (EXPLORER if _session(str(row.get("uid", ""))) < slots else LEARNER)
    if guidance:
        source = f"{source}, guided"
    truth = "" if row.get("gts") is None else str(row["gts"])
    return Sample(step, source, _verdict(row), str(row["input"]), guidance or None, response, truth)


def _session(uid: str) -> float:
    """Of verl's ``{prompt}_{session}_{turn}``."""
    parts = uid.rsplit("_", 2)
    return float(parts[1]) if len(parts) == 3 and parts[1].isdigit() else float("inf")


def _verdict(row: dict[str, Any]) -> str:
    """The verifier's word; a score that is neither 0 nor 1 stands for itself."""
    value = float(row["score"] if row.get("acc") is None else row["acc"])
    return {0.0: "wrong", 1.0: "right"}.get(value, f"score {value:.3g}")


def figures(held_out: HeldOut, label: str = "") -> list[Markup]:
    """Training rollouts, then held-out problems before and after; a sentence for what there is not.

    Args:
        label: put after the titles.
    """
    rollouts, title, solved = chosen_rollouts(held_out.run), f"{ROLLOUTS}{label}", f"{LEARNED_TITLE}{label}"
    told = _rollouts(title, rollouts) if rollouts else empty(title, NO_ROLLOUTS)
    learned = _learned(held_out)
    head = ["prompt", "before", "after", "answer"]
    return [told, table(solved, head, learned, RISEN, style="samples") if learned else empty(solved, NO_LEARNED)]


def _rollouts(title: str, samples: Sequence[Sample]) -> Markup:
    guided = any(sample.guidance for sample in samples)
    names = ["step", "source", "verdict", "prompt", *(["guidance"] if guided else []), "response", "answer"]
    rows = []
    for sample in samples:
        texts = [
            ROLES.sub("", sample.prompt),
            *([sample.guidance or ""] if guided else []),
            sample.response,
            sample.truth,
        ]
        rows.append([str(sample.step), _badge(sample.source), _badge(sample.verdict), *map(_code, texts)])
    return table(title, names, rows, CHOICE, style="samples")


def _learned(held_out: HeldOut) -> list[list[Markup]]:
    """The first problems that were wrong at the first validation and right at the last."""
    rows = []
    for key in held_out.keys:
        points = held_out.run.series(key)
        before, after = (held_out.problems(key, points[index][0]) for index in (0, -1))
        if before is None or after is None:
            continue
        solved = [p for p in sorted(before.accuracy) if before.accuracy[p] < after.accuracy.get(p, 0.0)]
        for prompt in solved[:LEARNED]:
            texts = [ROLES.sub("", prompt), before.output[prompt], after.output[prompt], after.truth[prompt]]
            rows.append([_code(text) for text in texts])
    return rows


def _badge(text: str) -> Markup:
    kind = text.split(",")[0]
    drawn: Markup = parts.badge(text, kind if kind in (LEARNER, EXPLORER, "right", "wrong") else "plan")
    return drawn


def _code(text: str) -> Markup:
    """A long text opens on a click."""
    drawn: Markup = parts.code(text.strip(), UNFOLDED, PREVIEW, LONGEST)
    return drawn
