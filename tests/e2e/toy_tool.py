"""A tool for toy models, read by verl's tool agent: who boxes a first answer is asked once whether it is sure.

No toy model writes JSON, so a parser of its own takes the boxed answer for a call. verl loads this file in every
agent-loop worker (``rollout.multi_turn.function_tool_path``).
"""

import json

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.function_tool import function_tool

from s2l_ext.rewards.toy import extract_answer

QUESTION = "sure?"


@ToolParser.register("toy_boxed")
class BoxedAnswer(ToolParser):
    """Every boxed answer is a call of :func:`doubt`."""

    async def extract_tool_calls(self, responses_ids, tools=None):
        text = self.tokenizer.decode(responses_ids)
        answer = extract_answer(text)
        calls = [] if answer is None else [FunctionCall(name="doubt", arguments=json.dumps({"answer": answer}))]
        return text, calls


@function_tool
def doubt(answer: str) -> str:
    """Ask whether an answer is sure.

    Args:
        answer: what was boxed.
    """
    return QUESTION
