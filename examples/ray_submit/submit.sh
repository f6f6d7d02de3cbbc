#!/usr/bin/env bash
# One training run on the Ray cluster at RAY_JOBS. The same for every way to start Ray; more overrides may follow.
#   RUN=/shared/runs/first examples/ray_submit/submit.sh [OVERRIDE ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec s2l submit --address "${RAY_JOBS:-http://127.0.0.1:8265}" \
    --runtime-env runtime_env.yaml --working-dir . \
    -- train --config-name three_nodes.yaml \
    trainer.default_local_dir="${RUN:?a folder on storage that all nodes share}" "$@"
