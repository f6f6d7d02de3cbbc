"""A method from outside the package: found by its entry point, checked, and called as the built-in ones are."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from s2l_ext.errors import ConfigError
from s2l_ext.methods import brought
from s2l_ext.methods.base import Method
from s2l_ext.methods.registry import METHODS, S2LConfig, methods_of, parse_s2l
from s2l_ext.training.controller_state import fingerprint
from s2l_ext.training.rules import check_against_verl

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_a_method"
HERE = __name__


@pytest.fixture(scope="module")
def example(module_at) -> ModuleType:
    return module_at(EXAMPLE / "advantage_scale.py", "advantage_scale")


@pytest.fixture
def installed(monkeypatch) -> Callable[..., None]:
    """``installed(name="module:Class")``: what an installed package would say."""

    def say(*pairs: tuple[str, str]) -> None:
        points = [EntryPoint(name, value, brought.GROUP) for name, value in pairs]
        monkeypatch.setattr(brought, "entry_points", lambda group: points)
        brought.own_methods.cache_clear()

    yield say
    brought.own_methods.cache_clear()


@pytest.fixture
def scale(example, installed, configured) -> Any:
    installed(("advantage_scale", "advantage_scale:AdvantageScale"))
    cfg = configured("grpo/toy")
    (method,) = methods_of(parse_s2l({"advantage_scale": {"ema": 0.75, "floor": 0.5}}), cfg)
    return method


@pytest.mark.slow
def test_its_block_is_parsed_checked_and_guarded(scale, configured):
    s2l, cfg = parse_s2l({"advantage_scale": {"ema": 0.75}, "kl": {"beta": 0.01}}), configured("grpo/toy")
    assert list(s2l.blocks) == ["kl", "advantage_scale"] and s2l.any_method_on
    assert parse_s2l(s2l.to_dict()) == s2l
    settings = fingerprint(s2l, cfg)
    assert settings["advantage_scale.ema"] == 0.75 and settings["advantage_scale.floor"] == 0.05
    with pytest.raises(ConfigError, match=r"s2l\.advantage_scale\.ema=1\.0 is out of range"):
        parse_s2l({"advantage_scale": {"ema": 1.0}})
    with pytest.raises(ConfigError, match=r"s2l\.advantage_scale\.emma: unknown key"):
        parse_s2l({"advantage_scale": {"emma": 0.5}})
    assert parse_s2l({"advantage_scale": None}) == S2LConfig()


def test_its_rule_speaks(scale, configured):
    block = {"advantage_scale": {}, "distill": {"teacher_path": "t"}}
    with pytest.raises(ConfigError, match="its loss reads no advantages"):
        check_against_verl(parse_s2l(block), configured("sparse_to_dense/stages/opd"))


def test_without_the_package_its_block_is_unknown(installed):
    installed()
    with pytest.raises(ConfigError, match=r"s2l\.advantage_scale: unknown key"):
        parse_s2l({"advantage_scale": {}})


# ---- what is refused --------------------------------------------------------------------------------------------


class NoMethod:
    pass


class OtherName(Method):
    block, config_class = "another", S2LConfig


class NoConfig(Method):
    block, config_class = "mine", dict


class LacksAnArgument(Method):
    block, config_class = "mine", S2LConfig

    def metrics(self):
        return {}


class WrongType(Method):
    block, config_class = "mine", S2LConfig

    def check(self):
        return "fine"


class TakenBlock(Method):
    block, config_class = "kl", S2LConfig


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("mine", "nowhere:Mine", "it cannot be imported .*Install it anew"),
        ("mine", f"{HERE}:NoMethod", "it is no class of s2l_ext.methods.base.Method. Make it a subclass"),
        ("mine", f"{HERE}:OtherName", "OtherName in .*block is 'another', the entry point's name is 'mine'"),
        ("mine", f"{HERE}:NoConfig", "NoConfig in .*config_class is .*Set it to a dataclass"),
        ("mine", f"{HERE}:LacksAnArgument", r"metrics\(self\) is called as metrics\(self, step\)\. Give it these"),
        ("kl", f"{HERE}:TakenBlock", r"the block s2l\.kl is taken\. Give the method another name"),
        ("rollout", f"{HERE}:TakenBlock", r"the block s2l\.rollout is taken"),
    ],
)
def test_a_wrong_method_is_one_message(installed, name, kind, words):
    sys.modules[HERE] = sys.modules.get(HERE) or sys.modules[NoMethod.__module__]
    installed((name, kind))
    with pytest.raises(ConfigError, match=words) as refused:
        parse_s2l({})
    assert "\n" not in str(refused.value)


def test_two_packages_with_one_name_are_refused(installed):
    installed(("mine", f"{HERE}:WrongType"), ("mine", f"{HERE}:NoMethod"))
    with pytest.raises(ConfigError, match=r"the block s2l\.mine is taken"):
        parse_s2l({})


def test_a_hook_that_returns_another_type_is_named(configured):
    method = WrongType(S2LConfig(), S2LConfig(), configured("grpo/toy"))
    with pytest.raises(ConfigError, match=r"WrongType in .*test_own_method\.py: check returned str\. It must return"):
        brought.checked_value(method, "check", method.check(), list)


def test_the_order_of_hooks_is_fixed():
    """Guidance takes the rollouts that the explorer left; a loss in place of the policy gradient wraps nothing else."""
    assert list(METHODS) == ["explorer", "guidance", "curriculum", "kl", "distill"]
