#!/usr/bin/env bash
# RECIPE chooses another recipe; arguments are Hydra overrides.
RECIPE=${RECIPE:-s2l_po/toy} exec "$(dirname "$0")/../run.sh" "$@"
