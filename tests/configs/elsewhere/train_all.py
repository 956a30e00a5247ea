"""Trains one step of each config named on the command line, made small; writes results.json."""

import json
import sys
import traceback
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner

import dat_pp  # makes `_base_ = 'dat_pp::...'` known

ARCH = dict(base='dat-t++', mixers=['N', 'D', 'N', 'D'])
MARK = 5.0
RESIZED = dict(type='Resize', scale=(64, 64))
# Before packing, so that all images of a batch have one size.
PIPELINES = {
    'mmdet': [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        RESIZED,
        dict(type='PackDetInputs'),
    ],
    'mmseg': [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', reduce_zero_label=True),
        RESIZED,
        dict(type='PackSegInputs'),
    ],
}


def write_classifier() -> None:
    """A checkpoint of a classifier of 1000 classes, its backbone marked."""
    cfg = Config.fromfile('fine_tuned.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    cfg.model.head.num_classes = 1000
    model = MODELS.build(cfg.model)
    torch.nn.init.constant_(model.backbone.stem.conv1.bias, MARK)
    torch.save({'state_dict': model.state_dict()}, 'classifier.pth')


def small(name: str) -> Config:
    cfg = Config.fromfile(f'{name}.py')
    scope = cfg.default_scope
    cfg.model.backbone.arch = ARCH
    if name != 'fine_tuned':
        cfg.model.backbone.init_cfg = None
    if scope in PIPELINES:
        cfg.train_dataloader.dataset.pipeline = PIPELINES[scope]
    if scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
    if 'rpn_proposal' in (cfg.model.train_cfg or {}):
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.train_cfg.rcnn.sampler.num = 8
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    for split in ('val', 'test'):
        cfg.update({f'{split}_{part}': None for part in ('cfg', 'dataloader', 'evaluator')})
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-5))
    cfg.param_scheduler = None
    cfg.train_cfg = dict(by_epoch=False, max_iters=1)
    cfg.default_hooks.checkpoint = None
    cfg.work_dir = f'work/{name}'
    return cfg


def train(name: str) -> dict[str, Any]:
    runner = Runner.from_cfg(small(name))
    runner.train()
    model, mark = runner.model, runner.model.backbone.stem.conv1.bias
    return dict(
        loss=float(runner.message_hub.get_scalar('train/loss').current()),
        model=type(model).__name__,
        head=type(getattr(model, 'decode_head', None)).__name__,
        ours=isinstance(model.backbone, dat_pp.DAT),
        marked=bool((mark - MARK).abs().max() < 0.1),
    )


def main(names: list[str]) -> None:
    write_classifier()
    results = {}
    for name in names:
        DefaultScope._instance_dict.clear()
        try:
            results[name] = train(name)
        except Exception:
            results[name] = dict(error=traceback.format_exc()[-3000:])
    with open('results.json', 'w') as file:
        json.dump(results, file)


if __name__ == '__main__':
    main(sys.argv[1:])
