"""The digits demo: what it repeats, resumes and reports; the commands only pretend to train."""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from demo.digits import jobs, run

ROOT = Path(__file__).parents[2]

TRAIN = """
# Pretends to train: two epochs, each a line in calls.txt; resumes as mmengine does.
import os, sys, time
from pathlib import Path

name = Path(sys.argv[1]).stem
Path(f'pid_{name}').write_text(str(os.getpid()))
folder = Path(sys.argv[sys.argv.index('--work-dir') + 1])
(start,) = [a for a in sys.argv if 'init_cfg.checkpoint=' in a] or ['='] * (name[0] == 'c')
epochs = int(sys.argv[sys.argv.index('--cfg-options') + 1].removeprefix('train_cfg.max_epochs='))
last = folder / 'last_checkpoint'
resumed = last.is_file() and '--resume' in sys.argv
done = int(last.read_text()[-5]) if resumed else 0
for epoch in range(done + 1, epochs + 1):
    with open('calls.txt', 'a') as calls:
        calls.write(f'train {name} {epoch}\\n')
    (folder / f'epoch_{epoch}.pth').write_text(f'{name} after {epoch}, from {Path(start).name}')
    last.write_text(str(folder / f'epoch_{epoch}.pth'))
    print(f'mmengine - INFO - Epoch(train)  [{epoch}][10/10]  lr: 1  eta: 0  loss: 0.5', flush=True)
    while Path(f'hang_{name}').exists():
        time.sleep(0.05)
    if Path(f'fail_{name}').exists():
        sys.exit('error: train_dataloader: no such folder: data')
"""
TEST = """
# Pretends to test: logs the metrics of metrics.json.
import pickle, sys
from pathlib import Path

folder = Path(sys.argv[sys.argv.index('--work-dir') + 1]) / 'now'
folder.mkdir(parents=True)
with open('calls.txt', 'a') as calls:
    calls.write(f'test {Path(sys.argv[1]).stem}\\n')
(folder / 'now.json').write_text(Path('metrics.json').read_text())
assert Path(sys.argv[2]).is_file()
Path(sys.argv[sys.argv.index('--out') + 1]).write_bytes(pickle.dumps([]))
"""
DATA = """
def convert(out_dir):
    return False
"""
FIGURES = """
from matplotlib.figure import Figure

DRAW = dict.fromkeys(['classification', 'mask-rcnn', 'upernet'], lambda *_: Figure())

def digits_as_text(*_):
    return 'digits'
"""
ATTENTION = """
import sys
from pathlib import Path

Path(sys.argv[4]).write_text(f'{Path(sys.argv[1]).stem}, {Path(sys.argv[2]).name}')
"""
CONFIG = '_base_ = "./base.py"\nmodel = dict(type="{name}")\n'
METRICS = {'accuracy/top1': 98.0, 'coco/bbox_mAP': 0.7, 'coco/segm_mAP': 0.69, 'mIoU': 73.0}
NAMES = ['classification', 'mask-rcnn', 'upernet']
ALL = [f'train {name} {epoch}' for name in NAMES for epoch in (1, 2)]
ALL += [f'test {name}' for name in NAMES]


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the demo's own code, and commands that pretend."""
    files = {
        'tools/train.py': TRAIN,
        'tools/test.py': TEST,
        'demo/digits/data.py': DATA,
        'demo/digits/figures.py': FIGURES,
        'demo/digits/attention.py': ATTENTION,
        'configs/digits/base.py': 'train_cfg = dict(by_epoch=True, max_epochs=2)\n',
        'metrics.json': json.dumps(METRICS),
        'calls.txt': '',
        'projects/dat_pp/models/dat.py': 'DEPTH = 2\n',
        'projects/dat_pp/ops/native/kernels.h': '#define TILE 8\n',
        'projects/dat_pp/ops/native.cpp': 'int tile() { return TILE; }\n',
        'projects/dat_pp/ops/README.md': '# Operators\n',
    }
    files |= {f'configs/digits/{name}.py': CONFIG.format(name=name) for name in NAMES}
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for name in ('run', 'jobs'):
        shutil.copy(ROOT / 'demo' / 'digits' / f'{name}.py', tmp_path / 'demo' / 'digits')
    monkeypatch.setattr(jobs, 'ROOT', tmp_path)
    monkeypatch.setattr(run.digits, 'convert', lambda root: False)
    monkeypatch.setattr(run.figures, 'DRAW', dict.fromkeys(NAMES, lambda *_: Figure()))
    return tmp_path


def demo(force: bool = False, longer: float = 1) -> list[jobs.Run]:
    return run.run_demo(argparse.Namespace(force=force, longer=longer), Console())


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


