"""The trusted side: runs the tests in its own process and counts assertions. The program lives in another.

Standard library only: it runs in a bare interpreter that sees no installed packages.
"""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import json
import signal
import sys
import types
import typing
import unittest
from collections.abc import Iterator
from typing import Any

from s2l_ext.sandbox.remote import Link, ProgramEnded, Remote, Unsendable

LINK, PAYLOAD, VERDICT = 3, 4, 5
COUNTER = "__s2l_counter__"
COUNTED = f"try: pass\nexcept {COUNTER}.exception: {COUNTER}.wrong({{shown!r}})\nelse: {COUNTER}.right()"
SHOWN_CHARS = 200
TYPING = frozenset(("Any", "Dict", "List", "Optional", "Set", "Tuple", "Union"))


class Malformed(Exception):
    """The tests themselves cannot be used, whatever the program does."""


class _OutOfTime(BaseException):
    pass


class _Stop(BaseException):
    """The first failure settles the verdict."""


class Counter:
    """What became of the assertions that ran."""

    exception = Exception

    def __init__(self, sites: int, stop_early: bool) -> None:
        self.sites = sites
        self.stop_early = stop_early
        self.passed = 0
        self.failed = 0
        self.reason = ""

    def right(self) -> None:
        self.passed += 1

    def wrong(self, shown: str) -> None:
        self.failed += 1
        error = sys.exc_info()[1]
        said = "" if isinstance(error, AssertionError) else f" ({type(error).__name__}: {error})"
        self.reason = self.reason or f"failed: {shown}{said}"[: 2 * SHOWN_CHARS]
        if self.stop_early:
            raise _Stop

    def verdict(self, finished: bool, reason: str) -> dict[str, Any]:
        ran = self.passed + self.failed
        return {
            "passed": finished and not self.failed and self.passed > 0,
            "num_passed": self.passed,
            "num_total": max(ran, 1) if finished else max(ran, self.sites, self.passed + 1),
            "reason": self.reason or reason or ("" if self.passed else "no assertion ran"),
        }


def run(seconds: float) -> int:
    """Judge within ``seconds``; the verdict goes to descriptor 5 as one JSON object."""
    with open(PAYLOAD, "rb") as file:
        job = json.loads(file.read())
    signal.signal(signal.SIGALRM, _out_of_time)
    try:
        verdict = _judge(job, seconds)
    except Malformed as error:
        verdict = {"malformed": str(error)}
    with open(VERDICT, "w") as file:
        json.dump(verdict, file)
    return 0


def _out_of_time(*_: Any) -> None:
    raise _OutOfTime


def _judge(job: dict[str, Any], seconds: float) -> dict[str, Any]:
    names = _trusted_names(job)
    tree, sites = _instrumented(job["source"])
    _require_imports(tree)
    if job["entry_point"] and not _defines_check(tree):
        raise Malformed("the tests define no function check(candidate)")
    code = compile(tree, "tests.py", "exec")
    counter = Counter(sites, job["stop_early"])
    names[COUNTER] = counter
    try:
        link = Link(LINK)
        link.reply()  # the program's process is up: starting it costs the program no time
        signal.setitimer(signal.ITIMER_REAL, seconds)
        _run_tests(job, code, tree, names, counter, link)
    except _OutOfTime:
        return counter.verdict(False, "out of time")
    except (Malformed, Unsendable) as error:
        raise Malformed(str(error)) from error
    except (_Stop, ProgramEnded) as error:
        return counter.verdict(False, str(error))
    except BaseException as error:
        return counter.verdict(False, f"{type(error).__name__}: {error}"[:SHOWN_CHARS])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return counter.verdict(True, "")


def _trusted_names(job: dict[str, Any]) -> dict[str, Any]:
    """Names that the tests get from the data set's own prompt: imports and helper functions."""
    names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    sys.modules["tests"] = types.ModuleType("tests")
    if job["prompt"]:
        try:
            exec(compile(job["prompt"], "prompt.py", "exec"), names)
        except Exception as error:
            raise Malformed(f"the prompt does not run: {type(error).__name__}: {error}") from error
        names.pop(job["entry_point"] or "", None)
    return names


