"""The judge's view of an untrusted program: its functions and objects as stand-ins, its values as plain data.

A stand-in forwards calls, attributes, items, iteration, ``len`` and ``str``. It forwards no comparison and no
arithmetic: an expected value never travels to the program, and the program never decides whether two things are equal.
Standard library only: it runs in a bare interpreter that sees no installed packages.
"""

from __future__ import annotations

import builtins
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from s2l_ext.sandbox import wire as wire


class ProgramEnded(BaseException):
    """The program is gone, tried to exit, or does not keep to the protocol. No test may swallow it."""


class Unsendable(BaseException):
    """The tests hand the program an object that cannot cross."""


class Remote:
    """A function or object that lives in the program."""

    def __init__(self, link: Link, target: int, name: str) -> None:
        self.__dict__.update(_link=link, _target=target, __name__=name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._link.call(self._target, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask(do="attr", target=self._target, name=name)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask(do="item", target=self._target, key=wire.encode(key, self._link.opaque))

    def __iter__(self) -> Iterator[Any]:
        return self._link.ask(do="iter", target=self._target)

    def __next__(self) -> Any:
        return self._link.ask(do="next", target=self._target)

    def __len__(self) -> int:
        return self._link.ask(do="len", target=self._target)

    def __str__(self) -> str:
        return str(self._link.ask(do="str", target=self._target))

    def __bool__(self) -> bool:
        return True


class Link:
    """Questions to the program, one at a time; a question may call a function of the tests back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._functions: list[Callable[..., Any]] = []
        self._exceptions: dict[str, type[Exception]] = {}

    def ask(self, **question: Any) -> Any:
        self._send(question)
        return self._value(self.reply()["value"])

    def call(self, target: int, arguments: tuple, named: dict[str, Any]) -> Any:
        self._send({"do": "call", "target": target, **wire.encode_call(arguments, named, self.opaque)})
        reply = self.reply()
        changed = reply.get("changed")
        for position, data in changed.items() if isinstance(changed, dict) else ():
            self._change(arguments, position, self._value(data))
        return self._value(reply["value"])

    def _change(self, arguments: tuple, position: str, value: Any) -> None:
        """Repeat in the tests' own object what the program did to its copy."""
        if not position.isdecimal() or int(position) >= len(arguments):
            raise ProgramEnded("an argument that was not passed was changed")
        target = arguments[int(position)]
        if type(target) is not type(value):
            return
        if isinstance(target, (list, deque)):
            target.clear()
            target.extend(value)
        elif isinstance(target, (dict, set)):
            target.clear()
            target.update(value)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            wire.send(self._descriptor, message)
        except wire.LinkClosed as error:
            raise ProgramEnded(str(error)) from error

    def reply(self) -> dict[str, Any]:
        """The program's next answer. Raises what the program raised, or ProgramEnded."""
        while True:
            try:
                message = wire.receive(self._descriptor)
            except wire.LinkClosed as error:
                raise ProgramEnded("the program ended before its tests did") from error
            if "callback" in message:
                self._send(self._called_back(message))
            elif "raise" in message:
                raise self._raised(message["raise"], str(message.get("text", "")))
            elif "value" in message:
                return message
            else:
                raise ProgramEnded("the program does not keep to the protocol")

    def _called_back(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            function = self._functions[message["callback"]]
            arguments, named = wire.decode_call(message, self._value)
            return {"value": wire.encode(function(*arguments, **named), self.opaque)}
        except Exception as error:
            return {"raise": [], "text": f"{type(error).__name__}: {error}"[:500]}

    def _raised(self, kinds: Any, text: str) -> BaseException:
        """The program's exception as the nearest class that the tests know."""
        for name in kinds if isinstance(kinds, list) else []:
            if name in self._exceptions:
                return self._exceptions[name](text)
            known = getattr(builtins, name, None) if isinstance(name, str) else None
            if isinstance(known, type) and issubclass(known, Exception):
                try:
                    return known(text)
                except TypeError:
                    return RuntimeError(f"{name}: {text}")
        return ProgramEnded(f"the program raised {kinds[0] if kinds else 'nothing'}")

    def _value(self, data: Any) -> Any:
        try:
            return wire.decode(data, self._special)
        except wire.LinkClosed as error:
            raise ProgramEnded(str(error)) from error

    def _special(self, data: list) -> Any:
        if data[0] == "h" and isinstance(data[1], int):
            return Remote(self, data[1], f"object {data[1]}")
        if data[0] == "x" and isinstance(data[2], list):
            return self._exception(data[2])
        raise ValueError("unknown kind of value")

    def _exception(self, kinds: list) -> type[Exception]:
        name = str(kinds[0])
        if name not in self._exceptions and not hasattr(builtins, name):
            bases = [getattr(builtins, str(kind), None) for kind in kinds]
            base = next(each for each in bases if isinstance(each, type) and issubclass(each, BaseException))
            self._exceptions[name] = type(name, (base if issubclass(base, Exception) else Exception,), {})
        return self._exceptions[name] if name in self._exceptions else getattr(builtins, name)

    def opaque(self, value: Any) -> list:
        if isinstance(value, Remote):
            return ["h", value.__dict__["_target"]]
        if callable(value) and not isinstance(value, type):
            self._functions.append(value)
            return ["cb", len(self._functions) - 1]
        raise Unsendable(f"the tests pass an object of type {type(value).__name__}, which cannot cross to the program")
