"""Schedules against the steps that a run really has."""

from __future__ import annotations

import pytest

from s2l_ext.config.run_steps import FROM_DATA, STEPS_KEY, RunSteps, ranges, run_steps
from s2l_ext.errors import ConfigError
from s2l_ext.launch.plan_summary import build_plan, render
from s2l_ext.methods.curriculum.rules import check_last_pass
from s2l_ext.methods.explorer.rules import schedule_warnings_of_run
from s2l_ext.methods.guidance.rules import check_stages
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.schedule_rules import unmoved_warnings


@pytest.fixture
def warned(configured):
    """``warned(rows, a__b=1)``: what is said of a recipe whose data has that many rows, as preflight counts them."""

    def of(rows: int | None, recipe: str = "s2l_po/toy", **settings: object) -> list[str]:
        cfg = configured(recipe, **settings)
        batch, epochs = cfg.data.train_batch_size, cfg.trainer.total_epochs
        steps = run_steps(cfg, None if rows is None else rows // batch * epochs)
        s2l, said = parse_s2l(cfg.s2l), []
        said += schedule_warnings_of_run(s2l.explorer, cfg, steps) if s2l.explorer else []
        said += check_stages(s2l.guidance, steps) if s2l.guidance and steps else []
        said += unmoved_warnings(s2l, cfg, steps)
        return said + (check_last_pass(s2l.curriculum, cfg, rows) if s2l.curriculum and rows else [])

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "from_data", "steps"),
    [
        (300, 5, RunSteps(5, FROM_DATA)),
        (4, 5, RunSteps(4, STEPS_KEY)),
        (5, 5, RunSteps(5, STEPS_KEY)),
        (None, 5, RunSteps(5, FROM_DATA)),
        (300, None, RunSteps(300, STEPS_KEY)),
        (None, None, None),
    ],
)
def test_verl_stops_at_the_smaller_of_both(configured, given, from_data, steps) -> None:
    assert run_steps(configured("s2l_po/toy", trainer__total_training_steps=given), from_data) == steps


SHORT = {"trainer__total_training_steps": 300, "trainer__total_epochs": 1}


def test_an_epoch_that_ends_before_the_schedule_is_said_whatever_the_steps_were_to_be(warned) -> None:
    """80 rows, 16 a step: 5 steps in the only epoch."""
    (warning,) = warned(80, **SHORT)
    assert warning == (
        "s2l.explorer.mix_steps=8 is more than the run's 5 steps (rows / train_batch_size x epochs): "
        "the explorer's share never reaches 0."
    )
    assert warned(80, **SHORT, s2l__explorer__mix_steps=5) == []
    assert warned(80, **{**SHORT, "trainer__total_training_steps": 7}) == []  # said by the settings alone


def test_lone_rows_are_announced_at_steps_that_the_run_has(warned) -> None:
    """Groups of 8, slots 8 7 6 5 4 3 2 0 by mix_steps=8 and 8 7 ... 1 0 by 9: one row is alone at steps 2 and 8."""
    alone = {"s2l__explorer__baseline": "per_source"}
    (warning,) = warned(None, **alone)
    assert "at step 2:" in warning
    nine = {**alone, "s2l__explorer__mix_steps": 9}
    assert "at step 2, 8:" in warned(None, **nine)[0]
    assert "at step 2:" in warned(80, **SHORT, **nine)[0]
    assert warned(None, **alone, s2l__explorer__schedule="hard_switch") == []


def test_long_lists_of_steps_are_ranges_and_end_with_the_run(warned) -> None:
    assert ranges([1, 3, 4, 5, 9]) == "1, 3-5, 9"
    settings = {"s2l__explorer__baseline": "per_source", "s2l__explorer__mix_steps": 40}
    (warning,) = warned(None, **settings, actor_rollout_ref__rollout__n=4)
    assert "alone in its group at step 11-16:" in warning  # 16 steps; ceil(4 (1 - 10 / 39)) = 3 from step 11 on


