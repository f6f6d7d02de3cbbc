#!/usr/bin/env bash
# PIPELINE chooses another file of this folder (toy); arguments are those of `s2l pipeline`.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
exec s2l pipeline "recipes/sparse_to_dense/${PIPELINE:-toy}.yaml" "$@"
