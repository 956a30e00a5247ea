#!/usr/bin/env bash
# Makes the environment, then checks the code and runs the tests:
#   tools/run_tests.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements/install.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
# Two processes of one thread each are faster than one of two. A file's tests share what they train.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile "$@"