def test_a_stepwise_length_that_never_falls_is_said(warned) -> None:
    """The paper's size: 1,000 rows, 64 a step, 5 epochs are 75 steps, and the default stage has 100."""
    five = {"data__train_batch_size": 64, "trainer__total_epochs": 5, "trainer__total_training_steps": None}
    stepwise = {"s2l__guidance__length__type": "stepwise"}
    (warning,) = warned(1000, "g2rpo_a/toy", **five, **stepwise)
    assert warning.startswith("s2l.guidance.length.every=100 and the run has 75 steps") and "Set it to 18" in warning
    assert warned(1000, "g2rpo_a/toy", **five, **stepwise, s2l__guidance__length__every=74) == []
    assert len(warned(1000, "g2rpo_a/toy", **five, **stepwise, s2l__guidance__length__every=75)) == 1
    assert warned(1000, "g2rpo_a/toy", **five) == []


BOTH = "combined/g2rpo_a_s2l"
SIGNAL = "s2l__guidance__length__estimate_from"


def unmoved(warnings: list[str]) -> list[str]:
    return [warning for warning in warnings if "to it at step" in warning]


@pytest.mark.slow
def test_steps_at_which_nothing_can_move_the_length_are_said(warned) -> None:
    """Groups of 8, slots 8 7 6 5 4 3 2 0, of the rest at most 4 guided: 0 0 0 0 0 1 2 4 sessions are unguided."""
    six = {"trainer__total_training_steps": 6, "trainer__total_epochs": 1}
    (warning,) = unmoved(warned(None, BOTH, **six, **{SIGNAL: "learner_unguided"}))
    assert warning == (
        "s2l.guidance.length.estimate_from=learner_unguided: explorer and guidance leave none of a group's 8 "
        "sessions to it at step "
        "1-5, where no length of type=adaptive moves."
    )
    for signal in ("learner", "all"):
        assert unmoved(warned(None, BOTH, **six, **{SIGNAL: signal})) == []
    fixed = {"s2l__guidance__length__type": "constant", "s2l__guidance__length__max_length": 3072}
    assert unmoved(warned(None, BOTH, **six, **fixed)) == []


@pytest.mark.slow
def test_a_run_that_ends_before_anything_could_move_is_warned_of_it(warned) -> None:
    """Five steps leave the learner nothing unguided, and the first step leaves it nothing at all."""
    gaussian = {"s2l__curriculum": {"type": "gaussian"}, "trainer__total_epochs": 1}
    (length,) = unmoved(warned(16, BOTH, trainer__total_epochs=1))
    assert length == (
        "s2l.guidance.length.estimate_from=learner: the explorer leaves none of a group's 4 unguided sessions to it at "
        "step 1, where no "
        "length of type=adaptive moves."
    )
    (length,) = unmoved(warned(80, BOTH, trainer__total_epochs=1))
    assert "none of a group's 4 unguided sessions to it at step 1-5, where no length" in length
    assert unmoved(warned(96, BOTH, trainer__total_epochs=1)) == []
    _, rates = unmoved(warned(80, BOTH, **gaussian))
    assert (
        rates.startswith("s2l.curriculum.estimate_from=learner_unguided: explorer and guidance leave none")
        and "at step 1-5," in rates
    )
    assert unmoved(warned(96, BOTH, **gaussian)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal", "who"), [("learner_unguided", "explorer and guidance leave"), ("learner", "the explorer leaves")]
)
def test_a_length_that_could_never_move_is_refused(warned, signal: str, who: str) -> None:
    with pytest.raises(ConfigError) as refused:
        warned(1600, BOTH, s2l__explorer__schedule="constant", **{SIGNAL: signal})
    assert str(refused.value) == (
        f"s2l.guidance.length.estimate_from={signal}: {who} none of a group's 8 sessions to it at any step, so no "
        "length of type=adaptive would ever move. Set s2l.guidance.length.estimate_from=all, a smaller "
        "s2l.guidance.alpha or an s2l.explorer.schedule that ends."
    )
    assert unmoved(warned(1600, BOTH, s2l__explorer__schedule="constant", **{SIGNAL: "all"})) == []


