#!/usr/bin/env bash
# Trains $RECIPE; arguments are Hydra overrides. The run.sh of each method names its default recipe and calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
case "$RECIPE" in
  */toy | */*_smoke | expo/*_only | combined/expo_s2l) s2l data toy --out "${S2L_TOY_DIR:-outputs/toy}" --sizes small,medium ;;
esac
exec s2l train --config-name "$RECIPE" "$@"
