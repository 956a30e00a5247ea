"""The digits demo: what it repeats, resumes and reports; the commands only pretend to train."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.digits import jobs, run

ROOT = Path(__file__).parents[2]

TRAIN = '''
"""Pretends to train: two epochs, each a line in calls.txt; resumes as mmengine does."""
import os, sys, time
from pathlib import Path

name = Path(sys.argv[1]).stem
Path(f'pid_{name}').write_text(str(os.getpid()))
folder = Path(sys.argv[sys.argv.index('--work-dir') + 1])
last = folder / 'last_checkpoint'
resumed = last.is_file() and '--resume' in sys.argv
done = int(last.read_text()[-5]) if resumed else 0
for epoch in range(done + 1, 3):
    with open('calls.txt', 'a') as calls:
        calls.write(f'train {name} {epoch}\\n')
    (folder / f'epoch_{epoch}.pth').write_text(f'{name} {folder.name}')
    last.write_text(str(folder / f'epoch_{epoch}.pth'))
    print(f'mmengine - INFO - Epoch(train)  [{epoch}][10/10]  lr: 1  eta: 0  loss: 0.5', flush=True)
    while Path(f'hang_{name}').exists():
        time.sleep(0.05)
    if Path(f'fail_{name}').exists():
        sys.exit('error: train_dataloader: no such folder: data')
'''
TEST = '''
"""Pretends to test: logs the metrics of metrics.json."""
import sys
from pathlib import Path

folder = Path(sys.argv[sys.argv.index('--work-dir') + 1]) / 'now'
folder.mkdir(parents=True)
with open('calls.txt', 'a') as calls:
    calls.write(f'test {Path(sys.argv[1]).stem}\\n')
(folder / 'now.json').write_text(Path('metrics.json').read_text())
assert Path(sys.argv[2]).is_file()
Path(sys.argv[sys.argv.index('--out') + 1]).write_text('')
'''
DATA = """
def convert(out_dir):
    return False

def digest(root):
    return (root / 'digits.json').read_text()
"""
FIGURES = """
import sys
from pathlib import Path

Path(sys.argv[3]).write_text(f'figure of {sys.argv[1]}')
"""
CONFIG = '_base_ = "./base.py"\nmodel = dict(type="{name}")\n'
METRICS = {'accuracy/top1': 98.0, 'coco/bbox_mAP': 0.7, 'coco/segm_mAP': 0.69, 'mIoU': 73.0}
NAMES = ['classification', 'mask-rcnn', 'upernet']


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the demo's own code, and commands that pretend."""
    files = {
        'tools/train.py': TRAIN,
        'tools/test.py': TEST,
        'demo/digits/data.py': DATA,
        'demo/digits/figures.py': FIGURES,
        'data/digits/digits.json': 'digest of the data',
        'configs/digits/base.py': 'train_cfg = dict(by_epoch=True, max_epochs=2)\n',
        'metrics.json': json.dumps(METRICS),
        'calls.txt': '',
        'projects/dat_pp/dat.py': '"""A backbone."""\n\nDEPTH = 2  # blocks\n',
        'projects/dat_pp/engine/preflight.py': 'def check():\n    """Check."""\n    return 1\n',
        'projects/dat_pp/ops/native.h': '// Shared.\n#define TILE 8\n',
        'projects/dat_pp/ops/native.cpp': 'int tile() { return TILE; /* rows */ }\n',
        'projects/dat_pp/ops/README.md': '# Operators\n',
    }
    files |= {f'configs/digits/{name}.py': CONFIG.format(name=name) for name in NAMES}
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for name in ('run', 'jobs', 'inputs', 'display', 'results'):
        shutil.copy(ROOT / 'demo' / 'digits' / f'{name}.py', tmp_path / 'demo' / 'digits')
    monkeypatch.setattr(jobs, 'ROOT', tmp_path)
    monkeypatch.setattr(run.digits, 'convert', lambda root: False)
    monkeypatch.setattr(run.digits, 'digest', lambda root: (root / 'digits.json').read_text())
    return tmp_path


def calls(root: Path) -> list[str]:
    """What has been called since the last time."""
    made = (root / 'calls.txt').read_text().splitlines()
    (root / 'calls.txt').write_text('')
    return made


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def is_running(path: Path) -> bool:
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


ALL = [f'train {name} {epoch}' for name in NAMES for epoch in (1, 2)]
ALL += [f'test {name}' for name in NAMES]


