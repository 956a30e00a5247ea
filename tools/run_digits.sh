#!/usr/bin/env bash
# Makes the environment, then trains and tests all three tasks on handwritten digits:
#   tools/run_digits.sh [run_digits.py arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements/install.sh
exec .venv/bin/python tools/run_digits.py "$@"
