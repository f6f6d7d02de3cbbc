#!/usr/bin/env bash
# GRPO on GSM8K with verl's own trainer and this reward. Everything after the script's name goes on to verl.
set -euo pipefail
DATA=${DATA:-data/gsm8k} # written by: s2l data gsm8k
MODEL=${MODEL:-Qwen/Qwen3-1.7B}

exec python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/test.parquet" \
    data.max_response_length=2048 \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    reward.custom_reward_function.path=pkg://s2l_ext.rewards.math \
    reward.custom_reward_function.name=compute_score_async \
    +reward.custom_reward_function.reward_kwargs.extraction=boxed \
    +reward.custom_reward_function.reward_kwargs.format_weight=0.1 \
    +reward.custom_reward_function.reward_kwargs.timeout_s=10.0 \
    reward.reward_manager.name=dapo \
    +reward.reward_kwargs.max_resp_len=2048 \
    +reward.reward_kwargs.overlong_buffer_cfg.enable=true \
    +reward.reward_kwargs.overlong_buffer_cfg.len=512 \
    +reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0 \
    +reward.reward_kwargs.overlong_buffer_cfg.log=true \
    "$@"
