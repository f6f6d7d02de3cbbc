#!/usr/bin/env bash
# RECIPE chooses another recipe; arguments are Hydra overrides.
RECIPE=${RECIPE:-g2rpo_a/toy} exec "$(dirname "$0")/../run.sh" "$@"
