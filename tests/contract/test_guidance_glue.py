"""Guided sessions on verl's own worker and loss: what is asked of the engine and what leaves as a row."""

import asyncio
import functools
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.replica import TokenOutput

from s2l_ext.data.prompts import prompt_id
from s2l_ext.errors import DataError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.explorer.serving.client import ExplorerFailed
from s2l_ext.methods.guidance.client import GuidedClient, answer_of, guidance_ids, trace_of, usable_text
from s2l_ext.methods.guidance.config import GuidanceConfig
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import agent_loop
from s2l_ext.training.actor_worker import StepLoss
from s2l_ext.training.agent_loop import S2LAgentLoopWorker
from s2l_ext.training.batch_fields import GUIDED_FIELD, LENGTH_FIELD, PREFIX_FIELD, SLOTS_FIELD

pytestmark = pytest.mark.contract

TRACE = "<think>3+4=7;7*2=4</think>\\boxed{4}"


class Characters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


class Engine:
    """Stands where verl's client stands and writes down what it is asked."""

    explorer = None

    def __init__(self):
        self.asked = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        self.asked.append((list(prompt_ids), dict(sampling_params), kwargs))
        return TokenOutput(token_ids=[900, 901], log_probs=[-0.5, -0.25])

    def for_session(self):
        return self


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


# ---- which tokens -------------------------------------------------------------------------------------------------


def chosen(length: int, response: int = 64, prompt: str = "question\n", trace: str = TRACE, **settings) -> str:
    config = GuidanceConfig(**{"min_continuation": 16, **settings})
    return Characters().decode(guidance_ids(trace, Characters(), ids(prompt), length, config, response))


def test_first_tokens_of_the_trace() -> None:
    assert chosen(7) == "<think>" and chosen(12) == "<think>3+4=7"


def test_a_short_trace_is_used_whole_and_never_padded() -> None:
    assert chosen(1000, stop_before_answer=False) == TRACE


def test_the_answer_is_not_handed_over() -> None:
    assert chosen(1000) == "<think>3+4=7;7*2=4</think>"


def test_an_answer_that_the_trace_does_not_mark_is_found_by_the_ground_truth() -> None:
    gsm8k = "She has 3 + 4 = 7 apples, 7 * 2 = 14 pieces. That is 14."
    config = GuidanceConfig(min_continuation=16)
    found = guidance_ids(gsm8k, Characters(), ids("q"), 1000, config, 200, answer="14")
    assert Characters().decode(found) == "She has 3 + 4 = 7 apples, 7 * 2 = "
    assert answer_of({"reward_model": {"ground_truth": "14"}}) == "14" and answer_of({}) is None
    for truth, answer in ((["14"], "14"), (np.array(["14"]), "14"), (14, "14"), (["1", "2"], None), ("x" * 201, None)):
        assert answer_of({"reward_model": {"ground_truth": truth}}) == answer


def test_the_model_keeps_its_continuation() -> None:
    assert len(chosen(1000, response=24)) == 24 - 16
    assert chosen(1000, response=10) == ""


def test_open_think_tag_is_not_opened_again() -> None:
    assert chosen(5, prompt="question<think>\n") == "3+4=7"
    assert chosen(5, prompt="question<think>\n", trace="no tag 7 \\boxed{7}") == "no ta"
    assert usable_text("<think>\nabc", False, think_is_open=True) == "abc"


def test_a_prompt_that_closes_the_thinking_gets_no_think_tags() -> None:
    """enable_thinking=false: the template's prompt ends with an empty thinking."""
    trace = "<think>\n3+4=7; 7*2=14\n</think>\n\nIt is \\boxed{14}"
    closed, whole = "question<think>\n\n</think>\n\n", {"stop_before_answer": False}
    assert chosen(100, prompt=closed, trace=trace, response=200, **whole) == "3+4=7; 7*2=14\n\nIt is \\boxed{14}"
    assert chosen(6, prompt=closed, trace=trace) == "3+4=7;"
    assert chosen(100, prompt="question<think>\n", trace=trace, response=200, **whole) == trace.removeprefix(
        "<think>\n"
    )
    assert chosen(100, prompt="question", trace=trace, response=200, **whole) == trace


@pytest.mark.parametrize("row", [{}, {"extra_info": {}}, {"extra_info": {"trace": " "}}, {"extra_info": None}])
def test_rows_without_a_trace(row: dict) -> None:
    assert trace_of(row, "extra_info.trace") is None


def test_a_trace_that_is_the_answer_only_guides_nothing() -> None:
    assert trace_of({"extra_info": {"trace": "The answer is \\boxed{4}"}}, "extra_info.trace") is None
    assert trace_of({"extra_info": {"trace": TRACE}}, "extra_info.trace") == TRACE
    assert trace_of({"reasoning": TRACE}, "reasoning") == TRACE


# ---- the client ---------------------------------------------------------------------------------------------------


