#!/usr/bin/env bash
# Create the tested environment in .venv, in the clone:
#   requirements/install.sh
# Needs Python 3.10 to 3.13 with its headers, a C++ compiler, 7 GB of disk space and a package index.
# docs/install.md lists the variables that it reads. The first run compiles mmcv; pip keeps the wheel.
# When nothing has changed, a run takes a second; an interrupted one is resumed.
set -euo pipefail
set -m # each step is its own process group, so that stopping this script stops all of it
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv
logs=$venv/logs
headers=$venv/headers # precompiled, about 430 MB
py=$venv/bin/python
installer=${INSTALLER:-pip}
read -r -a compiler <<<"${CXX:-c++}" # a command with arguments, say "ccache g++"
cuda=0 # 1: compile mmcv's operators for CUDA too
steps=7
step=0
timings=''

die() {
    echo "install: $*" >&2
    exit 1
}

clock() {
    printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

fingerprint() {
    # The folder too: an environment does not survive being moved.
    { cat requirements/* setup.py pyproject.toml && "$py" -V && pwd; } 2>/dev/null | cksum
}

is_supported() {
    "$1" -c "import sys${2:+, $2}; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))" 2>/dev/null
}

# python3.11, say
version() {
    "$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
    local candidate name found='' names='python3.11 python3.12 python3.13 python3.10 python3 python'
    if [ "${PYTHON:-}" ]; then
        is_supported "$PYTHON" || die "PYTHON=$PYTHON is not Python 3.10 to 3.13"
        found=$PYTHON
    elif is_supported "$py" pip; then
        found=$py
    else
        for candidate in $names; do
            ! is_supported "$candidate" || { found=$candidate && break; }
        done
        [ "$found" ] || die "Python 3.10 to 3.13 not found (looked for: $names);" \
            "install one or set PYTHON=/path/to/python3.11"
    fi
    name=$(version "$found")
    "$found" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$found cannot create virtual environments; install its venv module ($name-venv)"
    "$found" -c 'import os, sysconfig as s
assert os.path.exists(os.path.join(s.get_path("include"), "Python.h"))' 2>/dev/null ||
        die "$found has no Python.h; install its headers ($name-dev)"
    echo "$found"
}

check_disk_space() {
    local free needed=7
    ! compgen -G "$venv/lib/python3*/site-packages/torch" >/dev/null || needed=2
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
    [ "$free" -ge "$needed" ] || die "$free GB free in $PWD, $needed GB needed; free some space"
}

# Why mmcv's operators cannot be compiled for CUDA; empty if they can.
missing_for_cuda() {
    local nvcc=nvcc release torch_cuda
    torch_cuda=$("$py" -c 'import torch; print(torch.version.cuda or "")')
    if [ -z "$torch_cuda" ]; then
        echo 'the installed torch is a CPU build; install a CUDA build'
        return
    fi
    if [ "${CUDA_HOME:-}" ]; then
        nvcc=$CUDA_HOME/bin/nvcc
    elif ! command -v nvcc >/dev/null; then
        nvcc=/usr/local/cuda/bin/nvcc
    fi
    release=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' || true)
    if [ "${release%%.*}" != "${torch_cuda%%.*}" ]; then
        echo "nvcc of CUDA $torch_cuda not found${release:+ (found: $release)};" \
            "install the CUDA toolkit $torch_cuda or set CUDA_HOME to it"
    fi
}

# The state of a running step: the compiler's counter if it has one, else the last line of its log.
progress() {
    local line
    line=$(tail -n 200 "$1" | grep -oE '^ *\[[0-9]+/[0-9]+\]' | tail -n 1 || true)
    [ "$line" ] || line=$(grep -vE 'WARNING:|^W[0-9]{4} ' "$1" | tail -n 1 || true)
    echo "$line" | sed 's/^ *//' | cut -c 1-70
}

# What went wrong and what to do, in one line: the first error in a log, else its last line.
cause() {
    local line advice=''
    line=$(grep -E '([Ee]rror|ERROR):' "$1" | grep -v 'subprocess-exited-with-error' | head -n 1 || true)
    [ "$line" ] || line=$(tail -n 1 "$1")
    if grep -q 'No space left on device' "$1"; then
        advice='disk full, free some space or set TMPDIR to a larger disk; '
    elif grep -q 'Killed signal' "$1"; then
        advice='out of memory, set MAX_JOBS=1; '
    elif grep -qE 'WARNING: Retrying|Failed to fetch|Request failed after' "$1"; then
        advice='no connection to the package index; '
    fi
    echo "$advice$line" | sed 's/^ *//' | cut -c 1-300
}

# run NAME COMMAND...: one step, its output in a log, a line about it every 15 seconds.
run() {
    local name=$1 log status=0 start=$SECONDS shown=$SECONDS pause=0.05
    shift
    step=$((step + 1))
    log=$logs/$step-$name.log
    echo "[$step/$steps] $name"
    "$@" >"$log" 2>&1 </dev/null &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep "$pause"
        ((SECONDS == start)) || pause=0.5
        if ((SECONDS - shown >= 15)); then
            shown=$SECONDS
            echo "      $(clock $((SECONDS - start)))  $(progress "$log")"
        fi
    done
    wait "$child" || status=$?
    child=''
    [ "$status" = 0 ] || die "step '$name' failed: $(cause "$log") (all of it: ${log#"$PWD"/})"
    timings="$timings${timings:+, }$name $(clock $((SECONDS - start)))"
}

pip() {
    "$py" -m pip --disable-pip-version-check --no-input "$@"
}

# With the locked versions, and source packages compiled against what is installed here.
pip_install() {
    pip install --no-build-isolation --progress-bar off -c requirements/lock.txt "$@"
}

# The same with uv, if asked for. uv leaves bytecode to the first import unless told to compile it.
install() {
    if [ "$installer" = uv ]; then
        uv pip install --python "$py" --no-build-isolation --no-progress --compile-bytecode \
            -c requirements/lock.txt "$@"
    else
        pip_install "$@"
    fi
}

operators_work() {
    "$py" -c "from mmcv.ops import get_compiling_cuda_version as cuda
assert not $cuda or cuda() != 'not available', 'mmcv is compiled without CUDA'"
}

# Most of the time to compile mmcv goes into parsing PyTorch's headers, once per file. GCC reads them
# from a precompiled header instead, which must be made with the flags and the torch of the compilation
# (else GCC ignores it and includes the header as usual). setuptools takes CFLAGS in place of its own
# flags, so the optimization level stands here too.
precompile_headers() {
    local flags="-O3 -g0 -fwrapv -DNDEBUG"
    export CFLAGS=$flags
    "${compiler[@]}" --version | grep -q 'Free Software Foundation' || return 0
    echo '#include <torch/types.h>' >"$1/torch_types.h"
    # shellcheck disable=SC2046,SC2086
    "${compiler[@]}" -x c++-header $flags -fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H \
        -DTORCH_EXTENSION_NAME=_ext -o "$1/torch_types.h.gch" "$1/torch_types.h" $("$py" -c '
import sysconfig, torch.utils.cpp_extension as cpp
print(*(f"-I{path}" for path in [*cpp.include_paths(), sysconfig.get_path("include")]))')
    CFLAGS="$flags -include $1/torch_types.h"
}

is_in_pip_cache() {
    local tag version
    tag=$("$py" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    version=$(sed -n 's/^onedl-mmcv==//p' requirements/lock.txt)
    pip cache list onedl_mmcv | grep -F "onedl_mmcv-$version-$tag-"
}

compile_mmcv() {
    mkdir -p "$headers"
    precompile_headers "$headers"
    pip_install -v "$@"
}

# Always with pip: it shows the compiler's output as it comes, and has a cache of compiled wheels. No
# wheel says which torch it was compiled for; one that does not fit is compiled anew.
install_mmcv() {
    export FORCE_CUDA=$cuda
    [ "$cuda" = 1 ] || export CUDA_VISIBLE_DEVICES='' # mmcv compiles for CUDA where it sees a GPU
    export MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
    # Installed already, or a wheel: in PIP_FIND_LINKS, in the index or in pip's cache.
    if ! pip_install --only-binary onedl-mmcv -r requirements/mmcv.txt >/dev/null 2>&1; then
        if is_in_pip_cache; then
            pip_install -v -r requirements/mmcv.txt
        else
            compile_mmcv -r requirements/mmcv.txt
        fi
    fi
    if ! operators_work; then
        compile_mmcv --no-cache-dir --force-reinstall --no-deps --no-binary onedl-mmcv onedl-mmcv
        operators_work
    fi
}

verify() {
    pip check
    "$py" -c 'import cv2, mmcv.ops, mmdet, mmpretrain, mmseg, dat_pp'
}

child=''
trap '[ -z "$child" ] || kill -- "-$child" 2>/dev/null || true; rm -rf "$headers"' EXIT
trap 'exit 130' INT TERM

if [ "${FORCE_CUDA:-0}" != 1 ] && [ -f "$venv/.complete" ] &&
    [ "$(cat "$venv/.complete")" = "$(fingerprint)" ] &&
    { [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$py")" ]; }; then
    echo 'environment: .venv is up to date'
    exit 0
fi

case $installer in
pip) ;;
uv) command -v uv >/dev/null || die 'INSTALLER=uv, but uv is not found; install it (pip install uv)' ;;
*) die "INSTALLER=$installer; expected pip or uv" ;;
esac
python=$(find_python)
command -v "${compiler[0]}" >/dev/null || die "no C++ compiler (${compiler[0]}); install one (g++)"
check_disk_space
rm -f "$venv/.complete"
echo 'environment: making .venv; logs in .venv/logs'
if ! "$py" -c 'import pip' 2>/dev/null || [ "$(version "$py")" != "$(version "$python")" ]; then
    "$python" -m venv --clear "$venv" || die "$python -m venv failed"
fi
mkdir -p "$logs"
run build-tools install -r requirements/build.txt
run torch install -r requirements/torch.txt
without_cuda=''
if [ "${FORCE_CUDA:-0}" = 1 ] || nvidia-smi -L >/dev/null 2>&1; then
    without_cuda=$(missing_for_cuda)
    [ "$without_cuda" ] || cuda=1
    [ "$cuda" = 1 ] || [ "${FORCE_CUDA:-0}" != 1 ] || die "FORCE_CUDA=1: $without_cuda"
fi
run mmcv install_mmcv
run mmlab install -r requirements/mmlab.txt
run tests install -r requirements/tests.txt -r requirements/docs.txt -r requirements/hub.txt \
    -r requirements/timm.txt
run dat_pp install --no-deps -e .
run verify verify
fingerprint >"$venv/.complete"
if [ "$without_cuda" ] && ! cuda=1 operators_work 2>/dev/null; then
    echo "note: mmcv has no CUDA operators, without which detectors cannot run on this GPU (RoIAlign," \
        "NMS): $without_cuda, then run FORCE_CUDA=1 requirements/install.sh"
fi
echo "environment: .venv is ready in $(clock "$SECONDS") ($timings)"
