"""Values and messages between the process that judges and the process that runs the program.

Values cross as JSON made of tags and plain data, never as pickles: what arrives has exactly a built-in type, so no
method of the program can take part in a comparison.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from fractions import Fraction
from typing import Any

MESSAGE_BYTES = 8 * 2**20
SMALL_INTEGER = 2**53

Opaque = Callable[[Any], list]
_SEQUENCES = ((tuple, "t"), (list, "l"), (deque, "q"))


class LinkClosed(Exception):
    """The other side is gone, or what it sends is not a message."""


def encode(value: Any, opaque: Opaque) -> Any:
    """JSON form of ``value``; ``opaque`` names an object that cannot cross."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        plain = int(value)
        return plain if -SMALL_INTEGER < plain < SMALL_INTEGER else ["i", hex(plain)]
    if isinstance(value, float):
        return float(value)
    for kind, tag in _SEQUENCES:
        if isinstance(value, kind):
            return [tag, *(encode(item, opaque) for item in value)]  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return ["d", *([encode(key, opaque), encode(item, opaque)] for key, item in value.items())]
    if isinstance(value, AbstractSet):
        return ["s" if isinstance(value, set) else "f", *(encode(item, opaque) for item in value)]
    return _less_common(value, opaque)


def _less_common(value: Any, opaque: Opaque) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return ["b", bytes(value).hex()]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, range):
        return ["r", *(encode(part, opaque) for part in (value.start, value.stop, value.step))]
    if isinstance(value, Decimal):
        return ["D", str(value)]
    if isinstance(value, Fraction):
        return ["F", hex(value.numerator), hex(value.denominator)]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), opaque)
    return opaque(value)


def encode_call(arguments: Sequence[Any], named: Mapping[str, Any], opaque: Opaque) -> dict[str, Any]:
    """The part of a message that holds the arguments of a call."""
    keywords = {name: encode(each, opaque) for name, each in named.items()}
    return {"args": [encode(each, opaque) for each in arguments], "kwargs": keywords}


def decode_call(message: dict[str, Any], value: Callable[[Any], Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments, by position and by name; ``value`` decodes one."""
    arguments = [value(each) for each in message["args"]]
    return arguments, {str(name): value(each) for name, each in message["kwargs"].items()}


def decode(data: Any, special: Callable[[list], Any]) -> Any:
    """The value of a JSON form; tags unknown here go to ``special``. Raises LinkClosed on anything malformed."""
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise LinkClosed("an object where a value was expected")
        return data
    try:
        return _tagged(data[0], data[1:], special)
    except (IndexError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise LinkClosed(f"malformed value: {error}") from error


_CONTAINERS: dict[str, Callable[[Iterator[Any]], Any]] = {
    "l": list, "t": tuple, "s": set, "f": frozenset, "q": deque, "r": lambda parts: range(*parts),
}  # fmt: skip
_PLAIN: dict[str, Callable[..., Any]] = {
    "b": bytes.fromhex, "c": complex, "D": Decimal, "i": lambda digits: int(digits, 16),
    "F": lambda top, bottom: Fraction(int(top, 16), int(bottom, 16)),
}  # fmt: skip


def _tagged(tag: Any, rest: list, special: Callable[[list], Any]) -> Any:
    if tag in _CONTAINERS:
        return _CONTAINERS[tag](decode(item, special) for item in rest)
    if tag == "d":
        return {decode(key, special): decode(item, special) for key, item in rest}
    return _PLAIN[tag](*rest) if tag in _PLAIN else special([tag, *rest])


def send(descriptor: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    if len(data) > MESSAGE_BYTES:
        raise LinkClosed(f"a message of {len(data)} bytes is over the limit of {MESSAGE_BYTES}")
    view = memoryview(struct.pack(">I", len(data)) + data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise LinkClosed("the link is broken") from error


def receive(descriptor: int) -> dict[str, Any]:
    size = struct.unpack(">I", _exactly(descriptor, 4))[0]
    if size > MESSAGE_BYTES:
        raise LinkClosed(f"a message of {size} bytes is over the limit of {MESSAGE_BYTES}")
    try:
        message = json.loads(_exactly(descriptor, size))
    except (ValueError, RecursionError) as error:
        raise LinkClosed("not a message") from error
    if not isinstance(message, dict):
        raise LinkClosed("not a message")
    return message


def _exactly(descriptor: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = os.read(descriptor, min(size - len(parts), 1 << 20))
        except OSError as error:
            raise LinkClosed("the link is broken") from error
        if not part:
            raise LinkClosed("the link is closed")
        parts += part
    return bytes(parts)
