#!/usr/bin/env bash
# RECIPE chooses another recipe; arguments are Hydra overrides.
RECIPE=${RECIPE:-smollm2/grpo} exec "$(dirname "$0")/../run.sh" "$@"
