#!/usr/bin/env bash
# Makes the environment, then trains and tests all three tasks on handwritten digits:
#   demo/digits/run.sh [run.py arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
requirements/install.sh
exec .venv/bin/python -m demo.digits.run "$@"
