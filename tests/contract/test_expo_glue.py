"""EXPO's curriculum on torchdata's own loader and verl's own data types."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import create_rl_sampler
from verl.utils import tensordict_utils as tu

from s2l_ext.errors import ConfigError, DataError, StateMismatch
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.curriculum.config import CurriculumConfig, FileOrderConfig, GaussianConfig, OwnCurriculumConfig
from s2l_ext.methods.curriculum.controller import Curriculum
from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum
from s2l_ext.methods.curriculum.orders import FileOrder, UniformOrder
from s2l_ext.methods.curriculum.sampler import CurriculumSampler, build_sampler
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.outcomes import RolloutOutcome
from s2l_ext.training.pending_prompts import Draw, PromptPlan
from s2l_ext.training.step import Step, StepRows, row_order

pytestmark = [pytest.mark.contract, pytest.mark.slow]


def loader(sampler, batch_size: int, size: int = 50) -> StatefulDataLoader:
    return StatefulDataLoader(
        dataset=list(range(size)),
        batch_size=batch_size,
        num_workers=0,
        drop_last=True,
        collate_fn=list,
        sampler=sampler,
    )


def gaussian(size: int = 50, step: int = 8, seed: int = 3) -> CurriculumSampler:
    return CurriculumSampler(GaussianCurriculum(size, sigma=0.1), size, step, seed)


def learn(sampler: CurriculumSampler, drawn: list[int]) -> None:
    """Pass rates that depend on the prompt, so that later draws depend on earlier ones."""
    sampler.curriculum.update(drawn, [index % 5 / 4 for index in drawn])


def curriculum_of(config: CurriculumConfig, sampler: CurriculumSampler) -> Curriculum:
    """The method as it is once verl has read the data."""
    method = Curriculum(config, S2LConfig(curriculum=config), OmegaConf.create({}))
    method.sampler = sampler
    return method


def fetched(prompts: Curriculum, step: int, *uids: str) -> dict[str, PromptPlan]:
    """What verl's fetch and the trainer make of ``uids``."""
    for _ in uids:
        prompts.sampler.hand_out()
    return plans_of(prompts, step, *uids)


def plans_of(prompts: Curriculum, step: int, *uids: str) -> dict[str, PromptPlan]:
    draw = Draw(tu.get_tensordict({"uid": np.array(uids, dtype=object)}), step)
    prompts.draw(draw)
    return draw.plans()


def trained(prompts: Curriculum, plans: dict[str, PromptPlan], *sessions: RolloutOutcome) -> Step:
    """A step that trains on these prompts, and what the curriculum sees of it."""
    batch, rows = KVBatchMeta(partition_id="train"), StepRows([], [], [], None, [])
    step = Step(1, batch, metrics={}, plans=plans, rows=rows, outcomes=list(sessions))
    prompts.observe(step)
    return step


# ---- the sampler --------------------------------------------------------------------------------------------------


def test_a_step_is_drawn_when_it_is_asked_for_and_not_before() -> None:
    """Nothing is fetched ahead: the second step is drawn with what the first one taught."""
    sampler = gaussian()
    steps = iter(loader(sampler, 8))
    first = next(steps)
    assert first == gaussian().draw_step() and len(set(first)) == 8
    learn(sampler, first)
    expected = CurriculumSampler(sampler.curriculum, 50, 8)
    expected.rng.bit_generator.state = sampler.rng.bit_generator.state
    assert next(steps) == expected.draw_step()


def test_smaller_fetches_hand_out_one_step_in_parts() -> None:
    sampler = gaussian()
    steps = iter(loader(sampler, 4))
    parts = next(steps) + next(steps)
    assert parts == gaussian().draw_step() and len(set(parts)) == 8


def test_steps_do_not_end_with_the_data_set() -> None:
    steps = iter(loader(gaussian(), 8))
    assert len([next(steps) for _ in range(30)]) == 30


