"""Orders that do not depend on pass rates; the uniform one against the sampler that verl uses."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from s2l_ext.errors import ConfigError
from s2l_ext.methods.curriculum.orders import EasyToHard, FileOrder, UniformOrder

UNUSED = np.random.default_rng(0)


def draws(order, n, steps):
    return [order.draw(n, UNUSED).tolist() for _ in range(steps)]


def batches_of_verl(num_prompts, n, seed, epochs):
    """As verl's ``create_rl_sampler`` and ``PPOTrainer._init_dataloader`` build it."""
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    data = list(range(num_prompts))
    sampler = RandomSampler(data_source=data, generator=generator)
    loader = StatefulDataLoader(data, batch_size=n, num_workers=0, drop_last=True, sampler=sampler)
    return [batch.tolist() for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize(("num_prompts", "n"), [(23, 5), (20, 5), (7, 7), (101, 64)])
def test_uniform_is_the_shuffle_of_verl(num_prompts, n, seed):
    expected = batches_of_verl(num_prompts, n, seed, epochs=3)
    assert draws(UniformOrder(num_prompts, seed=seed), n, len(expected)) == expected


def test_the_tail_of_a_pass_opens_the_next_passs_first_step():
    assert draws(FileOrder(5), 2, 6) == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [0, 1]]
    assert draws(FileOrder(5), 4, 3) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]
    assert draws(EasyToHard([2, 0, 1, 0, 2]), 2, 5) == [[1, 3], [2, 0], [4, 1], [3, 2], [0, 4]]
    assert draws(FileOrder(3), 3, 2) == [[0, 1, 2]] * 2


@pytest.mark.parametrize("build", [FileOrder, lambda size: EasyToHard([number % 5 for number in range(size)])])
def test_every_prompt_is_trained_once_a_pass(build):
    """The setting of the paper: 1,000 prompts, 64 a step, five passes. 78 steps are 4,992 draws: the eight prompts of
    the incomplete 79th step, the last of the order, are drawn four times, all others five."""
    steps = draws(build(1000), 64, 78)
    assert all(len(set(step)) == 64 for step in steps)
    times = np.bincount(np.concatenate(steps), minlength=1000)
    last = draws(build(1000), 1000, 1)[0][-8:]
    assert set(times[last]) == {4} and set(np.delete(times, last)) == {5}
    assert set(np.bincount(np.concatenate(draws(build(960), 64, 75)))) == {5}


@pytest.mark.parametrize("stop", range(0, 40, 7))
def test_a_run_resumed_within_a_step_of_two_passes_goes_on(stop):
    tiers = [number % 3 for number in range(23)]
    whole = draws(EasyToHard(tiers), 10, 40)
    order = EasyToHard(tiers)
    draws(order, 10, stop)
    resumed = EasyToHard(tiers)
    resumed.load_state_dict(through_a_file(order.state_dict()))
    assert draws(resumed, 10, 40 - stop) == whole[stop:]


def test_easy_to_hard_is_stable_and_the_same_every_epoch():
    order = EasyToHard([2, 0, 1, 0, 2, 1])
    assert draws(order, 2, 6) == [[1, 3], [2, 5], [0, 4]] * 2


def test_tiers_that_are_interleaved_keep_the_order_of_the_file():
    tiers = np.random.default_rng(0).integers(0, 4, 1000)
    drawn = EasyToHard(tiers).draw(1000, UNUSED)
    assert (np.diff(tiers[drawn]) >= 0).all()
    assert (np.diff(drawn)[np.diff(tiers[drawn]) == 0] > 0).all()


ORDERS = [lambda: FileOrder(23), lambda: EasyToHard([i % 3 for i in range(23)]), lambda: UniformOrder(23, seed=3)]


def through_a_file(state):
    """Arrays through an npz file, everything else through JSON."""
    if isinstance(state, dict):
        return {name: through_a_file(value) for name, value in state.items()}
    if isinstance(state, np.ndarray):
        file = io.BytesIO()
        np.savez(file, value=state)
        file.seek(0)
        return np.load(file)["value"]
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("build", ORDERS)
@pytest.mark.parametrize("steps", [0, 1, 4, 5, 9])
def test_resume_continues_with_the_same_prompts(build, steps):
    order = build()
    draws(order, 5, steps)
    order.update([1, 2], [0.0, 1.0])
    resumed = build()
    resumed.load_state_dict(through_a_file(order.state_dict()))
    assert resumed.metrics() == order.metrics()
    assert draws(resumed, 5, 9) == draws(order, 5, 9)


@pytest.mark.parametrize("build", ORDERS)
def test_orders_track_pass_rates_and_position(build):
    order = build()
    drawn = order.draw(5, UNUSED)
    assert drawn.dtype == np.int64
    order.update(drawn, np.zeros(5))
    metrics = order.metrics()
    assert metrics["epoch_position"] == 5
    assert metrics["visits_mean"] == pytest.approx(5 / 23)
    assert ("effective_sample_size" in metrics) == isinstance(order, UniformOrder)
    order.set_pass_rates([0], [1.0])
    assert order.pass_rates.rates[0] == 1.0


def test_a_drawn_step_is_the_callers_own():
    order = UniformOrder(6, seed=1)
    order.draw(3, UNUSED)[:] = -1
    assert draws(order, 3, 3)[1:] == batches_of_verl(6, 3, 1, epochs=2)[2:]


@pytest.mark.parametrize("build", ORDERS)
@pytest.mark.parametrize("n", [0, 24])
def test_impossible_draws_are_refused(build, n):
    with pytest.raises(ValueError, match=f"n={n}.*num_prompts=23"):
        build().draw(n, UNUSED)


@pytest.mark.parametrize("build", [lambda: FileOrder(0), lambda: EasyToHard([]), lambda: UniformOrder(0)])
def test_no_prompts_are_refused(build):
    with pytest.raises(ConfigError, match="num_prompts=0"):
        build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 24}, "position 24"),
        ({"generator": np.zeros(3, np.uint8)}, "3 bytes"),
        ({"pass_rates": UniformOrder(9).state_dict()["pass_rates"]}, r"\(9,\)"),
    ],
)
def test_a_damaged_state_is_refused(change, message):
    order = UniformOrder(23, seed=3)
    first = UniformOrder(23, seed=3).draw(5, UNUSED).tolist()
    with pytest.raises(ValueError, match=message):
        order.load_state_dict({**UniformOrder(23, seed=4).state_dict(), **change})
    assert order.draw(5, UNUSED).tolist() == first


@pytest.mark.parametrize("name", ["position", "pass_rates", "generator"])
def test_a_missing_part_is_named(name):
    state = UniformOrder(23).state_dict()
    del state[name]
    with pytest.raises(ValueError, match=f"no '{name}'"):
        UniformOrder(23).load_state_dict(state)
