"""The untrusted side: runs the program, and answers calls of its functions. Holds no test and no expected value.

Nothing here defends anything: the program may replace all of it, and gains no more than returning other values.
Standard library only: it runs in a bare interpreter that sees no installed packages.
"""

from __future__ import annotations

import _sitebuiltins
import atexit
import builtins
import os
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable
from typing import Any

from s2l_ext.sandbox import wire as wire

LINK, SOURCE = 3, 4
MUTABLE = (list, dict, set, deque)


def run(mode: str) -> int:
    """Run the program of descriptor 4: as a script (``script``), or as functions to call (``functions``)."""
    with open(SOURCE, "rb") as file:
        source = file.read()
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, ""))
    sys.argv = ["program.py"]
    module = types.ModuleType("__main__" if mode == "script" else "program")
    sys.modules[module.__name__] = module
    if mode == "script":
        return _run_script(source, module)
    _Server(module, source).serve()
    return 0


def _run_script(source: bytes, module: types.ModuleType) -> int:
    os.close(LINK)
    status = 0
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
    except SystemExit as error:
        status = _exit_status(error.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _exit_status(code: Any) -> int:
    if isinstance(code, int):
        return code & 0xFF
    if code is not None:
        print(code, file=sys.stderr)
    return int(code is not None)


class _Server:
    """Answers the judge's questions about one program."""

    def __init__(self, module: types.ModuleType, source: bytes) -> None:
        self.names = module.__dict__
        self.source = source
        self.objects: list[Any] = []

    def serve(self) -> None:
        wire.send(LINK, {"value": None})
        self._answer(self._load, {})
        while True:
            try:
                question = wire.receive(LINK)
            except wire.LinkClosed:
                return
            self._answer(self._ask, question)

    def _load(self, _: dict[str, Any]) -> None:
        exec(compile(self.source, "program.py", "exec"), self.names)

    def _answer(self, action: Callable[[dict[str, Any]], Any], question: dict[str, Any]) -> None:
        try:
            reply = {"value": wire.encode(action(question), self._opaque)}
            if "changed" in question:
                reply["changed"] = question["changed"]
        except BaseException as error:
            reply = {"raise": [kind.__name__ for kind in type(error).__mro__], "text": str(error)[:500]}
        wire.send(LINK, reply)

    def _ask(self, question: dict[str, Any]) -> Any:
        what = question["do"]
        if what == "find":
            return self._find(question["name"])
        if what == "last":
            return [each for each in self.names.values() if isinstance(each, types.FunctionType)][-1]
        target = self.objects[question["target"]]
        if what == "call":
            return self._call(target, question)
        if what == "attr":
            return getattr(target, question["name"])
        if what == "item":
            return target[self._value(question["key"])]
        simple: dict[str, Callable[[Any], Any]] = {"iter": iter, "next": next, "len": len, "str": str}
        return simple[what](target)

    def _find(self, name: str) -> Any:
        if name not in self.names:
            raise NameError(f"the program does not define {name}")
        return self.names[name]

    def _call(self, target: Any, question: dict[str, Any]) -> Any:
        arguments, named = wire.decode_call(question, self._value)
        result = target(*arguments, **named)
        changed = {}
        for position, (before, value) in enumerate(zip(question["args"], arguments, strict=True)):
            if isinstance(value, MUTABLE):
                after = wire.encode(value, self._opaque)
                if after != before:
                    changed[str(position)] = after
        question["changed"] = changed
        return result

    def _opaque(self, value: Any) -> list:
        self.objects.append(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["x", len(self.objects) - 1, [kind.__name__ for kind in value.__mro__]]
        return ["h", len(self.objects) - 1]

    def _value(self, data: Any) -> Any:
        return wire.decode(data, self._special)

    def _special(self, data: list) -> Any:
        if data[0] == "cb":
            return lambda *arguments, **named: self._call_back(data[1], arguments, named)
        return self.objects[data[1]]

    def _call_back(self, identity: int, arguments: tuple, named: dict[str, Any]) -> Any:
        """Call a function of the tests that was passed to the program."""
        wire.send(LINK, {"callback": identity, **wire.encode_call(arguments, named, self._opaque)})
        while True:
            message = wire.receive(LINK)
            if "do" in message:
                self._answer(self._ask, message)
                continue
            if "raise" in message:
                raise RuntimeError(message["text"])
            return self._value(message["value"])
