"""A user's own JSONL, with fields of any name, to verl parquet. Every unusable row is named, none is guessed at."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2l_ext.data import arguments, converting, reading, traces, values
from s2l_ext.data.converting import Output, Repeats, Row, Source, Written
from s2l_ext.data.values import shown as _shown
from s2l_ext.errors import DataError
from s2l_ext.rewards.math import marked_answer

CHECKS = ("math", "exact", "form")
ROLES = ("system", "user", "assistant", "tool")
NO_TRACE = "no usable trace"
BROKEN = "control character inside"


@dataclass(frozen=True)
class Fields:
    """Names of the input's fields (dots reach into objects); None where the input has no such thing."""

    prompt: str = "prompt"
    answer: str = "answer"
    trace: str | None = None
    tier: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Options:
    """What is made of the rows.

    Attributes:
        check: how a trace is checked: ``math`` asks the mathematical reward, ``exact`` wants the marked answer equal to
            the character, ``form`` looks at completeness only.
        instruction: sentence appended to the last message of every prompt.
        keep_without_trace: keep rows whose trace is missing or fails the check, with an empty trace.
        val_share: share of the prompts for ``val.parquet``, by their hash.
        drop_repeats: keep the first row of a prompt that comes again.
    """

    check: str = "math"
    instruction: str = ""
    keep_without_trace: bool = True
    name: str = "train"
    val_share: float = 0.0
    drop_repeats: bool = False


@dataclass
class _Seen:
    """Where every id and prompt was first, and the type of the first tier."""

    repeats: Repeats
    ids: dict[str, str] = field(default_factory=dict)
    tier: tuple[type, str] | None = None


