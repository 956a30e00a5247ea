"""Detectors and heads beyond those with configs here: upstream's config, our backbone, one step."""

from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

LIBRARIES = {'mmdet': mmdet, 'mmseg': mmseg}
WIDTHS = [16, 16, 32, 32]
ARCH = dict(
    embed_dims=WIDTHS,
    mixers=['N', 'D', 'ND', 'D'],
    num_heads=[1, 1, 2, 2],
    offset_groups=[1, 1, 2, 2],
    native_resolution=64,
)
SIZES = (75, 107), (91, 66)
"""Height and width of both images: no multiples of the strides."""
# mmdet's FPN with start_level=1 takes a map that it does not read, so the norm of that map has no
# gradient: give it the maps that it reads.
FROM_STAGE_1 = dict(neck=dict(start_level=0))
# These necks upsample by exactly two.
PADDED = dict(data_preprocessor=dict(pad_size_divisor=32, batch_augments=None))
FEW_REGIONS = dict(
    train_cfg=dict(rcnn=dict(sampler=dict(num=8))), test_cfg=dict(rcnn=dict(max_per_img=4))
)
SMALL_DETR = dict(encoder=dict(num_layers=1), decoder=dict(num_layers=2))

# Upstream's config, the stages that its neck reads, and further options of the model.
DETECTORS = {
    'atss': ('atss/atss_r50_fpn_1x_coco.py', (1, 2, 3), FROM_STAGE_1),
    'conditional-detr': (
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', (3,), SMALL_DETR
    ),
    'deformable-detr': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', (1, 2, 3), SMALL_DETR
    ),
    'detr': ('detr/detr_r50_8xb2-150e_coco.py', (3,), SMALL_DETR),
    'fcos': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', (1, 2, 3), FROM_STAGE_1),
    'gfl': ('gfl/gfl_r50_fpn_1x_coco.py', (1, 2, 3), FROM_STAGE_1),
    'point-rend': (
        'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', (0, 1, 2, 3), FEW_REGIONS
    ),
    'rtmdet': ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', (1, 2, 3), PADDED),
    'tood': ('tood/tood_r50_fpn_1x_coco.py', (1, 2, 3), FROM_STAGE_1),
    'yolox': ('yolox/yolox_tiny_8xb8-300e_coco.py', (1, 2, 3), PADDED),
}  # fmt: skip
SEGMENTORS = {
    'deeplabv3plus': ('_base_/models/deeplabv3plus_r50-d8.py', (0, 2, 3), {}),
    'point-rend': ('_base_/models/pointrend_r50.py', (0, 1, 2, 3), {}),
    'pspnet': ('_base_/models/pspnet_r50-d8.py', (2, 3), {}),
    'segformer': ('_base_/models/segformer_mit-b0.py', (0, 1, 2, 3), {}),
}
FAST = 'deformable-detr', 'fcos', 'rtmdet', 'segformer'


def cases(models: dict) -> list:
    return [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in models]


def build(library: str, config: str, indices: tuple[int, ...], options: dict) -> BaseModel:
    """Build the model of an upstream config with our backbone in place of its own."""
    root = Path(LIBRARIES[library].__file__).parent / '.mim' / 'configs'
    cfg = Config.fromfile(root / config)
    widths = [WIDTHS[index] for index in indices]
    backbone = dict(_delete_=True, type='DAT', arch=ARCH, out_indices=indices)
    changes = dict(backbone=backbone, **options)
    if 'neck' in cfg.model:
        changes['neck'] = dict(in_channels=widths, **options.get('neck', {}))
    if library == 'mmseg':
        changes |= dict(pretrained=None, data_preprocessor=dict(size=SIZES[0]))
    if 'neck' not in cfg.model:
        for name in ('decode_head', 'auxiliary_head'):
            if name in cfg.model:
                changes[name] = head_inputs(cfg.model[name], indices)
    cfg.merge_from_dict(dict(model=changes))
    init_default_scope(library)
    model = MODELS.build(cfg.model)
    model.init_weights()  # some heads leave memory uninitialized until then
    return revert_sync_batchnorm(model)


def head_inputs(head: dict, indices: tuple[int, ...]) -> dict:
    """Return the options by which a head reads the same stages of our backbone."""
    stages = head['in_index']
    if isinstance(stages, int):
        inputs = dict(in_index=indices.index(stages), in_channels=WIDTHS[stages])
    else:
        inputs = dict(in_channels=[WIDTHS[stage] for stage in stages])
    if 'c1_in_channels' in head:
        inputs['c1_in_channels'] = WIDTHS[0]
    return inputs


def take_steps(model: BaseModel, train: dict, test: dict) -> list:
    """Take one training step and one test step, and return the predictions."""
    model.train()
    losses = model(**model.data_preprocessor(train, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    gradients = {name: p.grad for name, p in model.backbone.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None] == []
    assert [name for name, grad in gradients.items() if not grad.isfinite().all()] == []
    torch.optim.SGD(model.parameters(), 1e-3).step()
    with torch.no_grad():
        return model.eval().test_step(test)


@pytest.mark.parametrize('name', cases(DETECTORS))
def test_detector(name: str) -> None:
    torch.manual_seed(0)
    model = build('mmdet', *DETECTORS[name])
    MessageHub.get_current_instance().update_info('epoch', 0)  # as a runner does; TOOD asks
    shapes = [(3, *size) for size in SIZES]
    with_mask = name == 'point-rend'
    inputs = demo_mm_inputs(2, shapes, num_items=[2, 1], num_classes=80, with_mask=with_mask)
    predictions = take_steps(model, inputs, inputs)
    assert len(predictions) == 2
    for sample in predictions:
        assert sample.pred_instances.bboxes.isfinite().all()


@pytest.mark.parametrize('name', cases(SEGMENTORS))
def test_segmentor(name: str) -> None:
    torch.manual_seed(0)
    model = build('mmseg', *SEGMENTORS[name])
    height, width = SIZES[0]
    predictions = take_steps(model, segmentation_inputs(2), segmentation_inputs(1))
    assert predictions[0].seg_logits.data.shape == (19, height, width)
    assert predictions[0].seg_logits.data.isfinite().all()


def segmentation_inputs(batch: int) -> dict:
    """Random images and labels, as a dataset's pipeline packs them."""
    shape = SIZES[0]
    samples = []
    for _ in range(batch):
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
        sample.gt_sem_seg = PixelData(data=torch.randint(19, (1, *shape)))
        samples.append(sample)
    return dict(inputs=list(torch.randint(256, (batch, 3, *shape)).byte()), data_samples=samples)


def test_unread_map_has_no_gradient() -> None:
    """The trap that docs/reuse_features.md names: DDP refuses parameters without gradient."""
    model = build('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py', (0, 1, 2, 3), {})
    inputs = demo_mm_inputs(1, [(3, *SIZES[0])], num_items=[1], num_classes=80)
    with pytest.raises(AssertionError, match=r"\['norm0.weight', 'norm0.bias'\] == \[\]"):
        take_steps(model, inputs, inputs)
