"""A user's own JSONL, with fields of any name, to verl parquet. Every unusable row is named, none is guessed at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from s2l_ext.data import converting, traces, values
from s2l_ext.data.command import command_of
from s2l_ext.data.converting import Converter, Output, Records, Row, option
from s2l_ext.data.values import shown
from s2l_ext.errors import DataError
from s2l_ext.rewards.extraction import marked_answer

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class UserJsonl(Converter):
    """Fields of the input are given by name; dots reach into objects. Without a name the input has no such thing.

    ``trace_check`` ``math`` asks the mathematical reward, ``exact`` wants the marked answer equal to the character,
    ``form`` checks completeness only.
    """

    command = "jsonl"
    ability = "general"
    prompt_field: str = option("prompt", "text or list of messages")
    answer_field: str = option("answer", "what the reward compares with")
    trace_field: str | None = option(None, "reasoning trace (default: none)")
    tier_field: str | None = option(None, "tier, text or number (default: none)")
    id_field: str | None = option(None, "id (default: a hash of the prompt)")
    trace_check: str = option("math", "how traces are checked", choices=("math", "exact", "form"))
    without_trace: str = option("keep", **converting.WITHOUT_TRACE)
    drop_repeats: bool = option(False, converting.DROP_REPEATS)
    instruction: str = option("", "sentence appended to every prompt (default: none)")
    val_share: float = option(0.0, **converting.VAL_SHARE)

    @property
    def mathematical(self) -> bool:
        return self.trace_check == "math"

    def rows(self, records: Records, out: Output) -> Iterator[Row]:
        first_tier = dict[type, str]()
        for _, where, record in records:
            prompt = _read_prompt(record, self.prompt_field, where)
            text = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
            answer, index, split = self._read_answer(record, where), converting.index_of(text), self.split_of(text)
            message = f"{where}: field '{self.prompt_field}' is the prompt of {{first}} again."
            if out.drops_repeat(split, index, where, answer, message):
                continue
            identity = converting.digest(text)[:16]
            if self.id_field:
                identity = values.exact_text(*_read_field(record, self.id_field, "--id-field", where))
            out.require_new_id(identity, where, f"field '{self.id_field}': id")
            tier = self._read_tier(record, where, first_tier)
            trace, fault = self._read_trace(record, where, answer)
            if fault:
                out.drop_trace(split, fault)
            if fault and self.without_trace == "drop":
                out.drop_row(split, converting.NO_TRACE)
                continue
            if self.instruction:
                prompt[-1]["content"] += f"\n{self.instruction}"
            yield Row(split, identity, index, prompt, answer, trace, tier)

    def _read_answer(self, record: dict[str, Any], where: str) -> str:
        """Answers that are no mathematics keep their spelling."""
        text = values.answer_text(*_read_field(record, self.answer_field, "--answer-field", where))
        return values.without_exponent(text) if self.trace_check == "math" else text

    def _read_tier(self, record: dict[str, Any], where: str, first: dict[type, str]) -> str | int | float | None:
        """A tier of the type of the first, which ``first`` holds with its place."""
        if self.tier_field is None:
            return None
        value: str | int | float = _read_field(record, self.tier_field, "--tier-field", where)[0]
        found = f"{where}: field '{self.tier_field}' is {shown(value)}"
        if not _is_tier(value):
            raise DataError(f"{found}. A tier is text or a number of at most 63 bits.")
        kind, place = next(iter(first.items()), (type(value), where))
        first[kind] = place
        if kind is float and isinstance(value, int):
            return float(value)
        if type(value) is not kind:
            raise DataError(f"{found}, but {kind.__name__} at {place}. Use one type in all rows.")
        return value

    def _read_trace(self, record: dict[str, Any], where: str, answer: str) -> tuple[str, str | None]:
        """The checked trace; or an empty one, and why it cannot be used."""
        name = self.trace_field
        if name is None:
            return "", None
        value = _read_field(record, name, "--trace-field", where)[0] if "." in name else record.get(name)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: field '{name}' is {shown(value)}. A trace is text; leave it out for none.")
        values.refuse_list_as_text(value or "", where, f"field '{name}'")
        trace = traces.normalise(value or "")
        fault = converting.BROKEN if values.text_fault(value or "") else self._trace_fault(trace, answer)
        return ("", fault) if fault else (trace, None)

    def _trace_fault(self, trace: str, answer: str) -> str | None:
        fault = traces.form_fault(trace, answer, marked=self.trace_check == "exact")
        if fault or self.trace_check == "form":
            return fault
        if self.trace_check == "math":
            return traces.answer_fault(trace, answer)
        stated = marked_answer(traces.conclusion_of(trace))
        return None if stated is not None and stated.strip() == answer else traces.WRONG


def _read_field(record: dict[str, Any], name: str, flag: str, where: str) -> tuple[Any, str, str]:
    """A top-level field of exactly this name, or the value that the dots lead to; its place and what it is called."""
    value: Any = record
    for key in [name] if name in record else name.split("."):
        if not isinstance(value, dict) or key not in value:
            raise DataError(
                f"{where}: field '{name}' is missing. Fields: {', '.join(record) or 'none'}. Add it, or name another "
                f"with {flag}."
            )
        value = value[key]
    return value, where, f"field '{name}'"


def _read_prompt(record: dict[str, Any], name: str, where: str) -> list[dict[str, str]]:
    value, _, what = _read_field(record, name, "--prompt-field", where)
    if not isinstance(value, list):
        content = values.exact_text(value, where, what)
        values.refuse_list_as_text(content, where, what)
        return converting.user_prompt(content, "")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or not message["content"]:
            raise DataError(
                f"{where}: {what}, message {number} is {shown(message)}. A message is {{role, content}} with text in "
                "both."
            )
        if message.get("role") not in ROLES:
            raise DataError(
                f"{where}: {what}, message {number} has role {message.get('role')!r}. Roles: {', '.join(ROLES)}."
            )
        values.clean_text(message["content"], where, f"{what}, message {number}")
    if not value or value[-1]["role"] == "assistant":
        raise DataError(f"{where}: {what} does not end in a turn to be answered. End it with a user's message.")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _is_tier(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and (isinstance(value, float) or abs(value) < 2**63)


add_arguments, main = command_of(UserJsonl)
