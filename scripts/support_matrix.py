"""Write docs/support.md: what of verl works with which method. ``make docs-support``.

Every cell is composed: the column's recipe with the row's settings goes through the checks of ``s2l check``. A cell is
*tested* when an end-to-end launch (``LAUNCHES`` of a module in tests/e2e) composes to both the row and the column.
"""

from __future__ import annotations

import ast
import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from s2l_ext.errors import S2LError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import S2LConfig, parse_s2l
from s2l_ext.training.rules import check_against_verl
from s2l_ext.training.verl_rules import check_columns

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "support.md"
E2E = ROOT / "tests" / "e2e"
ACTOR, ROLLOUT, MODEL = ("actor_rollout_ref." + part for part in ("actor", "rollout", "model"))
ATTENTION = f"{MODEL}.override_config.attn_implementation"
CORRECTION = "algorithm.rollout_correction"
TESTED, COMPOSES, REFUSED = "✓", "○", "✗"

Holds = Callable[[DictConfig, S2LConfig], bool]


@dataclass(frozen=True)
class Column:
    """A method: a recipe that has it, and whether a configuration has it."""

    name: str
    recipe: str
    holds: Callable[[S2LConfig], bool]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A part of verl: what switches it on. ``needs`` is set beside it and is no part of it; ``holds`` says when a
    configuration has it, by default when it has ``settings``; ``columns`` are the data's, beyond verl's own;
    ``overrides`` are for Hydra."""

    name: str
    settings: dict[str, Any]
    needs: dict[str, Any] = field(default_factory=dict)
    holds: Callable[[DictConfig], bool] | None = None
    columns: frozenset[str] = frozenset()
    accelerator: bool = False
    overrides: tuple[str, ...] = ()

    def of(self, cfg: DictConfig) -> bool:
        if self.holds is not None:
            return self.holds(cfg)
        return all(OmegaConf.select(cfg, key) == value for key, value in self.settings.items())


@dataclass(frozen=True)
class Launch:
    """What an end-to-end test starts, and the test that speaks for it."""

    test: str
    cfg: DictConfig
    s2l: S2LConfig
    rows: dict[str, str]


def _only(name: str) -> Callable[[S2LConfig], bool]:
    return lambda s2l: getattr(s2l, name) is not None


def _all(s2l: S2LConfig) -> bool:
    return None not in (s2l.explorer, s2l.guidance, s2l.curriculum, s2l.kl)


GUIDANCE = {"alpha": 0.5, "min_continuation": 16, "length": {"initial": 40, "max_length": 48}}
COLUMNS = (
    Column("GRPO", "grpo/toy", lambda s2l: not s2l.any_method_on),
    Column("explorer, live", "s2l_po/toy", _only("live_explorer")),
    Column("explorer, offline", "s2l_po/toy_offline", _only("offline_explorer"), {"s2l.explorer.store": "STORE"}),
    Column("guidance", "g2rpo_a/toy", _only("guidance")),
    Column("curriculum", "expo/toy", _only("curriculum"), {"s2l.kl": None, f"{ACTOR}.use_kl_loss": False}),
    Column("kl", "expo/toy", _only("kl"), {"s2l.curriculum": None}),
    Column("distill", "sparse_to_dense/stages/opd", _only("distill")),
    Column("all together", "combined/expo_s2l", _all, {"s2l.guidance": GUIDANCE}),
)

TOKENS = {
    f"{ACTOR}.ppo_max_token_len_per_gpu": 4096,
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu": 4096,
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": 4096,
}
TWO_GPUS = {"trainer.n_gpus_per_node": 2, "ray_kwargs.ray_init.num_gpus": 3}
SINGLE_TURN = {f"{ROLLOUT}.agent.default_agent_loop": "single_turn_agent"}


def _strategy(name: str) -> dict[str, Any]:
    return {f"{ACTOR}.strategy": name, "actor_rollout_ref.ref.strategy": name}


MEGATRON = (
    "model_engine=megatron",
    *(f"~actor_rollout_ref.{role}.fsdp_config" for role in ("actor", "ref")),
    *(f"actor_rollout_ref.{role}.strategy=megatron" for role in ("actor", "ref")),
)


def _several_updates(cfg: DictConfig) -> bool:
    actor = cfg.actor_rollout_ref.actor
    return actor.ppo_epochs > 1 and actor.ppo_mini_batch_size < cfg.data.train_batch_size


ROWS = (
    Row("FSDP2", _strategy("fsdp2")),
    Row("FSDP1 (`strategy: fsdp`)", _strategy("fsdp")),
    Row("Megatron", _strategy("megatron"), accelerator=True, overrides=MEGATRON),
    Row("LoRA, `model.lora_rank`", {f"{MODEL}.lora_rank": 8}),
    Row("LoRA, `model.lora.rank`, with FSDP", {f"{MODEL}.lora.rank": 8}),
    Row(
        "LoRA, `model.lora.rank`, with Megatron",
        {f"{MODEL}.lora.rank": 8, f"{ACTOR}.strategy": "megatron"},
        _strategy("megatron"),
        accelerator=True,
        overrides=MEGATRON,
    ),
    Row("tensor parallel rollout", {f"{ROLLOUT}.tensor_model_parallel_size": 2}, TWO_GPUS, accelerator=True),
    Row(
        "ulysses sequence parallel",
        {f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": 2},
        {**TWO_GPUS, f"{MODEL}.use_remove_padding": True, ATTENTION: "flash_attention_2"},
        accelerator=True,
    ),
    Row("`use_remove_padding`", {f"{MODEL}.use_remove_padding": True}),
    Row("`use_dynamic_bsz`", {f"{ACTOR}.use_dynamic_bsz": True}, TOKENS),
    Row(
        "`ppo_epochs` 2, two mini-batches",
        {f"{ACTOR}.ppo_epochs": 2, f"{ACTOR}.ppo_mini_batch_size": 8},
        {"data.train_batch_size": 16},
        _several_updates,
    ),
    *(
        Row(f"loss `{mode}`", {f"{ACTOR}.loss_agg_mode": mode})
        for mode in ("token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
    ),
    Row("clip-higher", {f"{ACTOR}.clip_ratio_high": 0.28}),
    Row("entropy term", {f"{ACTOR}.entropy_coeff": 0.01}),
    Row("`norm_adv_by_std_in_grpo` false", {"algorithm.norm_adv_by_std_in_grpo": False}),
    Row("`filter_groups`", {"algorithm.filter_groups.enable": True, "algorithm.filter_groups.metric": "acc"}),
    Row("rollout correction: bypass", {f"{CORRECTION}.bypass_mode": True}),
    Row("rollout correction: IS", {f"{CORRECTION}.rollout_is": "token", f"{CORRECTION}.rollout_is_threshold": 2.0}),
    Row(
        "rollout correction: RS",
        {f"{CORRECTION}.rollout_rs": "seq_mean_k1"},
        {f"{CORRECTION}.rollout_rs_threshold": "0.5_2.0"},
    ),
    Row("SGLang", {f"{ROLLOUT}.name": "sglang"}, accelerator=True),
    Row("tool agent, several turns", {f"{ROLLOUT}.agent.default_agent_loop": "tool_agent"}),
    Row("images in prompts (VLM)", {}, columns=frozenset({"images"}), holds=lambda cfg: False, accelerator=True),
    Row("MoE", {}, holds=lambda cfg: False, accelerator=True),
    Row("FP8 rollouts", {f"{ROLLOUT}.quantization": "fp8"}, accelerator=True),
    Row("mode `sync`", {}, holds=lambda cfg: cfg.trainer.v1.trainer_mode in ("s2l", "sync")),
    Row("mode `colocate_async`", {"trainer.v1.trainer_mode": "colocate_async"}, SINGLE_TURN),
    Row(
        "mode `separate_async`",
        {"trainer.v1.trainer_mode": "separate_async"},
        {
            **SINGLE_TURN,
            "trainer.v1.separate_async.parameter_sync_step": 1,
            "actor_rollout_ref.hybrid_engine": False,
            f"{ROLLOUT}.nnodes": 1,
            f"{ROLLOUT}.n_gpus_per_node": 1,
            f"{ROLLOUT}.checkpoint_engine.backend": "s2l_cpu",
            "ray_kwargs.ray_init.num_gpus": 3,
        },
    ),
    Row("resume after kill -9", {"trainer.save_freq": 1}, holds=lambda cfg: False),
    Row("fused kernels", {f"{MODEL}.use_fused_kernels": True}, accelerator=True),
    Row("Liger kernels", {f"{MODEL}.use_liger": True}, accelerator=True),
    Row(
        "own agent-loop manager",
        {f"{ROLLOUT}.agent.agent_loop_manager_class": "my.package.Manager"},
        holds=lambda cfg: cfg.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class") is not None,
    ),
    Row("own reward manager", {"reward.reward_manager.name": "dapo"}),
)


# ---- composing ----------------------------------------------------------------------------------------------------

_composed: dict[tuple[str, tuple[str, ...]], bytes] = {}


def composed(recipe: str, overrides: tuple[str, ...] = ()) -> DictConfig:
    """A copy of the composed recipe; pickle copies faster than Hydra composes."""
    key = (recipe, overrides)
    if key not in _composed:
        _composed[key] = pickle.dumps(compose_config(recipe, list(overrides)))
    return pickle.loads(_composed[key])  # noqa: S301


def cell_config(row: Row, column: Column) -> DictConfig:
    """The column's recipe with the row's settings."""
    cfg = composed(column.recipe, row.overrides)
    with open_dict(cfg):
        for key, value in {**column.settings, **row.needs, **row.settings}.items():
            OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def message_of(row: Row, column: Column) -> str | None:
    """What the checks say against a cell; None when they let it pass."""
    cfg = cell_config(row, column)
    try:
        s2l = parse_s2l(cfg.s2l)
        check_against_verl(s2l, cfg)
        check_columns(row.columns, s2l, cfg)
    except S2LError as error:
        return str(error)
    return None


# ---- tests --------------------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"s2l_matrix_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launches() -> list[Launch]:
    """Every launch that a module in tests/e2e declares, composed.

    Raises:
        LookupError: it names a test that is not there, or one that does not use the launch's fixture.
    """
    small_run = load(E2E / "conftest.py").SMALL_RUN
    found = []
    for path in sorted(E2E.glob("test_*.py")):
        tests = _fixtures_of_tests(path)
        if "LAUNCHES" not in path.read_text():
            continue
        for one in load(path).LAUNCHES:
            for name in (one["shown_by"], *one.get("rows", {}).values()):
                if one["fixture"] not in tests.get(name, ()):
                    raise LookupError(f"{path.name}: LAUNCHES names {name}, which does not use {one['fixture']}")
            cfg = composed(one["recipe"], (*small_run, *one["overrides"]))
            node = f"tests/e2e/{path.name}::"
            rows = {row: node + test for row, test in one.get("rows", {}).items()}
            found.append(Launch(node + one["shown_by"], cfg, parse_s2l(cfg.s2l), rows))
    return found


def _fixtures_of_tests(path: Path) -> dict[str, set[str]]:
    """Test functions of a module and the arguments that each one takes."""
    tree = ast.parse(path.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: {argument.arg for argument in node.args.args} for node in functions}


def test_of(row: Row, column: Column, known: list[Launch]) -> str | None:
    """The first launch with both; a launch can name a test of its own for a row."""
    for launch in known:
        if column.holds(launch.s2l) and (row.of(launch.cfg) or row.name in launch.rows):
            return launch.rows.get(row.name, launch.test)
    return None


# ---- the page -----------------------------------------------------------------------------------------------------


@dataclass
class Notes:
    """Footnotes: each text once, numbered in the order of its first use."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def cell(row: Row, column: Column, known: list[Launch], tests: Notes, refusals: Notes) -> str:
    test, message = test_of(row, column, known), message_of(row, column)
    if test is not None and message is not None:
        raise LookupError(f"{row.name}, {column.name}: {test} runs what is refused: {message}")
    if message is not None:
        return f"{REFUSED} [r{refusals.number(message)}](#refusals)"
    return f"{COMPOSES}" if test is None else f"{TESTED} [t{tests.number(test)}](#tests)"


