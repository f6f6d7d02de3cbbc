"""What vLLM is asked for when log-probabilities are wanted, and how its answers are read. vLLM itself is in e2e."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s2l_ext.evaluation.engines import Machine, Request, Response, Sampling, Setup, VLLMEngine


class FakeLLM:
    """Finishes the last request of those queued at each step, after a step that finishes none."""

    def __init__(self, model: str, **options: Any) -> None:
        self.options, self.count, self.queue = options, 0, []
        self.asked: list[Any] = []
        config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=3))
        self.llm_engine = SimpleNamespace(vllm_config=config, step=self.step)

    def enqueue(self, prompts: list[dict[str, Any]], params: list[Any], use_tqdm: bool) -> list[str]:
        names = [f"{self.count + at}-abc" for at in range(len(prompts))]
        self.count += len(prompts)
        self.queue += [(name, prompt["prompt_token_ids"]) for name, prompt in zip(names, prompts, strict=True)]
        self.asked += params
        return names

    def step(self) -> list[Any]:
        name, ids = self.queue.pop()
        tokens = [ids[0], ids[0] + 1]
        wanted = self.asked[-1].get("flat_logprobs")
        log_probs = SimpleNamespace(logprobs=[-0.5, -float(ids[0])]) if wanted else None
        only = SimpleNamespace(token_ids=tokens, finish_reason="length" if ids[0] == 1 else "stop", logprobs=log_probs)
        running = SimpleNamespace(finished=False, request_id=name)
        return [running, SimpleNamespace(finished=True, request_id=name, outputs=[only])]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **given: given))
    model = SimpleNamespace(name="toy", folder=Path("toy"), stop_ids=(9,), trust_remote_code=False)

    def make(log_probs: bool) -> VLLMEngine:
        return VLLMEngine(Setup(model, Sampling(8, 0.7, 0.95, 0, 32, 0), Machine(), 64, log_probs))  # type: ignore[arg-type]

    return make


REQUESTS = [Request("a", index, [index], 100 + index) for index in range(3)]


def test_log_probs_are_those_of_the_sampling_distribution(engine) -> None:
    found = engine(True)
    assert found.llm.options["logprobs_mode"] == "processed_logprobs"
    drawn = [each for some in found.draw(REQUESTS) for each in some]
    assert [each.request.index for each in drawn] == [2, 1, 0], "as they finish, each with its own request"
    assert drawn[1] == Response(REQUESTS[1], [1, 2], True, [-0.5, -1.0])
    assert all(params["logprobs"] == 0 and params["flat_logprobs"] for params in found.llm.asked)
    assert [params["seed"] for params in found.llm.asked] == [100, 101, 102]
    assert found.llm.asked[0]["temperature"] == 0.7 and found.llm.asked[0]["top_p"] == 0.95


def test_an_evaluation_does_not_pay_for_them(engine) -> None:
    found = engine(False)
    assert "logprobs_mode" not in found.llm.options
    assert [each.log_probs for some in found.draw(REQUESTS) for each in some] == [None] * 3
    assert all("logprobs" not in params and "flat_logprobs" not in params for params in found.llm.asked)


def test_with_an_accelerator_vllm_starts_its_engine_anew(engine, monkeypatch) -> None:
    """A fork would take over a CUDA that was looked for, and end."""
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)
    engine(False)
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in os.environ
    monkeypatch.setattr(Machine, "on_cpu", False)
    engine(False)
    assert os.environ.pop("VLLM_WORKER_MULTIPROC_METHOD") == "spawn"


def test_room_is_two_batches(engine) -> None:
    found = engine(True)
    assert (found.room, found.unfinished) == (6, 0)
    found.add(REQUESTS)
    found.add(REQUESTS[:2])
    assert (found.room, found.unfinished) == (1, 5)
    found.step()
    assert (found.room, found.unfinished) == (2, 4)
    found.add(REQUESTS)
    assert found.room == 0


# ---- the transformers engine's end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generated", "kept", "truncated"),
    [
        ([5, 6, 2, 0, 0], [5, 6, 2], False),
        ([5, 3, 2, 6, 2], [5, 3], False),
        ([2, 5, 6, 7, 8], [2], False),
        ([5, 6, 7, 8, 9], [5, 6, 7, 8], True),
        ([5, 6, 7, 2, 2], [5, 6, 7, 2], False),
    ],
)
def test_a_response_ends_with_its_first_stop_token_or_is_cut_at_the_limit(generated, kept, truncated) -> None:
    """Stop tokens 2 and 3, padding 0, at most 4 tokens: vLLM's responses end so too."""
    from s2l_ext.evaluation.engines import Request, Sampling, TransformersEngine

    engine = TransformersEngine.__new__(TransformersEngine)
    engine.sampling, engine.stop_ids = Sampling(max_tokens=4), [2, 3]
    response = engine._response(Request("p", 0, [7], 0), generated)
    assert (response.token_ids, response.truncated) == (kept, truncated)