@pytest.mark.parametrize(
    "curriculum",
    [GaussianCurriculum(50, sigma=0.1), UniformOrder(50, seed=1), FileOrder(50)],
    ids=lambda c: type(c).__name__,
)
@pytest.mark.parametrize("stop", [1, 7])
def test_resumed_run_draws_the_same_prompts(curriculum, stop: int) -> None:
    """Through JSON and through the loader's own state, as verl saves them."""
    sampler = CurriculumSampler(curriculum, 50, 8, seed=5)
    run = loader(sampler, 8)
    steps = iter(run)
    for _ in range(stop):
        learn(sampler, next(steps))
    saved, saved_loader = sampler.controller_state(), run.state_dict()
    saved["rng"] = json.loads(json.dumps(saved["rng"]))

    fresh = type(curriculum)(50, **({"sigma": 0.1} if isinstance(curriculum, GaussianCurriculum) else {}))
    resumed_sampler = CurriculumSampler(fresh, 50, 8, seed=99)
    resumed_sampler.load_controller_state(saved)
    resumed = loader(resumed_sampler, 8)
    resumed.load_state_dict(saved_loader)
    resumed_steps = iter(resumed)
    for _ in range(9):
        expected, found = next(steps), next(resumed_steps)
        assert found == expected
        learn(sampler, expected)
        learn(resumed_sampler, found)


