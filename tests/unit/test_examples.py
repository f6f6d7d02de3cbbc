"""examples/own_curriculum works, tested as a curriculum of one's own should be; documents show examples as they are;
the scripts of examples/ray_submit send what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.cli import train
from s2l_ext.cli.submit import check_words
from s2l_ext.config.resolve import resolve
from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.launch.cluster import Node, check_accelerators
from s2l_ext.launch.compose import compose_config
from s2l_ext.launch.job_files import runtime_env
from s2l_ext.methods.curriculum.pass_rates import PassRates
from s2l_ext.methods.registry import accuracy_settings, parse_s2l
from s2l_ext.training.controller_state import load_state, save_state
from s2l_ext.training.rules import check_against_verl

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_curriculum"


@pytest.fixture(scope="module")
def learnability():
    """The module, imported as its README does: through PYTHONPATH."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield pytest.importorskip("learnability")
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.fixture
def seen(learnability):
    """Four prompts whose pass rates are 0, 0.5, 0.8 and 1: ``ema`` 0 keeps the last."""
    curriculum = learnability.Learnability(4, ema=0.0, floor=0.01)
    curriculum.update([0, 1, 2, 3], [0.0, 0.5, 0.8, 1.0])
    return curriculum


def test_weights_by_hand(seen):
    np.testing.assert_allclose(seen.weights(), [0.01, 0.25, 0.16, 0.01])  # 0.8 * 0.2 = 0.16; 0 and 1 take the floor
    assert seen.metrics()["learnability_mean"] == pytest.approx((0.25 + 0.16) / 4)
    assert seen.metrics()["pass_rate_mean"] == pytest.approx(2.3 / 4)


def test_before_the_first_step_every_prompt_is_as_likely(learnability):
    np.testing.assert_allclose(learnability.Learnability(3).weights(), [0.25, 0.25, 0.25])


def test_first_draws_follow_the_weights(seen):
    rng = np.random.default_rng(0)
    first = np.bincount([seen.draw(1, rng)[0] for _ in range(20_000)], minlength=4) / 20_000
    expected = np.array([0.01, 0.25, 0.16, 0.01]) / 0.43
    assert np.abs(first - expected).max() < 4 * np.sqrt(0.25 / 20_000)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.data())
def test_a_step_has_different_prompts_whatever_the_pass_rates(learnability, size, data):
    rates = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    curriculum = learnability.Learnability(size, ema=0.0)
    curriculum.update(range(size), rates)
    n = data.draw(st.integers(1, size))
    drawn = curriculum.draw(n, np.random.default_rng(data.draw(st.integers(0, 9))))
    assert drawn.dtype.kind == "i" and len(set(drawn.tolist())) == n and set(drawn.tolist()) <= set(range(size))


def test_a_resumed_run_draws_the_same_prompts(seen, learnability, tmp_path):
    rng = np.random.default_rng(5)
    seen.draw(2, rng)
    save_state(tmp_path, {}, {"curriculum": {"rng": rng.bit_generator.state, "curriculum": seen.state_dict()}})
    wanted = [seen.draw(2, rng).tolist() for _ in range(5)]
    saved = load_state(tmp_path, {})["curriculum"]
    again, same_rng = learnability.Learnability(4, ema=0.0), np.random.default_rng()
    again.load_state_dict(saved["curriculum"])
    same_rng.bit_generator.state = saved["rng"]
    assert [again.draw(2, same_rng).tolist() for _ in range(5)] == wanted


def test_a_state_of_other_data_is_refused_and_nothing_is_loaded(seen, learnability):
    other = learnability.Learnability(5)
    with pytest.raises(ValueError, match="this data set needs"):
        other.load_state_dict(seen.state_dict())
    with pytest.raises(ValueError, match="has no 'pass_rates'"):
        other.load_state_dict({})
    assert (other.pass_rates.rates == 0.5).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"floor": 0.0}, r"s2l\.curriculum\.options\.floor=0\.0"),
        ({"floor": 0.3}, r"s2l\.curriculum\.options\.floor=0\.3"),
        ({"floor": float("nan")}, r"options\.floor=nan"),
        ({"ema": 1.0}, r"ema=1\.0"),
    ],
)
def test_options_out_of_range_are_refused(learnability, options, words):
    with pytest.raises(ConfigError, match=words):
        learnability.Learnability(4, **options)


