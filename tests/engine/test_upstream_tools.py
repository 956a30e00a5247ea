"""Features of the libraries with our backbone, by the scripts that the libraries ship.

Every script runs in a fresh process in another folder; only the config names ``dat_pp``.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from configs.real_layouts import write_ade20k, write_coco, write_imagenet
from tools.tiny_tasks import make_task

import dat_pp

TASKS = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}
CONFIGS = {
    'mmpretrain': 'imagenet/dat-pp-tiny_32xb128_in1k',
    'mmdet': 'coco/mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco',
    'mmseg': 'ade20k/dat-pp-tiny_fpn_8xb4-40k_ade20k-512x512',
}

pytestmark = pytest.mark.slow


def script(library: str, name: str, *argv: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script of a library in ``cwd``; its output and errors come back as one text."""
    folder = Path(find_spec(library).submodule_search_locations[0]) / '.mim' / 'tools'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    environment.pop('DAT_PP_BACKEND', None)
    return subprocess.run(
        [sys.executable, str(folder / name), *map(str, argv)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )


def train(library: str, folder: Path, *options: str) -> tuple[str, dict]:
    """Train a tiny model for one epoch of two iterations; return the log and the checkpoint."""
    task = make_task(TASKS[library], folder)
    # mmpretrain's script keeps worker processes, of which there are none.
    task.add_config(
        'train_dataloader = dict(train_dataloader, persistent_workers=False)\n'
        'val_dataloader = dict(val_dataloader, persistent_workers=False)\n'
        'test_dataloader = val_dataloader\n'
    )
    argv = task.config, '--work-dir', task.work_dir, '--cfg-options', *options
    done = script(library, 'train.py', *argv, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout, torch.load(task.checkpoint, weights_only=False)


def learning_rates(checkpoint: dict) -> list[float]:
    """Return the distinct learning rates of a checkpoint's optimizer, smallest first."""
    return sorted({group['lr'] for group in checkpoint['optimizer']['param_groups']})


@pytest.mark.parametrize(
    ('library', 'constructor'),
    [
        ('mmpretrain', 'BackboneLayerDecayConstructor'),
        ('mmpretrain', 'LearningRateDecayOptimWrapperConstructor'),
        ('mmdet', 'BackboneLayerDecayConstructor'),
        ('mmseg', 'BackboneLayerDecayConstructor'),
    ],
)
def test_layer_decay(library: str, constructor: str, tmp_path: Path) -> None:
    _, checkpoint = train(
        library,
        tmp_path,
        f'optim_wrapper.constructor={constructor}',
        'optim_wrapper.optimizer.lr=0.0625',
        'optim_wrapper.optimizer.weight_decay=0.05',
        'optim_wrapper.paramwise_cfg.layer_decay_rate=0.5',
    )
    # Of the stem, four blocks, and what follows.
    assert learning_rates(checkpoint) == [2**-power for power in (9, 8, 7, 6, 5, 4)]


@pytest.mark.parametrize('library', TASKS)
def test_flexible_runner(library: str, tmp_path: Path) -> None:
    options = 'runner_type=FlexibleRunner', 'strategy.type=SingleDeviceStrategy'
    _, checkpoint = train(library, tmp_path, *options)
    assert checkpoint['meta']['epoch'] == 1


@pytest.mark.parametrize('library', TASKS)
def test_compile(library: str, tmp_path: Path) -> None:
    """TorchDynamo traces our backbone within the library's model.

    What later stages of compilers make of it is tested on the backbone alone: a whole detector
    takes them minutes.
    """
    log, checkpoint = train(library, tmp_path, 'compile.backend=eager')
    assert 'Model has been "compiled"' in log
    assert checkpoint['meta']['epoch'] == 1


def test_efficient_conv_bn_eval(tmp_path: Path) -> None:
    log, _ = train('mmseg', tmp_path, 'efficient_conv_bn_eval=["decode_head"]')
    assert 'Enabling the "efficient_conv_bn_eval" feature' in log


@pytest.mark.parametrize(
    ('library', 'argv', 'flops'),
    [('mmpretrain', (), '4.287G'), ('mmseg', ('--shape', 512, 512), '45.98G')],
)
def test_flops(library: str, argv: tuple, flops: str, tmp_path: Path) -> None:
    """The figures are those of this package's get_flops.py."""
    config = dat_pp.config(CONFIGS[library])
    done = script(library, 'analysis_tools/get_flops.py', config, *argv, cwd=tmp_path)
    assert f'Flops: {flops}\n' in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize(('library', 'write'), [('mmdet', write_coco), ('mmseg', write_ade20k)])
def test_browse_dataset(library: str, write: object, tmp_path: Path) -> None:
    write(tmp_path / 'data' / {'mmdet': 'coco', 'mmseg': 'ade'}[library], (320, 240))
    done = script(
        library,
        'analysis_tools/browse_dataset.py',
        dat_pp.config(CONFIGS[library]),
        '--not-show',
        '--output-dir',
        'browsed',
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(list((tmp_path / 'browsed').rglob('*.jpg'))) == 2


def test_browse_dataset_of_mmpretrain(tmp_path: Path) -> None:
    """The script fails on every config beside matplotlib 3.11; what it does with ours before."""
    write_imagenet(tmp_path / 'data' / 'imagenet', (80, 80))
    done = script(
        'mmpretrain',
        'visualization/browse_dataset.py',
        dat_pp.config(CONFIGS['mmpretrain']),
        '--not-show',
        '--output-dir',
        'browsed',
        cwd=tmp_path,
    )
    if "adjust_bbox() missing 1 required positional argument: 'renderer'" not in done.stdout:
        assert done.returncode == 0, done.stdout[-3000:]
        assert len(list((tmp_path / 'browsed').rglob('*.JPEG'))) == 2


def test_vis_scheduler(tmp_path: Path) -> None:
    """Without a GPU mmengine builds no AmpOptimWrapper, which the script asks it for."""
    config = dat_pp.config(CONFIGS['mmpretrain'])
    argv = '--not-show', '--dataset-size', 8192, '--save-path', tmp_path / 'lr.png'
    argv += (
        '--cfg-options',
        'optim_wrapper._delete_=True',
        'optim_wrapper.type=OptimWrapper',
        'optim_wrapper.optimizer.type=AdamW',
        'optim_wrapper.optimizer.lr=4e-3',
    )
    done = script('mmpretrain', 'visualization/vis_scheduler.py', config, *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / 'lr.png').stat().st_size > 10_000
