"""What verl 0.9.1 and vLLM need to run without an accelerator.

Every test proves two things: that upstream still is as our deviation assumes, and that the deviation works. When
one fails after an upgrade, the deviation named in it has to change or can go.
"""

import importlib.metadata as metadata
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

pytestmark = pytest.mark.contract
needs_vllm_cpu = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or torch.cuda.is_available(), reason="CPU environment only"
)


def run_python(code: str, **environment: str) -> dict:
    """Run ``code`` in a fresh interpreter with the variables given, return the JSON it prints last."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "VLLM_"))}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


STATE = """
    import json, sys
    import verl
    from verl.plugin.platform import PlatformRegistry, get_platform
    import verl.utils.distributed as distributed
    import verl.workers.engine.fsdp.transformer_impl as impl
    from verl.workers.engine.base import EngineRegistry
    import verl.workers.rollout.vllm_rollout.bucketed_weight_transfer as transfer
    print(json.dumps({
        "platforms": PlatformRegistry.registered_names(),
        "current": get_platform().device_name,
        "cpu_engines": [b for b in ("fsdp", "fsdp2") if "cpu" in EngineRegistry._engines["language_model"][b]],
        "init": distributed.initialize_global_process_group_ray.__module__ + ":"
                + str(hasattr(distributed.initialize_global_process_group_ray, "__wrapped__")),
        "offload": impl.CPUOffloadPolicy.__name__,
        "receiver": transfer.BucketedWeightReceiver.__name__,
        "alias": any(type(f).__name__ == "AliasFinder" for f in sys.meta_path),
    }))
"""

IMPORT_ROLLOUT_AS_UPSTREAM = """
    import json, importlib.metadata as m
    try:
        m.version("vllm"); found = True
    except m.PackageNotFoundError:
        found = False
    print(json.dumps({"vllm_found": found}))
"""


@pytest.fixture(scope="module")
def on_cpu() -> dict:
    return run_python(STATE, VERL_PLATFORM="cpu")


def test_versions_these_seams_were_read_in() -> None:
    assert metadata.version("verl") == "0.9.1"


@needs_vllm_cpu
def test_environment_is_free_of_packages_that_do_not_match_a_cpu_torch() -> None:
    present = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    assert not present & {"torchvision", "torchaudio", "torchcodec"}


def test_cpu_platform_is_active_when_chosen(on_cpu: dict) -> None:
    assert on_cpu["current"] == "cpu"
    assert on_cpu["cpu_engines"] == ["fsdp", "fsdp2"]
    assert on_cpu["init"].endswith(":True")
    assert on_cpu["offload"] == "UnpinnedOffloadPolicy"
    assert on_cpu["receiver"] == "CopyingReceiver"
    assert on_cpu["alias"]


REQUIRE = """
    import json, os
    {before}
    from s2l_ext.registration import PluginNotRegistered, require_registered
    try:
        require_registered("a test")
        said = None
    except PluginNotRegistered as error:
        said = str(error)
    print(json.dumps({{"said": said}}))
