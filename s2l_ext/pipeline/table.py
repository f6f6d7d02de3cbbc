"""What a person reads: the state of every stage, a line a step while it runs, and the final table of models."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from s2l_ext.pipeline.file import STAGE_MARK
from s2l_ext.pipeline.plan import Decision, Decisions, Plan
from s2l_ext.report.results import is_accuracy
from s2l_ext.report.stages import COSTS, describe_costs, model_table
from s2l_ext.training.run_log import FILE_NAME, TRAINING_MARK
from s2l_ext.utils import json_text
from s2l_ext.utils.follow import last_lines
from s2l_ext.utils.text_table import text_table

STATES = {"skip": "done", "run": "to run", "resume": "interrupted", "export": "to export", "wait": "waiting"}
WORDS = {"skip": "skipped", "run": "runs", "resume": "resumes", "export": "exports", "wait": "waits"}
HEARTBEAT_SECONDS = 60.0


# ---- before and while ---------------------------------------------------------------------------------------------


def status_rows(plan: Plan, decisions: Decisions, running: bool) -> list[dict[str, Any]]:
    """State of every stage; ``running``: a pipeline works in the folder now."""
    rows = []
    for stage in plan.stages:
        decision, entry = decisions[stage.name], plan.manifest.entries.get(stage.name)
        state = "stale" if decision.stale else STATES[decision.action]
        row = {"stage": stage.name, "kind": stage.kind, "why": decision.why}
        row["state"] = "running" if running and decision.action == "resume" else state
        rows.append(row | {"attempts": entry.cost.get("attempts", 0) if entry else 0})
    return rows


class Progress:
    """Writes to ``stream``: standard error where standard output carries JSON."""

    def __init__(self, total: int, stream: TextIO = sys.stdout) -> None:
        self.total, self.stream = total, stream
        self._head, self._started, self._last_line = "", time.monotonic(), time.monotonic()
        self._last_news: tuple[int, float | None] = (0, None)

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)
        self._last_line = time.monotonic()

    def announce(self, number: int, name: str, decision: Decision) -> None:
        """A stage begins."""
        self._head = f"[{number}/{self.total}] {name}"
        self._started, self._last_news = time.monotonic(), (0, None)
        self.say(f"{self._head}: {WORDS[decision.action]} ({decision.why})")

    def tick(self, run: Path, steps: int | None) -> None:
        """Say what is new in the run's metrics; without news a sign of life once a minute."""
        step, accuracy = latest(run / FILE_NAME)
        elapsed = clock(time.monotonic() - self._started)
        if (step, accuracy) != self._last_news and step:
            self._last_news = (step, accuracy)
            known = f", accuracy {accuracy:.3f}" if accuracy is not None else ""
            self.say(f"{self._head}: step {step}{f'/{steps}' if steps else ''}, {elapsed}{known}")
        elif time.monotonic() - self._last_line > HEARTBEAT_SECONDS:
            self.say(f"{self._head}: {elapsed}")


def clock(seconds: float) -> str:
    """``1h02m``, ``3m05s``, ``12s``."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def latest(path: Path) -> tuple[int, float | None]:
    """Last training step of a metrics file (0: none yet), and the last accuracy near its end."""
    step, accuracy = 0, None
    for line in last_lines(path, 6):
        try:
            record = json_text.loads(line)
            number, data = int(record["step"]), record["data"].items()
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # torn: a run is writing it
        found = [value for key, value in data if is_accuracy(key) and value is not None]
        step = number if TRAINING_MARK in dict(data) else step
        accuracy = sum(found) / len(found) if found else accuracy
    return step, accuracy


# ---- after --------------------------------------------------------------------------------------------------------


def final_rows(plan: Plan) -> list[dict[str, Any]]:
    """Models that were evaluated but not trained here, then every stage that trained or stored rollouts; of stages
    that would run again nothing."""
    entries, decisions = plan.manifest.entries, plan.decisions()
    done = {name: entries[name] for name, decision in decisions.items() if decision.action == "skip"}
    evaluations = {name: e.result["evaluation"] for name, e in done.items() if "evaluation" in e.result}
    made = [stage.name for stage in plan.stages if stage.does.makes_model or stage.kind == "explore"]
    given = dict.fromkeys(name for table in evaluations.values() for name in table if name not in made)
    models = {name: plan.pipeline.models.get(name, name).removeprefix(STAGE_MARK) for name in given}
    models |= {name: done[name].result["output"]["path"] for name in made if name in done}
    rows = []
    for name, model in models.items():
        result, cost = (done[name].result, done[name].cost) if name in done else ({}, {})
        rows.append(
            {
                "stage": name,
                "model": model,
                "accuracy": {stage: table[name] for stage, table in evaluations.items() if name in table},
                "validation_accuracy": result.get("accuracy"),
                "tokens": result.get("tokens"),
                "accelerator_seconds": cost.get("accelerator_seconds"),
                "flops": (result.get("flops") or {}).get("total"),
            }
        )
    return rows


def final_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the models, and the sum of their costs."""
    head, lines = model_table(rows)
    return text_table(head, [*lines, ["total", *[""] * (len(head) - len(COSTS) - 1), *describe_costs(_total(rows))]])


def _total(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Over the stages; FLOPs are None where one that made tokens does not know its own."""
    total: dict[str, float | None] = {
        key: sum(row[key] or 0 for row in rows) for key in ("tokens", "accelerator_seconds", "flops")
    }
    unknown = any(row["tokens"] is not None and row["flops"] is None for row in rows)
    return total | {"flops": None} if unknown else total
