"""requirements/install.sh, with a recorder in place of pip and the libraries it installs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYTHONS = ('3.10', '3.11', '3.12', '3.13')
READY = re.compile(
    r'environment: \.venv is ready in \d+:\d\d \(build-tools \d+:\d\d, torch \d+:\d\d, '
    r'mmcv \d+:\d\d, mmlab \d+:\d\d, tests \d+:\d\d, dat_pp \d+:\d\d, verify \d+:\d\d\)'
)
# The environment's Python: pip is recorded with what the compilation of mmcv depends on, and
# compiles what a wheel lacks.
PYTHON = """#!/bin/sh
if [ "$1 $2" = '-m pip' ]; then
    shift 2
    echo "pip $* FORCE_CUDA=$FORCE_CUDA GPUS=${{CUDA_VISIBLE_DEVICES-all}} CFLAGS=$CFLAGS" >>{calls}
    case "$*" in *--force-reinstall*) echo "$COMPILED" >{compiled} ;; esac
    case "$*" in *"$FAILS"*) echo "$LOG"; exit 1 ;; esac
    case "$*" in *--only-binary*) exit "$NO_WHEEL" ;; *'cache list'*) echo "$CACHED" ;; esac
    exit 0
fi
exec {python} -S "$@"
"""
MMCV_OPS = """from pathlib import Path
compiled = Path({compiled!r}).read_text().strip()
if compiled == 'other torch':
    raise ImportError('undefined symbol')
