#!/usr/bin/env bash
# RECIPE chooses another recipe; arguments are Hydra overrides.
RECIPE=${RECIPE:-expo/toy} exec "$(dirname "$0")/../run.sh" "$@"
