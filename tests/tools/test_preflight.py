"""Mistakes that train.py and test.py find before they write anything: one line about each."""

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from tiny_tasks import make_task

from dat_pp.engine import config as config_module
from dat_pp.engine import datasets, train
from dat_pp.engine.class_counts import check_class_count
from dat_pp.engine.errors import UserError
from dat_pp.engine.float32 import float32_roi_extractor
from dat_pp.engine.launch import load_config, use_cpu_if_needed
from dat_pp.engine.preflight import check_model

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason='checks runs without a GPU')


def test_missing_config(run, tmp_path):
    outcome = run('train', tmp_path / 'none.py', '--work-dir', tmp_path / 'work')
    outcome.assert_rejected(tmp_path / 'work', 'no such file', 'none.py')


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
    outcome.assert_rejected(task.work_dir, expected)


def test_amp_without_an_optimizer(classification, run):
    task = classification
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--amp', '--cfg-options',
        'optim_wrapper=None',
    )  # fmt: skip
    outcome.assert_rejected(task.work_dir, '--amp: the config has no optim_wrapper')


@pytest.mark.parametrize(
    ('launcher', 'variables', 'local_rank'),
    [
        ('mpi', {'OMPI_COMM_WORLD_LOCAL_RANK': '1'}, '1'),
        ('slurm', {'SLURM_LOCALID': '2'}, '2'),
        ('pytorch', {'LOCAL_RANK': '3'}, '3'),
        ('pytorch', {}, '0'),
        ('none', {'SLURM_LOCALID': '1'}, '0'),
    ],
)
def test_local_rank(launcher, variables, local_rank, classification, monkeypatch):
    """The GPU that mmengine wraps the model for."""
    for name in ('LOCAL_RANK', *variables):
        monkeypatch.setenv(name, '')  # is restored after the test
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    load_config(train.parse_args([str(classification.config), '--launcher', launcher]))
    assert os.environ['LOCAL_RANK'] == local_rank


SHARED = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS', 'mpi': 'OMPI_COMM_WORLD_SIZE'}


@pytest.mark.parametrize('launcher', ['none', *SHARED])
def test_too_few_samples_per_process(launcher, classification, run, monkeypatch, accepted):
    """The samples are split between the processes of the launcher, which says how many."""
    for variable in SHARED.values():
        monkeypatch.setenv(variable, '1')
    monkeypatch.setenv(SHARED.get(launcher, 'WORLD_SIZE'), '4')
    monkeypatch.setenv('LOCAL_RANK', '0')
    task = classification
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--launcher', launcher,
        '--cfg-options', 'train_dataloader.drop_last=True',
    )  # fmt: skip
    if launcher == 'none':
        assert accepted(outcome), outcome.errors
    else:
        expected = '2 samples per process do not fill a batch of 4'
        outcome.assert_rejected(task.work_dir, expected)


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
    outcome.assert_rejected(task.work_dir, f'{key}.checkpoint: no such file: none.pth', 'download')
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
    outcome.assert_rejected(classification.work_dir, f'{key}.checkpoint: ', f'{key}=None')


def test_start_from_a_checkpoint(classification, run, tmp_path, accepted):
    """Other heads are fine, another backbone is not."""
    init_default_scope('mmpretrain')
    task, start = classification, tmp_path / 'start.pth'
    state = MODELS.build(Config.fromfile(task.config).model).state_dict()
    state = {key: value for key, value in state.items() if key.startswith('backbone.')}
    torch.save({'state_dict': {**state, 'head.fc.weight': torch.zeros(5, 16)}}, start)
    load = ['--cfg-options', f'load_from={start}']
    assert accepted(run('train', task.config, '--work-dir', task.work_dir, *load))
    torch.save({'state_dict': {key: value[None] for key, value in state.items()}}, start)
    outcome = run('train', task.config, '--work-dir', task.work_dir, *load)
    expected = f'load_from: {start} does not match the model: it fits 0 of the {len(state)} weights'
    outcome.assert_rejected(task.work_dir, expected)


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
    outcome.assert_rejected(task.work_dir, *expected, 'train_dataloader.dataset', '2 classes')
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
    outcome.assert_rejected(task.work_dir, f'{task.data / "val"} has 2 class folders, expected 3')


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
    outcome.assert_rejected(task.work_dir, str(task.data / folder), advice)
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--cfg-options', f'{option}={moved}'
    )
    if folder == '.':  # the next one is missed
        outcome.assert_rejected(task.work_dir, 'val_dataloader.dataset.data_root: no such folder')
    else:
        assert accepted(outcome), outcome.errors


def test_readme_of_the_real_data(segmentation, run):
    outcome = run(
        'train', segmentation.config, '--work-dir', segmentation.work_dir, '--cfg-options',
        'train_dataloader.dataset.type=ADE20KDataset', 'train_dataloader.dataset.data_root=none',
        'train_dataloader.dataset.metainfo=None',
    )  # fmt: skip
    outcome.assert_rejected(segmentation.work_dir, ', see configs/ade20k/README.md, or set')


def test_wrong_layout_classification(classification, run):
    task = classification
    for folder in (task.data / 'val').iterdir():  # images directly in the split, no classes
        for image in folder.iterdir():
            image.rename(task.data / 'val' / image.name)
        folder.rmdir()
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    outcome.assert_rejected(task.work_dir, 'val_dataloader.dataset: ', str(task.data / 'val'))