def convert(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    data_source: str,
    fields: Fields | None = None,
    options: Options | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> list[Written]:
    """Write ``<output>/<name>.parquet``, and ``val.parquet`` if asked for. Nothing is written when a row is bad.

    Raises:
        DataError: file, line, field, reason and fix of the first bad row; an id or prompt twice; no rows; an existing
            file that holds other data.
    """
    files = converting.paths_of(input)
    fields, options = fields or Fields(), options or Options()
    seen = _Seen(Repeats(options.drop_repeats))
    if options.check not in CHECKS:
        raise DataError(f"check={options.check!r}: choose one of {', '.join(CHECKS)}.")
    with Output(output, Source("jsonl", data_source, files, ability="general"), overwrite) as out:
        out.expect(options.name, *(["val"] if options.val_share else []))
        for path in files:
            for where, record in reading.read_rows(path, None, limit, progress):
                _put(out, record, where, fields, options, seen)
        seen.repeats.refuse()
    return out.files


def _put(out: Output, record: dict[str, Any], where: str, fields: Fields, options: Options, seen: _Seen) -> None:
    prompt = _prompt(record, fields.prompt, where)
    text = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    answer = _answer(record, fields.answer, options, where)
    split = converting.split_of(text, options.name, options.val_share)
    message = f"{where}: field '{fields.prompt}' is the prompt of {{first}} again."
    repeated = seen.repeats.reason(converting.index_of(text), where, answer, message)
    if repeated:
        return out.drop_row(split, repeated)
    identity = _id(record, fields.id, text, where)
    _refuse_used(seen, identity, where, fields)
    tier = _tier(record, fields.tier, where, seen)
    trace = _trace(out, record, where, fields, options, answer, split)
    if not trace and fields.trace and not options.keep_without_trace:
        return out.drop_row(split, NO_TRACE)
    if options.instruction:
        prompt[-1]["content"] += f"\n{options.instruction}"
    return out.add(Row(split, identity, converting.index_of(text), prompt, answer, trace, tier))


# ---- fields -------------------------------------------------------------------------------------------------------


def _at(record: dict[str, Any], name: str, flag: str, where: str) -> Any:
    """A top-level field of exactly this name, or the value that the dots lead to."""
    if name in record:
        return record[name]
    value: Any = record
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            raise DataError(
                f"{where}: field '{name}' is missing. Fields: {', '.join(record) or 'none'}. Add it, or name another "
                f"with {flag}."
            )
        value = value[key]
    return value


def _text(record: dict[str, Any], name: str, flag: str, where: str) -> str:
    value = _at(record, name, flag, where)
    number = values.plain_number(value)
    if number is not None:
        return number
    if isinstance(value, str) and value.strip():
        return values.clean_text(value, where, f"field '{name}'")
    raise DataError(f"{where}: field '{name}' is {_shown(value)}. Give text or a number, or remove the row.")


def _answer(record: dict[str, Any], name: str, options: Options, where: str) -> str:
    """Answers that are no mathematics keep their spelling."""
    text = values.answer_text(_at(record, name, "--answer-field", where), where, f"field '{name}'")
    return values.without_exponent(text) if options.check == "math" else text


def _prompt(record: dict[str, Any], name: str, where: str) -> list[dict[str, str]]:
    value = _at(record, name, "--prompt-field", where)
    if not isinstance(value, list):
        content = _text(record, name, "--prompt-field", where)
        values.refuse_list_as_text(content, where, f"field '{name}'")
        return [{"role": "user", "content": content}]
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or not message["content"]:
            raise DataError(
                f"{where}: field '{name}', message {number} is {_shown(message)}. A message is {{role, content}} with "
                "text in both."
            )
        if message.get("role") not in ROLES:
            raise DataError(
                f"{where}: field '{name}', message {number} has role {message.get('role')!r}. Roles: "
                f"{', '.join(ROLES)}."
            )
        values.clean_text(message["content"], where, f"field '{name}', message {number}")
    if not value or value[-1]["role"] == "assistant":
        raise DataError(f"{where}: field '{name}' does not end in a turn to be answered. End it with a user's message.")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _id(record: dict[str, Any], name: str | None, text: str, where: str) -> str:
    return _text(record, name, "--id-field", where) if name else converting.digest(text)[:16]


def _refuse_used(seen: _Seen, identity: str, where: str, fields: Fields) -> None:
    first = seen.ids.setdefault(identity, where)
    if first != where:
        raise DataError(f"{where}: field '{fields.id}': id '{identity}' is also at {first}. Ids must be unique.")


def _tier(record: dict[str, Any], name: str | None, where: str, seen: _Seen) -> str | int | float | None:
    if name is None:
        return None
    value: str | int | float = _at(record, name, "--tier-field", where)
    if not _is_tier(value):
        raise DataError(f"{where}: field '{name}' is {_shown(value)}. A tier is text or a number of at most 63 bits.")
    kind, first = seen.tier = seen.tier or (type(value), where)
    if kind is float and isinstance(value, int):
        return float(value)
    if type(value) is not kind:
        raise DataError(
            f"{where}: field '{name}' is {_shown(value)}, but {kind.__name__} at {first}. Use one type in all rows."
        )
    return value


def _is_tier(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and (isinstance(value, float) or abs(value) < 2**63)


# ---- traces -------------------------------------------------------------------------------------------------------


def _trace(
    out: Output, record: dict[str, Any], where: str, fields: Fields, options: Options, answer: str, split: str
) -> str:
    """The checked trace; empty, and counted, when it cannot be used."""
    if fields.trace is None:
        return ""
    value = record.get(fields.trace) if "." not in fields.trace else _at(record, fields.trace, "--trace-field", where)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: field '{fields.trace}' is {_shown(value)}. A trace is text; leave it out for none.")
    values.refuse_list_as_text(value or "", where, f"field '{fields.trace}'")
    trace = traces.normalise(value or "")
    reason = BROKEN if values.text_fault(value or "") else _fault(trace, answer, options.check)
    if reason:
        out.drop_trace(split, reason)
    return "" if reason else trace


def _fault(trace: str, answer: str, check: str) -> str | None:
    reason = traces.form_fault(trace, answer, marked=check == "exact")
    if reason or check == "form":
        return reason
    if check == "math":
        return traces.answer_fault(trace, answer)
    stated = marked_answer(traces.conclusion_of(trace))
    return None if stated is not None and stated.strip() == answer else traces.WRONG


# ---- command line -------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l data jsonl``."""
    arguments.add_common_arguments(parser, arguments.KINDS)
    parser.add_argument("--data-source", required=True, help="verl's data_source: a name for this data")
    parser.add_argument("--prompt-field", default="prompt", help="text or list of messages (default: %(default)s)")
    parser.add_argument("--answer-field", default="answer", help="what the reward compares with (default: %(default)s)")
    parser.add_argument("--trace-field", default=None, help="reasoning trace (default: none)")
    parser.add_argument("--tier-field", default=None, help="tier, text or number (default: none)")
    parser.add_argument("--id-field", default=None, help="id (default: a hash of the prompt)")
    parser.add_argument("--trace-check", choices=CHECKS, default="math", help="how traces are checked (default: math)")
    arguments.add_without_trace(parser, "keep")
    arguments.add_drop_repeats(parser)
    parser.add_argument("--instruction", default="", help="sentence appended to every prompt (default: none)")
    parser.add_argument("--name", default="train", help="split and file name (default: %(default)s)")
    arguments.add_val_share(parser)


def main(args: argparse.Namespace) -> int:
    """``s2l data jsonl``. Returns the exit status; unusable input raises DataError."""
    fields = Fields(args.prompt_field, args.answer_field, args.trace_field, args.tier_field, args.id_field)
    keep = args.without_trace == "keep"
    options = Options(args.trace_check, args.instruction, keep, args.name, args.val_share, args.drop_repeats)
    return arguments.run(args, convert, args.trace_check == "math", fields=fields, options=options)
