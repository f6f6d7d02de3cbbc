"""What ``s2l diversity`` prints: a column for each set of samples, a row for each number."""

from __future__ import annotations

from typing import Any

ROWS = (
    ("pass@1", ("pass_at_1",), 3),
    ("pass@{n}", ("pass_at_n",), 3),
    ("distinct answers / sample", ("distinct_answers",), 3),
    ("Self-BLEU (low: diverse)", ("self_bleu",), 3),
    ("edit diversity", ("edit_diversity",), 3),
    ("half of the pairs part by token", ("prefix_half",), 1),
    ("groups right and wrong", ("mixed_groups",), 3),
    ("responses with an answer", ("answered",), 3),
    ("mean length (tokens)", ("mean_length",), 1),
    ("truncated", ("truncation_rate",), 3),
    ("entropy (nats / token)", ("entropy",), 3),
    ("KL to the learner (nats / token)", ("kl_to_learner",), 4),
    ("log-ratio autocorrelation, lag 1", ("autocorrelation", 1), 3),
    ("  same, tokens in random order", ("autocorrelation_shuffled", 1), 3),
    ("  difference of the two", ("autocorrelation_excess",), 3),
    ("gradient A*g: variance / norm²", ("gradients", "advantage", "relative_variance"), 3),
    ("gradient A*g: mean cosine", ("gradients", "advantage", "cosine"), 3),
    ("gradient A*g: norm of the mean", ("gradients", "advantage", "mean_gradient_norm"), 3),
    ("gradient g: variance / norm²", ("gradients", "score", "relative_variance"), 3),
    ("gradient g: mean cosine", ("gradients", "score", "cosine"), 3),
    ("gradient g: norm of the mean", ("gradients", "score", "mean_gradient_norm"), 3),
)
"""Name, path of keys in a set (a number is a place from 1 in a curve), and digits."""


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns, and rows of cells; rows that no set has are left out."""
    sets = result["sets"]
    rows = []
    for name, path, digits in ROWS:
        cells = [_cell(values, path, digits) for values in sets.values()]
        if any(cells):
            rows.append([name.format(n=result["n"]), *cells])
    return ["", *sets], rows


def as_lines(result: dict[str, Any]) -> list[str]:
    """Table, crossings, what the gradients are over, and the recommendation."""
    titles, rows = table(result)
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [titles, *rows]]
    return [
        *(line.rstrip() for line in lines),
        "",
        *(said for name in result["crossings"] for said in [crossing_line(result, name)]),
        *notes(result),
        "",
        result["recommendation"]["sentence"],
    ]


def crossing_line(result: dict[str, Any], name: str) -> str:
    """Where a set's pass@k crosses the learner's."""
    found, learner = result["crossings"][name], result["learner"]
    start, end = found["difference_at_1"]["value"], found["difference_at_n"]["value"]
    ends = f"{start:+.3f} at k = 1, {end:+.3f} at k = {result['n']}"
    if not found["at_k"]:
        return f"pass@k of {name} and {learner} do not cross up to k = {result['n']} ({ends})."
    where = ", ".join(f"{value:.1f}" for value in found["at_k"])
    return (
        f"pass@k of {name} crosses that of {learner} at k = {where} ({ends}); "
        f"{found['share_of_resamples']:.0%} of the resamples cross."
    )


def notes(result: dict[str, Any]) -> list[str]:
    """What the numbers rest on."""
    said = [
        f"{result['num_problems']} problems, {result['n']} samples each ({result['compared']} for Self-BLEU and edit "
        f"diversity); brackets: {result['interval']}."
    ]
    drawn = [f"{name} {v['temperature']:g} / {v['top_p']:g}" for name, v in result["sets"].items()]
    said.append(f"Temperature / top-p: {', '.join(drawn)}.")
    if apart := result.get("other_tokens"):
        said.append(
            f"Left out for {', '.join(apart)}: numbers in tokens, and what the models say of tokens. The tokenizer or "
            f"chat template is not {result['learner']}'s, so tokens cannot be compared."
        )
    chosen = result["gradient_parameters"]
    if chosen is not None:
        sketch = "" if chosen["sketch"] is None else f", sketched to {chosen['sketch']:,} numbers"
        groups = ", ".join(
            f"{name} {values['gradients']['num_with_signal']}"
            for name, values in result["sets"].items()
            if "gradients" in values
        )
        number = result["sets"][result["learner"]]["gradients"]["num_problems"]
        said.append(
            f"Gradients over {chosen['parameters']} parameters ({chosen['count']:,}{sketch}) on {number} problems; "
            f"groups with an advantage: {groups}."
        )
    return said


def _cell(values: dict[str, Any], path: tuple[str | int, ...], digits: int) -> str:
    found: Any = values
    for key in path:
        if isinstance(key, int):
            found = {"value": found["values"][key - 1], "ci95": [found["low"][key - 1], found["high"][key - 1]]}
        elif key not in found:
            return ""
        else:
            found = found[key]
    if found["value"] is None:
        return "none"
    low, high = found["ci95"]
    return f"{found['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