def test_wrong_layout_detection(detection, run):
    task = detection
    (task.data / 'train').rename(task.data / 'train2017')
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    key = 'train_dataloader.dataset.dataset.data_prefix.img: no such folder'
    outcome.assert_rejected(task.work_dir, key, str(task.data / 'train'))
    (task.data / 'train').mkdir()
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    outcome.assert_rejected(task.work_dir, 'train_dataloader.dataset.dataset: ', '0.png')


def test_missing_annotations_of_the_evaluator(detection, run):
    outcome = run(
        'train', detection.config, '--work-dir', detection.work_dir,
        '--cfg-options', 'val_evaluator.ann_file=none.json',
    )  # fmt: skip
    outcome.assert_rejected(detection.work_dir, 'val_evaluator.ann_file', 'none.json')


def test_wrong_layout_segmentation(segmentation, run):
    task = segmentation
    (task.data / 'labels' / 'train' / '0.png').rename(task.data / 'labels' / 'train' / 'a.png')
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    outcome.assert_rejected(task.work_dir, 'seg_map_path', 'labels/train/0.png')
    for image in (task.data / 'images' / 'train').iterdir():
        image.rename(image.with_suffix('.bmp'))
    outcome = run('train', task.config, '--work-dir', task.work_dir)
    outcome.assert_rejected(task.work_dir, 'train_dataloader.dataset: no samples', 'images/train')


def test_library_not_installed(segmentation, run, monkeypatch):
    monkeypatch.setattr(config_module.importlib.util, 'find_spec', lambda name: None)
    expected = 'pip install --no-build-isolation onedl-mmsegmentation'
    outcome = run('train', segmentation.config, '--work-dir', segmentation.work_dir)
    outcome.assert_rejected(segmentation.work_dir, "needs 'mmseg', which is not", expected)


def test_inherited_library_not_installed(segmentation, run, monkeypatch):
    def missing(*args, **kwargs):
        raise ModuleNotFoundError('mmseg is not installed, please install mmseg manually')

    monkeypatch.setattr(config_module.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(Config, 'fromfile', missing)
    outcome = run('train', segmentation.config, '--work-dir', segmentation.work_dir)
    expected = 'pip install --no-build-isolation onedl-mmsegmentation'
    outcome.assert_rejected(segmentation.work_dir, "needs 'mmseg', which is not", expected)


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_wrong_checkpoint(tool, classification, run, tmp_path):
    task = classification

    def attempt(path):
        given = [path] if tool == 'test' else ['--resume', path]
        return run(tool, task.config, *given, '--work-dir', task.work_dir)

    attempt(tmp_path / 'none.pth').assert_rejected(task.work_dir, 'no such file', 'none.pth')
    broken = tmp_path / 'broken.pth'
    broken.write_text('not a checkpoint')
    attempt(broken).assert_rejected(task.work_dir, 'cannot read', 'broken.pth')
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': {'backbone.stem.unknown': torch.zeros(1)}}, other)
    outcome = attempt(other)
    outcome.assert_rejected(task.work_dir, 'does not fit', 'other.pth', 'backbone.stem.unknown')


@pytest.mark.parametrize(
    ('out', 'expected'),
    [
        ('a.json', 'a.json must end in .pkl or .pickle'),
        ('folder.pkl', 'folder.pkl is a folder, expected a file'),
        ('file/new/out.pkl', 'file is not a folder'),
        ('locked/new/out.pkl', 'no permission to write to'),
    ],
)
def test_unusable_out(out, expected, classification, run, tmp_path, monkeypatch):
    init_default_scope('mmpretrain')
    task, checkpoint = classification, tmp_path / 'fits.pth'
    torch.save(MODELS.build(Config.fromfile(task.config).model).state_dict(), checkpoint)
    for folder in ('folder.pkl', 'locked'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'file').touch()
    # root may write to any folder
    monkeypatch.setattr(os, 'access', lambda path, mode: not str(path).endswith('locked'))
    path = tmp_path / out
    outcome = run('test', task.config, checkpoint, '--work-dir', task.work_dir, '--out', path)
    outcome.assert_rejected(task.work_dir, '--out', str(path), expected)


LAZY_DETECTOR = dict(
    roi_head=dict(bbox_roi_extractor=dict(type=float32_roi_extractor)),
    rpn_head=dict(type='dat_pp.Float32Head'),
)


@CPU_ONLY
@pytest.mark.parametrize('wrapper', [OptimWrapper, AmpOptimWrapper, 'mmengine.OptimWrapper'])
def test_amp_with_classes_in_the_config(wrapper):
    """A lazy config holds classes where others hold their names; a name may have a scope."""
    cfg = Config(dict(optim_wrapper=dict(type=wrapper), model=LAZY_DETECTOR, launcher='none'))
    train.merge_args(cfg, train.parse_args(['config.py', '--amp']))
    use_cpu_if_needed(cfg)
    assert cfg.optim_wrapper == dict(type='CPUAmpOptimWrapper')


def test_checks_with_classes_in_the_config(classification, tmp_path):
    """Starting weights, samples per process and heads are checked there, too."""
    cfg = Config.fromfile(classification.config)
    init_default_scope('mmpretrain')
    cfg.model.backbone.init_cfg = dict(type=PretrainedInit, checkpoint='none.pth')
    with pytest.raises(UserError, match=r'init_cfg\.checkpoint: no such file: none\.pth'):
        check_model(cfg)
    cfg.train_dataloader.update(drop_last=True, batch_size=9)
    cfg.train_dataloader.sampler.type = DefaultSampler
    with pytest.raises(UserError, match='8 samples per process do not fill a batch of 9'):
        datasets.check_dataloader(cfg, 'train_dataloader')