def test_first_run_trains_tests_and_writes_results(sandbox, capsys):
    # Long enough for its memory to be read while it runs.
    edit(
        sandbox / 'tools/train.py',
        'import os, sys, time\n',
        'import os, sys, time\ntime.sleep(0.4)\n',
    )
    rows = run.run_demo(force=False, longer=1)
    made = calls(sandbox)
    assert made[:3] == ['train classification 1', 'train classification 2', 'test classification']
    assert sorted(made) == sorted(ALL)
    assert [row['value'] for row in rows] == [98.0, 0.7, 0.69, 73.0]
    work_dir = sandbox / 'work_dirs' / 'digits'
    assert json.loads((work_dir / 'results.json').read_text()) == rows
    assert '| mask-rcnn | box AP | 0.700 | 0.500 |' in (work_dir / 'results.md').read_text()
    assert (work_dir / 'upernet.png').read_text() == 'figure of upernet'
    assert (work_dir / 'upernet.pth').read_text().startswith('upernet')
    assert all(row['train_cpu_seconds'] > 0 and 1 < row['peak_mib'] < 100 for row in rows)
    assert 'classification: top-1 98.0 %\n' in capsys.readouterr().out


def test_second_run_repeats_nothing(sandbox, capsys):
    first = run.run_demo(force=False, longer=1)
    calls(sandbox)
    capsys.readouterr()
    assert run.run_demo(force=False, longer=1) == first
    assert calls(sandbox) == []
    assert capsys.readouterr().out.count('nothing changed') == 3


@pytest.mark.parametrize(
    ('path', 'old', 'new'),
    [
        ('projects/dat_pp/dat.py', 'DEPTH = 2', 'DEPTH = 3'),
        ('projects/dat_pp/engine/preflight.py', 'return 1', 'return 2'),
        ('projects/dat_pp/ops/native.h', 'TILE 8', 'TILE 16'),
        ('projects/dat_pp/ops/native.cpp', 'return TILE', 'return 2 * TILE'),
        ('tools/train.py', "sys.exit('error", "sys.exit('Error"),
        ('configs/digits/base.py', 'by_epoch=True', 'by_epoch=True, val_interval=1'),
        ('data/digits/digits.json', 'digest', 'another digest'),
    ],
)
def test_what_can_change_the_numbers_trains_again(sandbox, path, old, new):
    run.run_demo(force=False, longer=1)
    calls(sandbox)
    edit(sandbox / path, old, new)
    run.run_demo(force=False, longer=1)
    assert sorted(calls(sandbox)) == sorted(ALL)


def test_another_version_of_a_library_trains_again(sandbox, monkeypatch):
    run.run_demo(force=False, longer=1)
    calls(sandbox)
    versions = run.inputs.library_versions()
    assert {'torch', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'numpy'} <= set(versions)
    monkeypatch.setattr(run.inputs, 'library_versions', lambda: versions | {'torch': '9.9'})
    run.run_demo(force=False, longer=1)
    assert sorted(calls(sandbox)) == sorted(ALL)


def test_a_config_costs_only_its_task_and_those_that_start_from_it(sandbox):
    run.run_demo(force=False, longer=1)
    calls(sandbox)
    edit(sandbox / 'configs/digits/upernet.py', 'model', 'other')
    run.run_demo(force=False, longer=1)
    assert calls(sandbox) == ['train upernet 1', 'train upernet 2', 'test upernet']
    edit(sandbox / 'configs/digits/classification.py', 'model', 'other')
    run.run_demo(force=False, longer=1)
    assert sorted(calls(sandbox)) == sorted(ALL)


@pytest.mark.parametrize(
    ('path', 'old', 'new'),
    [
        ('projects/dat_pp/dat.py', 'A backbone.', 'The backbone.'),
        ('projects/dat_pp/dat.py', '# blocks', '# blocks per stage'),
        ('projects/dat_pp/engine/preflight.py', 'Check.', 'Check a config.\n\n    Twice.\n    '),
        ('projects/dat_pp/ops/native.h', '// Shared.', '// What the kernels share.\n'),
        ('projects/dat_pp/ops/native.cpp', '/* rows */', '/* rows of\n   a tile */'),
        ('projects/dat_pp/ops/README.md', 'Operators', 'The operators'),
    ],
)
def test_docstrings_and_comments_cost_no_training(sandbox, path, old, new):
    run.run_demo(force=False, longer=1)
    calls(sandbox)
    edit(sandbox / path, old, new)
    run.run_demo(force=False, longer=1)
    assert calls(sandbox) == []


def test_strings_in_code_are_no_comments(tmp_path):
    source = tmp_path / 'kernel.cpp'
    source.write_text('const char* url = "https://a"; // link\n')
    assert run.inputs.code_of(source) == b'const char* url = "https://a";'
    source = tmp_path / 'module.py'
    source.write_text('def f():\n    "Say."\n    return "Say."\n')
    first = run.inputs.code_of(source)
    source.write_text('def f():\n    "Say."\n    return "Tell."\n')
    assert run.inputs.code_of(source) != first