get_compiling_cuda_version = lambda: compiled
"""
GCC = """#!/bin/sh
case "$*" in *--version) echo 'Copyright (C) 2022 Free Software Foundation, Inc.' ;; esac
echo "c++ $*" >>{calls}
"""
CLANG = """#!/bin/sh
case "$*" in *--version) echo 'Debian clang version 14.0.6' && exit ;; esac
echo "c++ $*" >>{calls}
exit 1
"""
# Python for the checks before any work, something in it changed.
CHANGED_PYTHON = """#!/bin/sh
[ "$1" = -c ] || exit 1
exec {python} -c 'import sys, sysconfig; {change}; exec(sys.argv[1])' "$2"
"""
NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n"
DF = '#!/bin/sh\necho header\necho /dev/disk 0 0 $(({free} * 1048576)) 0% /\n'


class Environment:
    """A copy of ``requirements`` beside an empty environment, and commands that lead the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / 'bin'
        self.calls = folder / 'calls'
        self.compiled = folder / 'compiled'
        self.compiled.write_text('not available')
        shutil.copytree(ROOT / 'requirements', folder / 'requirements')
        (folder / 'setup.py').touch()
        (folder / 'pyproject.toml').touch()
        modules = folder / 'modules'
        for name in ('torch/utils', 'mmcv'):
            (modules / name).mkdir(parents=True)
        for name in ('pip', 'cv2', 'mmdet', 'mmpretrain', 'mmseg', 'dat_pp', 'mmcv/__init__'):
            (modules / f'{name}.py').touch()
        (modules / 'mmcv' / 'ops.py').write_text(MMCV_OPS.format(compiled=str(self.compiled)))
        (modules / 'torch' / 'utils' / 'cpp_extension.py').write_text(
            "include_paths = lambda: ['/torch/include']\n"
        )
        self.torch('13.0')
        python = PYTHON.format(calls=self.calls, compiled=self.compiled, python=sys.executable)
        self.command('python', python, folder / '.venv' / 'bin')
        self.command('c++', GCC)
        self.command('df', DF.format(free=100))
        self.command('nvidia-smi', '#!/bin/sh\nexit 1\n')
        self.command('nvcc', '#!/bin/sh\nexit 1\n')

    def torch(self, cuda: str | None) -> None:
        version = f'class version:\n    cuda = {cuda!r}\n'
        (self.folder / 'modules' / 'torch' / '__init__.py').write_text(version)

    def command(self, name: str, text: str, folder: Path | None = None) -> Path:
        file = (folder or self.bin) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace('{calls}', str(self.calls)))
        file.chmod(0o755)
        return file

    def changed_python(self, change: str) -> Path:
        return self.command('changed', CHANGED_PYTHON.format(python=sys.executable, change=change))

    def install(self, **variables: str) -> subprocess.CompletedProcess:
        ours = ('PIP_', 'UV_', 'CUDA', 'FORCE_CUDA', 'CXX', 'CFLAGS', 'PYTHON', 'INSTALLER')
        env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        env |= {
            'PATH': f'{self.bin}:/usr/bin:/bin',
            'PYTHONPATH': str(self.folder / 'modules'),
            'FAILS': 'nothing',
            'NO_WHEEL': '1',
        }
        command = ['bash', self.folder / 'requirements' / 'install.sh']
        return subprocess.run(command, env=env | variables, capture_output=True, text=True)

    def call(self, *words: str) -> str:
        """The one recorded call that holds all words."""
        calls = self.calls.read_text().splitlines()
        (call,) = [call for call in calls if all(word in call for word in words)]
        return call


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def refusal(done: subprocess.CompletedProcess) -> str:
    """The one line with which the script failed."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_steps_and_their_times(environment):
    done = environment.install()
    assert done.returncode == 0, done.stderr
    assert READY.fullmatch(done.stdout.splitlines()[-1])
    calls = environment.calls.read_text()
    lists = list(dict.fromkeys(re.findall(r'-r requirements/(\w+)\.txt', calls)))
    assert lists[:4] == ['build', 'torch', 'mmcv', 'mmlab']
    assert set(lists[4:]) == {'tests', 'docs', 'hub', 'timm'}
    assert environment.install().stdout == 'environment: .venv is up to date\n'
    assert environment.calls.read_text() == calls


@pytest.mark.parametrize(
    ('nvcc', 'torch', 'reason'),
    [
        (None, '13.0', 'nvcc of CUDA 13.0 not found; install the CUDA toolkit 13.0'),
        ('12.4', '13.0', 'nvcc of CUDA 13.0 not found (found: 12.4)'),
        ('13.0', None, 'the installed torch is a CPU build'),
    ],
)
def test_gpu_without_cuda_operators(nvcc, torch, reason, environment):
    environment.command('nvidia-smi', '#!/bin/sh\n')
    environment.torch(torch)
    if nvcc:
        environment.command('nvcc', NVCC.format(release=nvcc))
    done = environment.install()
    assert done.returncode == 0, done.stderr
    (note,) = [line for line in done.stdout.splitlines() if line.startswith('note:')]
    assert reason in note
    assert 'FORCE_CUDA=1 requirements/install.sh' in note
    assert 'FORCE_CUDA=0 GPUS= ' in environment.call('-v -r requirements/mmcv.txt')
    assert reason in refusal(environment.install(FORCE_CUDA='1'))


@pytest.mark.parametrize('home', ['on PATH', 'CUDA_HOME'])
def test_gpu_with_cuda_operators(home, environment):
    environment.command('nvidia-smi', '#!/bin/sh\n')
    environment.compiled.write_text('13.0')
    variables = {}
    if home == 'CUDA_HOME':
        variables['CUDA_HOME'] = str(environment.folder / 'cuda')
        folder = environment.folder / 'cuda' / 'bin'
    else:
        folder = None
    environment.command('nvcc', NVCC.format(release='13.1'), folder)
    done = environment.install(**variables)
    assert done.returncode == 0, done.stderr
    assert 'note:' not in done.stdout
    assert 'FORCE_CUDA=1 GPUS=all ' in environment.call('-v -r requirements/mmcv.txt')


def test_cpu_operators_without_gpu(environment):
    """nvcc alone is no reason to compile for CUDA; FORCE_CUDA is, in an image for a GPU machine."""
    environment.command('nvcc', NVCC.format(release='13.0'))
    done = environment.install()
    assert done.returncode == 0, done.stderr
    assert 'note:' not in done.stdout
    assert 'FORCE_CUDA=0 ' in environment.call('-v -r requirements/mmcv.txt')
    environment.calls.unlink()
    done = environment.install(FORCE_CUDA='1', COMPILED='13.0')
    assert done.returncode == 0, done.stderr
    assert 'FORCE_CUDA=1 ' in environment.call('-v -r requirements/mmcv.txt')


@pytest.mark.parametrize(('wheel', 'gpu'), [('other torch', False), ('not available', True)])
def test_wheel_that_does_not_fit_is_compiled_anew(wheel, gpu, environment):
    environment.compiled.write_text(wheel)
    if gpu:
        environment.command('nvidia-smi', '#!/bin/sh\n')
        environment.command('nvcc', NVCC.format(release='13.0'))
    done = environment.install(COMPILED='13.0')
    assert done.returncode == 0, done.stderr
    # A wheel in PIP_FIND_LINKS must not be taken again.
    assert '--no-binary onedl-mmcv' in environment.call('--force-reinstall')


@pytest.mark.parametrize(
    'variables',
    [
        {'NO_WHEEL': '0'},
        {'CACHED': ' - onedl_mmcv-{version}-cp3{minor}-cp3{minor}-linux_x86_64.whl (1.4 MB)'},
    ],
)
def test_header_is_not_precompiled_for_a_wheel(variables, environment):
    """In PIP_FIND_LINKS or in pip's cache."""
    lock = (ROOT / 'requirements' / 'lock.txt').read_text()
    (version,) = re.findall(r'^onedl-mmcv==(.+)$', lock, re.M)
    minor = sys.version_info[1]
    variables = {k: v.format(version=version, minor=minor) for k, v in variables.items()}
    done = environment.install(**variables)
    assert done.returncode == 0, done.stderr
    assert 'c++' not in environment.calls.read_text()


