"""The client of a session with a stored rollout: it returns the stored tokens instead of calling a server."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.replica import TokenOutput

from s2l_ext.errors import DataError
from s2l_ext.store.reader import Rollout


class StoredClient:
    """Returns one stored rollout as the answer to a session's only request; everything but ``generate`` is the
    learner's client's. ``step``: weight version that the row carries, as a live explorer's would."""

    def __init__(self, client: Any, rollout: Rollout, step: int) -> None:
        self._client, self._rollout, self._step = client, rollout, step
        self._given = False

    async def generate(
        self, request_id: Any, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> TokenOutput:
        """The stored tokens, cut where ``max_tokens`` would have cut them. Raises DataError: a second turn, or another
        prompt than the rollout was sampled from."""
        rollout = self._rollout
        if self._given:
            raise DataError(
                f"prompt {rollout.prompt_id}: the agent loop asked for a second turn, but a stored rollout has one. "
                "Use s2l.explorer.source=live with agent loops of several turns."
            )
        self._given = True
        self._require_same_prompt(list(prompt_ids))
        end = sampling_params.get("max_tokens")
        log_probs = rollout.log_probs[:end] if sampling_params.get("logprobs") else None
        version = dict.fromkeys(("global_steps", "min_global_steps", "max_global_steps"), self._step)
        cut = rollout.truncated or (end is not None and len(rollout.token_ids) > end)
        return TokenOutput(
            token_ids=rollout.token_ids[:end],
            log_probs=log_probs,
            stop_reason="length" if cut else "completed",
            extra_fields=version,
        )

    def _require_same_prompt(self, prompt_ids: list[int]) -> None:
        if prompt_ids == self._rollout.prompt_ids:
            return
        raise DataError(
            f"prompt {self._rollout.prompt_id}: this run's prompt has {len(prompt_ids)} tokens, the stored rollout was "
            f"sampled from {len(self._rollout.prompt_ids)} other ones. Chat template, its options "
            "(data.apply_chat_template_kwargs) or the data changed; sample again with `s2l explore`."
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
