"""Write a project: a config that inherits one of ours, and a README of its commands."""

import math
import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import catalog
from ...models.arch import ARCH_SETTINGS
from ..config import read_config
from .class_folders import class_folders
from .coco import coco_boxes, coco_masks
from .data import Data
from .label_maps import label_maps

DIGITS = 'digits'  # the small model of the demo
ARCHS = (*ARCH_SETTINGS, DIGITS)
SIZES = {'t': 'tiny', 's': 'small', 'b': 'base'}
MAX_EPOCHS = 100


@dataclass(frozen=True)
class Task:
    """What there is to know of a task.

    Attributes:
        library: The library that trains it.
        recognize: Finds out how its data is laid out.
        config: Pattern of our configs, with FAMILY and SIZE or LETTER in place of the model.
        digits: Our config of the demo's model.
        batch: Images per batch.
        iterations: Length of a training run, if that is not too many epochs.
        min_epochs: Epochs of a large dataset.
        metric: The figure that matters, as the library names it.
    """

    library: str
    recognize: Callable[..., Data]
    config: str
    digits: str
    batch: int
    iterations: int
    min_epochs: int
    metric: str


TASKS = {
    'classification': Task(
        'mmpretrain',
        class_folders,
        'imagenet/FAMILY-SIZE_*_in1k',
        'digits/classification',
        batch=64,
        iterations=2000,
        min_epochs=10,
        metric='accuracy/top1',
    ),
    'detection': Task(
        'mmdet',
        coco_boxes,
        'coco/retinanet_FAMILY-LETTER_fpn_32xb2-amp-ms-crop-1x_coco',
        'digits/mask-rcnn',
        batch=4,
        iterations=10_000,
        min_epochs=12,
        metric='coco/bbox_mAP',
    ),
    'instance-segmentation': Task(
        'mmdet',
        coco_masks,
        'coco/mask-rcnn_FAMILY-LETTER_fpn_32xb2-amp-ms-crop-1x_coco',
        'digits/mask-rcnn',
        batch=4,
        iterations=10_000,
        min_epochs=12,
        metric='coco/segm_mAP',
    ),
    'segmentation': Task(
        'mmseg',
        label_maps,
        'ade20k/FAMILY-SIZE_upernet_*_ade20k-512x512',
        'digits/upernet',
        batch=4,
        iterations=10_000,
        min_epochs=12,
        metric='mIoU',
    ),
}


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    Attributes:
        epochs: Passes over the training images.
        batch: Images per batch.
        lr: Learning rate for that batch.
        warmup: Iterations.
        rule: Where the learning rate comes from.
    """

    epochs: int
    batch: int
    lr: float
    warmup: int
    rule: str


def base_config(task: str, arch: str) -> str:
    """Name of the config that a project inherits: that of the model, or of the nearest one."""
    if arch == DIGITS:
        return TASKS[task].digits
    family = 'dat-pp' if arch.endswith('++') else 'dat'
    letter = arch.removesuffix('++')[-1]
    folder = catalog.root() / 'configs'
    for near, size in ((family, letter), ('dat-pp', letter), ('dat-pp', 's')):
        name = TASKS[task].config.replace('FAMILY', near)
        name = name.replace('SIZE', SIZES[size]).replace('LETTER', size)
        if found := sorted(folder.glob(f'{name}.py')):
            return found[0].relative_to(folder).with_suffix('').as_posix()
    raise ValueError(f'no config for {task} with {arch}')


def plan(task: str, base: str, images: int, batch: int | None, epochs: int | None) -> Schedule:
    """Fit the schedule to the size of the dataset, and the learning rate to the batch.

    The learning rate is proportional to the batch, as with ``--auto-scale-lr``.

    Args:
        task: A key of ``TASKS``.
        base: The config that is inherited.
        images: Number of training images.
        batch: Images per batch; default: the task's, or all images if they are fewer.
        epochs: Default: as many as make the task's number of iterations, within bounds.
    """
    settings = TASKS[task]
    cfg = read_config(Namespace(config=catalog.config(base), cfg_options=None))
    digits = base == settings.digits
    base_batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    base_batch = base_batch or cfg.train_dataloader.batch_size
    batch = min(batch or (cfg.train_dataloader.batch_size if digits else settings.batch), images)
    per_epoch = math.ceil(images / batch)
    if epochs is None:
        # The small model learns as much in an eighth of the iterations.
        wanted = settings.iterations // (8 if digits else 1)
        least = 1 if digits else settings.min_epochs
        epochs = min(max(math.ceil(wanted / per_epoch), least), MAX_EPOCHS)
    lr = cfg.optim_wrapper.optimizer.lr
    return Schedule(
        epochs,
        batch,
        lr=float(f'{lr * batch / base_batch:.3g}'),
        warmup=max(1, min(500, per_epoch * epochs // 10)),
        rule=f'{lr:g} of the base at a batch of {base_batch}',
    )


def config_text(task: str, arch: str, base: str, data: Data, schedule: Schedule) -> str:
    """The config of a project, of at most 30 lines."""
    train, val, lines = _parts(task, arch, base, data)
    loader = f'batch_size={schedule.batch}'
    if TASKS[task].library != 'mmdet':  # which groups images by aspect ratio
        loader += ", drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True)"
    # Of another type than the dataset of the base, except for COCO's.
    own = '' if TASKS[task].library == 'mmdet' else '_delete_=True, '
    # mmseg draws every 50th batch, if at all.
    drawn = ', visualization=dict(interval=1)' if task == 'segmentation' else ''
    n = schedule.epochs
    text = [
        f'# {arch} for {task}: {len(data.classes)} classes, {data.train.count} training and '
        f'{data.val.count} validation images.',
        f"_base_ = __import__('dat_pp').config({base!r})",
        '',
        f'classes = {data.classes!r}',
        "work_dir = '{{ fileDirname }}/work_dir'",
        "load_from = '{{ fileDirname }}/weights.pth'",
        *lines,
        f'train_dataset = {train}',
        f'val_dataset = {val}',
        f'train_dataloader = dict({loader}, dataset=dict({own}**train_dataset))',
        f'val_dataloader = dict(dataset=dict({own}**val_dataset))',
        f'test_dataloader = dict(dataset=dict({own}**val_dataset))',
        '',
        f'# Learning rate in proportion to the batch: {schedule.rule}.',
        f'optim_wrapper = dict(optimizer=dict(lr={schedule.lr:g}))',
        f'auto_scale_lr = dict(base_batch_size={schedule.batch})',
        f'train_cfg = dict(_delete_=True, by_epoch=True, max_epochs={n}, '
        f'val_interval={max(1, n // 10)})',
        'param_scheduler = [',
        f"    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end={schedule.warmup}),",
        "    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, convert_to_iter_based=True),",
        ']',
        "default_hooks = dict(logger=dict(type='LoggerHook', interval=20),",
        f"    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2){drawn})",
    ]
    return '\n'.join(text) + '\n'


def _parts(task: str, arch: str, base: str, data: Data) -> tuple[str, str, Sequence[str]]:
    """Datasets for training and validation, and the lines of model and evaluation."""
    count = len(data.classes)
    backbone: dict[str, Any] = dict(init_cfg=None)
    model: dict[str, Any] = dict(backbone=backbone)
    dims = None
    if arch != DIGITS:
        cfg = read_config(Namespace(config=catalog.config(base), cfg_options=None))
        if cfg.model.backbone.arch != arch:
            backbone['arch'] = arch
            dims = ARCH_SETTINGS[arch]['embed_dims']
    train, val = data.train.settings, data.val.settings
    pipelines = '_base_.train_pipeline', '_base_.test_pipeline'
    own: dict[str, Any] = dict(metainfo=dict(classes=Raw('classes')))
    if task == 'classification':
        model.update(head=dict(num_classes=count), train_cfg=None)  # without Mixup and CutMix
        lines = ['val_evaluator = test_evaluator = dict(topk=(1,))']
        if arch == DIGITS:
            model['data_preprocessor'] = dict(num_classes=count)
        else:
            lines.append(f'data_preprocessor = dict(num_classes={count})')
        own = dict(type='CustomDataset', classes=Raw('classes'))
    elif task == 'segmentation':
        heads = ('decode_head', 'auxiliary_head')
        model.update({head: dict(num_classes=count) for head in heads})
        if dims:
            model['decode_head']['in_channels'] = dims
            model['auxiliary_head']['in_channels'] = dims[2]
        own = dict(type='BaseSegDataset', **own)
        lines = ['log_processor = dict(by_epoch=True)']
        if arch != DIGITS:
            lines += _pipelines('reduce_zero_label=False')
            pipelines = 'train_pipeline', 'test_pipeline'
    else:
        boxes = task == 'detection'
        if 'mask-rcnn' in base:
            parts: dict[str, Any] = dict(bbox_head=dict(num_classes=count))
            if boxes:
                parts.update(mask_head=None, mask_roi_extractor=None)
            else:
                parts.update(mask_head=dict(num_classes=count))
            model['roi_head'] = parts
        else:
            model['bbox_head'] = dict(num_classes=count)
        if dims:
            model['neck'] = dict(in_channels=dims if 'mask-rcnn' in base else dims[1:])
        metric = ['bbox'] if boxes else ['bbox', 'segm']
        evaluator = render(dict(ann_file=val['ann_file'], metric=metric))
        lines = [f'val_evaluator = test_evaluator = {evaluator}']
        if boxes and 'mask-rcnn' in base:
            lines += _pipelines('with_mask=False')
            pipelines = 'train_pipeline', 'test_pipeline'
    lines = [f'model = {render(model)}', *lines]
    train, val = (
        {**own, **each, 'pipeline': Raw(pipeline)}
        for each, pipeline in zip((train, val), pipelines)
    )
    return render(train), render(val), lines


def _pipelines(setting: str) -> list[str]:
    """Lines that change the annotations which the pipelines of the base load."""
    return [
        'train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline',
        f'train_pipeline[1].update({setting})',
        f'test_pipeline[2].update({setting})',  # after resizing
    ]


class Raw(str):
    """An expression, written as it is."""


def render(value: Any) -> str:
    """A value as it is written in a config."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={render(each)}" for key, each in value.items())})'
    return repr(value)


