r"""The mathematical reward against labels, against math-verify, in throughput, and against input meant to hang it.

    python benchmarks/math_reward.py labels verdicts pairs throughput hostile --data ../shared/data

- labels: every row of grader_gsm8k_model_solutions, whole solutions, against its label;
- verdicts: every row of grader_math_verify and grader_lighteval against math-verify under the row's options; rows that
  differ are listed with their reasons in tests/fixtures/grader_verdicts.jsonl, and must differ;
- pairs: 100,000 generated pairs that the fast path decides, against math-verify;
- throughput: the solutions again, math-verify alone and the reward, one thread;
- hostile: 200 inputs meant to hang or kill, from several threads; each ends, and the pool judges on.

Prints a line for each and exits with 1 when one fails.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s2l_ext.rewards import fast_math, math_helper
from s2l_ext.rewards.math import compute_score, grade
from s2l_ext.rewards.math_child import fix_percent

EXCEPTIONS = Path(__file__).parents[1] / "tests" / "fixtures" / "grader_verdicts.jsonl"
OPTIONS = ("match_types", "precision", "strict", "allow_set_relation_comp")
REQUIRED_SPEEDUP = 5.0

Pair = tuple[str, str, bool]


def read(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode().splitlines()]


# ---- math-verify alone ----------------------------------------------------------------------------------------------


def alone(answer: str, gold: str, whole: bool) -> bool:
    """math-verify's verdict: a final answer without delimiters goes in as ``\\boxed{answer}``."""
    from math_verify import verify

    return bool(verify(_parsed(_delimited(gold)), _parsed(answer if whole else _delimited(answer))))


@lru_cache(maxsize=256)
def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text))


def _delimited(text: str) -> str:
    return text if fast_math.DELIMITED.search(text) else f"\\boxed{{{text}}}"


