"""The command line: help at once, one message and exit code 2 for a refusal, a plan before a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml

from s2l_ext import __version__, cli
from s2l_ext.errors import ConfigError
from s2l_ext.launch import train
from s2l_ext.launch.plan_summary import render
from s2l_ext.training import before_run, registration

PRETENDED_CHECKS = ("check_own_pool", "check_before_run", "activate_for", "_ask_verl")


@pytest.fixture
def quick(monkeypatch, composed_once):
    """No recipe is composed twice."""
    monkeypatch.setattr(train, "compose_config", composed_once)


@pytest.fixture
def no_machine(monkeypatch, quick):
    """Neither models nor verl are looked at; everything before and after is real."""
    monkeypatch.setattr(before_run, "check_inputs", lambda cfg, s2l: ["the weather is bad"])
    monkeypatch.setattr(train, "check_own_pool", lambda cfg, s2l: None)
    monkeypatch.setattr(train, "activate_for", lambda cfg: "cpu")
    monkeypatch.setattr(train, "_ask_verl", lambda cfg: print("verl talks"))


def test_help_lists_the_commands_that_exist(capsys):
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in (
        "train",
        "check",
        "data toy",
        "data gsm8k",
        "data openr1",
        "data humaneval",
        "data jsonl",
        "demo",
        "doctor",
        "report",
        "eval",
        "explore",
        "compare",
        "diversity",
        "pipeline",
        "submit",
    ):
        assert f"s2l {name} " in listed


@pytest.mark.slow
@pytest.mark.parametrize("words", ["", "train", "check", "submit", "compare", "doctor"])
def test_help_imports_nothing_heavy(words):
    code = (
        f"import sys, contextlib; from s2l_ext.cli import main\nwith contextlib.suppress(SystemExit): "
        f"main([*{words.split()}, '--help'])\n"
        "heavy = {'verl', 'ray', 'torch', 'hydra', 'numpy', 'pyarrow', 'omegaconf'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 5  # 0.1 s on an idle machine


@pytest.mark.parametrize(
    ("ends_with", "code", "left"),
    [("return 3", 3, ""), ("raise SystemExit(4)", 4, " late"), ("raise ValueError", 1, " late")],
)
def test_the_program_ends_after_what_was_registered_and_before_modules_are_taken_apart(tmp_path, ends_with, code, left):
    (tmp_path / "late.py").write_text(
        "import atexit, os\n"
        "class Late:\n    def __del__(self, write=os.write): write(1, b' late')\n"
        "late = Late()\n"
        "def add_arguments(parser): pass\n"
        f"def main(args):\n    atexit.register(print, ' registered', end='')\n"
        f"    print('said', end='')\n    {ends_with}\n"
    )
    program = (
        "import sys; from s2l_ext import cli\n"
        "cli.COMMANDS = {('late',): cli.Command('', 'late')}\nsys.argv = ['s2l', 'late']\nsys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, f"said registered{left}")


@pytest.mark.parametrize(
    ("before", "said"),
    [("import atexit; atexit.register(print, 'earlier')", "s2l 1earlier\n"), ("sys.stdout = None", "")],
)
def test_the_program_ends_so_beside_what_was_registered_earlier_or_without_streams(before, said):
    program = (
        f"import sys; {before}\nfrom s2l_ext import cli\ncli.__version__ = 1\n"
        "cli.print = lambda text: print(text, end='')\nsys.argv = ['s2l', '--version']\nsys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"s2l {__version__}\n"


@pytest.mark.parametrize("words", [["trane"], ["data", "nothing"], ["studies"]])
def test_unknown_command_lists_the_known(words, capsys):
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert f"no command '{' '.join(words)}'" in message and "s2l train" in message


def test_a_group_alone_lists_its_commands(capsys):
    assert cli.main(["data"]) == 2
    listed = capsys.readouterr().out
    assert "s2l data toy" in listed and "s2l train" not in listed


@pytest.mark.parametrize("command", ["train", "check"])
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert "--config-name" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "check"])
def test_a_missing_model_is_one_message_and_code_2(quick, command, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("S2L_TOY_DIR", str(tmp_path / "toy"))
    assert cli.main([command, "--config-name", "s2l_po/toy"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("s2l: error: actor_rollout_ref.model.path=")
    assert captured.err.count("\n") == 1 and "Run `s2l data toy --out " in captured.err
    assert captured.out == ""


def test_debug_adds_the_traceback(capsys):
    assert cli.main(["check", "--debug", "--config-name", "nothing"]) == 2
    message = capsys.readouterr().err
    assert "Traceback" in message and "s2l: error: --config-name nothing" in message


@pytest.mark.slow
def test_check_prints_plan_and_warnings(no_machine, capsys):
    assert cli.main(["check", "s2l.explorer.mix_steps=4", "--config-name", "s2l_po/toy", "trainer.nnodes=2"]) == 0
    captured = capsys.readouterr()
    assert "8 6 3 0 0" in captured.out and "medium, 2 GPU(s)" in captured.out
    assert captured.err == "s2l: warning: the weather is bad\n"


@pytest.mark.slow
def test_check_json_is_json_alone(no_machine, capsys):
    assert cli.main(["check", "--json", "--config-name", "s2l_po/toy"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"plan", "warnings", "fingerprint", "memory_gib"}
    assert result["memory_gib"] == {}  # made for the CPU
    assert result["warnings"] == ["the weather is bad"]
    assert result["plan"]["explorer"]["slots"][:8] == [8, 7, 6, 5, 4, 3, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["grpo/toy", "s2l_po/toy"])
def test_our_trainer_is_chosen_with_features_off_too(no_machine, recipe):
    assert train.prepare(recipe, []).cfg.trainer.v1.trainer_mode == "s2l"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["colocate_async", "s2l_colocate_async"])
def test_our_trainer_of_the_recipes_mode_is_chosen(no_machine, mode):
    prepared = train.prepare("s2l_po/toy", [f"trainer.v1.trainer_mode={mode}"])
    assert prepared.cfg.trainer.v1.trainer_mode == "s2l_colocate_async"
    assert "colocate_async" in render(prepared.plan)


@pytest.mark.slow
def test_a_joined_clusters_processes_write_where_the_command_was_given(no_machine, monkeypatch, tmp_path):
    """They run in the folder where the cluster was started."""
    monkeypatch.chdir(tmp_path)
    folder = "trainer.default_local_dir=outputs/x"
    assert train.prepare("grpo/toy", [folder]).cfg.trainer.default_local_dir == "outputs/x"
    monkeypatch.setattr(train, "cluster_address", lambda cfg: "auto")
    trainer = train.prepare("grpo/toy", [folder]).cfg.trainer
    assert trainer.default_local_dir == str(tmp_path / "outputs" / "x")
    assert trainer.validation_data_dir == str(tmp_path / "outputs" / "x" / "validation")


@pytest.mark.slow
def test_another_trainer_is_refused(no_machine):
    with pytest.raises(ConfigError, match="trainer_mode=one_step_off.*separate_async"):
        train.prepare("grpo/toy", ["trainer.v1.trainer_mode=one_step_off"])


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["~s2l.explorer"]])
def test_a_recipe_without_an_engine_is_told_what_to_set(no_machine, more):
    with pytest.raises(ConfigError, match=r"Set actor_rollout_ref\.rollout\.name=vllm\."):
        train.prepare("s2l_po/toy", ["actor_rollout_ref.rollout.name='???'", *more])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere.at.all.Manager", "ImportError: Failed to import module 'nowhere.at.all' for AgentLoopManager: "),
        ("s2l_ext.errors.Manger", "AttributeError: Class 'Manger' not found in module 's2l_ext.errors': "),
        ("Manager", "ValueError: Invalid AgentLoopManager 'Manager'. "),
    ],
)
def test_a_manager_that_cannot_be_loaded_is_refused_before_the_models(no_machine, name, why):
    key = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
    with pytest.raises(ConfigError) as refused:
        train.prepare("grpo/toy", [f"+{key}={name}"])
    assert str(refused.value).startswith(f"{key}={name}: this class cannot be loaded ({why}")
    assert str(refused.value).endswith("Write package.module.Class, and put the package's folder on PYTHONPATH.")


def test_platform_is_chosen_first_and_verl_is_asked_last(quick, monkeypatch):
    order: list[str] = []
    for name in PRETENDED_CHECKS:
        result = ([], {}) if name == "check_before_run" else "cpu"
        monkeypatch.setattr(train, name, lambda *_, name=name, result=result: order.append(name) or result)
    train.prepare("grpo/toy", [])
    assert order == ["activate_for", "check_own_pool", "check_before_run", "_ask_verl"]


@pytest.mark.slow
def test_train_stores_the_configuration_and_hands_over_to_verl(no_machine, monkeypatch, tmp_path, capsys):
    given = SimpleNamespace()
    main_ppo = SimpleNamespace(
        TaskRunnerV1="verl's",
        run_ppo=lambda cfg, task_runner_class: given.__dict__.update(cfg=cfg, by=task_runner_class),
    )
    monkeypatch.setitem(sys.modules, "verl.trainer.main_ppo", main_ppo)
    monkeypatch.setattr(registration, "require_registered", lambda where: None)
    command = ["train", "--config-name", "s2l_po/toy", f"trainer.default_local_dir={tmp_path}", "data.seed=7"]
    assert cli.main(command) == 0
    assert "8 7 6 5 4 3 2 0" in capsys.readouterr().out
    stored = yaml.safe_load((tmp_path / "s2l_config.yaml").read_text())
    assert stored["s2l"]["explorer"]["mix_steps"] == 8 and stored["data"]["seed"] == 7
    assert given.by == "verl's" and given.cfg.data.seed == 7 and given.cfg.trainer.v1.trainer_mode == "s2l"


def test_a_refusal_inside_a_worker_is_one_message_too(no_machine, monkeypatch, capsys):
    from ray.exceptions import RayTaskError

    remote = RayTaskError("run", "a long remote traceback", ConfigError("what the trainer says"))

    def fail(prepared):
        raise remote.as_instanceof_cause()

    monkeypatch.setattr(train, "run", fail)
    assert cli.main(["train", "--config-name", "grpo/toy"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "s2l: error: what the trainer says"
