#!/usr/bin/env bash
# Makes the environment, then checks style and types and runs the tests:
#   tools/run_tests.sh [pytest arguments]
# Without arguments it runs all tests, the fast ones first, and fails where these cover less of the
# code than before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements/install.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
# Two processes of one thread each are faster than one of two. Each runs its half in order, so a
# file's tests share what they train; who ends first takes over from the other.
export OMP_NUM_THREADS=1
run_pytest() {
    .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
}
if [ $# != 0 ]; then
    run_pytest "$@"
    exit
fi
# Coverage adds about half to the time of the tests. The slow ones mostly run scripts in processes of
# their own, which it does not see, so they run without.
run_pytest -m 'not slow' --cov --cov-report=term:skip-covered --cov-fail-under=96
run_pytest -m slow
