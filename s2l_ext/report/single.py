"""The sections that show one run by itself: who sampled what, the explorer, guidance, distillation."""

from __future__ import annotations

from s2l_ext.report import curriculum
from s2l_ext.report.charts import Line, chart
from s2l_ext.report.demo_page import by_source
from s2l_ext.report.held_out import HeldOut, set_name
from s2l_ext.report.run import Run, count_steps
from s2l_ext.report.style import Section

REWARD, LENGTH, SHARE = "critic/score/mean", "response_length/mean", "s2l/explorer/share"
ENTROPY = "actor/entropy"
GUIDANCE = "s2l/guidance/length"
FORWARD_KL, REVERSE_KL, VALUE = "s2l/distill/forward_kl", "s2l/distill/reverse_kl", "s2l/distill/value"


def sections(run: Run) -> list[Section]:
    """Training, and what the run used beside it."""
    training = [_reward(run), _length(run), *([_policy_entropy(run)] if run.series(ENTROPY) else [])]
    found = [Section("training", "Training", training)]
    if run.series(SHARE):
        found.append(Section("explorer_share", "Explorer", [_share(run), *_distance(run)]))
    if run.series(GUIDANCE):
        charts = [_signal(run), *_spread(run), _guided_accuracy(run), _guidance(run)]
        found.append(Section("guidance", "Guided rollouts", charts))
    if run.series(FORWARD_KL) or run.series(VALUE):
        found.append(Section("distillation", "Distillation", [_divergences(run), _entropy(run)]))
    return found


def lead(held_out: HeldOut) -> str:
    """How long it trained, what it learned, where its controllers stand."""
    run = held_out.run
    parts = [f"{count_steps(run)}."]
    for key in held_out.keys:
        values = [value for _, value in run.series(key)]
        change = f"{values[0]:.3f} → {values[-1]:.3f}" if len(values) > 1 else f"{values[0]:.3f} (one validation)"
        parts.append(f"Held-out accuracy on {set_name(key)}: {change}.")
    if run.has_kl or run.has_curriculum:
        parts.append(curriculum.lead(run))
    return " ".join(parts)


def _reward(run: Run) -> str:
    lines = _by_source(run, "reward_mean") or [Line("all rows", "learner", run.series(REWARD))]
    reading = (
        "Should rise. It is measured on the prompts of the step, so a curriculum that picks harder ones lowers it."
    )
    return chart("Training reward", "mean reward of a row", lines, reading=reading)


def _length(run: Run) -> str:
    lines = _by_source(run, "response_length_mean") or [Line("all rows", "learner", run.series(LENGTH))]
    reading = (
        "A sudden fall or a climb to the limit of the response length often comes before a collapse of the reward."
    )
    return chart("Response length", "tokens of a row", lines, reading=reading)


def _by_source(run: Run, name: str) -> list[Line]:
    """Who sampled it, where both did: the mean over a mixed batch is neither's."""
    return [line for line in by_source(run.metrics, name) if line.points]


def _share(run: Run) -> str:
    lines = [
        Line("as planned", "plan", _planned_share(run), planned=True),
        Line("sampled by the explorer", "explorer", run.series(SHARE)),
    ]
    reading = "Falls to 0 as the schedule hands the rollouts to the learner."
    return chart("Explorer's share of the rollouts", "share of rows (0 to 1)", lines, (0.0, 1.0), reading)


def _planned_share(run: Run) -> list[tuple[int, float]]:
    """Up to the last step that was made; empty without a plan."""
    explorer, group_size = run.plan.get("explorer"), run.plan.get("group_size")
    slots = explorer.get("slots") if isinstance(explorer, dict) else None
    if not slots or not group_size:
        return []
    last = run.series(SHARE)[-1][0]
    return [(step, count / group_size) for step, count in enumerate(slots, start=1) if step <= last]


def _policy_entropy(run: Run) -> str:
    reading = "Falls as the model becomes sure; close to 0 it samples the same response again and again."
    return chart(
        "Entropy of the policy", "nats per token", [Line("learner", "learner", run.series(ENTROPY))], reading=reading
    )


def _distance(run: Run) -> list[str]:
    """Where the samplers' own log-probabilities were recorded."""
    lines = _by_source(run, "sampler_k3")
    if not lines:
        return []
    reading = (
        "An estimate of KL(sampler, learner). The learner's line shows what two engines disagree about, the explorer's "
        "the distance of two models."
    )
    return [chart("Distance of sampler and learner", "nats per token", lines, reading=reading)]


def _signal(run: Run) -> str:
    lines = [
        Line("whole groups, guided sessions included", "learner", run.series("s2l/guidance/groups_with_signal")),
        Line("their unguided sessions alone", "third", run.series("s2l/guidance/unguided_groups_with_signal")),
    ]
    reading = (
        "A group whose sessions are all right or all wrong teaches GRPO nothing. The distance of the two lines is what "
        "guidance adds; it closes when the learner solves the prompts by itself."
    )
    return chart("Groups with a learning signal", "share of groups (0 to 1)", lines, (0.0, 1.0), reading)


def _spread(run: Run) -> list[str]:
    kinds = (("guided", "learner"), ("unguided", "third"))
    lines = [Line(kind, role, run.series(f"s2l/guidance/advantage_std_{kind}")) for kind, role in kinds]
    reading = "What a row teaches is in proportion to its advantage: a line near 0 is rows that teach next to nothing."
    return [chart("Spread of advantages", "standard deviation", lines, reading=reading)] if lines[0].points else []


def _guided_accuracy(run: Run) -> str:
    lines = [
        Line("guided", "learner", run.series("s2l/guidance/acc_guided")),
        Line("unguided", "third", run.series("s2l/guidance/acc_unguided")),
    ]
    reading = "Unguided sessions are the learner's own skill; they should follow the guided ones upward."
    return chart("Accuracy with and without guidance", "verifier accuracy (0 to 1)", lines, (0.0, 1.0), reading)


def _guidance(run: Run) -> str:
    lines = [
        Line("asked for", "explorer", run.series(GUIDANCE)),
        Line("applied, mean over guided rows", "learner", run.series("s2l/guidance/applied_mean")),
    ]
    reading = "Applied is less where a trace ends, or its answer begins, before the length asked for."
    return chart("Guidance length", "tokens", lines, reading=reading)


def _divergences(run: Run) -> str:
    """Rows are those of the step, which the model has not been trained on before: each point is held out."""
    lines = [
        Line("forward: KL(teacher, student)", "explorer", run.series(FORWARD_KL)),
        Line("reverse: KL(student, teacher)", "learner", run.series(REVERSE_KL)),
    ]
    found = [line for line in lines if line.points] or [Line("loss", "learner", run.series(VALUE))]
    reading = (
        "The warm-up lowers the forward KL on the teacher's rows, on-policy distillation the reverse KL on the "
        "student's. The other line tells whether one was bought with the other."
    )
    return chart("Divergence from the teacher", "nats per token", found, reading=reading)


def _entropy(run: Run) -> str:
    lines = [Line("student", "learner", run.series("s2l/distill/student_entropy"))]
    reading = "Reverse KL seeks a mode: a fall far below the teacher's entropy means that the student stopped sampling."
    return chart("Entropy of the student", "nats per token", lines, reading=reading)
