#!/usr/bin/env bash
# Makes the environment if there is none, then trains and tests all three tasks on handwritten digits:
#   bash demo/digits/run.sh [--force] [--longer FACTOR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash requirements/install.sh
exec .venv/bin/python -m demo.digits.run "$@"