def _instrumented(tests: str) -> tuple[ast.Module, int]:
    """The tests with every assertion counted, and the number of places that can fail."""
    try:
        tree = ast.parse(tests, "tests.py")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Malformed(f"the tests do not compile: {type(error).__name__}: {error}") from error
    uncalled = {} if "globals()" in tests else _uncalled(tree)
    idle = {id(node) for each in uncalled.values() if not _is_started(each) for node in ast.walk(each)}
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert) and id(node) not in idle]
    sites = sum(not isinstance(node.test, ast.Constant) for node in asserts)
    bases = [ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    raises = any(isinstance(node, ast.Raise) and id(node) not in idle for node in ast.walk(tree))
    others = raises or any("TestCase" in base for base in bases)
    if not sites and not others:
        raise Malformed(f"the tests hold no assertion{' that is ever reached' if idle else ''}")
    return ast.fix_missing_locations(_CountAssertions().visit(tree)), sites


def _require_imports(tree: ast.Module) -> None:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            try:
                exec(compile(ast.Module([node], []), "tests.py", "exec"), {})
            except Exception as error:
                raise Malformed(
                    f"`{ast.unparse(node)}` fails in the sandbox: {error}. S2L_SANDBOX_PACKAGES has folders of packages"
                ) from error


def _uncalled(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """Functions of the tests that nothing in the tests names."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name not in read}


def _is_started(function: ast.FunctionDef) -> bool:
    """Whether an uncalled function is called all the same: ``check``, and tests as pytest collects them."""
    return function.name == "check" or (function.name.startswith("test") and not ast.unparse(function.args))


class _CountAssertions(ast.NodeTransformer):
    """``assert x`` becomes: try it, count it, and continue."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if isinstance(node.test, ast.Constant):
            return node
        tried = ast.parse(COUNTED.format(shown=ast.unparse(node)[:SHOWN_CHARS])).body[0]
        assert isinstance(tried, ast.Try)
        tried.body = [node]
        return ast.copy_location(tried, node)


def _run_tests(
    job: dict[str, Any], code: types.CodeType, tree: ast.Module, names: dict[str, Any], counter: Counter, link: Link
) -> None:
    try:
        link.reply()  # its own code has run
    except Exception as error:
        raise ProgramEnded(f"the program does not load: {type(error).__name__}: {error}"[:SHOWN_CHARS]) from error
    modules = _used_as_modules(tree)
    for name in sorted(_free_names(code) - names.keys()):
        _bind(name, names, link, modules)
    exec(code, names)
    entry, uncalled = job["entry_point"], _uncalled(tree)
    if entry or "check" in uncalled:
        names["check"](_find(link, entry) if entry else link.ask(do="last"))
    for name, function in uncalled.items():
        if name != "check" and _is_started(function):
            names[name]()
    _run_unit_tests(names, counter)
    if not counter.sites and not counter.passed and not counter.failed:
        counter.right()


def _defines_check(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)


def _free_names(code: types.CodeType) -> set[str]:
    """Names that the tests read but never define."""
    read, defined = set(), set(dir(builtins))
    for each in _all_codes(code):
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(step.argval)
            elif step.opname == "STORE_GLOBAL" or (step.opname == "STORE_NAME" and each is code):
                defined.add(step.argval)
    return read - defined


def _all_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_codes(constant)


def _used_as_modules(tree: ast.Module) -> set[str]:
    """Names of standard modules that the tests only ever use as ``name.attribute``."""
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    owners = {id(node.value): node.value.id for node in attributes if isinstance(node.value, ast.Name)}
    plain = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in owners}
    return (set(owners.values()) - plain) & sys.stdlib_module_names


def _bind(name: str, names: dict[str, Any], link: Link, modules: set[str]) -> None:
    """Give the tests a name they do not define: from the standard library if it can be, else from the program."""
    if name in modules:
        names[name] = importlib.import_module(name)
    elif name in TYPING:
        names[name] = getattr(typing, name)
    else:
        found = _find(link, name, optional=True)
        if found is not None:
            names[name] = found


def _find(link: Link, name: str, optional: bool = False) -> Any:
    try:
        found = link.ask(do="find", name=name)
    except NameError as error:
        if optional:
            return None
        raise ProgramEnded(str(error)) from error
    if isinstance(found, Remote):
        found.__dict__["__name__"] = name
    return found


def _run_unit_tests(names: dict[str, Any], counter: Counter) -> None:
    cases = [each for each in names.values() if isinstance(each, type) and issubclass(each, unittest.TestCase)]
    for case in cases:
        for name in unittest.defaultTestLoader.getTestCaseNames(case):
            test = case(name)
            result = unittest.TestResult()
            test.run(result)
            if result.wasSuccessful() and not result.skipped:
                counter.right()
                continue
            try:
                raise AssertionError(str([*result.failures, *result.errors][:1])[-SHOWN_CHARS:])
            except AssertionError:
                counter.wrong(test.id())
