#!/usr/bin/env bash
# Makes the environment, then checks style and types and runs the tests:
#   tools/run_tests.sh [pytest arguments]
# Without arguments it runs all tests and fails where they cover less of the code than before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements/install.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
if [ $# = 0 ]; then
    set -- --cov --cov-report=term:skip-covered --cov-fail-under=97
fi
# Two processes of one thread each are faster than one of two. Each runs its half in order, so a
# file's tests share what they train; who ends first takes over from the other.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