def ask(client, prompt: str = "Q", **sampling):
    return asyncio.run(client.generate("id", prompt_ids=ids(prompt), sampling_params=sampling, priority=3))


def test_engine_continues_prompt_and_guidance_within_the_budget() -> None:
    engine = Engine()
    client = GuidedClient(engine, lambda prompt: ids("abc"), response_length=10)
    output = ask(client, temperature=0.7)
    assert engine.asked == [(ids("Qabc"), {"temperature": 0.7, "max_tokens": 7}, {"priority": 3})]
    assert output.token_ids == [*ids("abc"), 900, 901] and output.log_probs == [0.0, 0.0, 0.0, -0.5, -0.25]
    assert client.placed == ids("abc")


def test_an_explicit_budget_is_lowered_and_later_turns_are_plain() -> None:
    engine = Engine()
    client = GuidedClient(engine, lambda prompt: ids("abc"), response_length=10)
    ask(client, max_tokens=5)
    assert engine.asked[0][1]["max_tokens"] == 2
    assert ask(client, "later").token_ids == [900, 901]
    assert engine.asked[1][0] == ids("later") and engine.asked[1][1] == {}


def test_everything_else_is_the_clients() -> None:
    engine = Engine()
    engine.anything = 5
    assert GuidedClient(engine, lambda prompt: [], 10).anything == 5


# ---- the worker ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sessions(monkeypatch):
    """``sessions(fields, row, *settings)`` -> (row fields, response mask, prompt asked) of each of four sessions.

    verl's loop and its writing to the TransferQueue are replaced; the worker between them is the real one.
    """

    async def verls_loop(self, params, trajectory, *, session_id, **kwargs):
        output = await self.llm_client.generate("id", prompt_ids=ids("Q"), sampling_params=params)
        mask = [1] * len(output.token_ids)
        loop = AgentLoopOutput(
            prompt_ids=ids("Q"),
            response_ids=output.token_ids,
            response_mask=mask,
            num_turns=2,
            metrics=AgentLoopMetrics(),
        )
        return await self._agent_loop_postprocess(loop, trajectory["validate"], session_id=session_id, **kwargs)

    async def verls_end(self, output, validate, **kwargs):
        return kwargs, output

    monkeypatch.setattr(agent_loop._WorkerBase, "_run_agent_loop", verls_loop)
    monkeypatch.setattr(agent_loop._WorkerBase, "_agent_loop_postprocess", verls_end)

    def run(fields: dict, row: dict, *settings: str, validate: bool = False, teacher=None, explorer=None):
        cfg = composed(*settings)
        worker = S2LAgentLoopWorker.__new__(S2LAgentLoopWorker)
        worker.config, worker.s2l, worker.tokenizer, worker.llm_client = cfg, parse_s2l(cfg.s2l), Characters(), Engine()
        worker._teacher_rollouts = teacher
        worker.llm_client.explorer, worker._store = explorer or Engine(), None
        results = []
        for session in range(4):
            kwargs, output = asyncio.run(
                worker._run_agent_loop({}, {"validate": validate}, session_id=session, **fields, **row)
            )
            results.append((kwargs, output.response_mask, output.response_ids))
        return results

    return run


@functools.cache
def composed(*settings: str) -> DictConfig:
    return compose_config("g2rpo_a/toy", list(settings))


ROW = {"extra_info": {"trace": TRACE}, "index": 7}


def test_masks_token_by_token(sessions) -> None:
    found = sessions({GUIDED_FIELD: 2, LENGTH_FIELD: 9}, ROW)
    assert [mask for _, mask, _ in found] == [[0] * 9 + [1, 1]] * 2 + [[1, 1]] * 2
    assert [fields[PREFIX_FIELD] for fields, _, _ in found] == [9, 9, 0, 0]
    assert found[0][2] == [*ids("<think>3+"), 900, 901]
    assert all(fields["s2l_source"] == "learner" for fields, _, _ in found)
    assert not any(name in fields for fields, _, _ in found for name in (GUIDED_FIELD, LENGTH_FIELD))


def test_loss_on_guidance_leaves_the_mask(sessions) -> None:
    found = sessions({GUIDED_FIELD: 1, LENGTH_FIELD: 9}, ROW, "s2l.guidance.loss_on_guidance=true")
    assert found[0][1] == [1] * 11 and found[0][0][PREFIX_FIELD] == 9


def test_explorer_first_then_guided_then_plain(sessions) -> None:
    explorer = "s2l.explorer={model_path: x}"
    found = sessions({SLOTS_FIELD: 1, GUIDED_FIELD: 2, LENGTH_FIELD: 3}, ROW, explorer)
    assert [fields["s2l_source"] for fields, _, _ in found] == ["explorer", "learner", "learner", "learner"]
    assert [fields[PREFIX_FIELD] for fields, _, _ in found] == [0, 3, 3, 0]


