#!/usr/bin/env bash
# RECIPE chooses another recipe; arguments are Hydra overrides.
RECIPE=${RECIPE:-one_gpu/grpo_24gb} exec "$(dirname "$0")/../run.sh" "$@"