"""


def test_process_without_the_plugin_is_told() -> None:
    said = run_python(REQUIRE.format(before=""), VERL_PLATFORM="", VERL_USE_EXTERNAL_PLUGINS="none")["said"]
    assert said is not None and said.startswith("a test: verl does not know trainer 's2l'")


def test_process_on_another_platform_than_chosen_is_told() -> None:
    started = "import verl; from verl.plugin.platform import get_platform; get_platform()"
    before = f"{started}; os.environ['VERL_PLATFORM'] = 'cpu'"
    said = run_python(REQUIRE.format(before=before))["said"]
    assert said is not None and "verl was imported before the variable was set" in said


def test_nothing_of_the_platform_is_active_when_not_chosen() -> None:
    code = """
        import json, sys
        import verl
        from verl.plugin.platform import PlatformRegistry
        import wrapt, s2l_ext.plugin
        from s2l_ext.platform import verl_patches
        import wrapt.importer as importer
        hooks = set(importer._post_import_hooks)
        print(json.dumps({
            "cpu_registered": "cpu" in PlatformRegistry.registered_names(),
            "alias": any(type(f).__name__ == "AliasFinder" for f in sys.meta_path),
            "platform_loaded": "s2l_ext.platform.cpu" in sys.modules,
            "hooked": sorted(hooks & {*verl_patches.PATCHES, "vllm.model_executor.layers.utils"}),
        }))
    """
    state = run_python(code)
    assert state == {"cpu_registered": False, "alias": False, "platform_loaded": False, "hooked": []}


def test_upstream_still_has_no_cpu_platform_nor_engine() -> None:
    code = """
        import json
        import verl
        from verl.plugin.platform import PlatformRegistry
        print(json.dumps({"cpu": PlatformRegistry.get("cpu") is not None}))
    """
    assert run_python(code, VERL_USE_EXTERNAL_PLUGINS="none") == {"cpu": False}
    source = inspect.getsource(__import__("verl.workers.engine.fsdp.transformer_impl", fromlist=["x"]))
    assert source.count('backend=["fsdp", "fsdp2"], device=["cuda", "npu"]') == 2


def test_upstream_still_asks_for_pinned_memory() -> None:
    import verl.workers.engine.fsdp.transformer_impl as impl

    assert "CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(impl)


def test_torch_still_refuses_the_duplicate_backend_string_verl_builds() -> None:
    import verl.utils.distributed as distributed

    with pytest.raises(ValueError, match="Duplicate device type"):
        torch.distributed.distributed_c10d.BackendConfig("cpu:gloo,cpu:gloo")
    original = inspect.unwrap(distributed.initialize_global_process_group_ray)
    assert list(inspect.signature(original).parameters) == ["timeout_second", "backend"]
    assert 'f"cpu:gloo,{get_device_name()}:{get_nccl_backend()}"' in inspect.getsource(original)


def test_received_weights_would_be_views_of_the_buffer() -> None:
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

    upstream = next(c for c in BucketedWeightReceiver.__mro__ if c.__module__.startswith("verl."))
    assert "tensor = tensor.to(self.device)" in inspect.getsource(upstream.receive_weights)
    buffer = torch.zeros(4)
    assert buffer.to(torch.device("cpu")).data_ptr() == buffer.data_ptr()


def test_copying_receiver_hands_out_copies() -> None:
    from types import ModuleType

    from s2l_ext.platform.verl_patches import copy_received_weights

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


@needs_vllm_cpu
def test_vllm_is_only_known_under_its_cpu_name() -> None:
    assert run_python(IMPORT_ROLLOUT_AS_UPSTREAM) == {"vllm_found": False}
    code = """
        import json
        from s2l_ext.platform import vllm_cpu
        vllm_cpu.install_alias(); vllm_cpu.install_alias()
        import sys, importlib.metadata as m
        print(json.dumps({
            "version": m.version("vllm"), "name": m.metadata("vllm")["Name"],
            "finders": sum(type(f).__name__ == "AliasFinder" for f in sys.meta_path),
        }))
    """
    alias = run_python(code)
    assert alias == {"version": metadata.version("vllm-cpu") + "+cpu", "name": "vllm", "finders": 1}


@needs_vllm_cpu
def test_vllm_still_packs_linear_weights_away_on_cpu() -> None:
    code = """
        import json, torch
        import vllm.model_executor.layers.utils as utils
        layer = torch.nn.Linear(64, 64, bias=False)
        if PATCH:
            assert utils.dispatch_cpu_unquantized_gemm.__module__.startswith("s2l_ext")
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        x = torch.randn(2, 64)
        print(json.dumps({"kept": layer.weight.numel() == 64 * 64}))
    """
    plain = run_python("PATCH = False\n" + textwrap.dedent(code))
    assert plain == {"kept": False}
    plugged = "PATCH = True\nimport s2l_ext.plugin as p; p.register_vllm()\n" + textwrap.dedent(code)
    assert run_python(plugged, VERL_PLATFORM="cpu") == {"kept": True}


def test_platform_answers_everything_verl_asks() -> None:
    from s2l_ext.platform.cpu import PlatformCPU

    platform = PlatformCPU()
    assert platform.device_name == "cpu" and platform.communication_backend_name() == "gloo"
    assert not platform.is_ipc_supported() and not platform.is_platform_available()
    free, total = platform.device_module.mem_get_info()
    assert 0 < free <= total
    state = platform.device_module.get_rng_state()
    platform.device_module.set_rng_state(state)
    assert platform.device_module.memory_allocated() == 0