@pytest.mark.parametrize(('compiler', 'precompiled'), [(GCC, True), (CLANG, False)])
def test_header_is_precompiled_with_gcc_only(compiler, precompiled, environment):
    compiler = environment.command('compiler', compiler)
    done = environment.install(CXX=f'{compiler} -pipe')
    assert done.returncode == 0, done.stderr
    flags = environment.call('-v -r requirements/mmcv.txt').partition('CFLAGS=')[2]
    assert flags.startswith('-O3 -g0 ')
    assert ('-include ' in flags) == precompiled
    assert ('c++-header' in environment.calls.read_text()) == precompiled


def test_uv_installs_all_but_mmcv(environment):
    environment.command('uv', '#!/bin/sh\necho "uv $*" >>{calls}\n')
    done = environment.install(INSTALLER='uv')
    assert done.returncode == 0, done.stderr
    assert environment.call('-v -r requirements/mmcv.txt').startswith('pip ')
    for name in ('build', 'torch', 'mmlab', 'tests'):
        call = environment.call(f'requirements/{name}.txt')
        assert call.startswith('uv pip install')
        assert '-c requirements/lock.txt' in call


@pytest.mark.parametrize(
    ('variable', 'value', 'expected'),
    [
        ('PYTHON', '/none', 'PYTHON=/none is not Python 3.10 to 3.13'),
        ('CXX', '/none', 'no C++ compiler (/none); install one (g++)'),
        ('INSTALLER', 'uv', 'uv is not found; install it (pip install uv)'),
        ('INSTALLER', 'conda', 'INSTALLER=conda; expected pip or uv'),
    ],
)
def test_missing_tool(variable, value, expected, environment):
    assert expected in refusal(environment.install(**{variable: value}))
    assert not environment.calls.exists()


@pytest.mark.parametrize(
    ('minor', 'supported'), [(9, False), (10, True), (12, True), (13, True), (14, False)]
)
def test_python_versions(minor, supported, environment):
    python = environment.changed_python(f'sys.version_info = (3, {minor}, 1)')
    line = refusal(environment.install(PYTHON=str(python), CXX='/none'))
    assert ('no C++ compiler' if supported else 'is not Python 3.10 to 3.13') in line


