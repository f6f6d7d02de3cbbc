"""Responses to read: of training rollouts by source, and of held-out problems that a run learned to solve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from s2l_ext.report.page import empty, parts, table
from s2l_ext.report.results import ROLLOUTS_PER_GROUP, dump_files, read_json_lines
from s2l_ext.report.run import Run
from s2l_ext.training.batch_fields import EXPLORER, LEARNER

LOGGED = "samples.jsonl"
ROLLOUT_DIR, FOLDER = "trainer.rollout_data_dir", "rollouts"
LEARNED, UNFOLDED, PREVIEW, LONGEST = 3, 400, 200, 25_000
ROLES = re.compile(r"^(system|user)\n|\n?assistant\n?$")
ROLLOUTS, LEARNED_TITLE = "Training rollouts", "Held-out problems it learned to solve"
NO_ROLLOUTS = (
    "No training rollouts were kept: the folder has neither samples.jsonl nor dumps of trainer.rollout_data_dir."
)
NO_LEARNED = (
    "No held-out responses to compare. The run left fewer than two validation dumps (trainer.validation_data_dir), or "
    "solved no problem at its end that it failed at first."
)
RISEN = "The first by their text among the problems whose accuracy rose from the first to the last validation."
CHOICE = "The first row of each source and verdict among those kept, at the first, a middle and the last step."


@dataclass(frozen=True)
class Sample:
    """One response. ``guidance`` is the part that was placed and not sampled; empty where the dump does not say."""

    step: int
    source: str
    verdict: str
    prompt: str
    guidance: str
    response: str
    truth: str


def choose_rollouts(run: Run) -> list[Sample]:
    """The first row of every source and verdict at the first, a middle and the last step: of the run's own file, which
    holds some whole groups of each, else of verl's dumps.

    Raises:
        DataError: a line is not what the run writes.
    """
    logged = _read_logged(run)
    if logged:
        return [sample for index in _spread(len(logged)) for sample in logged[sorted(logged)[index]]]
    places = [*run.places(ROLLOUT_DIR), run.folder / FOLDER]
    files = next((files for files in map(dump_files, places) if files), [])
    return [sample for index in _spread(len(files)) for sample in _first_of_each_kind(read_dump(files[index], run))]


def _spread(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1}) if count else []


def _first_of_each_kind(samples: Iterable[Sample]) -> list[Sample]:
    kinds: dict[tuple[str, str], Sample] = {}
    for sample in samples:
        kinds.setdefault((sample.source, sample.verdict), sample)
    return [kinds[kind] for kind in sorted(kinds)]


def _read_logged(run: Run) -> dict[int, list[Sample]]:
    """By step; the last line of a step wins. A long run has more rows than need to be held."""

    def read_line(record: dict[str, Any]) -> tuple[int, list[Sample]]:
        step = int(record["step"])
        rows = ((row, str(row["source"]), str(row["prompt"]), str(row["response"])) for row in record["rows"])
        return step, _first_of_each_kind(
            _sample(step, row, source, prompt, str(row.get("guidance") or ""), response, row.get("ground_truth"))
            for row, source, prompt, response in rows
        )

    path = run.folder / LOGGED
    found = dict(read_json_lines(path, read_line, "a line of samples")) if path.is_file() else {}
    return {step: samples for step, samples in found.items() if samples}


def read_dump(path: Path, run: Run) -> list[Sample]:
    """Every row of a dump. A dump that does not name the source is read by the plan: the explorer's sessions come
    first in every group."""
    step = int(path.stem)
    from_explorer = dict(run.series(ROLLOUTS_PER_GROUP)).get(step, 0.0)

    def read_line(row: dict[str, Any]) -> Sample:
        source = row.get("s2l_source") or (EXPLORER if _session(str(row.get("uid", ""))) < from_explorer else LEARNER)
        guidance = row.get("guidance") or ""
        response = str(row["output"]).removeprefix(guidance)
        return _sample(step, row, source, str(row["input"]), guidance, response, row.get("gts"))

    return read_json_lines(path, read_line, "a row of a rollout dump")


def _sample(
    step: int, row: dict[str, Any], source: str, prompt: str, guidance: str, response: str, truth: object
) -> Sample:
    """The verdict is the verifier's; a score that is neither 0 nor 1 stands for itself."""
    value = float(row["score"] if row.get("acc") is None else row["acc"])
    verdict = {0.0: "wrong", 1.0: "right"}.get(value, f"score {value:.3g}")
    by = f"{source}, guided" if guidance else source
    return Sample(step, by, verdict, prompt, guidance, response, "" if truth is None else str(truth))


def _session(uid: str) -> float:
    """Of verl's ``{prompt}_{session}_{turn}``."""
    parts = uid.rsplit("_", 2)
    return float(parts[1]) if len(parts) == 3 and parts[1].isdigit() else float("inf")


def figures(run: Run, label: str = "") -> list[Markup]:
    """Training rollouts, then held-out problems before and after; a sentence for what there is not.

    Args:
        label: put after the titles.
    """
    rollouts, learned = choose_rollouts(run), _learned(run)
    title, solved, head = f"{ROLLOUTS}{label}", f"{LEARNED_TITLE}{label}", ["prompt", "before", "after", "answer"]
    return [
        _rollout_table(title, rollouts) if rollouts else empty(title, NO_ROLLOUTS),
        table(solved, head, learned, RISEN, style="samples") if learned else empty(solved, NO_LEARNED),
    ]


def _rollout_table(title: str, samples: Sequence[Sample]) -> Markup:
    guided = any(sample.guidance for sample in samples)
    head = ["step", "source", "verdict", "prompt", *(["guidance"] if guided else []), "response", "answer"]
    rows = []
    for s in samples:
        texts = [ROLES.sub("", s.prompt), *([s.guidance] if guided else []), s.response, s.truth]
        rows.append([str(s.step), _badge(s.source), _badge(s.verdict), *map(_code, texts)])
    return table(title, head, rows, CHOICE, style="samples")


def _learned(run: Run) -> list[list[Markup]]:
    """The first problems that were wrong at the first validation and right at the last."""
    rows = []
    for key in run.keys:
        points = run.series(key)
        before, after = (run.problems(key, points[index][0]) for index in (0, -1))
        if before is None or after is None:
            continue
        both = before.join(after, rsuffix="_after", how="inner")
        for row in both[both["accuracy"] < both["accuracy_after"]].head(LEARNED).itertuples():
            rows.append(
                [_code(t) for t in (ROLES.sub("", str(row.Index)), row.output, row.output_after, row.truth_after)]
            )
    return rows


def _badge(text: str) -> Markup:
    kind = text.split(",")[0]
    drawn: Markup = parts.badge(text, kind if kind in (LEARNER, EXPLORER, "right", "wrong") else "plan")
    return drawn


def _code(text: str) -> Markup:
    """A long text opens on a click."""
    drawn: Markup = parts.code(text.strip(), UNFOLDED, PREVIEW, LONGEST)
    return drawn
