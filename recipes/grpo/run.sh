#!/usr/bin/env bash
# Plain GRPO. RECIPE chooses the recipe; arguments are Hydra overrides.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
recipe=${RECIPE:-grpo/toy}
case "$recipe" in
  */toy | */*_smoke) s2l data toy --out "${S2L_TOY_DIR:-outputs/toy}" --sizes small,medium ;;
esac
exec s2l train --config-name "$recipe" "$@"