@pytest.mark.slow
def test_pass_rates_that_could_never_move_are_refused(warned) -> None:
    """The learner's own rows estimate them: none is left where every session is guided."""
    guided = {"recipe": "g2rpo_a/alpha_1", "s2l__curriculum": {"type": "gaussian"}}
    with pytest.raises(ConfigError) as refused:
        warned(1600, **guided)
    assert str(refused.value) == (
        "s2l.curriculum.estimate_from=learner_unguided: explorer and guidance leave none of a group's 8 sessions to "
        "it at any step, so "
        "no pass rate would ever move. Set s2l.curriculum.estimate_from=all, a smaller s2l.guidance.alpha or an "
        "s2l.explorer.schedule that ends."
    )
    assert warned(1600, **guided, s2l__curriculum__estimate_from="all") == []
    assert warned(1600, **guided, s2l__curriculum__type="uniform") == []
    assert warned(1600, **guided, s2l__guidance__alpha=0.9) == []
    assert warned(1600, **guided, s2l__curriculum__warm_start="rates.json") == []


def test_without_a_number_of_steps_the_run_is_taken_to_see_the_hand_over(configured) -> None:
    cfg = configured(BOTH, trainer__total_training_steps=None, **{SIGNAL: "learner_unguided"})
    (warning,) = unmoved_warnings(parse_s2l(cfg.s2l), cfg, None)
    assert "at step 1-5, where no length of type=adaptive moves" in warning


@pytest.mark.parametrize("kind", ["easy_to_hard", "file_order"])
def test_a_pass_that_verls_epochs_do_not_finish_is_said_with_the_fix(warned, kind: str) -> None:
    """75 steps are 4,800 draws of 5,000; 79 steps are the first number that has them all, in a sixth epoch of 15."""
    settings = {"data__train_batch_size": 64, "trainer__total_epochs": 5, "trainer__total_training_steps": None}
    settings["s2l__curriculum"] = {"type": kind}
    (warning,) = warned(1000, "grpo/toy", **settings)
    assert "trainer.total_epochs=5 is 75 steps of 64 prompts" in warning and "misses its last 200" in warning
    assert "Set trainer.total_training_steps=79 and trainer.total_epochs=6 to finish it." in warning
    assert warned(960, "grpo/toy", **settings) == []
    assert warned(1000, "grpo/toy", **{**settings, "trainer__total_training_steps": 79}) == []
    assert warned(1000, "grpo/toy", **{**settings, "s2l__curriculum": {"type": "uniform"}}) == []


# ---- the hard switch ----------------------------------------------------------------------------------------------


def test_hard_switch_beyond_the_run_is_said(rules) -> None:
    """The toy has 16 steps: a switch after the last of them is none."""
    check = rules("s2l_po/toy").check
    switch = {"s2l__explorer__schedule": "hard_switch"}
    assert check(**switch) == check(**switch, s2l__explorer__mix_steps=15) == []
    (warning,) = check(**switch, s2l__explorer__mix_steps=16)
    assert warning.startswith("s2l.explorer.mix_steps=16 is all of the run's 16 steps (trainer.total_training_steps)")


def test_plan_shows_the_switch_and_the_steps_of_the_run(configured) -> None:
    cfg = configured("s2l_po/toy", s2l__explorer__schedule="hard_switch", s2l__explorer__mix_steps=3)
    plan = build_plan(cfg, parse_s2l(cfg.s2l), "s2l_po/toy", "cpu", steps=5)
    assert plan["explorer"]["slots"] == [8, 8, 8, 0, 0] and plan["steps"] == 5
    assert plan["explorer"]["share_of_rollouts"] == pytest.approx(3 / 5)
    assert "8 8 8 0 0  (explorer sessions of 8" in render(plan) and "60.0% of all rollouts" in render(plan)


def test_fingerprint_tells_the_switch_from_annealing(configured) -> None:
    from s2l_ext.training.controller_state import fingerprint

    prints = [
        fingerprint(parse_s2l(cfg.s2l), cfg)
        for cfg in (configured("s2l_po/toy", s2l__explorer__schedule=name) for name in ("linear", "hard_switch"))
    ]
    assert [one["explorer.schedule"] for one in prints] == ["linear", "hard_switch"]