def test_earlier_results_stay_until_the_new_ones_are_complete(sandbox):
    run.run_demo(force=False, longer=1)
    work_dir = sandbox / 'work_dirs' / 'digits'
    results = (work_dir / 'results.json').read_bytes()
    before = {path: path.read_bytes() for path in work_dir.rglob('epoch_2.pth')}
    assert len(before) == 3
    edit(sandbox / 'projects/dat_pp/dat.py', 'DEPTH = 2', 'DEPTH = 3')
    (sandbox / 'fail_upernet').touch()
    with pytest.raises(jobs.DemoError):
        run.run_demo(force=False, longer=1)
    assert (work_dir / 'results.json').read_bytes() == results
    assert {path: path.read_bytes() for path in before} == before

    (sandbox / 'fail_upernet').unlink()
    run.run_demo(force=False, longer=1)
    after = set(work_dir.rglob('epoch_2.pth'))
    assert len(after) == 3
    assert not after & set(before)


def test_force_trains_everything_anew(sandbox):
    run.run_demo(force=False, longer=1)
    calls(sandbox)
    run.run_demo(force=True, longer=1)
    assert sorted(calls(sandbox)) == sorted(ALL)
    run.run_demo(force=False, longer=1)
    assert calls(sandbox) == []


def test_longer_multiplies_the_epochs(sandbox):
    rows = run.run_demo(force=False, longer=2.5)
    assert {row['epochs'] for row in rows} == {5}
    calls(sandbox)
    run.run_demo(force=False, longer=1)
    assert sorted(calls(sandbox)) == sorted(ALL)


@pytest.mark.parametrize('factor', ['0.5', 'nan'])
def test_a_factor_that_would_train_less_is_refused(factor, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['run', '--longer', factor])
    with pytest.raises(SystemExit, match='2'):
        run.main()
    assert f'--longer: expected a factor from 1 to 1000, got {factor}' in capsys.readouterr().err


def test_a_failure_is_one_line_with_its_log_and_ends_the_other_task(sandbox, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['run'])
    (sandbox / 'fail_mask-rcnn').touch()
    (sandbox / 'hang_upernet').touch()
    assert run.main() == 1
    (message,) = capsys.readouterr().err.splitlines()
    start = (
        'digits: mask-rcnn training failed: error: train_dataloader: no such folder: data (log: '
    )
    assert message.startswith(start)
    assert (sandbox / message.removeprefix(start).rstrip(')')).is_file()
    assert not is_running(sandbox / 'pid_upernet')

    (sandbox / 'fail_mask-rcnn').unlink()
    (sandbox / 'hang_upernet').unlink()
    calls(sandbox)
    assert run.main() == 0
    assert 'train classification 1' not in calls(sandbox)


def test_below_the_expected_minimum_is_exit_code_1(sandbox, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['run'])
    (sandbox / 'metrics.json').write_text(json.dumps(METRICS | {'mIoU': 69.0}))
    assert run.main() == 1
    error = capsys.readouterr().err
    assert error == 'digits: below the expected minimum: mIoU 69.000 < 70.0\n'


def test_a_second_run_beside_another_is_refused(sandbox, capsys, monkeypatch):
    """The one that ends first would delete what the other writes."""
    monkeypatch.setattr(sys, 'argv', ['run'])
    with jobs.only_one(sandbox / 'work_dirs' / 'digits'):
        assert run.main() == 1
    message = 'digits: another run of the demo is writing to work_dirs/digits\n'
    assert capsys.readouterr().err == message
    assert run.main() == 0


def test_a_test_without_the_metric_fails(sandbox):
    (sandbox / 'metrics.json').write_text('{"other": 1}')
    with pytest.raises(jobs.DemoError, match=r'classification test failed: no accuracy/top1 \(in'):
        run.run_demo(force=False, longer=1)


def start(sandbox: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-m', 'demo.digits.run'],
        cwd=sandbox,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_interrupted_it_ends_what_it_started_and_resumes(sandbox, number):
    """In a fresh process, as it is started by hand."""
    (sandbox / 'hang_classification').touch()
    # A suite in the background ignores SIGINT, and so would what it starts.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = start(sandbox)
    finally:
        signal.signal(signal.SIGINT, previous)
    while calls(sandbox) != ['train classification 1']:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)  # for the progress to be shown
    process.send_signal(number)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert 'classification: train 50 % epoch 1/2, loss 0.5' in output
    assert error.splitlines()[-1] == 'digits: interrupted; run again, without --force, to resume'
    assert not is_running(sandbox / 'pid_classification')
    assert len(list((sandbox / 'work_dirs/digits/classification').glob('*/run.json'))) == 1

    (sandbox / 'hang_classification').unlink()
    process = start(sandbox)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert [call for call in calls(sandbox) if 'classification' in call] == [
        'train classification 2',
        'test classification',
    ]
    assert 'classification: training' in output
    assert '| upernet | mIoU | 73.0 % |' in output
