#!/usr/bin/env bash
# Trains $RECIPE; arguments are Hydra overrides. The run.sh of each method names its default recipe and calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
case "$RECIPE" in
  *qwen* | *internlm*) ;;
  expo/* | grpo/* | s2l_po/* | g2rpo_a/* | combined/*) s2l data toy --out "${S2L_TOY_DIR:-outputs/toy}" --sizes small,medium ;;
esac
exec s2l train --config-name "$RECIPE" "$@"
