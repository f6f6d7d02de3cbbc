#!/usr/bin/env bash
# RECIPE chooses another recipe; arguments are Hydra overrides.
RECIPE=${RECIPE:-combined/expo_s2l} exec "$(dirname "$0")/../run.sh" "$@"
