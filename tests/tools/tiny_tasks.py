"""Tiny datasets and configs for all three libraries."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ('a', 'b')
SIZE = 32

COMMON = """
custom_imports = dict(imports=['dat_pp'], allow_failed_imports=False)
_dat = dict(embed_dims=[8, 8, 16, 16], mixers=['N', 'N', 'D', 'D'], num_heads=[1, 1, 2, 2],
            native_resolution=32)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
param_scheduler = []
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=8, enable=False)
randomness = dict(seed=0)
log_processor = dict(by_epoch=True)
root = {root!r}
_sampler = dict(type='DefaultSampler', shuffle=False)
"""

CLASSIFICATION = """
_base_ = ['mmpretrain::_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=2, mean=[128] * 3, std=[64] * 3, to_rgb=True),
    backbone=dict(type='DAT', arch=_dat, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16, topk=(1,),
              loss=dict(type='CrossEntropyLoss')))
_data = dict(type='CustomDataset', data_root=root, pipeline=[
    dict(type='LoadImageFromFile'), dict(type='PackInputs')])
train_dataloader = dict(batch_size=4, num_workers=0, sampler=_sampler,
                        dataset=dict(**_data, data_prefix='train'))
val_dataloader = dict(batch_size=4, num_workers=0, sampler=_sampler,
                      dataset=dict(**_data, data_prefix='val'))
val_evaluator = dict(type='Accuracy', topk=(1,))
"""

DETECTION = """
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
model = dict(
    backbone=dict(_delete_=True, type='DAT', arch=_dat),
    neck=dict(in_channels=[8, 8, 16, 16], out_channels=8, num_outs=4),
    rpn_head=dict(in_channels=8, feat_channels=8, anchor_generator=dict(strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=dict(in_channels=8, fc_out_channels=8, num_classes=2),
        mask_roi_extractor=dict(out_channels=8),
        mask_head=dict(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=2)))
_data = dict(type='CocoDataset', data_root=root, metainfo=dict(classes=('a', 'b')), pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                          'scale_factor')),
])
# A wrapped dataset: the checks look inside.
train_dataloader = dict(batch_size=4, num_workers=0, sampler=_sampler, dataset=dict(
    type='RepeatDataset', times=1,
    dataset=dict(**_data, ann_file='train.json', data_prefix=dict(img='train/'))))
_data['pipeline'] = [_data['pipeline'][0], dict(type='Resize', scale=(32, 32)),
                     *_data['pipeline'][1:]]
val_dataloader = dict(batch_size=4, num_workers=0, sampler=_sampler, dataset=dict(
    **_data, test_mode=True, ann_file='val.json', data_prefix=dict(img='val/')))
val_evaluator = dict(type='CocoMetric', ann_file=root + '/val.json', metric=['bbox', 'segm'])
"""

SEGMENTATION = """
_base_ = [*__import__('dat_pp').upstream('mmseg::_base_/default_runtime.py')]
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[128] * 3, std=[64] * 3,
                           size=(32, 32), pad_val=0, seg_pad_val=255),
    backbone=dict(type='DAT', arch=_dat, out_indices=(3,)),
    decode_head=dict(type='FCNHead', in_channels=16, channels=8, num_convs=1, num_classes=2,
                     norm_cfg=dict(type='BN'),
                     loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
_data = dict(type='BaseSegDataset', data_root=root, metainfo=dict(classes=('a', 'b')), pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')])
train_dataloader = dict(batch_size=4, num_workers=0, sampler=_sampler, dataset=dict(
    **_data, data_prefix=dict(img_path='images/train', seg_map_path='labels/train')))
val_dataloader = dict(batch_size=4, num_workers=0, sampler=_sampler, dataset=dict(
    **_data, data_prefix=dict(img_path='images/val', seg_map_path='labels/val')))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
tta_model = dict(type='SegTTAModel')
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[
    [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
    [dict(type='LoadAnnotations')],
    [dict(type='PackSegInputs')]])]
"""

ENDING = """
test_dataloader = val_dataloader
test_evaluator = val_evaluator
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=True),
    visualization=dict(type={hook!r}))
"""

TASKS = {
    'classification': (CLASSIFICATION, 'VisualizationHook'),
    'detection': (DETECTION, 'DetVisualizationHook'),
    'segmentation': (SEGMENTATION, 'SegVisualizationHook'),
}


@dataclass
class Task:
    """A config file, its data, and a work directory that does not exist yet."""

    name: str
    config: Path
    data: Path
    work_dir: Path

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / 'epoch_1.pth'

    def add_config(self, text: str) -> None:
        with self.config.open('a') as file:
            file.write(text)


def make_task(name: str, folder: Path) -> Task:
    """A tiny task: 8 training and 3 validation images."""
    data = folder / 'data'
    text, hook = TASKS[name]
    globals()[f'write_{name}'](data)
    base, rest = text.strip().split('\n', 1)
    config = folder / f'{name}.py'
    config.write_text(base + COMMON.format(root=str(data)) + rest + ENDING.format(hook=hook))
    return Task(name, config, data, folder / 'work')


def images_of(seed: int, count: int) -> list[np.ndarray]:
    """Noise with a bright square in the left (class 0) or right half (class 1)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 128, (count, SIZE, SIZE, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        image[8:24, square_left(index) : square_left(index) + 12] += 100
    return list(images)


def square_left(index: int) -> int:
    return 2 + 16 * (index % 2)


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def splits() -> list[tuple[str, list[np.ndarray]]]:
    return [('train', images_of(0, 8)), ('val', images_of(1, 3))]


def write_classification(root: Path) -> None:
    for split, images in splits():
        for index, image in enumerate(images):
            save(image, root / split / CLASSES[index % 2] / f'{index}.png')


def write_detection(root: Path) -> None:
    for split, images in splits():
        annotations = []
        for index, image in enumerate(images):
            save(image, root / split / f'{index}.png')
            left, right = square_left(index), square_left(index) + 12
            polygon = [left, 8, right, 8, right, 24, left, 24]
            annotations.append(
                dict(
                    id=index + 1,
                    image_id=index,
                    category_id=index % 2 + 1,
                    bbox=[left, 8, 12, 16],
                    area=12 * 16,
                    iscrowd=0,
                    segmentation=[polygon],
                )
            )
        content = dict(
            images=[
                dict(id=index, file_name=f'{index}.png', width=SIZE, height=SIZE)
                for index in range(len(images))
            ],
            annotations=annotations,
            categories=[dict(id=index + 1, name=name) for index, name in enumerate(CLASSES)],
        )
        (root / f'{split}.json').write_text(json.dumps(content))


def write_segmentation(root: Path) -> None:
    for split, images in splits():
        for index, image in enumerate(images):
            save(image, root / 'images' / split / f'{index}.jpg')
            labels = np.zeros((SIZE, SIZE), np.uint8)
            labels[8:24, square_left(index) : square_left(index) + 12] = 1
            save(labels, root / 'labels' / split / f'{index}.png')
