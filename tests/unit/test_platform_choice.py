"""Which platform a configuration gets, and that it is said clearly when there is none."""

import os
import subprocess
import sys
import tempfile

import pytest
from omegaconf import OmegaConf

from s2l_ext import platforms as platform
from s2l_ext.errors import ResourceError


def config(device: str, **ray_init):
    tree = OmegaConf.create({"trainer": {"device": device}, "ray_kwargs": {"ray_init": {"num_gpus": 2, **ray_init}}})
    OmegaConf.set_struct(tree, True)
    return tree


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in (*platform.CPU_ENVIRONMENT, platform.NO_RAY_METRICS[0]):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_cpu_recipe_chooses_the_cpu_and_tells_every_node() -> None:
    cfg = config("cpu")
    assert platform.activate_for(cfg) == "cpu"
    assert os.environ["VERL_PLATFORM"] == "cpu" and platform.cpu_chosen()
    assert cfg.ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM == "cpu"


def test_users_own_values_win(monkeypatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    cfg = config("cpu")
    platform.activate_for(cfg)
    assert cfg.ray_kwargs.ray_init.runtime_env.env_vars.VLLM_CPU_KVCACHE_SPACE == "4"


def test_a_recipes_own_cache_takes_the_place_of_the_variable(monkeypatch) -> None:
    """vLLM would read the variable; a user's own value still wins."""
    cfg = config("cpu")
    OmegaConf.update(cfg, "actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes", 7, force_add=True)
    platform.activate_for(cfg)
    assert "VLLM_CPU_KVCACHE_SPACE" not in {*os.environ, *cfg.ray_kwargs.ray_init.runtime_env.env_vars}
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    platform.activate_for(cfg)
    assert cfg.ray_kwargs.ray_init.runtime_env.env_vars.VLLM_CPU_KVCACHE_SPACE == "4"


def test_workers_are_forked_on_the_cpu_unless_the_configuration_says_how_they_start(monkeypatch) -> None:
    given = []
    monkeypatch.setattr(platform.forked_workers, "start", lambda variables: given.append(dict(variables)) or "ask me")
    own = config("cpu", runtime_env={"py_executable": "python3 -X dev", "env_vars": {}})
    platform.activate_for(own)
    platform.fork_workers(own)
    assert own.ray_kwargs.ray_init.runtime_env.py_executable == "python3 -X dev" and given == []
    assert platform.NO_RAY_METRICS[0] not in os.environ
    ours = config("cpu", runtime_env={"env_vars": {"MINE": "1"}})
    platform.activate_for(ours)
    platform.fork_workers(ours)
    assert ours.ray_kwargs.ray_init.runtime_env.py_executable == "ask me"
    assert given == [dict(ours.ray_kwargs.ray_init.runtime_env.env_vars)] and given[0]["MINE"] == "1"
    name, off = platform.NO_RAY_METRICS
    assert os.environ[name] == off == "0"
    monkeypatch.setenv(name, "1")
    platform.fork_workers(ours)
    assert os.environ[name] == "1"


def test_where_no_socket_can_be_made_workers_start_as_usual_and_it_is_said(monkeypatch, heard, tmp_path) -> None:
    long = tmp_path / ("d" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    cfg = config("cpu", runtime_env={})
    platform.activate_for(cfg)
    platform.fork_workers(cfg)
    assert "py_executable" not in cfg.ray_kwargs.ray_init.runtime_env
    assert f"so start-up takes longer: AF_UNIX path too long (TMPDIR={long})" in heard.text
    assert list(long.iterdir()) == []


def test_workers_of_a_gpu_run_are_not_forked(monkeypatch) -> None:
    monkeypatch.setattr(platform.forked_workers, "start", lambda variables: pytest.fail("started"))
    cfg = config("cuda", runtime_env={})
    platform.fork_workers(cfg)
    assert cfg.ray_kwargs.ray_init.runtime_env == {}


def test_variable_overrules_the_recipe(monkeypatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    cfg = config("cuda")
    assert platform.activate_for(cfg) == "cpu" and cfg.trainer.device == "cpu"


def test_gpu_recipe_without_a_gpu_names_the_ways_out(monkeypatch) -> None:
    monkeypatch.setattr(platform, "accelerator_present", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match=r"trainer\.device=cuda.*s2l_po/toy.*address"):
        platform.activate_for(config("cuda"))


def test_cpu_recipe_on_a_gpu_machine_runs_on_its_cpu_where_vllm_can(monkeypatch) -> None:
    monkeypatch.setattr(platform, "accelerator_present", lambda: True)
    monkeypatch.setattr(platform, "_has_cpu_engine", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert platform.activate_for(config("cpu")) == "cpu" and platform.cpu_chosen()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ  # Ray would refuse two logical slots


def test_cpu_recipe_is_refused_where_vllm_needs_the_accelerator_unless_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(platform, "accelerator_present", lambda: True)
    monkeypatch.setattr(platform, "_has_cpu_engine", lambda: False)
    with pytest.raises(ResourceError, match=r"trainer\.device=cpu: vLLM .*make setup"):
        platform.activate_for(config("cpu"))
    assert not platform.cpu_chosen()
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert platform.activate_for(config("cpu")) == "cpu"


PRETENDED_GPU = """
import wrapt
def pretend(cuda):
    cuda.is_available, cuda.device_count = lambda: True, lambda: 1
wrapt.register_post_import_hook(pretend, "torch.cuda")
"""


@pytest.mark.slow
@pytest.mark.skipif(not platform._has_cpu_engine(), reason="needs vllm-cpu")
@pytest.mark.parametrize(("engine", "said"), [(True, "cpu cpu"), (False, "True")])
def test_a_process_on_a_gpu_machine_chooses_by_its_vllm(tmp_path, engine, said) -> None:
    (tmp_path / "sitecustomize.py").write_text(PRETENDED_GPU)
    look = "print(p.cpu_is_impossible())"
    if engine:
        look = "c = OmegaConf.create({'trainer': {'device': 'cpu'}, 'ray_kwargs': {'ray_init': {}}}); "
        look += "print(p.activate_for(c), os.environ['VERL_PLATFORM'])"
    code = f"import os; from omegaconf import OmegaConf; from s2l_ext import platforms as p\nif {not engine}: "
    code += f"p._has_cpu_engine = lambda: False\n{look}"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.strip() == said, done.stderr


def test_gpu_recipe_on_a_gpu_machine_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr(platform, "accelerator_present", lambda: True)
    cfg = config("cuda")
    assert platform.activate_for(cfg) == "cuda"
    assert not platform.cpu_chosen() and "runtime_env" not in cfg.ray_kwargs.ray_init


@pytest.mark.parametrize("where", ["address", "RAY_ADDRESS"])
def test_driver_without_a_gpu_may_join_a_cluster_that_has_some(monkeypatch, where: str) -> None:
    monkeypatch.setattr(platform, "accelerator_present", lambda: False)
    if where == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", "auto")
    cfg = config("cuda", **({"address": "auto"} if where == "address" else {}))
    assert platform.activate_for(cfg) == "cuda"
