#!/usr/bin/env bash
# RECIPE chooses another recipe; arguments are Hydra overrides.
RECIPE=${RECIPE:-gpu_check/grpo} exec "$(dirname "$0")/../run.sh" "$@"
