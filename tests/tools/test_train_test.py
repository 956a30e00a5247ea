"""train.py and test.py on tiny data: what the flags do, and one line about every mistake."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tiny_tasks import make_task

from dat_pp.engine import config as config_module
from dat_pp.engine import train
from dat_pp.engine.errors import UserError

TOOLS = Path(__file__).parents[2] / 'tools'
PREDICTION = {'classification': 'pred_score', 'detection': 'pred_instances'}


def weights(path: Path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def assert_same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(weights(one), weights(other), rtol=tolerance, atol=tolerance)


def assert_rejected(outcome, work_dir: Path, *expected: str) -> None:
    """Exit code 2, one line with these words, and nothing written."""
    assert outcome.code == 2
    assert len(outcome.errors) == 1, outcome.errors
    for text in ('error: ', *expected):
        assert text in outcome.errors[0]
    assert not work_dir.exists()


@pytest.fixture
def classification(tmp_path):
    return make_task('classification', tmp_path)


@pytest.fixture
def detection(tmp_path):
    return make_task('detection', tmp_path)


@pytest.fixture
def segmentation(tmp_path):
    return make_task('segmentation', tmp_path)


# What the flags do


def test_training_evaluates_and_saves(trained):
    (scalars,) = trained.work_dir.glob('*/vis_data/scalars.json')
    logged = scalars.read_text()
    metric = {'classification': 'accuracy/top1', 'detection': 'coco/segm_mAP'}
    assert metric.get(trained.name, 'mIoU') in logged
    assert weights(trained.checkpoint)


def test_out_and_show_dir(trained, run, tmp_path):
    out, pictures = tmp_path / 'out.pkl', tmp_path / 'pictures'
    outcome = run(
        'test', trained.config, trained.checkpoint, '--work-dir', tmp_path / 'work',
        '--out', out, '--show-dir', pictures,
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 3
    assert all(PREDICTION.get(trained.name, 'pred_sem_seg') in each for each in predictions)
    assert 'seg_logits' not in predictions[0]
    assert len(list(pictures.rglob('*.png'))) == 3


def test_tta_flips(trained, run, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(trained.config.read_text())
    if trained.name == 'detection':
        refused = run('test', config, trained.checkpoint, '--work-dir', tmp_path / 'no', '--tta')
        assert_rejected(refused, tmp_path / 'no', '--tta', 'instance segmentation')
        with config.open('a') as file:
            file.write("model['roi_head']['mask_head'] = None\nval_evaluator['metric'] = 'bbox'\n")
        checkpoint = tmp_path / 'boxes.pth'
        state = weights(trained.checkpoint)
        torch.save({k: v for k, v in state.items() if 'mask_head' not in k}, checkpoint)
    else:
        checkpoint = trained.checkpoint
    scores = []
    for flags in ([], ['--tta']):
        out = tmp_path / 'out.pkl'
        outcome = run(
            'test', config, checkpoint, '--work-dir', tmp_path / 'work', '--out', out, *flags
        )
        assert outcome.code == 0, outcome.errors
        predictions = pickle.loads(out.read_bytes())
        assert len(predictions) == 3
        scores.append(predictions[0])
    assert ('flip' in scores[1]) != ('flip' in scores[0])


def test_resume_continues_exactly(classification, run, tmp_path):
    task, two_epochs = classification, ['--cfg-options', 'train_cfg.max_epochs=2']
    run('train', task.config, '--work-dir', tmp_path / 'straight', *two_epochs)
    run('train', task.config, '--work-dir', task.work_dir)
    first = shutil.copy(task.checkpoint, tmp_path / 'first.pth')
    run('train', task.config, '--work-dir', task.work_dir, '--resume', *two_epochs)
    run('train', task.config, '--work-dir', tmp_path / 'named', '--resume', first, *two_epochs)
    for folder in (task.work_dir, tmp_path / 'named'):
        assert_same_weights(tmp_path / 'straight' / 'epoch_2.pth', folder / 'epoch_2.pth')
    assert not (tmp_path / 'named' / 'epoch_1.pth').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='checks the CPU fallback')
def test_amp_is_bfloat16_on_a_cpu(classification, run):
    outcome = run('train', classification.config, '--work-dir', classification.work_dir, '--amp')
    assert outcome.code == 0, outcome.errors
    runner, dtypes = outcome.runner, []
    runner.model.backbone.stem.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    batch = next(iter(runner.train_dataloader))
    runner.model.train_step(batch, runner.optim_wrapper)
    assert dtypes == [torch.bfloat16]


def test_auto_scale_lr(classification, run):
    task = classification
    outcome = run('train', task.config, '--work-dir', task.work_dir, '--auto-scale-lr')
    # Batches of 4 where the config says 8.
    assert outcome.runner.optim_wrapper.get_lr()['lr'] == [0.05 * 4 / 8]
    shutil.rmtree(task.work_dir)
    task.add_config('auto_scale_lr = None\n')
    refused = run('train', task.config, '--work-dir', task.work_dir, '--auto-scale-lr')
    assert_rejected(refused, task.work_dir, '--auto-scale-lr', 'base_batch_size')


def test_no_validate_and_default_work_dir(classification, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run('train', classification.config, '--no-validate')
    assert outcome.code == 0, outcome.errors
    (scalars,) = Path('work_dirs/classification').glob('*/vis_data/scalars.json')
    assert 'accuracy' not in scalars.read_text()


# Several processes


def launch(script: str, folder: Path, *argv: object) -> None:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    env = {**os.environ, 'PYTHON': sys.executable, 'PORT': port, 'OMP_NUM_THREADS': '1'}
    env['PYTHONPATH'] = str(Path(__file__).parent)
    command = [TOOLS / script, *map(str, argv)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason='checks gloo on CPUs')
def test_two_processes_equal_one(classification, run, tmp_path, monkeypatch):
    task = classification
    task.add_config(
        "custom_imports['imports'] += ['record_losses']\n"
        "custom_hooks = [dict(type='RecordLosses')]\n"
        'train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=3)\n'
    )
    monkeypatch.syspath_prepend(Path(__file__).parent)
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert run('train', task.config, '--work-dir', one).code == 0
    launch(
        'dist_train.sh', tmp_path, task.config, 2,
        '--work-dir', two, '--cfg-options', 'train_dataloader.batch_size=2',
    )  # fmt: skip
    losses = [json.loads((folder / 'losses.json').read_text()) for folder in (one, two)]
    assert len(losses[0]) == 6
    assert losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert_same_weights(one / 'epoch_3.pth', two / 'epoch_3.pth', tolerance=1e-5)

    checkpoint = one / 'epoch_3.pth'
    outs = [tmp_path / '1.pkl', tmp_path / '2.pkl']
    run('test', task.config, checkpoint, '--work-dir', one, '--out', outs[0])
    launch(
        'dist_test.sh', tmp_path, task.config, checkpoint, 2, '--work-dir', two, '--out', outs[1]
    )
    results = [pickle.loads(out.read_bytes()) for out in outs]
    assert [each['img_path'] for each in results[0]] == [each['img_path'] for each in results[1]]
    for each, other in zip(*results, strict=True):
        torch.testing.assert_close(each['pred_score'], other['pred_score'])


@pytest.mark.parametrize('kind', ['train', 'test'])
def test_slurm_script(kind, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '4'}
    command = [TOOLS / f'slurm_{kind}.sh', 'part', 'job', 'c.py', 'last', '--cfg-options', 'a=1']
    line = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    for expected in ('-p part', '--job-name=job', '--ntasks=4', '--gres=gpu:4', '--launcher slurm'):
        assert expected in line
    arguments = 'c.py --work-dir last' if kind == 'train' else 'c.py last'
    assert f'/{kind}.py {arguments}' in line
    assert line.rstrip().endswith('--cfg-options a=1')


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_scripts_say_how_to_call_them(script):
    done = subprocess.run([TOOLS / f'{script}.sh'], capture_output=True, text=True)
    assert done.returncode == 2
    assert f'tools/{script}.sh' in done.stderr


# Mistakes


def test_missing_config(run, tmp_path):
    outcome = run('train', tmp_path / 'none.py', '--work-dir', tmp_path / 'work')
    assert_rejected(outcome, tmp_path / 'work', 'no such file', 'none.py')


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('model.backbone.arch=dat-x', "model: unknown arch 'dat-x'"),
        ('model.backbone.arch.num_heads=[3,1,1,1]', 'model: '),
        ('model.backbone.type=Nothing', 'model: Nothing is not in'),
        ('load_from=none.pth', 'load_from: no such file: none.pth'),
        ('model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=none.pth',
         'model.backbone.init_cfg.checkpoint: no such file: none.pth'),
        ('train_dataloader.dataset.type=Nothing', 'train_dataloader.dataset: Nothing is not in'),
        ('train_dataloader.dataset.data_root=none', 'train_dataloader.dataset.data_root: no such'),
        ('val_dataloader.dataset.data_prefix=none', 'val_dataloader.dataset.data_prefix.img_path'),
        ('train_dataloader.dataset.ann_file=a.txt', 'train_dataloader.dataset.ann_file: no such'),
    ],
)  # fmt: skip
def test_wrong_setting(classification, run, option, expected):
    task = classification
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--cfg-options', *option.split()
    )
    assert_rejected(outcome, task.work_dir, expected)


@pytest.fixture
def accepted(monkeypatch) -> Callable:
    """End train.py after its checks: whether the outcome is that they found nothing."""
    end = 'nothing found'

    def stop(cfg, datasets) -> None:
        raise UserError(end)

    monkeypatch.setattr(train, 'build_runner', stop)
    return lambda outcome: outcome.errors == [f'error: {end}']


def advised(outcome) -> list[str]:
    """The arguments that an error message says to give."""
    return [
        '--cfg-options',
        *outcome.errors[0].split(' --cfg-options ')[1].split(' or ')[0].split(),
    ]


def test_missing_pretrained_weights(classification, run, accepted):
    task = classification
    task.add_config(
        "model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='none.pth')\n"
    )
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    key = 'model.backbone.init_cfg'
    assert_rejected(outcome, task.work_dir, f'{key}.checkpoint: no such file: none.pth', 'download')
    assert advised(outcome) == ['--cfg-options', f'{key}=None']
    outcome = run('train', task.config, '--work-dir', task.work_dir, *advised(outcome))
    assert accepted(outcome), outcome.errors


def test_pretrained_weights_of_another_model(classification, run, tmp_path):
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(8, 3, 7, 7)}}, other)
    classification.add_config(
        f"model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint={str(other)!r})\n"
    )
    outcome = run('train', classification.config, '--work-dir', classification.work_dir)
    key = 'model.backbone.init_cfg'
    assert_rejected(outcome, classification.work_dir, f'{key}.checkpoint: ', f'{key}=None')


def test_start_from_a_checkpoint(classification, run, tmp_path, accepted):
    """Other heads are fine, another backbone is not."""
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmpretrain')
    task, start = classification, tmp_path / 'start.pth'
    state = MODELS.build(Config.fromfile(task.config).model).state_dict()
    state = {key: value for key, value in state.items() if key.startswith('backbone.')}
    torch.save({'state_dict': {**state, 'head.fc.weight': torch.zeros(5, 16)}}, start)
    load = ['--cfg-options', f'load_from={start}']
    assert accepted(run('train', task.config, '--work-dir', task.work_dir, *load))
    torch.save({'state_dict': {key: value[None] for key, value in state.items()}}, start)
    outcome = run('train', task.config, '--work-dir', task.work_dir, *load)
    expected = f'load_from: {start} is of another model: it fits 0 of the {len(state)} weights'
    assert_rejected(outcome, task.work_dir, expected)


@pytest.mark.parametrize(
    ('name', 'heads'),
    [
        ('classification', {'model.head.num_classes': 2}),
        ('detection', {'model.roi_head.bbox_head.num_classes': 2,
                       'model.roi_head.mask_head.num_classes': 2}),
        ('segmentation', {'model.decode_head.num_classes': 2}),
    ],
)  # fmt: skip
def test_wrong_class_count(name, heads, run, tmp_path, accepted):
    task = make_task(name, tmp_path)
    three = [f'{key}=3' for key in heads]
    outcome = run('train', task.config, '--work-dir', task.work_dir, '--cfg-options', *three)
    expected = [f'{key} is 3' for key in heads]
    assert_rejected(outcome, task.work_dir, *expected, 'train_dataloader.dataset', '2 classes')
    assert advised(outcome) == ['--cfg-options', *(f'{key}=2' for key in heads)]
    outcome = run('train', task.config, '--work-dir', task.work_dir, *advised(outcome))
    assert accepted(outcome), outcome.errors


THREE = SimpleNamespace(metainfo={'classes': ('a', 'b', 'c'), 'thing_classes': ('a', 'b')})


@pytest.mark.parametrize(
    ('model', 'wrong'),
    [
        (dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=4)])),
         ['roi_head.bbox_head[1].num_classes is 4', 'model.roi_head.bbox_head.1.num_classes=3']),
        (dict(panoptic_head=dict(num_things_classes=2, num_stuff_classes=2)),
         ['num_things_classes + num_stuff_classes is 4']),
        (dict(panoptic_head=dict(num_things_classes=2, num_stuff_classes=1)), None),
        (dict(decode_head=dict(num_classes=3), auxiliary_head=[dict(num_classes=19)]),
         ['model.auxiliary_head[0].num_classes is 19']),
        (dict(auxiliary_head=dict(type='STDCHead', num_classes=7)), None),
        (dict(bbox_head=dict(num_classes=2)), None),  # the things of panoptic data
        (dict(bbox_head=dict(num_classes=256), language_model=dict()), None),
        (dict(rpn_head=dict(num_classes=1), head=None, bbox_head=dict()), None),
        (dict(type='ClsTTA', module=dict(head=dict(num_classes=4))), ['model.module.head']),
    ],
)  # fmt: skip
def test_class_counts(model, wrong):
    from dat_pp.engine.class_counts import check_class_count

    if wrong is None:
        check_class_count(model, THREE, 'train')
        return
    with pytest.raises(UserError) as error:
        check_class_count(model, THREE, 'train')
    for text in (*wrong, 'train has 3 classes'):
        assert text in str(error.value)


def test_wrong_number_of_class_folders(classification, run):
    task = classification
    task.add_config("val_dataloader['dataset']['metainfo'] = dict(classes=('a', 'b', 'c'))\n")
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    assert_rejected(outcome, task.work_dir, f'{task.data / "val"} has 2 class folders, expected 3')


@pytest.mark.parametrize(
    ('name', 'folder', 'option'),
    [
        ('classification', '.', 'train_dataloader.dataset.data_root'),
        ('classification', 'val', 'val_dataloader.dataset.data_prefix'),
        ('detection', 'train', 'train_dataloader.dataset.dataset.data_prefix.img'),
        ('segmentation', 'labels/train', 'train_dataloader.dataset.data_prefix.seg_map_path'),
    ],
)
def test_what_to_do_about_a_missing_folder(name, folder, option, run, tmp_path, accepted):
    task = make_task(name, tmp_path)
    moved = (task.data / folder).rename(tmp_path / 'elsewhere')
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    advice = f'put or link the data there, or set --cfg-options {option}=...'
    assert_rejected(outcome, task.work_dir, str(task.data / folder), advice)
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--cfg-options', f'{option}={moved}'
    )
    if folder == '.':  # the next one is missed
        assert_rejected(outcome, task.work_dir, 'val_dataloader.dataset.data_root: no such folder')
    else:
        assert accepted(outcome), outcome.errors


def test_readme_of_the_real_data(segmentation, run):
    outcome = run(
        'train', segmentation.config, '--work-dir', segmentation.work_dir, '--cfg-options',
        'train_dataloader.dataset.type=ADE20KDataset', 'train_dataloader.dataset.data_root=none',
        'train_dataloader.dataset.metainfo=None',
    )  # fmt: skip
    assert_rejected(outcome, segmentation.work_dir, ', see configs/ade20k/README.md, or set')


def test_wrong_layout_classification(classification, run):
    task = classification
    for folder in (task.data / 'val').iterdir():  # images directly in the split, no classes
        for image in folder.iterdir():
            image.rename(task.data / 'val' / image.name)
        folder.rmdir()
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    assert_rejected(outcome, task.work_dir, 'val_dataloader.dataset: ', str(task.data / 'val'))


def test_wrong_layout_detection(detection, run):
    task = detection
    (task.data / 'train').rename(task.data / 'train2017')
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    key = 'train_dataloader.dataset.dataset.data_prefix.img: no such folder'
    assert_rejected(outcome, task.work_dir, key, str(task.data / 'train'))
    (task.data / 'train').mkdir()
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    assert_rejected(outcome, task.work_dir, 'train_dataloader.dataset.dataset: ', '0.png')


def test_missing_annotations_of_the_evaluator(detection, run):
    outcome = run(
        'train', detection.config, '--work-dir', detection.work_dir,
        '--cfg-options', 'val_evaluator.ann_file=none.json',
    )  # fmt: skip
    assert_rejected(outcome, detection.work_dir, 'val_evaluator.ann_file', 'none.json')


def test_wrong_layout_segmentation(segmentation, run):
    task = segmentation
    (task.data / 'labels' / 'train' / '0.png').rename(task.data / 'labels' / 'train' / 'a.png')
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    assert_rejected(outcome, task.work_dir, 'seg_map_path', 'labels/train/0.png')
    for image in (task.data / 'images' / 'train').iterdir():
        image.rename(image.with_suffix('.bmp'))
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    assert_rejected(outcome, task.work_dir, 'train_dataloader.dataset: no samples', 'images/train')


def test_library_not_installed(segmentation, run, monkeypatch):
    monkeypatch.setattr(config_module.importlib.util, 'find_spec', lambda name: None)
    expected = 'pip install --no-build-isolation onedl-mmsegmentation'
    outcome = run('train', segmentation.config, '--work-dir', segmentation.work_dir)
    assert_rejected(outcome, segmentation.work_dir, "needs 'mmseg', which is not", expected)


def test_inherited_library_not_installed(segmentation, run, monkeypatch):
    def missing(*args, **kwargs):
        raise ModuleNotFoundError('mmseg is not installed, please install mmseg manually')

    monkeypatch.setattr(config_module.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(Config, 'fromfile', missing)
    outcome = run('train', segmentation.config, '--work-dir', segmentation.work_dir)
    expected = 'pip install --no-build-isolation onedl-mmsegmentation'
    assert_rejected(outcome, segmentation.work_dir, "needs 'mmseg', which is not", expected)


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_wrong_checkpoint(tool, classification, run, tmp_path):
    task = classification

    def attempt(path):
        given = [path] if tool == 'test' else ['--resume', path]
        return run(tool, task.config, *given, '--work-dir', task.work_dir)

    assert_rejected(attempt(tmp_path / 'none.pth'), task.work_dir, 'no such file', 'none.pth')
    broken = tmp_path / 'broken.pth'
    broken.write_text('not a checkpoint')
    assert_rejected(attempt(broken), task.work_dir, 'cannot read', 'broken.pth')
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': {'backbone.stem.unknown': torch.zeros(1)}}, other)
    outcome = attempt(other)
    assert_rejected(outcome, task.work_dir, 'does not fit', 'other.pth', 'backbone.stem.unknown')


def test_out_must_be_a_pickle(classification, run, tmp_path):
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmpretrain')
    task = classification
    cfg = Config.fromfile(task.config)
    checkpoint = tmp_path / 'fits.pth'
    torch.save(MODELS.build(cfg.model).state_dict(), checkpoint)
    outcome = run('test', task.config, checkpoint, '--work-dir', task.work_dir, '--out', 'a.json')
    assert_rejected(outcome, task.work_dir, '--out', 'a.json', '.pkl')


@pytest.mark.parametrize(
    ('name', 'file', 'content', 'workers'),
    [
        ('classification', 'train/a/2.png', b'not an image', 1),
        ('segmentation', 'images/train/2.jpg', b'', 0),
        ('segmentation', 'labels/train/2.png', b'not an image', 1),
    ],
)
def test_unreadable_file(name, file, content, workers, run, tmp_path):
    task = make_task(name, tmp_path)
    (task.data / file).write_bytes(content)
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir,
        '--cfg-options', f'train_dataloader.num_workers={workers}',
    )  # fmt: skip
    assert outcome.code == 2
    assert outcome.errors[-1].startswith('error: data: ')
    assert str(task.data / file) in outcome.errors[-1]
    assert not task.checkpoint.exists()


def test_truncated_label_map(segmentation, run):
    path = segmentation.data / 'labels' / 'train' / '5.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (256, 256), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    outcome = run('train', segmentation.config, '--work-dir', segmentation.work_dir)
    assert outcome.code == 2
    assert str(path) in outcome.errors[-1]