def test_the_report_finds_its_pass_rates(seen):
    assert isinstance(seen.pass_rates, PassRates)


# ---- the recipe and the documents -----------------------------------------------------------------------------------


def test_the_recipe_composes_and_passes_the_checks(learnability):
    cfg = compose_config("learnability", [], [EXAMPLE])
    s2l = parse_s2l(cfg.s2l)
    assert check_against_verl(s2l, cfg) == []
    assert s2l.curriculum is not None and s2l.curriculum.options == {"ema": 0.9, "floor": 0.01}
    assert accuracy_settings(s2l, cfg) == ["s2l.curriculum.type=learnability:Learnability"]
    assert resolve(s2l.curriculum.type, "s2l.curriculum.type", ()) is learnability.Learnability


def test_a_wrong_class_is_refused_with_the_nearest_name(learnability):
    cfg = compose_config("learnability", ["s2l.curriculum.type=learnability:Learnable"], [EXAMPLE])
    with pytest.raises(ConfigError, match=r"has no Learnable\. Did you mean 'Learnability'"):
        check_against_verl(parse_s2l(cfg.s2l), cfg)


def test_an_option_of_the_gaussian_is_refused(learnability):
    cfg = compose_config("learnability", ["s2l.curriculum.sigma=0.2"], [EXAMPLE])
    with pytest.raises(ConfigError, match=r"s2l\.curriculum\.sigma: type=learnability:Learnability does not have"):
        check_against_verl(parse_s2l(cfg.s2l), cfg)


METHOD = ROOT / "examples" / "add_a_method"