@pytest.mark.parametrize("seed", [None, 7])
def test_uniform_order_is_verls_shuffle_prompt_for_prompt(seed) -> None:
    config = OmegaConf.create({"shuffle": True, "seed": seed})
    verls, ours = (
        loader(create_rl_sampler(config, range(50)), 8),
        loader(CurriculumSampler(UniformOrder(50, seed), 50, 8), 8),
    )
    expected = [batch for _ in range(3) for batch in verls]
    steps = iter(ours)
    assert [next(steps) for _ in expected] == expected and len(expected) == 3 * (50 // 8)


@pytest.mark.parametrize(("size", "same"), [(48, 12), (50, 6)])
def test_file_order_is_verls_sequence_until_verl_leaves_prompts_out(size: int, same: int) -> None:
    """Without shuffling verl leaves out the same N % n prompts in every epoch."""
    verls = loader(create_rl_sampler(OmegaConf.create({"shuffle": False}), range(size)), 8, size)
    steps = iter(loader(CurriculumSampler(FileOrder(size), size, 8), 8, size))
    found, expected = [next(steps) for _ in range(12)], [batch for _ in range(2) for batch in verls]
    assert found[:same] == expected[:same] and (found == expected) == (size == 48)


def test_state_of_another_data_set_is_refused_with_the_flag() -> None:
    with pytest.raises(StateMismatch, match="on_mismatch=reset"):
        gaussian(60).load_controller_state(gaussian(50).controller_state())


# ---- one's own class ----------------------------------------------------------------------------------------------


class Rarest:
    """The prompts seen least often, first by number: deterministic, takes an option, sees the data set."""

    def __init__(self, num_prompts: int, dataset, step: int = 1) -> None:
        self.seen = np.zeros(num_prompts, dtype=np.int64)
        self.step = step
        assert len(dataset) == num_prompts

    def draw(self, n, rng):
        return np.argsort(self.seen, kind="stable")[:n]

    def update(self, indices, pass_rates):
        self.seen[indices] += self.step

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Repeats(Rarest):
    def draw(self, n, rng):
        return np.zeros(n, dtype=np.int64)


class OnExhausted(Rarest):
    def draw(self, n, rng):
        return np.arange(n - 1)


class OutOfRange(Rarest):
    def draw(self, n, rng):
        return np.arange(n) + len(self.seen) - 1


class JustOutOfRange(Rarest):
    def draw(self, n, rng):
        return np.arange(n) + len(self.seen) - n + 1


class Column(Rarest):
    def draw(self, n, rng):
        return np.arange(n)[:, None]


class Incomplete:
    def __init__(self, num_prompts):
        pass

    def draw(self, n, rng):
        return np.arange(n)


def own(name: str, **options: object) -> CurriculumSampler:
    config = OwnCurriculumConfig(type=f"{__name__}:{name}", options=options)
    return build_sampler(config, compose_config("expo/toy", []), range(50))


def test_own_class_is_built_with_options_and_drawn_from() -> None:
    sampler = own("Rarest", step=2)
    assert sampler.draw_step() == list(range(16))
    sampler.curriculum.update(np.arange(16), np.ones(16))
    assert sampler.draw_step() == list(range(16, 32)) and sampler.curriculum.seen.max() == 2


def test_own_class_without_pass_rates_is_logged_all_the_same() -> None:
    prompts = curriculum_of(OwnCurriculumConfig(type=f"{__name__}:Rarest"), own("Rarest"))
    plans = fetched(prompts, 1, *(str(number) for number in range(16)))
    step = trained(prompts, plans, RolloutOutcome("3", 1.0, "learner"))
    assert prompts.metrics(step) == {"s2l/curriculum/drawn_prompts": 16.0, "s2l/curriculum/updated_prompts": 1.0}
    line = prompts.line()
    assert line["histogram"] is None and line["pass_rates"][3] == 1.0 and line["pass_rates"][0] is None


def test_the_example_is_a_curriculum(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    config = OwnCurriculumConfig(type="rarest_curriculum:Rarest", options={"patience": 2})
    sampler = build_sampler(config, compose_config("expo/toy", []), range(20))
    for _ in range(5):
        sampler.curriculum.update(sampler.draw_step(), np.ones(16))
    again = build_sampler(config, compose_config("expo/toy", []), range(20))
    again.load_controller_state(sampler.controller_state())
    assert again.draw_step() == sampler.draw_step()
    assert sampler.curriculum.seen.sum() == 80 and sampler.curriculum.metrics() == {"visits_min": 3.0}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Repeats", "gave 16 prompts, 1 of them different"),
        ("OnExhausted", "gave 15 prompts"),
        ("OutOfRange", "from 0 to 49"),
        ("JustOutOfRange", "gave 16 prompts, 16 of them different; .* from 0 to 49"),
        ("Column", "must give 16 different numbers"),
    ],
)
def test_wrong_draws_are_refused_by_class(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.draw.*{words}"):
        own(name).draw_step()


def test_own_class_that_cannot_be_built_or_lacks_methods_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be built with num_prompts, nonsense, dataset"):
        own("Rarest", nonsense=1)
    with pytest.raises(ConfigError, match="lacks update, state_dict, load_state_dict"):
        own("Incomplete")


def test_draws_that_are_no_whole_numbers_are_refused() -> None:
    sampler = own("Rarest")
    sampler.curriculum.draw = lambda n, rng: np.arange(n) + 0.5
    with pytest.raises(ConfigError, match="gave float64; it must give whole numbers"):
        sampler.draw_step()


class Unsaveable(Rarest):
    def state_dict(self):
        return {"seen": object()}


def test_state_that_cannot_be_saved_is_refused_before_training() -> None:
    with pytest.raises(StateMismatch, match="cannot be saved"):
        own("Unsaveable")


def test_something_that_is_no_class_is_refused() -> None:
    config = OwnCurriculumConfig(type="collections:abc")
    with pytest.raises(ConfigError, match="cannot be built"):
        build_sampler(config, compose_config("expo/toy", []), range(50))


def test_state_that_does_not_fit_is_refused_or_reset(heard) -> None:
    """The same files, but other rows after verl's filters."""
    cfg = compose_config("expo/toy", [])
    saved = build_sampler(GaussianConfig(), cfg, range(60)).controller_state()
    with pytest.raises(StateMismatch, match="on_mismatch=reset"):
        build_sampler(GaussianConfig(), cfg, range(50), saved)
    fresh = build_sampler(GaussianConfig(on_mismatch="reset"), cfg, range(50), saved)
    assert fresh.draw_step() == build_sampler(GaussianConfig(), cfg, range(50)).draw_step()
    assert "starts afresh" in heard.text


def test_resumed_run_does_not_read_the_warm_start() -> None:
    cfg = compose_config("expo/toy", [])
    saved = build_sampler(GaussianConfig(), cfg, range(50)).controller_state()
    build_sampler(GaussianConfig(warm_start="gone.jsonl"), cfg, range(50), saved)


def test_fewer_prompts_than_a_step_is_refused_after_verls_filters() -> None:
    with pytest.raises(DataError, match="15 prompts, fewer than data.train_batch_size=16"):
        build_sampler(GaussianConfig(), compose_config("expo/toy", []), range(15))


# ---- pass rates of a step -----------------------------------------------------------------------------------------


@pytest.fixture
def prompts() -> Curriculum:
    return curriculum_of(FileOrderConfig(), CurriculumSampler(FileOrder(6, ema=0.5), 6, 3))


def test_outcomes_reach_the_prompts_they_belong_to(prompts) -> None:
    plans = fetched(prompts, 1, "a", "b", "c")
    trained(
        prompts,
        plans,
        RolloutOutcome("b", 1.0, "learner"),
        RolloutOutcome("b", 0.0, "learner"),
        RolloutOutcome("c", 1.0, "explorer"),
    )
    assert prompts.sampler.curriculum.pass_rates.rates.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert prompts.line()["pass_rates"] == [None, 0.5, None]
    trained(prompts, plans, RolloutOutcome("c", 1.0, "learner"))
    assert prompts.sampler.curriculum.pass_rates.rates.tolist() == [0.5, 0.5, 0.75, 0.5, 0.5, 0.5]
    assert prompts.line()["pass_rates"] == [None, None, 1.0]


def test_bins_of_a_draw_are_those_of_before_the_update(prompts) -> None:
    trained(prompts, fetched(prompts, 1, "a", "b", "c"), RolloutOutcome("c", 1.0, "learner"))
    assert prompts.sampler.curriculum.pass_rates.rates.tolist() == [0.5, 0.5, 0.75, 0.5, 0.5, 0.5]
    assert prompts.line()["pass_rates"] == [None, None, 1.0]
    assert prompts.line()["bucket_draws"][10] == 3


def test_rows_are_put_in_the_order_of_the_draw(prompts) -> None:
    plans = fetched(prompts, 1, "b", "a", "c")
    keys = ["a_0_0", "b_10_0", "b_9_1", "b_9_0", "c_0_0"]
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{"n": number} for number in range(5)])
    batch.reorder(row_order(list(plans), keys))
    assert batch.keys == ["b_9_0", "b_9_1", "b_10_0", "a_0_0", "c_0_0"]
    assert [tag["n"] for tag in batch.tags] == [3, 2, 1, 0, 4]