def test_first_run_trains_tests_and_writes_results(sandbox, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['run'])
    assert run.main() == 0
    made = calls(sandbox)
    assert made[:3] == ['train classification 1', 'train classification 2', 'test classification']
    assert sorted(made) == sorted(ALL)
    work_dir = sandbox / 'work_dirs' / 'digits'
    rows = json.loads((work_dir / 'results.json').read_text())
    assert [(row['metric'], row['value']) for row in rows] == [
        ('top-1', 98.0),
        ('box AP', 0.7),
        ('mask AP', 0.69),
        ('mIoU', 73.0),
    ]
    assert all(row['seconds'] > 0 and row['cpu_seconds'] > 0 and row['peak_gib'] for row in rows)
    assert (work_dir / 'attention.png').read_text() == 'classification, epoch_2.pth'
    assert (work_dir / 'upernet.png').read_bytes().startswith(b'\x89PNG')
    assert (work_dir / 'upernet.pth').read_text() == 'upernet after 2, from epoch_2.pth'
    output = capsys.readouterr().out
    first, rest = output.split('figure: work_dirs/digits/classification.png')
    assert 'classification: top-1 98.0 %\n' in first
    assert 'upernet: train' in rest
    assert 'mask-rcnn' not in first
    assert [line.split()[:5] for line in rest.splitlines() if 'box AP' in line][-1] == [
        'mask-rcnn', 'box', 'AP', '0.700', '0.500'
    ]  # fmt: skip
    command = 'python tools/test.py configs/digits/upernet.py work_dirs/digits/upernet.pth'
    assert command in rest


def test_second_run_repeats_nothing(sandbox, capsys):
    first = demo()
    calls(sandbox)
    capsys.readouterr()
    assert demo() == first
    assert calls(sandbox) == []
    assert capsys.readouterr().out.count('nothing changed') == 3


@pytest.mark.parametrize(
    ('path', 'old', 'new'),
    [
        ('projects/dat_pp/models/dat.py', 'DEPTH = 2', 'DEPTH = 3'),
        ('projects/dat_pp/ops/native/kernels.h', 'TILE 8', 'TILE 16'),
        ('projects/dat_pp/ops/native.cpp', 'return TILE', 'return 2 * TILE'),
        ('configs/digits/base.py', 'by_epoch=True', 'by_epoch=True, val_interval=1'),
        ('configs/digits/classification.py', 'classification', 'classifier'),
        ('demo/digits/data.py', 'False', 'bool()'),
    ],
)
def test_what_can_change_the_metrics_trains_again(sandbox, path, old, new):
    demo()
    calls(sandbox)
    edit(sandbox / path, old, new)
    demo()
    assert sorted(calls(sandbox)) == sorted(ALL)


def test_other_changes_cost_no_training(sandbox):
    demo()
    calls(sandbox)
    edit(sandbox / 'projects/dat_pp/ops/README.md', 'Operators', 'The operators')
    edit(sandbox / 'configs/digits/upernet.py', 'upernet', 'UPerNet')
    demo()
    assert sorted(calls(sandbox)) == sorted(call for call in ALL if 'upernet' in call)


def test_force_trains_everything_anew(sandbox):
    demo()
    calls(sandbox)
    demo(force=True)
    assert sorted(calls(sandbox)) == sorted(ALL)


def test_longer_multiplies_the_epochs(sandbox):
    assert {each.epochs for each in demo(longer=2.5)} == {5}
    assert 'train upernet 5' in calls(sandbox)


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
    start = 'digits: mask-rcnn train failed: error: train_dataloader: no such folder: data (log: '
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
    """They would write to the same files."""
    monkeypatch.setattr(sys, 'argv', ['run'])
    with jobs.only_one(sandbox / 'work_dirs' / 'digits'):
        assert run.main() == 1
    message = 'digits: another run of the demo is writing to work_dirs/digits\n'
    assert capsys.readouterr().err == message
    assert calls(sandbox) == []


def test_a_test_without_the_metric_fails(sandbox):
    (sandbox / 'metrics.json').write_text('{"other": 1}')
    with pytest.raises(jobs.DemoError, match=r'classification test failed: no accuracy/top1 \(in'):
        demo()


def test_a_terminal_shows_a_bar_per_task():
    terminal = io.StringIO()
    with jobs.Display(Console(file=terminal, force_terminal=True, width=80)) as display:
        display.start_stage('upernet', 'train')
        line = '- mmengine - INFO - Epoch(train)  [2][ 20/100]  lr: 1e-3  loss: 1.2345  aux: 1\n'
        (bar,) = display.tasks
        assert bar.total is None  # pulses
        display.refresh()
        display.show('upernet', line, epochs=4)
        assert bar.percentage == pytest.approx(30)
        assert bar.fields['note'] == '30%, loss 1.23'
        display.show('upernet', 'Epoch(test)  [ 5/10]  time: 0.1\n', epochs=4)
        assert (bar.percentage, bar.fields['note']) == (50, '50%')
        display.finish('upernet', 'mIoU 73.0 %')
        assert bar.finished
    assert 'upernet: train' in terminal.getvalue()
    assert 'mIoU 73.0 %' in terminal.getvalue().splitlines()[-2]


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
    assert 'classification: train 50%, loss 0.50' in output
    assert error.splitlines()[-1] == 'digits: interrupted; run again, without --force, to resume'
    assert not is_running(sandbox / 'pid_classification')

    (sandbox / 'hang_classification').unlink()
    process = start(sandbox)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert [call for call in calls(sandbox) if 'classification' in call] == [
        'train classification 2',
        'test classification',
    ]
    assert '73.0 %' in output
