"""The scripts as users start them: in fresh processes, from another folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_tasks import make_task

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
NOISE = ('OneDL', 'FileClient', 'HardDiskBackend', 'The prefix is not set', 'Failed to search')


def call(folder: Path, *command: object, **env: str) -> subprocess.CompletedProcess:
    """Run a command in ``folder``, with nothing of this process's paths."""
    kept = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    return subprocess.run(
        [str(each) for each in command],
        env={**kept, 'OMP_NUM_THREADS': '1', **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
    )


def script(folder: Path, name: str, *argv: object) -> subprocess.CompletedProcess:
    return call(folder, sys.executable, TOOLS / name, *argv)


# Runs scripts one after another in one process: importing the libraries takes most of its time.
IN_TURN = """
import json, runpy, sys
for name, *arguments in json.loads(sys.argv[1]):
    sys.argv = [name, *arguments]
    try:
        runpy.run_path(name, run_name='__main__')
    except SystemExit as end:
        print(f'exit code {end.code}', file=sys.stderr)
"""


def in_turn(folder: Path, *calls: list[object]) -> subprocess.CompletedProcess:
    """Run scripts with their arguments in one fresh process; their exit codes are on stderr."""
    listed = json.dumps([[str(TOOLS / name), *map(str, argv)] for name, *argv in calls])
    return call(folder, sys.executable, '-c', IN_TURN, listed)


MISTAKES = {
    ('train.py', 'none.py'): 'config: no such file: none.py',
    ('test.py', 'none.py', 'none.pth'): 'config: no such file: none.py',
    ('misc/check_dataset.py', 'none.py'): 'config: no such file: none.py',
    ('analysis_tools/get_flops.py', 'none.py'): 'config: no such file: none.py',
    ('analysis_tools/benchmark.py', '--repeat', '0'): '--repeat must be at least 1, got 0',
}


@pytest.mark.slow
def test_mistakes_are_one_line_each(tmp_path):
    done = in_turn(tmp_path, *MISTAKES)
    lines = [line for text in MISTAKES.values() for line in (f'error: {text}', 'exit code 2')]
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (0, '', lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['classification', 'detection', 'segmentation'])
def test_runs_without_noise(name, tmp_path):
    """Train, test and check the data; stderr stays empty but for a progress bar."""
    task = make_task(name, tmp_path)
    task.add_config("train_dataloader['num_workers'] = 1\n")
    if name == 'segmentation':  # a third class, or mmseg suggests another loss for two
        three = "dict(classes=('a', 'b', 'c'))"
        task.add_config(
            "model['decode_head']['num_classes'] = 3\n"
            'for _loader in (train_dataloader, val_dataloader, test_dataloader):\n'
            f"    _loader['dataset']['metainfo'] = {three}\n"
            'del _loader\n'
        )
    train = script(tmp_path, 'train.py', task.config, '--work-dir', 'work')
    arguments = [task.config, 'work/epoch_1.pth', '--work-dir', 'test', '--out', 'out.pkl']
    test = script(tmp_path, 'test.py', *arguments, '--show-dir', 'figures')
    for done in (train, test):
        assert done.returncode == 0, done.stderr
        assert done.stderr == ''
        assert not [line for line in done.stdout.splitlines() if any(n in line for n in NOISE)]
        assert '(train)' in done.stdout or '(test)' in done.stdout
    assert len(list((tmp_path / 'figures').rglob('*.png'))) == 3
    counted = ['analysis_tools/get_flops.py', task.config, '--shape', 32]
    done = in_turn(tmp_path, counted, ['misc/check_dataset.py', task.config])
    assert done.stderr.startswith('exit code 0\n'), done.stderr
    assert done.stderr.endswith('exit code 0\n')
    assert done.stdout.endswith('all is well\n')
    assert 'arning' not in done.stderr


CONFIG_OF_OTHERS = """
import json, sys
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = 'work'
cfg.optim_wrapper.type = 'CPUAmpOptimWrapper'
runner = Runner.from_cfg(cfg)
dtypes = set()
runner.model.backbone.stem.register_forward_hook(lambda *args: dtypes.add(str(args[2].dtype)))
runner.train()
print(json.dumps([type(runner.optim_wrapper).__module__, sorted(dtypes)]))
"""


@pytest.mark.slow
def test_cpu_amp_in_a_config_of_mmengines_own_runner(classification, tmp_path):
    classification.add_config('val_dataloader = val_cfg = val_evaluator = None\n')
    done = call(tmp_path, sys.executable, '-c', CONFIG_OF_OTHERS, classification.config)
    assert done.returncode == 0, done.stderr
    module, dtypes = json.loads(done.stdout.splitlines()[-1])
    assert module.startswith('dat_pp.')
    assert dtypes == ['torch.bfloat16']


COUNT = """
import collections, json, os, sys
counts = collections.Counter()
def hook(event, args):
    if event in ('os.scandir', 'os.listdir', 'open') and str(args[0]).startswith(sys.argv[1]):
        counts[f'{event} {os.path.relpath(str(args[0]), sys.argv[1])}'] += 1
sys.addaudithook(hook)
from dat_pp.engine.train import main
main(sys.argv[2:])
print(json.dumps(counts))
"""


@pytest.mark.slow
@pytest.mark.parametrize('flags', [[], ['--no-preflight']])
def test_datasets_are_scanned_once(flags, classification, tmp_path):
    """Each class folder is scanned once and each image opened once, with and without checks."""
    task = classification
    for index in range(60):  # many files that no batch needs
        (task.data / 'train' / 'a' / f'more{index}.png').symlink_to('0.png')
    done = call(
        tmp_path, sys.executable, '-c', COUNT, task.data, task.config, '--work-dir', 'work',
        *flags, '--cfg-options', 'train_dataloader.num_batch_per_epoch=1',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    folders = ['train/a', 'train/b', 'val/a', 'val/b']
    assert {f: counts.get(f'os.scandir {f}') for f in folders} == dict.fromkeys(folders, 1)
    # The checks list the class folders: before the dataset is loaded, and their number.
    listed = max(counts.get(f'os.scandir {split}', 0) for split in ('train', 'val'))
    assert listed <= (1 if flags else 3)
    opens = {name: count for name, count in counts.items() if name.startswith('open ')}
    assert len(opens) == 4 + 3  # a batch of training, and validation
    assert set(opens.values()) == {1}


@pytest.mark.parametrize('task', ['train', 'test'])
def test_slurm_script(task, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    arguments = ['part', 'job', 'c.py', 'last', '--cfg-options', 'a=1']
    done = call(
        tmp_path, TOOLS / f'slurm_{task}.sh', *arguments,
        PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4',
    )  # fmt: skip
    for expected in ('-p part', '--job-name=job', '--ntasks=4', '--gres=gpu:4', '--launcher slurm'):
        assert expected in done.stdout
    given = 'c.py --work-dir last' if task == 'train' else 'c.py last'
    assert f'/{task}.py {given}' in done.stdout
    assert done.stdout.rstrip().endswith('--cfg-options a=1')


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_shell_scripts_print_their_usage(name, tmp_path):
    done = call(tmp_path, TOOLS / f'{name}.sh')
    assert done.returncode == 2
    assert f'tools/{name}.sh' in done.stderr