class DeadEngine(Engine):
    """An explorer that fails, and what is reported of it."""

    server = "a"

    async def generate(self, request_id, **request):
        self.asked.append(request["sampling_params"])
        raise ExplorerFailed("died")

    async def report(self, failure) -> None:
        self.asked.append(str(failure))


def test_a_session_whose_explorer_fails_is_the_learners_with_the_learners_sampling(sessions) -> None:
    explorer = ["s2l.explorer={model_path: x, on_failure: learner}", "s2l.guidance=null"]
    dead = DeadEngine()
    found = sessions({SLOTS_FIELD: 2}, ROW, *explorer, explorer=dead)
    assert [fields["s2l_source"] for fields, _, _ in found] == ["learner"] * 4
    assert found[0][2] == [900, 901]
    assert dead.asked == [{"temperature": 0.7, "top_p": 0.95, "top_k": -1}, "died"] * 2


def test_validation_is_never_guided(sessions) -> None:
    found = sessions({GUIDED_FIELD: 2, LENGTH_FIELD: 9}, ROW, validate=True)
    assert all(mask == [1, 1] and PREFIX_FIELD not in fields for fields, mask, _ in found)


def test_teacher_rollouts_take_the_columns_place(sessions) -> None:
    row = {**ROW, "raw_prompt": [{"role": "user", "content": "3+4*2=?"}]}
    teacher = {prompt_id(row["raw_prompt"], row["extra_info"]): "step by step: 7, 14 \\boxed{14}"}
    found = sessions({GUIDED_FIELD: 2, LENGTH_FIELD: 8}, row, teacher=teacher)
    assert found[0][2][:8] == ids("step by ")
    with pytest.raises(DataError, match="has no trace"):
        sessions({GUIDED_FIELD: 2, LENGTH_FIELD: 8}, row, teacher={"other": "x"})


def test_length_zero_guides_nothing(sessions) -> None:
    found = sessions({GUIDED_FIELD: 2, LENGTH_FIELD: 0}, ROW)
    assert [fields[PREFIX_FIELD] for fields, _, _ in found] == [0] * 4 and found[0][1] == [1, 1]


def test_row_without_a_trace_by_policy(sessions) -> None:
    plan, bare = {GUIDED_FIELD: 2, LENGTH_FIELD: 9}, {"extra_info": {}, "index": 7}
    with pytest.raises(DataError, match="prompt 7 has no trace"):
        sessions(plan, bare)
    found = sessions(plan, bare, "s2l.guidance.missing_trace=skip_guidance")
    assert [fields[PREFIX_FIELD] for fields, _, _ in found] == [0] * 4


# ---- the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("masked", "changes"), [(True, False), (False, True)])
def test_loss_and_gradient_do_not_see_masked_guidance(monkeypatch, masked: bool, changes: bool) -> None:
    """verl's own loss, KL and entropy terms on; only log-probabilities of the first two tokens change."""
    import verl.workers.utils.losses as losses
    from verl.utils.config import omega_conf_to_dataclass

    monkeypatch.setattr(losses, "no_padding_2_padding", lambda tensor, data: tensor)
    cfg = compose_config("expo/toy", ["actor_rollout_ref.actor.entropy_coeff=0.01"])
    loss_fn = StepLoss(partial(losses.ppo_loss, config=omega_conf_to_dataclass(cfg.actor_rollout_ref.actor)))

    def value(guidance_log_prob: float):
        log_prob = torch.tensor([[guidance_log_prob, guidance_log_prob, -0.5, -0.7]], requires_grad=True)
        mask = torch.tensor([[0.0, 0.0, 1.0, 1.0]] if masked else [[1.0] * 4])

        def nested(tensor):
            return torch.nested.as_nested_tensor(list(tensor), layout=torch.jagged)

        data = TensorDict(
            {
                "response_mask": nested(mask),
                "old_log_probs": nested(torch.tensor([[-1.0, -1.0, -0.6, -0.6]])),
                "advantages": nested(torch.tensor([[0.5] * 4])),
                "ref_log_prob": nested(torch.full((1, 4), -0.9)),
            },
            batch_size=1,
        )
        tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=1)
        loss, _ = loss_fn(model_output={"log_probs": log_prob, "entropy": log_prob.detach().exp()}, data=data)
        loss.backward()
        return loss.item(), log_prob.grad[0]

    (first, gradient), (second, _) = value(-1.0), value(-3.0)
    assert (first != second) == changes
    assert bool(gradient[:2].any()) == changes and bool(gradient[2:].any())


def test_verls_loop_hands_our_client_the_prompt() -> None:
    """Seams: the loop asks `self.server_manager.generate(..., prompt_ids=, sampling_params=)` once."""
    import inspect

    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

    source = inspect.getsource(inspect.unwrap(SingleTurnAgentLoop.run))
    assert source.count("self.server_manager.generate(") == 1 and "prompt_ids=prompt_ids" in source