HEAD = """# What works with what

Generated by `make docs-support`.
A test composes every cell again and fails when this page differs.

| mark | meaning |
|---|---|
| {tested} | tested: an end-to-end test runs this combination on real Ray, FSDP and vLLM; the note names the test |
| {composes} | composes, untested: the checks of `s2l check` accept it, and no test runs it |
| {refused} | refused before any model loads; the note is the message |

A test may run several methods at once; its mark then stands in the column of each.
"All together" is explorer, guidance, curriculum and KL in one run.
`s2l.distill` replaces the policy gradient and cannot be combined with `s2l.kl`.
Rows marked * need an accelerator or more than this package's CPU build has, so no test here can run them.
"""


def page() -> str:
    """The whole document."""
    known, tests, refusals = launches(), Notes(), Notes()
    lines = [HEAD.format(tested=TESTED, composes=COMPOSES, refused=REFUSED)]
    lines += ["| verl | " + " | ".join(column.name for column in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in ROWS:
        cells = [cell(row, column, known, tests, refusals) for column in COLUMNS]
        lines.append(f"| {row.name}{' *' if row.accelerator else ''} | " + " | ".join(cells) + " |")
    lines += ["", "## Tests", "", *(f"- t{number}: `{text}`" for number, text in enumerate(tests.texts, 1))]
    lines += ["", "## Refusals", ""]
    lines += [f"- r{number}: {_plain(text)}" for number, text in enumerate(refusals.texts, 1)]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def untested() -> Iterator[tuple[str, str]]:
    """Cells that this machine could test and no test does."""
    known = launches()
    for row in ROWS:
        for column in COLUMNS:
            if not row.accelerator and test_of(row, column, known) is None and message_of(row, column) is None:
                yield row.name, column.name


def main() -> int:
    PAGE.write_text(page())
    for row, column in untested():
        print(f"untested: {row}, {column}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