def test_another_number_of_prompts_than_drawn_is_an_error(prompts) -> None:
    for _ in range(3):
        prompts.sampler.hand_out()
    with pytest.raises(RuntimeError, match="fetched 2 prompts, the curriculum gave 3"):
        plans_of(prompts, 1, "a", "b")


def test_a_line_is_of_the_prompts_trained_on_whenever_they_were_drawn(prompts) -> None:
    """An asynchronous run: two draws before the first step, one prompt of each is left for later."""
    first = fetched(prompts, 1, "a", "b", "c")
    second = fetched(prompts, 1, "d", "e", "f")
    trained(prompts, {uid: (first | second)[uid] for uid in "abe"})
    assert prompts.line()["bucket_draws"][10] == 6, "all six were drawn since the step before"
    third = fetched(prompts, 2, "g")
    trained(
        prompts,
        {"c": first["c"], "g": third["g"]},
        RolloutOutcome("c", 1.0, "learner"),
        RolloutOutcome("g", 0.0, "learner"),
    )
    line = prompts.line()
    assert (line["indices"], line["drawn_at"], line["pass_rates"]) == ([2, 0], [1, 2], [1.0, 0.0])
    assert sum(line["bucket_draws"]) == 1


def test_a_prompt_that_is_twice_in_a_step_counts_with_both_groups(prompts) -> None:
    plans = fetched(prompts, 1, "a", "b", "c") | fetched(prompts, 1, "d", "e", "f") | fetched(prompts, 2, "again")
    assert plans["again"].index == plans["a"].index == 0
    twice = {uid: plans[uid] for uid in ("a", "again")}
    step = trained(prompts, twice, RolloutOutcome("a", 1.0, "learner"), RolloutOutcome("again", 0.0, "learner"))
    assert prompts.line()["pass_rates"] == [0.5, 0.5]
    assert prompts.metrics(step)["s2l/curriculum/updated_prompts"] == 1


def test_prompts_of_a_draw_that_were_not_asked_for_survive_a_restart() -> None:
    """What takes the place of a dropped prompt is fetched one by one."""
    sampler = gaussian()
    steps = iter(loader(sampler, 1))
    given = [next(steps)[0] for _ in range(3)]
    saved = sampler.controller_state()
    resumed = gaussian(seed=9)
    resumed.load_controller_state(saved)
    again = iter(loader(resumed, 1))
    rest = [next(again)[0] for _ in range(5)]
    assert given + rest == gaussian().draw_step()
    assert [next(again) for _ in range(8)] == [next(steps) for _ in range(13)][5:]


def test_a_curriculum_that_lives_on_accuracy_refuses_rows_without_it() -> None:
    prompts = curriculum_of(GaussianConfig(), gaussian(6, 3))
    plans = fetched(prompts, 1, "a", "b", "c")
    with pytest.raises(DataError, match="s2l.curriculum.type=gaussian needs .* no 'acc' for 1 of 2 sessions"):
        trained(prompts, plans, RolloutOutcome("a", None, "learner"), RolloutOutcome("b", 1.0, "learner"))


def test_an_order_goes_on_without_accuracy(prompts) -> None:
    step = trained(prompts, fetched(prompts, 1, "a", "b", "c"), RolloutOutcome("a", None, "learner"))
    assert prompts.metrics(step)["s2l/curriculum/updated_prompts"] == 0
