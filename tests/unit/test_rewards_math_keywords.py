"""Keywords of the mathematical reward: extraction modes, weighted parts, and every combination that is refused."""

from __future__ import annotations

import pytest

from s2l_ext.errors import ConfigError
from s2l_ext.rewards import parts
from s2l_ext.rewards.extraction import extract, last_number
from s2l_ext.rewards.math import compute_score, grade
from s2l_ext.rewards.math_settings import OVERLONG, Settings, parse

SAID = "\\boxed{1}\n#### 2\n<answer>3</answer> and 4 more"


NOTHING = {"score": 0.0, "acc": 0.0, "format_ok": 0.0, "timed_out": 0.0}


def score(text, gold="72", extra_info=None, **kwargs):
    return compute_score("gsm8k", text, gold, extra_info, **kwargs)


@pytest.mark.parametrize(
    ("mode", "answer"), [("auto", "3"), ("boxed", "1"), ("hashes", "2"), ("tags", "3"), ("last_number", "4")]
)
def test_each_mode_looks_in_its_place_only(mode, answer):
    found = score(SAID, answer, extraction=mode)
    assert (found["acc"], found["format_ok"], found["extracted"]) == (1.0, 1.0, answer)
    assert [grade(SAID, other, extraction=mode) for other in "1234"].count(True) == 1


@pytest.mark.parametrize("mode", ["boxed", "hashes", "tags"])
def test_without_the_mark_there_is_no_answer(mode):
    assert score("It is 72", extraction=mode) == {**NOTHING, "extracted": ""}
    assert score("It is 72", extraction="last_number")["acc"] == 1.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5-3", "3"),
        ("it is -3", "-3"),
        ("x = -3.50 m", "-3.50"),
        ("$1,234,567.", "1,234,567"),
        ("1,2345", "2345"),
        ("about 3/4 of it", "3/4"),
        ("\\frac{-3}{4}", "\\frac{-3}{4}"),
        ("-\\dfrac{3}{4}", "-\\dfrac{3}{4}"),
        ("from 2 to .5", ".5"),
        ("(7)-2", "2"),
        ("3.", "3"),
        ("none", None),
        ("it is \u22125", "-5"),
        ("7\u22125", "5"),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize("text", ["so \\boxed{}", "so \\boxed{ }", "<answer> </answer>"])
def test_an_empty_mark_earns_no_format_reward(text):
    found = score(text, format_weight=0.5)
    assert (found["score"], found["format_ok"], found["extracted"]) == (0.0, 0.0, "")


def test_a_text_without_mark_is_handed_on_whole():
    found = extract("  so it is 72 ", "auto")
    assert (found.answer, found.found, found.whole) == ("so it is 72", False, True)
    assert extract("so it is 72", "boxed").whole is False


# ---- parts --------------------------------------------------------------------------------------------------------


def test_the_score_is_the_weighted_sum():
    both = {"accuracy_weight": 2.0, "format_weight": 0.5}
    assert score("\\boxed{72}", **both)["score"] == 2.5
    assert score("\\boxed{71}", **both)["score"] == 0.5
    unmarked = score("It is 72", **both)
    assert (unmarked["score"], unmarked["acc"], unmarked["format_ok"]) == (2.0, 1.0, 0.0)
    assert parts.weighted_sum({"a": (0.5, 3.0), "b": (-1.0, 0.25)}) == 1.25


# ---- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"extracton": "boxed"}, r"reward_kwargs\.extracton: unknown key\. Did you mean 'reward_kwargs\.extraction'\?"),
        ({"zzz": 1}, r"\.zzz: unknown key\. Keys of reward_kwargs: extraction, thinking, timeout_s,"),
        ({"extraction": "box"}, "extraction='box'.*from: auto, boxed, hashes, tags, answer_line, last_number"),
        ({"extraction": None}, "extraction=None"),
        ({"extraction": {"a": 1}}, "extraction=.*is not a choice"),
        ({"timeout_s": 0}, "timeout_s=0 .*must be > 0"),
        ({"timeout_s": "5"}, "timeout_s='5'"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"pool_size": 0}, "pool_size=0 .*must be >= 1"),
        ({"pool_size": True}, "pool_size=True"),
        ({"precision": -1}, "precision=-1"),
        ({"precision": 2.0}, "precision=2.0"),
        ({"strict": 1}, "strict=1 .*true or false"),
        ({"allow_set_relation_comp": "no"}, "allow_set_relation_comp='no'"),
        ({"match_types": "latex"}, "match_types='latex'.*must be a list"),
        ({"match_types": []}, r"match_types=\[\] must list some of"),
        (
            {"match_types": ["latex", "string"]},
            r"match_types=\[.*'string'\] must list some of \['latex', 'expr'\]",
        ),
        ({"match_types": [["latex"]]}, r"match_types\[0\]=\['latex'\] has the wrong type"),
        ({"format_weight": "0.1"}, "format_weight='0.1' .*a finite number"),
        ({"accuracy_weight": float("inf")}, "accuracy_weight=inf"),
        ({"accuracy_weight": 0}, "both 0"),
        ({"format_weight": 0.1, "extraction": "last_number"}, "format_weight=0.1 has no effect with extraction=last_n"),
        *(({name: 10}, rf"{name}: verl's reward\.reward_manager\.name=dapo") for name in OVERLONG),
    ],
)
def test_refused(kwargs, message):
    for call in (lambda: parse(Settings, kwargs), lambda: score("\\boxed{72}", **kwargs)):
        with pytest.raises(ConfigError, match=message):
            call()


def test_grading_takes_no_weights():
    with pytest.raises(ConfigError, match="format_weight: unknown key"):
        grade("72", "72", format_weight=1.0)


def test_what_verl_passes_is_accepted_and_yaml_lists_too():
    from omegaconf import OmegaConf

    given = OmegaConf.create({"match_types": ["latex", "expr"], "extraction": "boxed", "format_weight": 0.1})
    passed = dict(given) | {"reward_router_address": "host:1", "reward_model_tokenizer": object()}
    assert score("\\boxed{72}", **passed)["score"] == pytest.approx(1.1)
