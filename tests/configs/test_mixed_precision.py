"""What stays in float32 when the published detectors and segmentors train in mixed precision."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from published import DETECTORS, SEGMENTORS, Detector
from recipes import CONFIGS, build_model, load
from torch import nn

TWO_STAGE = [row for row in DETECTORS if row.method != 'retinanet']
STRIDES = (4, 8, 16, 32)
# One config per method: RetinaNet, Mask R-CNN, Cascade Mask R-CNN, UperNet.
SMALL = [f'coco/{DETECTORS[i].config}.py' for i in (0, 4, 8)]
SMALL.append(f'ade20k/{SEGMENTORS[3].config}.py')


def roi_extractors(model: nn.Module) -> Iterator[nn.Module]:
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        yield from extractor if isinstance(extractor, nn.ModuleList) else [extractor]


@pytest.mark.parametrize('row', TWO_STAGE, ids=lambda row: row.config)
def test_level_of_a_large_roi(row: Detector) -> None:
    """300 x 300 is level 2 in half precision too, where the area is beyond the largest number."""
    features = [torch.full((1, 256, 512 // s, 512 // s), float(i)) for i, s in enumerate(STRIDES)]
    rois = torch.tensor([[0, 10.3, 20.3, 310.3, 320.3]])
    for extractor in roi_extractors(build_model(load(f'coco/{row.config}.py'))):
        with torch.autocast('cpu', torch.float16):
            result = extractor([level.half() for level in features], rois)
        assert result.dtype == torch.float16
        assert result.unique().tolist() == [2.0]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_roi_features_equal_those_in_float32(dtype: torch.dtype) -> None:
    load(SMALL[1])
    torch.manual_seed(0)
    settings = dict(
        roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
        out_channels=8,
        featmap_strides=STRIDES,
    )
    features = [torch.randn(2, 8, 1024 // s, 1024 // s).to(dtype) for s in STRIDES]
    corners = torch.rand(50, 2) * 500
    sizes = torch.rand(50, 2) * 500 + 4
    rois = torch.cat([torch.arange(50)[:, None] % 2, corners, corners + sizes], 1)
    upstream = MODELS.build(dict(type='mmdet.SingleRoIExtractor', **settings))
    expected = upstream([level.float() for level in features], rois)
    ours = MODELS.build(dict(type='Float32RoIExtractor', _scope_='mmdet', **settings))
    with torch.autocast('cpu', torch.bfloat16):
        result = ours(features, rois)
    assert torch.equal(result, expected.to(dtype))


def small(path: str) -> nn.Module:
    """The config's model on the CPU: one block per stage, small heads, no synchronized norms."""
    model = copy.deepcopy(load(path).model)
    model.backbone.update(
        arch=dict(base='dat-t++', mixers=['N', 'D', 'N', 'D']), init_cfg=None, drop_path_rate=0.0
    )
    if 'roi_head' in model:
        model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=50)
        rcnn = model.train_cfg.rcnn
        for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
            stage.sampler.update(num=8)
    if 'decode_head' in model:
        model.decode_head.channels = 64
    torch.manual_seed(0)
    return revert_sync_batchnorm(MODELS.build(model)).train()


def batch(path: str, model: nn.Module) -> dict:
    """Two images with a large object each, preprocessed."""
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8) for _ in range(2)]
    if path.startswith('ade20k'):
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = []
        for _ in images:
            labels = PixelData(data=torch.randint(0, 150, (1, 128, 160)))
            samples.append(SegDataSample(gt_sem_seg=labels))
        model.data_preprocessor.size = (128, 160)
    else:
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData

        samples = []
        for _ in images:
            masks = torch.zeros(1, 128, 160)
            masks[:, 10:110, 20:140] = 1
            objects = InstanceData(
                bboxes=torch.tensor([[20.0, 10.0, 140.0, 110.0]]),
                labels=torch.tensor([5]),
                masks=BitmapMasks(masks.byte().numpy(), 128, 160),
            )
            samples.append(
                DetDataSample(
                    gt_instances=objects,
                    metainfo=dict(img_shape=(128, 160), scale_factor=(1.0, 1.0)),
                )
            )
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)


