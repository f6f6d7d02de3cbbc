"""What a person reads: the state of every stage, and the final table of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s2l_ext.pipeline.kinds import kind_of
from s2l_ext.pipeline.plan import Decision, Plan
from s2l_ext.pipeline.schema import STAGE_MARK

STATES = {"skip": "done", "run": "to run", "resume": "interrupted", "export": "to export", "wait": "waiting"}


def state_of(decision: Decision, running: bool) -> str:
    if running and decision.action == "resume":
        return "running"
    return "stale" if decision.stale else STATES[decision.action]


def status_rows(plan: Plan, decisions: dict[str, Decision], running: bool) -> list[dict[str, Any]]:
    """State of every stage; ``running``: a pipeline works in the folder now."""
    rows = []
    for stage in plan.stages:
        decision, entry = decisions[stage.name], plan.manifest.get(stage.name)
        row = {"stage": stage.name, "kind": stage.kind, "state": state_of(decision, running), "why": decision.why}
        rows.append({**row, "attempts": entry.cost.get("attempts", 0) if entry else 0})
    return rows


def final_rows(plan: Plan) -> list[dict[str, Any]]:
    """Models that were evaluated but not trained here, then every finished stage that trained or stored rollouts."""
    evaluations = _evaluations(plan)
    trained = [stage.name for stage in plan.stages if kind_of(stage).makes_model]
    given = list(dict.fromkeys(name for table in evaluations.values() for name in table if name not in trained))
    rows = [_row(plan, name, "", {}, {}, evaluations) for name in given]
    for name in (stage.name for stage in plan.stages if stage.name in trained or stage.kind == "explore"):
        entry = plan.manifest.get(name)
        if entry is not None and entry.status == "done":
            rows.append(_row(plan, name, entry.result["output"]["path"], entry.result, entry.cost, evaluations))
    return rows


def _evaluations(plan: Plan) -> dict[str, dict[str, Any]]:
    """Evaluate stage -> name of the model -> accuracy and its standard error."""
    entries = ((stage.name, plan.manifest.get(stage.name)) for stage in plan.stages)
    return {
        name: entry.result["evaluation"]
        for name, entry in entries
        if entry is not None and entry.status == "done" and "evaluation" in entry.result
    }


def _row(
    plan: Plan, name: str, path: str, result: dict[str, Any], cost: dict[str, Any], evaluations: dict[str, Any]
) -> dict[str, Any]:
    return {
        "stage": name,
        "model": path or plan.pipeline.models.get(name, name).removeprefix(STAGE_MARK),
        "accuracy": {stage: table[name] for stage, table in evaluations.items() if name in table},
        "validation_accuracy": result.get("accuracy"),
        "tokens": result.get("tokens"),
        "accelerator_seconds": cost.get("accelerator_seconds"),
        "flops": (result.get("flops") or {}).get("total"),
    }


def final_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; one column of accuracies per evaluate stage, or verl's validation where none looked at a model."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row["accuracy"]))
    names = stages if len(stages) > 1 else ["accuracy"]
    head = ["stage", "model", *names, "tokens", "accelerator s", "FLOPs (estimated)"]
    lines = [_cells(row, stages or [""]) for row in rows]
    total = {key: sum(row[key] or 0 for row in rows) for key in ("tokens", "accelerator_seconds", "flops")}
    lines.append(["total", "", *("" for _ in names), *_costs(total)])
    return grid(head, lines)


def _cells(row: dict[str, Any], stages: Sequence[str]) -> list[str]:
    accuracies = [_accuracy(row["accuracy"].get(stage), row["validation_accuracy"]) for stage in stages]
    return [row["stage"], row["model"], *accuracies, *_costs(row)]


def _accuracy(evaluated: dict[str, Any] | None, validation: float | None) -> str:
    if evaluated:
        error = evaluated["standard_error"]
        return f"{evaluated['accuracy']:.3f}" + (f" ± {error:.3f}" if error is not None else "")
    return f"{validation:.3f} (validation)" if validation is not None else ""


def _costs(row: dict[str, Any]) -> list[str]:
    tokens, seconds, flops = row["tokens"], row["accelerator_seconds"], row["flops"]
    return [
        f"{tokens:,}" if tokens is not None else "",
        f"{seconds:,.0f}" if seconds is not None else "",
        f"{flops:.2e}" if flops is not None else "",
    ]


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as text too."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    rows = [head, ["-" * width for width in widths], *lines]
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