def test_another_python_makes_another_environment(environment):
    assert environment.install().returncode == 0
    other = 12 if sys.version_info[1] != 12 else 11
    python = environment.changed_python(f'sys.version_info = (3, {other}, 1)')
    assert f'{python} -m venv failed' in refusal(environment.install(PYTHON=str(python)))


def test_python_without_headers(environment):
    python = environment.changed_python('sysconfig.get_path = lambda name: "/none"')
    expected = f'has no Python.h; install its headers (python3.{sys.version_info[1]}-dev)'
    assert expected in refusal(environment.install(PYTHON=str(python)))


@pytest.mark.parametrize('started', [False, True])
def test_disk_space(started, environment):
    """An interrupted installation that has torch already needs less."""
    if started:
        (environment.folder / '.venv/lib/python3.11/site-packages/torch').mkdir(parents=True)
    environment.command('df', DF.format(free=1 if started else 6))
    expected = '1 GB free' if started else '6 GB free'
    line = refusal(environment.install())
    assert expected in line
    assert ('2 GB needed' if started else '7 GB needed') in line
    assert not environment.calls.exists()


@pytest.mark.parametrize(
    ('log', 'expected'),
    [
        (
            'WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: No matching torch',
            'no connection to the package index; ERROR: No matching torch',
        ),
        (
            'ERROR: Could not install: [Errno 28] No space left on device',
            'disk full, free some space or set TMPDIR to a larger disk; ERROR: Could not install',
        ),
        (
            'g++: fatal error: Killed signal terminated program cc1plus',
            'out of memory, set MAX_JOBS=1; g++: fatal error',
        ),
        ('error: subprocess-exited-with-error\nnms.cpp:3:1: error: x', 'nms.cpp:3:1: error: x'),
    ],
)
def test_failed_step(log, expected, environment):
    line = refusal(environment.install(FAILS='torch.txt', LOG=log))
    assert line.startswith("install: step 'torch' failed: ")
    assert expected in line
    assert line.endswith('(all of it: .venv/logs/2-torch.log)')
    assert not (environment.folder / '.venv' / '.complete').exists()


def test_precompiled_header_is_removed(environment):
    """It takes 430 MB, and is made again where the compilation failed."""
    assert "step 'mmcv' failed" in refusal(environment.install(FAILS='-v -r requirements/mmcv'))
    assert 'c++-header' in environment.calls.read_text()
    assert not (environment.folder / '.venv' / 'headers').exists()


@pytest.mark.slow
def test_failed_step_of_a_new_environment(tmp_path):
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    (tmp_path / 'requirements' / 'build.txt').write_text('./no-such-package.whl\n')
    command = ['bash', tmp_path / 'requirements' / 'install.sh']
    env = {**os.environ, 'PYTHON': sys.executable}
    line = refusal(subprocess.run(command, env=env, capture_output=True, text=True))
    assert "step 'build-tools' failed" in line
    assert 'no-such-package.whl' in line
    assert (tmp_path / '.venv' / 'logs' / '1-build-tools.log').is_file()


@pytest.mark.parametrize('python', PYTHONS)
def test_lock_pins_every_package_once(python):
    def lines(file: Path) -> list[Requirement]:
        text = [line.partition('#')[0].strip() for line in file.read_text().splitlines()]
        return [Requirement(line) for line in text if line]

    locked = [
        pin.name.lower().replace('_', '-')
        for pin in lines(ROOT / 'requirements' / 'lock.txt')
        if pin.marker is None or pin.marker.evaluate({'python_version': python})
    ]
    assert len(set(locked)) == len(locked)
    lists = {'build', 'torch', 'mmcv', 'mmlab', 'tests', 'docs', 'hub', 'timm'}
    for name in lists:
        for package in lines(ROOT / 'requirements' / f'{name}.txt'):
            assert package.name.lower().replace('_', '-') in locked


def test_workflow_tests_every_python():
    jobs = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())['jobs']
    pythons = jobs['pythons']['strategy']['matrix']['python']
    for step in jobs['test']['steps']:
        pythons += [v for k, v in step.get('with', {}).items() if k == 'python-version']
    assert sorted(pythons) == sorted(PYTHONS)