def by_options(row: dict[str, Any]) -> bool:
    """math-verify's verdict under a row's options, as its own tests ask for it."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    options = row.get("options") or {}
    known = {"latex": LatexExtractionConfig(boxed_match_priority=0), "expr": ExprExtractionConfig()}
    targets = [known[name] for name in options.get("match_types", ["latex", "expr"])]
    return bool(
        verify(
            parse(row["gold"], targets),
            parse(row["prediction"], targets),
            float_rounding=options.get("precision", 6),
            strict=options.get("strict", True),
            allow_set_relation_comp=options.get("allow_set_relation_comp", False),
        )
    )


def ours_by_options(row: dict[str, Any]) -> bool:
    options = {name: value for name, value in (row.get("options") or {}).items() if name in OPTIONS}
    return grade(row["prediction"], row["gold"], **options)


# ---- generated pairs ------------------------------------------------------------------------------------------------


def pairs(seed: int) -> Iterator[Pair]:
    """Answers and golds, and whole texts: equal, nearly equal, and different, in every spelling the fast path knows."""
    rng = random.Random(seed)
    while True:
        value = _value(rng)
        values = (value, value, -value, _near(rng, value), _near(rng, value), _near(rng, value), _value(rng))
        golds = [_spelling(rng, each) for each in values[:4]]
        answers = [(_spelling(rng, each), False) for each in values] + [(_solution(rng, each), True) for each in values]
        yield from ((answer, gold, whole) for gold in golds for answer, whole in answers)
        yield _expressions(rng)


def _value(rng: random.Random) -> Fraction:
    size = 10 ** rng.choice((1, 2, 2, 3, 4, 6, 9, 14, 20))
    top = rng.randrange(-size, size)
    return Fraction(top, rng.choice((1, 1, 1, 2, 3, 4, 7, 8, 10, 25, 100, 640, 1000, 10**5, 10**6, 10**7)))


def _near(rng: random.Random, value: Fraction) -> Fraction:
    return value + rng.choice((-1, 1)) * Fraction(rng.choice((1, 2, 3, 5, 10, 19, 21, 50)), 10 ** rng.randrange(0, 9))


def _spelling(rng: random.Random, value: Fraction) -> str:
    text = _fraction(rng, value) if value.denominator > 1 and rng.random() < 0.5 else _decimal(rng, value)
    roll = rng.random()
    return f"${text}$" if roll < 0.1 else f" {text} " if roll < 0.15 else text


def _fraction(rng: random.Random, value: Fraction) -> str:
    times = rng.choice((1, 1, 2, 3, 10))
    top, bottom = value.numerator * times, value.denominator * times
    command = rng.choice(("frac", "dfrac", "tfrac"))
    sign = "-" if value < 0 else ""
    spellings = (
        f"{top}/{bottom}",
        f"\\{command}{{{top}}}{{{bottom}}}",
        f"{sign}\\{command}{{{abs(top)}}}{{{bottom}}}",
    )
    return rng.choice(spellings)


def _decimal(rng: random.Random, value: Fraction) -> str:
    if value.denominator == 1 and rng.random() < 0.6:
        text, places = str(abs(value.numerator)), ""
    else:
        digits = rng.choice((1, 2, 2, 3, 5, 6, 7, 8))
        text, _, places = f"{float(abs(value)):.{digits}f}".partition(".")
    roll = rng.random()
    if roll < 0.3:
        text = f"{int(text):,}"
        text = text.replace(",", rng.choice(("{,}", ",\\!"))) if roll < 0.06 else text
    elif roll < 0.35:
        text = "0" * rng.randrange(1, 3) + text
    elif roll < 0.4 and text == "0" and places:
        text = ""
    sign = "-" if value < 0 else rng.choice(("", "", "", "+"))
    return sign + rng.choice(("", "", "", "\\$")) + text + ("." + places if places else "")


FILLERS = ("Janet", "$5", "$3 and $4", "\\(a\\)", "30%", "3+4=7", "<<3*4=12>>12", "12 eggs", "1,200", "\\frac{1}{2}")
FILLERS += ("x^2", "costs", "so she has", "the", "per day", ".", ",", "-", "16 - 3")
ENDS = ("\nA: ", "\nA: $", " = ", " =", "\nThe total is ", " makes ", "\n#### so ", ": ", "\n", " equals $", " and\n")


def _solution(rng: random.Random, value: Fraction) -> str:
    """Sentences, numbers and dollars, then a number in the way a solution ends."""
    said = [rng.choice(FILLERS) for _ in range(rng.choice((0, 1, 2, 4, 8, 30)))]
    lines = "".join(word + rng.choice((" ", " ", " ", "\n")) for word in said)
    return (lines + rng.choice(ENDS) + _decimal(rng, value).lstrip("+").replace("\\$", "")).strip()


WORDS = ("x", "y", "\\pi", "\\sqrt{2}", "\\dfrac{1}{2}", "\\tfrac{x}{3}", "2", "10", "n+1", "\\text{even}", "\\infty")


def _expressions(rng: random.Random) -> Pair:
    """The same expression or another, with the typography that changes nothing."""
    parts = [rng.choice(WORDS) for _ in range(rng.randrange(1, 4))]
    around = rng.choice((("", ""), ("\\left(", "\\right)"), ("\\left[", "\\right]"), ("(", "]")))
    text = around[0] + rng.choice((", ", "+", "=", " ")).join(parts) + around[1]
    plain = text.replace("\\left", "").replace("\\right", "").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return (text, rng.choice((text, plain, plain)), False)


# ---- hostile input --------------------------------------------------------------------------------------------------


def hostile(count: int = 200) -> list[str]:
    """Answers that hang, exhaust or confuse a computer algebra system."""
    box = "\\boxed{%s}"
    towers = [box % ("9^{" * n + "9" + "}" * n) for n in range(2, 22)]
    powers = [box % f"{n}^{{{n}^{{{n}}}}}" for n in range(10, 30)] + [box % f"10^{{10^{{{n}}}}}" for n in range(1, 21)]
    factorials = [box % f"{10**n}!" for n in range(2, 12)] + [box % ("3" + "!" * n) for n in range(2, 12)]
    radicals = [box % ("\\sqrt{1+" * n + "2" + "}" * n) for n in (5, 10, 20, 40, 80, 100, 120, 150, 200, 300)]
    nested = [box % ("\\frac{1}{1+" * n + "x" + "}" * n) for n in (5, 10, 20, 40, 80, 100, 120, 150, 200, 300)]
    long = [c * 10**6 for c in "1x(${[\\^ a"]
    long += [box % (c * 10**6) for c in "9x("] + ["\\boxed{" * 10**5, "7 " * 10**6]
    open_ = ["\\frac{" * n for n in (10, 600)] + ["\\left(" * n for n in (10, 600)] + ["}{" * 1500, "$" * 3999]
    odd = [
        "\x00",
        "\ud800",
        "\\boxed{\\}",
        "\\boxed{$}",
        "\\boxed{\\frac{1}{0}}",
        "\\boxed{0^0}",
        "10^10^10",
        "9**9**9**9",
    ]
    integrals = [box % f"\\int_0^{{{n}}} \\sin(x^{{{n}}}) e^{{x^{n}}} dx" for n in range(2, 12)]
    sums = [box % f"\\sum_{{k=1}}^{{{10**n}}} \\frac{{1}}{{k^{{{n}}}}}" for n in range(2, 14)]
    products = [box % f"(x+1)^{{{10**n}}}(x-1)^{{{10**n}}}" for n in range(1, 9)]
    equations = [box % f"x^{{{n}}}+\\sin(x)+e^{{x}}=x^{{{n}}}" for n in range(2, 14)]
    matrices = [box % ("\\begin{pmatrix}" + " & ".join(["x^{9}"] * n) + "\\end{pmatrix}") for n in (5, 50, 300)]
    kinds = (towers, powers, factorials, radicals, nested, long, open_, odd, integrals, sums, products, equations)
    found = [text for kind in (*kinds, matrices) for text in kind]
    found += ["+".join(["9^{9^9}"] * n) for n in range(2, 2 + count - len(found))]
    return found[:count]


# ---- checks ---------------------------------------------------------------------------------------------------------


def check_labels(arguments: argparse.Namespace) -> bool:
    rows = read(arguments.data / "grader_gsm8k_model_solutions.jsonl.gz")
    wrong = [row["id"] for row in tqdm(rows, leave=False) if grade(row["prediction"], row["gold"]) != row["correct"]]
    print(f"labels: {len(rows) - len(wrong)} of {len(rows)} agree" + "".join(f"\n  {each}" for each in wrong))
    return not wrong


def check_verdicts(arguments: argparse.Namespace) -> bool:
    allowed = {row["id"] for row in read(EXCEPTIONS) if "differs" in row}
    good = True
    for name in ("grader_math_verify", "grader_lighteval"):
        rows = read(arguments.data / f"{name}.jsonl")
        differ = [row["id"] for row in tqdm(rows, leave=False) if ours_by_options(row) != by_options(row)]
        new = sorted(set(differ) - allowed)
        good = good and not new and allowed & {row["id"] for row in rows} <= set(differ)
        print(f"{name}: {len(rows) - len(differ)} of {len(rows)} agree; differ: {', '.join(differ) or 'none'}")
        print("".join(f"  NOT LISTED: {each}\n" for each in new), end="")
    return good


def check_pairs(arguments: argparse.Namespace) -> bool:
    generated = decided = right = 0
    differ = []
    bar = tqdm(total=arguments.pairs, leave=False)
    for answer, gold, whole in pairs(arguments.seed):
        generated += 1
        verdict = fast_math.verdict(answer, gold, whole)
        if verdict is None:
            continue
        decided, right = decided + 1, right + verdict[0]
        bar.update()
        if alone(answer, gold, whole) != verdict[0]:
            differ.append((answer, gold, whole, verdict[0]))
            bar.write(f"  fast path: {differ[-1]}")
        if decided == arguments.pairs:
            break
    print(f"pairs: {len(differ)} differences on {decided} decided of {generated} generated, {right} of them right")
    return not differ


def check_throughput(arguments: argparse.Namespace) -> bool:
    rows = read(arguments.data / "grader_gsm8k_model_solutions.jsonl.gz")
    math_helper.start(1)
    grade("\\boxed{x+1}", "1+x"), alone("x+1", "1+x", False)
    speeds: dict[str, list[float]] = {"math-verify": [], "reward": []}
    for _ in range(arguments.rounds):
        for name, judge in (("math-verify", lambda p, g: alone(p, g, True)), ("reward", _reward)):
            started = time.perf_counter()
            for row in rows:
                judge(row["prediction"], row["gold"])
            speeds[name].append(len(rows) / (time.perf_counter() - started))
    plain, ours = (statistics.median(each) for each in speeds.values())
    print(f"throughput: math-verify {plain:.0f} solutions/s, the reward {ours:.0f}: {ours / plain:.1f} times")
    return ours / plain >= REQUIRED_SPEEDUP


def _reward(prediction: str, gold: str) -> float:
    return float(compute_score("gsm8k", prediction, gold)["score"])


def check_hostile(arguments: argparse.Namespace) -> bool:
    seconds, size = arguments.timeout, 2
    math_helper.start(size)
    waits, taken = _waits(seconds), []

    def one(text: str) -> bool:
        started = time.monotonic()
        found = grade(text, "72", timeout_s=seconds, pool_size=size)
        taken.append((time.monotonic() - started, text[:60]))
        return found

    with ThreadPoolExecutor(size) as threads:  # as many as children, so that no time is spent in a queue
        right = sum(tqdm(threads.map(one, hostile()), total=200, leave=False))
    works = grade("\\boxed{\\frac{4}{8}+x}", "x+1/2")
    stuck = sum(wait >= max(math_helper.STUCK_SECONDS, math_helper.STUCK_FACTOR * seconds) for wait in waits)
    print(
        f"hostile: {len(taken)} inputs, {len(waits)} of them put to a process of {seconds:g} CPU seconds; the longest "
        f"wait was {max(waits):.2f} s of the wall clock, {stuck} were stuck; with a new process the slowest "
        f"took {max(taken)[0]:.1f} s; {right} judged right; judges afterwards: {works}"
    )
    if arguments.verbose:
        print("".join(f"  {spent:.1f} s {text!r}\n" for spent, text in sorted(taken, reverse=True)[:25]), end="")
    return len(taken) == 200 and not stuck and not right and works


def _waits(seconds: float) -> list[float]:
    """Seconds for which each answer of a process was waited for, from here on."""
    found: list[float] = []
    line = math_helper.Child._line

    def timed(child: math_helper.Child, limit: float) -> str:
        started = time.monotonic()
        try:
            return line(child, limit)
        finally:
            if limit == max(math_helper.STUCK_SECONDS, math_helper.STUCK_FACTOR * seconds):
                found.append(time.monotonic() - started)

    math_helper.Child._line = timed  # type: ignore[method-assign]
    return found


CHECKS = {
    "labels": check_labels,
    "verdicts": check_verdicts,
    "pairs": check_pairs,
    "throughput": check_throughput,
    "hostile": check_hostile,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", choices=[[], *CHECKS], help="default: all")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the grader_* files")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="of the throughput")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for each hostile input")
    parser.add_argument("--verbose", action="store_true", help="name the slowest hostile inputs")
    arguments = parser.parse_args()
    fix_percent()
    good = [CHECKS[name](arguments) for name in arguments.checks or CHECKS]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
