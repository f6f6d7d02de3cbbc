#!/usr/bin/env bash
# RECIPE chooses another recipe; arguments are Hydra overrides.
RECIPE=${RECIPE:-grpo/toy} exec "$(dirname "$0")/../run.sh" "$@"