@pytest.mark.parametrize(
    ("document", "folder", "recipe"),
    [
        (EXAMPLE / "README.md", EXAMPLE, "learnability"),
        (METHOD / "README.md", METHOD, "advantage_scale"),
        (ROOT / "CONTRIBUTING.md", METHOD, "advantage_scale"),
    ],
    ids=["curriculum", "method", "contributing"],
)
def test_the_commands_of_the_documents_can_be_parsed(document, folder, recipe):
    import argparse

    commands = re.findall(r"^s2l (?:check|train) (.+)$", document.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        parser = argparse.ArgumentParser()
        train.add_arguments(parser)
        args = parser.parse_intermixed_args(shlex.split(command, comments=True))
        assert args.config_name == recipe and [ROOT / path for path in args.config_dir] == [folder]


def test_contributing_shows_the_code_as_it_is():
    """The excerpt in CONTRIBUTING.md is copied from the example."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert block is not None
    code = [line.strip() for line in (METHOD / "advantage_scale.py").read_text().splitlines()]
    shown = [line.strip() for line in block[1].splitlines() if line.strip() and line.strip() != "..."]
    assert len(shown) >= 10
    for line in shown:
        assert line in code, line


# ---- examples/ray_submit --------------------------------------------------------------------------------------------

SUBMIT = ROOT / "examples" / "ray_submit"


@pytest.fixture
def shell(tmp_path):
    """Runs a script with stand-ins for the commands of a cluster, which write down how they were called and, if they
    were given a command, run it."""
    calls = tmp_path / "calls.txt"
    for name in ("s2l", "ray", "srun"):
        body = f'printf "%s\\n" "{name} $*" >> {calls}\n'
        body += {"srun": '[ "$1" = --kill-on-bad-exit=1 ] && shift\nexec "$@"\n', "s2l": "", "ray": RAY_STAND_IN}[name]
        write_command(tmp_path / name, body)
    write_command(tmp_path / "scontrol", "printf 'n7\\nn8\\n'\n")

    def run(script: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{tmp_path}:{os.defpath}:/usr/bin:/bin", **variables}
        command = ["bash", str(script)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        done.calls = calls.read_text().splitlines() if calls.exists() else []
        return done

    return run


RAY_STAND_IN = '[ "$1" = get-auth-token ] && exit\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'


def write_command(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}")
    path.chmod(0o755)


def test_submit_sends_the_recipe_and_no_token(shell):
    done = shell(SUBMIT / "submit.sh", RUN="/shared/runs/a", HF_TOKEN="secret", WANDB_API_KEY="secret")
    assert done.returncode == 0, done.stderr
    sent = shlex.split(done.calls[0])
    assert sent[:4] == ["s2l", "submit", "--address", "http://127.0.0.1:8265"]
    assert "--env" not in sent and "secret" not in done.calls[0]
    assert sent[sent.index("--") + 1 :] == [
        "train",
        "--config-name",
        "three_nodes.yaml",
        "trainer.default_local_dir=/shared/runs/a",
    ]


def test_a_run_without_a_folder_is_not_sent(shell):
    done = shell(SUBMIT / "submit.sh")
    assert done.returncode != 0 and "RUN" in done.stderr and done.calls == []


@pytest.mark.parametrize(("node", "pool"), [("0", "learner"), ("1", "learner"), ("2", "explorer")])
def test_slurm_starts_ray_on_every_node_with_its_label_and_submits_the_same(shell, node, pool):
    slurm = {"JOB_NODELIST": "n[7-9]", "NNODES": "3", "SUBMIT_DIR": str(ROOT), "PROCID": node}
    done = shell(SUBMIT / "slurm.sbatch", RUN="/shared/r", **{f"SLURM_{name}": value for name, value in slurm.items()})
    assert done.returncode == 0, done.stderr
    calls = [call for call in done.calls if call.startswith(("ray ", "s2l "))]
    assert calls[0] == "ray get-auth-token --generate"
    started = f"ray symmetric-run --address n7:6379 --min-nodes 3 --num-gpus 8 --labels pool={pool} -- bash"
    assert calls[1].startswith(started)
    assert calls[2] == shell(SUBMIT / "submit.sh", RUN="/shared/r").calls[-1]


def test_what_submit_sends_passes_its_own_checks(monkeypatch, capsys):
    monkeypatch.chdir(SUBMIT)
    environment = runtime_env(Path("runtime_env.yaml"), Path("."), [], {})
    assert environment["env_vars"]["HF_HOME"] == "/shared/huggingface"
    words = ["train", "--config-name", "three_nodes.yaml", "trainer.default_local_dir=/shared/r"]
    check_words(words, environment)
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match=r"data\.train_files=data/dapo-math-17k\.parquet, .* --env S2L_DATA_DIR"):
        check_words(words, {**environment, "env_vars": {}})


def test_the_recipe_fits_the_clusters_of_the_examples(monkeypatch):
    cluster = yaml.safe_load((SUBMIT / "kuberay.yaml").read_text())["spec"]
    nodes = [Node("h" * 56, "head", int(cluster["headGroupSpec"]["rayStartParams"]["num-gpus"]))]
    for group in cluster["workerGroupSpecs"]:
        gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        name = group["groupName"]
        nodes += [Node(f"{name}{n}", f"{name}-{n}", gpus, group["labels"]) for n in range(group["replicas"])]
    monkeypatch.chdir(SUBMIT)
    cfg = compose_config("three_nodes.yaml", [])
    check_accelerators(cfg, parse_s2l(cfg.s2l), nodes)
    with pytest.raises(ResourceError, match="the run needs 24 accelerators"):
        check_accelerators(cfg, parse_s2l(cfg.s2l), nodes[:-1])
    with pytest.raises(ResourceError, match=r"s2l\.placement\.explorer=\{pool: explorer\}: no node of the cluster"):
        check_accelerators(cfg, parse_s2l(cfg.s2l), [*nodes[:-1], Node("x" * 56, "other", 8)])
    script = (SUBMIT / "slurm.sbatch").read_text()
    assert f"--nodes={len(nodes) - 1}\n" in script and "--gpus-per-node=8\n" in script


def test_kuberay_has_one_image_and_the_installed_ray():
    text = (SUBMIT / "kuberay.yaml").read_text()
    cluster = yaml.safe_load(text)
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    templates = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in templates]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    for variable in [one for pod in pods for one in pod["containers"][0]["env"]]:
        assert set(variable) == {"name", "valueFrom"} and "secretKeyRef" in variable["valueFrom"]
    for pod in pods:
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]} == {"shared", "shm"}
    assert cluster["spec"]["rayVersion"] == version("ray") and cluster["spec"]["authOptions"] == {"mode": "token"}
