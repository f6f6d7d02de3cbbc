"""The ``s2l:`` block: defaults are the paper, and every refusal names key, value and way out."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from s2l_ext import errors
from s2l_ext.config.parse import defaults, valid_keys
from s2l_ext.errors import ConfigError
from s2l_ext.methods.curriculum.config import AnyCurriculum, FileOrderConfig, GaussianConfig, OwnCurriculumConfig
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.explorer.config import AnyExplorer, LiveExplorer, OfflineExplorer
from s2l_ext.methods.guidance.config import AnyLength, GuidanceConfig
from s2l_ext.methods.kl.config import AccuracyKLConfig, AnyKL
from s2l_ext.methods.registry import PlacementConfig, RolloutOptions, S2LConfig, parse_s2l


def explorer(**settings):
    return {"explorer": {"model_path": "small", **settings}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mix_steps", 8),
        ("temperature", 0.7),
        ("top_p", 0.95),
        ("top_k", -1),
        ("baseline", "union"),
        ("correction", "none"),
        ("is_cap", 2.0),
        ("placement", "dedicated"),
        ("nnodes", 1),
        ("n_gpus_per_node", 1),
        ("tensor_model_parallel_size", 1),
        ("rollout_overrides", {}),
    ],
)
def test_explorer_defaults_are_the_paper(name, value):
    assert getattr(parse_s2l(explorer()).explorer, name) == value


@pytest.mark.parametrize("block", [None, {}, {"explorer": None}, OmegaConf.create({})])
def test_everything_is_off_by_default(block):
    assert parse_s2l(block) == S2LConfig(explorer=None, rollout=RolloutOptions(poll_interval_s=None))


def test_values_reach_the_dataclass_and_come_back():
    block = {**explorer(mix_steps=4, rollout_overrides={"max_num_seqs": 8}), "rollout": {"poll_interval_s": 1}}
    parsed = parse_s2l(OmegaConf.create(block))
    assert (parsed.explorer.mix_steps, parsed.explorer.rollout_overrides) == (4, {"max_num_seqs": 8})
    assert parsed.rollout.poll_interval_s == 1.0 and isinstance(parsed.rollout.poll_interval_s, float)
    assert parse_s2l(parsed.to_dict()) == parsed


def test_the_block_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_s2l(explorer()).explorer.mix_steps = 3


@pytest.mark.parametrize(
    ("block", "key", "suggestion"),
    [
        (explorer(mix_step=8), "s2l.explorer.mix_step", "'s2l.explorer.mix_steps'"),
        (explorer(temprature=1), "s2l.explorer.temprature", "'s2l.explorer.temperature'"),
        ({"explorr": {}}, "s2l.explorr", "'s2l.explorer'"),
        ({"mix_steps": 8}, "s2l.mix_steps", "'s2l.explorer.mix_steps'"),
        ({"rollout": {"poll_interval": 1}}, "s2l.rollout.poll_interval", "'s2l.rollout.poll_interval_s'"),
    ],
)
def test_unknown_key_suggests_the_nearest(block, key, suggestion):
    with pytest.raises(ConfigError) as refusal:
        parse_s2l(block)
    assert str(refusal.value).startswith(f"{key}: unknown key. Did you mean {suggestion}?")


def test_unknown_key_without_a_neighbour_lists_the_keys():
    with pytest.raises(ConfigError, match=r"s2l\.explorer\.zzz: unknown key\. Keys of s2l\.explorer: source, "):
        parse_s2l(explorer(zzz=1))


@pytest.mark.parametrize("block", [{"explorer": {}}, explorer(model_path="???"), {"explorer": {"mix_steps": 3}}])
def test_missing_model_path(block):
    with pytest.raises(ConfigError, match=r"s2l\.explorer\.model_path is missing"):
        parse_s2l(OmegaConf.create(block))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mix_steps", "8"),
        ("mix_steps", 8.5),
        ("mix_steps", True),
        ("mix_steps", None),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("is_cap", float("inf")),
        ("model_path", 17),
        ("rollout_overrides", [1]),
    ],
)
def test_wrong_type_names_key_and_type(name, value):
    with pytest.raises(ConfigError, match=rf"s2l\.explorer\.{name}=.* has the wrong type \({type(value).__name__}\)"):
        parse_s2l(explorer(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("mix_steps", 0, ">= 1"),
        ("mix_steps", -3, ">= 1"),
        ("temperature", -0.1, ">= 0"),
        ("top_p", 0, "> 0 and <= 1"),
        ("top_p", 1.01, "> 0 and <= 1"),
        ("top_k", -2, ">= -1"),
        ("is_cap", 0, "> 0"),
        ("nnodes", 0, ">= 1"),
        ("n_gpus_per_node", 0, ">= 1"),
        ("tensor_model_parallel_size", 0, ">= 1"),
    ],
)
def test_out_of_range_names_the_range(name, value, range_):
    with pytest.raises(ConfigError) as refusal:
        parse_s2l(explorer(**{name: value}))
    assert str(refusal.value).startswith(f"s2l.explorer.{name}={value!r} is out of range")
    assert f"must be {range_}." in str(refusal.value)


@pytest.mark.parametrize(("name", "value"), [("temperature", 0), ("top_p", 1), ("top_k", -1), ("mix_steps", 1)])
def test_the_ends_of_a_range_are_allowed(name, value):
    assert getattr(parse_s2l(explorer(**{name: value})).explorer, name) == value


def test_poll_interval_must_be_positive():
    with pytest.raises(ConfigError, match=r"s2l\.rollout\.poll_interval_s=0 is out of range: it must be > 0"):
        parse_s2l({"rollout": {"poll_interval_s": 0}})


def test_bad_choice_lists_the_choices():
    with pytest.raises(ConfigError, match=r"Choose from: union, per_source. Did you mean 'per_source'"):
        parse_s2l(explorer(baseline="per-source"))


@pytest.mark.parametrize("block", [{"explorer": "small"}, {"rollout": 3}, "s2l"])
def test_a_block_must_be_a_mapping(block):
    with pytest.raises(ConfigError, match="must be a block with the keys"):
        parse_s2l(block)


def test_an_interpolation_that_cannot_be_resolved_is_one_line():
    block = OmegaConf.create({"explorer": {"model_path": "${oc.env:S2L_NO_SUCH_VARIABLE}"}})
    with pytest.raises(ConfigError, match="S2L_NO_SUCH_VARIABLE") as refusal:
        parse_s2l(block)
    assert "\n" not in str(refusal.value)


def test_valid_keys_cover_nested_blocks():
    keys = set(valid_keys(S2LConfig, "s2l"))
    assert {"s2l.explorer", "s2l.explorer.is_cap", "s2l.rollout.poll_interval_s"} <= keys
    blocks = (S2LConfig, GuidanceConfig, DistillConfig, RolloutOptions, PlacementConfig)
    fields = [item for block in blocks for item in dataclasses.fields(block) if not item.metadata.get("internal")]
    variants = (AnyExplorer, AnyKL, AnyCurriculum, AnyLength)
    assert len(keys) == len(fields) + sum(len(defaults(variant)) for variant in variants)


# ---- variants of a block ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"explorer": {"model_path": "small"}}, LiveExplorer),
        ({"explorer": {"source": "offline", "store": "DIR"}}, OfflineExplorer),
        ({"kl": {}}, AccuracyKLConfig),
        ({"kl": {"type": "???"}}, AccuracyKLConfig),
        ({"curriculum": {}}, GaussianConfig),
        ({"curriculum": {"type": "file_order"}}, FileOrderConfig),
        ({"curriculum": {"type": "pkg.module:Mine"}}, OwnCurriculumConfig),
    ],
)
def test_the_tag_chooses_the_variant_and_has_a_default(block, kind):
    (config,) = parse_s2l(block).blocks.values()
    assert type(config) is kind
    assert parse_s2l(parse_s2l(block).to_dict()) == parse_s2l(block)


def refused(block):
    with pytest.raises(ConfigError) as refusal:
        parse_s2l(block)
    return str(refusal.value)


def test_a_key_of_another_variant_is_refused_with_its_owners_and_what_to_drop():
    length = {"type": "linear", "window": 2, "min_length": 1}  # window has its default: the key does not exist
    assert refused({"guidance": {"length": length}}) == (
        "s2l.guidance.length.window: type=linear does not have this key, type=adaptive or additive does. Leave it out; "
        "if the recipe sets it, add ~s2l.guidance.length.window ~s2l.guidance.length.min_length. "
        "Keys of s2l.guidance.length: type, initial, max_length."
    )


def test_a_misspelt_type_of_an_open_block_is_guessed_although_its_keys_are_anothers():
    message = refused({"curriculum": {"type": "gausian", "sigma": 0.2}})
    assert "type=gausian does not have this key, type=gaussian does. Did you mean 'gaussian'?" in message


def test_a_misspelt_key_of_a_variant_is_guessed():
    message = refused({"kl": {"type": "adaptive_target", "targt": 0.1}})
    assert message.startswith("s2l.kl.targt: unknown key. Did you mean 's2l.kl.target'?")


def test_an_unknown_type_lists_the_choices():
    choices = "adaptive, additive, constant, linear, concave, stepwise. Did you mean 'linear'?"
    assert refused({"guidance": {"length": {"type": "linaer"}}}).endswith(f"Choose from: {choices}")


@pytest.mark.parametrize("store", [{}, {"store": None}])
def test_a_key_that_a_variant_needs_says_what_it_is(store):
    assert refused({"explorer": {"source": "offline", **store}}) == (
        "s2l.explorer.store is missing: it has no default. Set it to a folder that `s2l explore --out DIR` wrote."
    )


@pytest.mark.parametrize("name", ["ConfigError", "DataError", "TokenizerMismatch", "ResourceError", "StateMismatch"])
def test_errors_survive_pickling(name):
    error = getattr(errors, name)("what, where and how to fix it")
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error) and str(copied) == str(error)
    assert isinstance(copied, errors.S2LError)


@pytest.mark.slow
def test_configuration_and_schedule_import_nothing_heavy():
    code = (
        "import sys, s2l_ext.training.rules, s2l_ext.launch.plan_summary, s2l_ext.config.model_files, "
        "s2l_ext.methods.explorer.schedule; "
        "sys.exit(', '.join({'verl', 'ray', 'torch', 'vllm'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