def commands(out: Path, epochs: int) -> dict[str, list[str]]:
    """What to do with a project -> the script and its arguments."""
    tools, config = (catalog.root() / 'tools').resolve(), out / 'config.py'
    checkpoint = out / 'work_dir' / f'epoch_{epochs}.pth'
    weights = '--weights', checkpoint
    words: dict[str, tuple[str | Path, ...]] = {
        'check the data': ('misc/check_dataset.py', config),
        'train': ('train.py', config),
        'test and draw': ('test.py', config, checkpoint, '--show-dir', out / 'vis'),
        'predict': (
            'predict.py',
            'IMAGE',
            *('--model', config, *weights, '--out-dir', out / 'predictions'),
        ),
    }
    return {what: [str(tools / name), *map(str, rest)] for what, (name, *rest) in words.items()}


def readme_text(
    task: str, arch: str, data: Data, schedule: Schedule, notes: Sequence[str], out: Path
) -> str:
    """The README of a project: what it is, and its commands."""
    lines = [
        f'python {shlex.join(command)}  # {what}'
        for what, command in commands(out, schedule.epochs).items()
    ]
    config = out / 'config.py'
    library = TASKS[task].library
    remarks = ''.join(f'- {note}\n' for note in notes)
    return f"""# {arch}, fine-tuned for {task}

{len(data.classes)} classes, {data.train.count} training and {data.val.count} validation images, \
{schedule.epochs} epochs with {schedule.batch} images per batch.

{remarks}
```bash
{chr(10).join(lines)}
```

`config.py` holds all settings and inherits the rest from dat_pp, so the tools of {library} take
it too: `mim train {library} {shlex.quote(str(config))}`.
On several GPUs, `--auto-scale-lr` scales the learning rate to the total batch. `weights.pth` holds
the weights that training starts from. The data stays where it is; lists of images in this folder
refer to it.
"""
