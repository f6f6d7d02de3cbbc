"""vLLM's presence penalty and the one of ``s2l eval --engine transformers`` are the same."""

from __future__ import annotations

import torch

from s2l_ext.evaluation.forward import PresencePenalty


def test_both_engines_take_the_same_off_the_same_tokens():
    from s2l_ext.platforms import vllm_cpu

    vllm_cpu.install_alias()
    from vllm.model_executor.layers.utils import apply_penalties

    vocabulary, prompt = 6, [[3, 3, 5], [2, 0, 1]]
    said = [[1, 1, 0], [4, 1, 2]]
    logits = torch.tensor([[0.5, -1.0, 2.0, 3.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    off, one = torch.zeros(2), torch.ones(2)
    theirs = apply_penalties(logits.clone(), torch.tensor(prompt), torch.tensor(said), torch.full((2,), 1.5), off, one)
    ours = PresencePenalty(1.5, prompt_length=3)(
        torch.tensor([p + s for p, s in zip(prompt, said, strict=True)]), logits
    )
    assert ours.shape == (2, vocabulary) and torch.equal(ours, theirs)
    assert ours[0].tolist() == [-1.0, -2.5, 2.0, 3.0, 0.0, 1.0]
