"""The general page of a run: held-out accuracy, reward, length, the explorer's share."""

from __future__ import annotations

import html

from s2l_ext.report.charts import Line, chart, empty
from s2l_ext.report.page import by_source, table_rows
from s2l_ext.report.results import is_accuracy
from s2l_ext.report.run import Run
from s2l_ext.report.style import Section, document

COLOURS = ("learner", "explorer", "third", "fourth")
NO_EXTRAS = "This run logged neither s2l/kl/... nor s2l/curriculum/..., so there is no curriculum page."
REWARD, LENGTH, SHARE = "critic/score/mean", "response_length/mean", "s2l/explorer/share"
GUIDANCE = "s2l/guidance/length"
FORWARD_KL, REVERSE_KL, VALUE = "s2l/distill/forward_kl", "s2l/distill/reverse_kl", "s2l/distill/value"


def sections(run: Run) -> list[Section]:
    """What the general page shows; the explorer only where there was one."""
    found = [
        Section("held_out_accuracy", "Held-out accuracy", _accuracy(run)),
        Section("training", "Training", [_reward(run), _length(run)]),
    ]
    if run.series(SHARE):
        found.append(Section("explorer_share", "Explorer", [_share(run)]))
    if run.series(GUIDANCE):
        found.append(Section("guidance", "Guided rollouts", [_signal(run), _guided_accuracy(run), _guidance(run)]))
    if run.series(FORWARD_KL) or run.series(VALUE):
        found.append(Section("distillation", "Distillation", [_divergences(run), _entropy(run)]))
    return found


def page(run: Run, found: list[Section], more: str | None) -> str:
    """``more`` is the file name of the curriculum page."""
    link = f"<p><a href='{more}'>KL and curriculum of this run</a></p>" if more else f"<p class='note'>{NO_EXTRAS}</p>"
    facts = f"<h2>First and last values</h2><div class='scroll'><table>{table_rows(_facts(run))}</table></div>"
    body = [f"<h1>{html.escape(run.name)}</h1><p class='lead'>{html.escape(_lead(run))}</p>{link}"]
    return document(f"s2l report: {run.name}", "".join([*body, *(section.html() for section in found), facts]))


def accuracy_keys(run: Run) -> list[str]:
    return sorted({key for _, data in run.metrics for key in data if is_accuracy(key) and run.series(key)})


def count_steps(run: Run) -> str:
    return f"{run.steps} training step{'' if run.steps == 1 else 's'}"


def _lead(run: Run) -> str:
    parts = [f"{count_steps(run)}."]
    for key in accuracy_keys(run):
        values = [value for _, value in run.series(key)]
        change = f"{values[0]:.3f} → {values[-1]:.3f}" if len(values) > 1 else f"{values[0]:.3f} (one validation)"
        parts.append(f"Held-out accuracy on {_source(key)}: {change}.")
    return " ".join(parts)


def _source(key: str) -> str:
    """``toy`` from ``val-core/toy/acc/mean@1``, with the number of samples where it is not 1."""
    source, samples = key.removeprefix("val-core/").split("/acc/mean@", 1)
    return source if samples == "1" else f"{source}, mean of {samples}"


def _accuracy(run: Run) -> list[str]:
    keys = accuracy_keys(run)
    if not keys:
        why = "The run logged no validation. Set trainer.test_freq and data.val_files to see held-out accuracy."
        return [empty("Held-out accuracy", why)]
    groups = [keys[start : start + len(COLOURS)] for start in range(0, len(keys), len(COLOURS))]
    return [_accuracy_chart(run, group) for group in groups]


def _accuracy_chart(run: Run, keys: list[str]) -> str:
    lines = [Line(_source(key), colour, run.series(key)) for key, colour in zip(keys, COLOURS, strict=False)]
    reading = "A model that learns rises from its first point. One validation set of n problems moves by about 1/√n."
    return chart("Held-out accuracy", "accuracy (0 to 1)", lines, (0.0, 1.0), reading)


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
    lines = [Line("sampled by the explorer", "explorer", run.series(SHARE))]
    reading = "Falls to 0 as the schedule hands the rollouts to the learner."
    return chart("Explorer's share of the rollouts", "share of rows (0 to 1)", lines, (0.0, 1.0), reading)


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


def _facts(run: Run) -> dict[str, str]:
    names = {key: f"held-out accuracy, {_source(key)}" for key in accuracy_keys(run)}
    names |= {REWARD: "training reward", LENGTH: "response length, tokens", SHARE: "explorer's share"}
    names |= {FORWARD_KL: "forward KL, nats per token", REVERSE_KL: "reverse KL, nats per token"}
    return {name: _first_and_last(run.series(key)) for key, name in names.items() if run.series(key)}


def _first_and_last(values: list[tuple[int, float]]) -> str:
    (first, before), (last, after) = values[0], values[-1]
    return f"{before:.4g} (step {first})" + ("" if first == last else f" → {after:.4g} (step {last})")
