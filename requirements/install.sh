#!/usr/bin/env bash
# Makes the exact environment of this project in .venv, in the clone:
#   requirements/install.sh
# Needs Python 3.11 with its headers ($PYTHON, else the first python3.11, python3 or python that is
# one), a C++ compiler and a package index. The first run compiles mmcv (pip keeps the result). When
# nothing has changed, a run takes a second; an interrupted one is resumed.
set -euo pipefail
set -m # each step is its own process group, so that stopping this script stops all of it
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv
logs=$venv/logs
py=$venv/bin/python
steps=7
step=0

die() {
    echo "install: $*" >&2
    exit 1
}

fingerprint() {
    # The folder too: an environment does not survive being moved.
    { cat requirements/* setup.py pyproject.toml && "$py" -V && pwd; } 2>/dev/null | cksum
}

find_python() {
    local candidate found=''
    for candidate in ${PYTHON:-python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            found=$candidate
            break
        fi
    done
    [ "$found" ] || die "Python 3.11 not found (looked for: ${PYTHON:-python3.11 python3 python});" \
        "install it or set PYTHON=/path/to/python3.11"
    "$found" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$found cannot make virtual environments; install its venv module (python3.11-venv)"
    "$found" -c 'import os, sysconfig as s
assert os.path.exists(os.path.join(s.get_path("include"), "Python.h"))' 2>/dev/null ||
        die "$found has no Python.h; install its headers (python3.11-dev)"
    echo "$found"
}

# The state of a running step: the compiler's counter if it has one, else the last line of its log.
progress() {
    local line
    line=$(tail -n 200 "$1" | grep -oE '^ *\[[0-9]+/[0-9]+\]' | tail -n 1 || true)
    [ "$line" ] || line=$(grep -v 'WARNING:' "$1" | tail -n 1 || true)
    echo "$line" | sed 's/^ *//' | cut -c 1-70
}

# What went wrong, in one line: the first error a log names, else its last line.
cause() {
    local line
    line=$(grep -E '([Ee]rror|ERROR):' "$1" | grep -v 'subprocess-exited-with-error' | head -n 1 || true)
    [ "$line" ] || line=$(tail -n 1 "$1")
    if grep -q 'WARNING: Retrying' "$1"; then
        line="no connection to the package index; $line"
    fi
    echo "$line" | sed 's/^ *//' | cut -c 1-300
}

# run NAME COMMAND...: one step, its output in a log, a line about it every 15 seconds.
run() {
    local name=$1 log status=0 start=$SECONDS shown=$SECONDS
    shift
    step=$((step + 1))
    log=$logs/$step-$name.log
    echo "[$step/$steps] $name"
    "$@" >"$log" 2>&1 </dev/null &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2
        if ((SECONDS - shown >= 15)); then
            shown=$SECONDS
            printf '      %d:%02d  %s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) \
                "$(progress "$log")"
        fi
    done
    wait "$child" || status=$?
    child=''
    [ "$status" = 0 ] || die "step '$name' failed: $(cause "$log") (all of it: ${log#"$PWD"/})"
}

pip() {
    "$py" -m pip --disable-pip-version-check --no-input "$@"
}

# All of it with the locked versions, and compiled against what is installed here.
pip_install() {
    pip install --no-build-isolation --progress-bar off -c requirements/lock.txt "$@"
}

operators_work() {
    "$py" -c 'import mmcv.ops'
}

# Most of the time to compile mmcv goes into parsing PyTorch's headers, once per file. GCC reads them
# from a precompiled header instead, which must be made with the flags and the torch of the compilation
# (else GCC ignores it and includes the header as usual). setuptools takes CFLAGS in place of its own
# flags, so the optimization level stands here too.
precompile_headers() {
    local flags="-O3 -g0 -fwrapv -DNDEBUG" compiler=${CXX:-c++}
    export CFLAGS=$flags
    "$compiler" --version | grep -q 'Free Software Foundation' || return 0
    echo '#include <torch/types.h>' >"$1/torch_types.h"
    # shellcheck disable=SC2046,SC2086
    "$compiler" -x c++-header $flags -fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H \
        -DTORCH_EXTENSION_NAME=_ext -o "$1/torch_types.h.gch" "$1/torch_types.h" $("$py" -c '
import sysconfig, torch.utils.cpp_extension as cpp
print(*(f"-I{path}" for path in [*cpp.include_paths(), sysconfig.get_path("include")]))')
    CFLAGS="$flags -include $1/torch_types.h"
}

install_mmcv() {
    local headers=$venv/headers
    # On a machine with a GPU but no CUDA compiler, operators for the CPU are better than none.
    if ! command -v nvcc && [ -z "${CUDA_HOME:-}" ]; then
        export CUDA_VISIBLE_DEVICES=''
    fi
    export MAX_JOBS=${MAX_JOBS:-$(nproc)}
    mkdir -p "$headers"
    precompile_headers "$headers"
    pip_install -v -r requirements/mmcv.txt
    # pip keeps compiled packages, and does not know which torch they were compiled for.
    if ! operators_work; then
        pip_install -v --no-cache-dir --force-reinstall --no-deps onedl-mmcv
        operators_work
    fi
    rm -r "$headers"
}

verify() {
    pip check
    "$py" -c 'import cv2, mmcv.ops, mmdet, mmpretrain, mmseg, dat_pp'
}

child=''
trap '[ -z "$child" ] || kill -- "-$child" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

if [ -f "$venv/.complete" ] && [ "$(cat "$venv/.complete")" = "$(fingerprint)" ]; then
    echo 'environment: .venv is up to date'
    exit 0
fi

python=$(find_python)
command -v "${CXX:-c++}" >/dev/null || die "no C++ compiler (${CXX:-c++}); install one (g++)"
rm -f "$venv/.complete"
echo 'environment: making .venv; logs in .venv/logs'
if ! "$py" -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    "$python" -m venv --clear "$venv" || die "$python -m venv failed"
fi
mkdir -p "$logs"
run build-tools pip_install -r requirements/build.txt
run torch pip_install -r requirements/torch.txt
run mmcv install_mmcv
run mmlab pip_install -r requirements/mmlab.txt
run tests pip_install -r requirements/tests.txt -r requirements/docs.txt
run dat_pp pip_install --no-deps -e .
run verify verify
fingerprint >"$venv/.complete"
echo "environment: .venv is ready ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
