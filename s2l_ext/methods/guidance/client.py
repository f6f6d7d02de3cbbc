"""The guidance of a session, and the client that adds it.

The agent loop only asks its client for a continuation. For a guided session the client appends the guidance to the
prompt, lowers the token budget by as much, and returns guidance and continuation as one response. No text is tokenised
twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from s2l_ext.data.answer_places import known_answer
from s2l_ext.data.prompts import prompt_id
from s2l_ext.data.traces import OPEN, TAIL_TOKENS, after_prompt, answer_start
from s2l_ext.methods.guidance.config import GuidanceConfig
from s2l_ext.methods.guidance.trace_checks import trace_fault


def trace_of(row: dict[str, Any], dotted: str, teacher_rollouts: dict[str, str] | None = None) -> str | None:
    """The trace of a row with the chat messages as ``raw_prompt``: of the column ``dotted``, or by prompt id from
    ``teacher_rollouts``, which take the column's place. None if there is none that a session could start from."""
    value: Any = row
    if teacher_rollouts is not None:
        messages = [dict(message) for message in row["raw_prompt"]]
        value = teacher_rollouts.get(prompt_id(messages, row.get("extra_info")))
    else:
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    return None if trace_fault(value) else value


def usable_text(trace: str, stop_before_answer: bool, think_is_open: bool, answer: str | None = None) -> str:
    """The part of a trace that guidance may use.

    Args:
        stop_before_answer: end before the first place that gives the final answer away (``answer_start``).
        answer: the right one, which finds such places. Without it only marked answers are seen.
        think_is_open: the chat template ended the prompt with ``<think>``, so the trace must not open it again.
    """
    start = answer_start(trace, answer) if stop_before_answer else None
    return after_prompt(trace if start is None else trace[:start], OPEN if think_is_open else "")


def guidance_ids(
    trace: str,
    tokenizer: Any,
    prompt_ids: list[int],
    length: int,
    config: GuidanceConfig,
    response_length: int,
    answer: str | None = None,
) -> list[int]:
    """The first tokens of a trace: at most ``length``, and not more than leave the model its ``min_continuation``
    tokens of ``response_length``. A template that closes the thinking in the prompt gets them without think tags; the
    end of ``prompt_ids`` says whether thinking is open."""
    text = usable_text(trace, config.stop_before_answer, think_is_open=False, answer=answer)
    text = after_prompt(text, tokenizer.decode(prompt_ids[-TAIL_TOKENS:]))
    ids = tokenizer.encode(text, add_special_tokens=False)
    return list(ids[: max(min(length, response_length - config.min_continuation), 0)])


def answer_of(row: dict[str, Any]) -> str | None:
    """The ground truth of a row's columns, if it is one short answer."""
    return known_answer((row.get("reward_model") or {}).get("ground_truth"))


class GuidedClient:
    """Another client's requests for one session, the first of them started with the guidance that ``choose`` gives for
    the ids of a prompt. ``response_length``: tokens of guidance and continuation together."""

    def __init__(self, client: Any, choose: Callable[[list[int]], list[int]], response_length: int) -> None:
        self._client, self._choose, self._response_length = client, choose, response_length
        self.placed: list[int] | None = None

    async def generate(
        self, request_id: Any, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> Any:
        if self.placed is not None:  # a later turn
            return await self._client.generate(
                request_id, prompt_ids=prompt_ids, sampling_params=sampling_params, **kwargs
            )
        self.placed = self._choose(list(prompt_ids))
        budget = sampling_params.get("max_tokens", self._response_length)
        output = await self._client.generate(
            request_id,
            prompt_ids=[*prompt_ids, *self.placed],
            sampling_params={**sampling_params, "max_tokens": budget - len(self.placed)},
            **kwargs,
        )
        output.token_ids = [*self.placed, *output.token_ids]
        if output.log_probs:
            output.log_probs = [*([0.0] * len(self.placed)), *output.log_probs]
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