@pytest.mark.parametrize('path', SMALL)
def test_losses_and_rois_in_float32(path: str) -> None:
    """A training step in bfloat16: features are bfloat16, losses and RoIs are float32."""
    model = small(path)
    data = batch(path, model)
    losses, features, rois = {}, set(), set()

    def before_loss(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            losses[name] = args[0].dtype, torch.is_autocast_enabled('cpu')

        return hook

    def after_roi_extractor(module: nn.Module, args: tuple, result: torch.Tensor) -> None:
        rois.add(args[1].dtype)
        features.update((args[0][0].dtype, result.dtype))

    expected = set()
    for name, module in model.named_modules():
        if type(module).__name__.endswith('Loss'):
            module.register_forward_pre_hook(before_loss(name))
            expected.add(name)
        elif type(module).__name__.endswith('RoIExtractor'):
            module.register_forward_hook(after_roi_extractor)
    with torch.autocast('cpu', torch.bfloat16):
        found = model(**data, mode='loss')
    assert losses.keys() == expected
    assert set(losses.values()) == {(torch.float32, False)}
    if hasattr(model, 'roi_head'):
        assert (features, rois) == ({torch.bfloat16}, {torch.float32})

    total, _ = model.parse_losses(found)
    total.backward()
    assert torch.isfinite(total)
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_focal_loss_equals_that_in_float32() -> None:
    """The loss of RetinaNet from half precision predictions, against upstream's head in float32."""
    path = SMALL[0]
    model = small(path)
    data = batch(path, model)
    with torch.autocast('cpu', torch.bfloat16):
        scores, boxes = model.bbox_head(model.extract_feat(data['inputs']))
        assert scores[0].dtype == torch.bfloat16
        found = model.bbox_head.loss_by_feat(scores, boxes, *targets(data))
    upstream = type(model.bbox_head).__mro__[1]
    assert upstream.__module__.startswith('mmdet.')
    scores, boxes = ([level.float() for level in levels] for levels in (scores, boxes))
    expected = upstream.loss_by_feat(model.bbox_head, scores, boxes, *targets(data))
    for name, levels in expected.items():
        assert torch.equal(torch.stack(found[name]), torch.stack(levels)), name


def targets(data: dict) -> tuple[list, list]:
    samples = data['data_samples']
    return [sample.gt_instances for sample in samples], [sample.metainfo for sample in samples]


def test_cascade_refines_boxes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals of RPN, and the boxes that a stage hands to the next one."""
    path = SMALL[2]
    model = small(path)
    dtypes = []

    def record(head: nn.Module, method: str) -> None:
        original = getattr(head, method)

        def recording(*args, **kwargs):
            results = original(*args, **kwargs)
            dtypes.append(results[0].bboxes.dtype)
            return results

        monkeypatch.setattr(head, method, recording)

    record(model.rpn_head, 'predict_by_feat')
    for head in model.roi_head.bbox_head[:2]:
        record(head, 'refine_bboxes')
        decode = head.bbox_coder.decode

        def spied(boxes, deltas, *args, decode=decode, **kwargs):
            dtypes.append(deltas.dtype)
            return decode(boxes, deltas, *args, **kwargs)

        monkeypatch.setattr(head.bbox_coder, 'decode', spied)
    with torch.autocast('cpu', torch.bfloat16):
        model(**batch(path, model), mode='loss')
    assert len(dtypes) >= 5
    assert set(dtypes) == {torch.float32}


def test_any_mmdet_config(tmp_path: Path) -> None:
    """The snippet of the COCO page turns upstream's Mask R-CNN into one with float32 losses."""
    load(SMALL[1])
    page = (CONFIGS / 'coco' / 'README.md').read_text()
    snippet = page.partition('### Mixed precision')[2].partition('```python\n')[2]
    config = tmp_path / 'config.py'
    base = "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n"
    config.write_text(base + snippet.partition('```')[0])
    model = build_model(Config.fromfile(config))
    names = {type(module).__name__ for module in model.modules()}
    assert {
        'Float32RPNHead',
        'Float32SingleRoIExtractor',
        'Float32Shared2FCBBoxHead',
        'Float32FCNMaskHead',
    } <= names


def test_pickle() -> None:
    """As torch.save of a model does; the class is made again where it is read."""
    load(SMALL[1])
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
    settings = dict(roi_layer=layer, out_channels=8, featmap_strides=[4, 8])
    extractor = MODELS.build(dict(settings, type='Float32RoIExtractor', _scope_='mmdet')).eval()
    read = pickle.loads(pickle.dumps(extractor))
    assert type(read) is type(extractor)
    assert not read.training
    features = tuple(torch.randn(1, 8, side, side).half() for side in (32, 16))
    rois = torch.tensor([[0, 10.3, 20.1, 90.7, 80.2]])
    assert torch.equal(read(features, rois), extractor(features, rois))


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(type='Float32Head', base='RPNHaed'), KeyError, "no module 'RPNHaed' is registered"),
        (dict(type='Float32Head', base='FPN'), TypeError, "'FPN' has none of the methods"),
    ],
)
def test_mistakes(settings: dict, error: type[Exception], message: str) -> None:
    load(SMALL[1])
    with pytest.raises(error, match=message):
        MODELS.build(dict(settings, _scope_='mmdet'))
