"""vLLM alone on the GPU: its log-probabilities beside transformers' in float32, and memory when it sleeps.

    python benchmarks/gpu_vllm.py MODEL [--backend TRITON_ATTN] [--compiled]          (a step of make gpu-check)

A wrong kernel shows as a difference: exits with 1 when the mean over the sampled tokens is above 0.02 (bfloat16).
"""

from __future__ import annotations

import argparse

TOLERANCE = 0.02
SUMS = ("1 + 2 =", "3 * 4 - 5 =", "7 - 2 + 9 =", "2 * 2 * 2 =")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--backend", help="FLASH_ATTN, TRITON_ATTN or FLEX_ATTENTION (default: vLLM's choice)")
    parser.add_argument("--compiled", action="store_true", help="torch.compile and CUDA graphs")
    args = parser.parse_args()
    import torch
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams, TokensPrompt

    engine = LLM(
        model=args.model,
        dtype="bfloat16",
        enforce_eager=not args.compiled,
        gpu_memory_utilization=0.06,
        max_model_len=192,
        enable_sleep_mode=True,
        seed=1,
        **({"attention_config": {"backend": args.backend}} if args.backend else {}),
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    asked = [[{"role": "user", "content": text}] for text in SUMS]
    prompts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in asked]
    given = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
    sampling = SamplingParams(n=8, temperature=1.0, max_tokens=64, logprobs=0)
    engine.generate(given, sampling, use_tqdm=False)
    awake = torch.cuda.mem_get_info()[0]
    engine.sleep(level=1)
    freed = torch.cuda.mem_get_info()[0] - awake
    engine.wake_up()
    answers = [result.outputs for result in engine.generate(given, sampling, use_tqdm=False)]  # after a sleep
    off = differences(args.model, prompts, answers)
    mean = sum(off) / len(off)
    print(f"{len(off)} tokens: log-probabilities off by {mean:.4f} on average, {max(off):.3f} at most;", end=" ")
    print(f"sleep freed {freed / 1e9:.2f} GB")
    raise SystemExit(mean > TOLERANCE)


def differences(model: str, prompts: list[list[int]], answers: list) -> list[float]:
    """Distance of every sampled token's log-probability to that of transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    exact = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).cuda().eval()
    found = []
    for ids, outputs in zip(prompts, answers, strict=True):
        for output in outputs:
            row = torch.tensor([[*ids, *output.token_ids]], device="cuda")
            with torch.inference_mode():
                log_probs_T_V = exact(row).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            for place, (token, seen) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
                found.append(abs(float(log_probs_T_V[place, token]) - seen[token].logprob))
    return found


if __name__ == "__main__":
    main()
