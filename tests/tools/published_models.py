"""The published models as files: names, shapes and settings, with one distinct value per tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import golden
import torch
from torch import Tensor

COCO = 80
ADE20K = 150

# Heads of the published dense models under the names of mmdet 2.26 and mmseg 0.29.


def conv(name: str, out: int, channels: int, kernel: int) -> dict:
    return {f'{name}.weight': (out, channels, kernel, kernel), f'{name}.bias': (out,)}


def linear(name: str, out: int, channels: int) -> dict:
    return {f'{name}.weight': (out, channels), f'{name}.bias': (out,)}


def conv_bn(name: str, out: int, channels: int, kernel: int) -> dict:
    """A convolution without bias, and SyncBN."""
    shapes = {f'{name}.conv.weight': (out, channels, kernel, kernel)}
    for part in ('weight', 'bias', 'running_mean', 'running_var'):
        shapes[f'{name}.bn.{part}'] = (out,)
    return shapes | {f'{name}.bn.num_batches_tracked': ()}


def fpn(dims: list[int], extra: int = 0) -> dict:
    """``extra`` levels: the first from the backbone's last output, others from the one before."""
    shapes = {}
    for i, channels in enumerate(dims):
        shapes |= conv(f'neck.lateral_convs.{i}.conv', 256, channels, 1)
        shapes |= conv(f'neck.fpn_convs.{i}.conv', 256, 256, 3)
    for i in range(extra):
        channels = 256 if i else dims[-1]
        shapes |= conv(f'neck.fpn_convs.{len(dims) + i}.conv', 256, channels, 3)
    return shapes


def rpn_head() -> dict:
    return {
        **conv('rpn_head.rpn_conv', 256, 256, 3),
        **conv('rpn_head.rpn_cls', 3, 256, 1),
        **conv('rpn_head.rpn_reg', 3 * 4, 256, 1),
    }


def mask_head(name: str) -> dict:
    shapes = {}
    for i in range(4):
        shapes |= conv(f'{name}.convs.{i}.conv', 256, 256, 3)
    return {
        **shapes,
        **conv(f'{name}.upsample', 256, 256, 2),
        **conv(f'{name}.conv_logits', COCO, 256, 1),
    }


def box_outputs(name: str) -> dict:
    return linear(f'{name}.fc_cls', COCO + 1, 1024) | linear(f'{name}.fc_reg', 4 * COCO, 1024)


def retinanet(dims: list[int]) -> dict:
    shapes = fpn(dims[1:], extra=2)
    for i in range(4):
        shapes |= conv(f'bbox_head.cls_convs.{i}.conv', 256, 256, 3)
        shapes |= conv(f'bbox_head.reg_convs.{i}.conv', 256, 256, 3)
    return {
        **shapes,
        **conv('bbox_head.retina_cls', 9 * COCO, 256, 3),
        **conv('bbox_head.retina_reg', 9 * 4, 256, 3),
    }


def mask_rcnn(dims: list[int]) -> dict:
    return {
        **fpn(dims, extra=1),
        **rpn_head(),
        **linear('roi_head.bbox_head.shared_fcs.0', 1024, 256 * 7 * 7),
        **linear('roi_head.bbox_head.shared_fcs.1', 1024, 1024),
        **box_outputs('roi_head.bbox_head'),
        **mask_head('roi_head.mask_head'),
    }


def cascade_mask_rcnn(dims: list[int]) -> dict:
    shapes = fpn(dims) | rpn_head()
    for stage in range(3):
        head = f'roi_head.bbox_head.{stage}'
        for i in range(4):
            shapes |= conv_bn(f'{head}.shared_convs.{i}', 256, 256, 3)
        shapes |= linear(f'{head}.shared_fcs.0', 1024, 256 * 7 * 7) | box_outputs(head)
        shapes |= mask_head(f'roi_head.mask_head.{stage}')
    return shapes


def semantic_fpn(dims: list[int]) -> dict:
    shapes = fpn(dims) | conv('decode_head.conv_seg', ADE20K, 128, 1)
    for level, convs in enumerate((1, 1, 2, 3)):
        for i in range(convs):  # enlarging steps, which have no weights, are in between
            name = f'decode_head.scale_heads.{level}.{2 * i}'
            shapes |= conv_bn(name, 128, 128 if i else 256, 3)
    return shapes


def upernet(dims: list[int]) -> dict:
    shapes = conv('decode_head.conv_seg', ADE20K, 512, 1)
    for i in range(4):
        shapes |= conv_bn(f'decode_head.psp_modules.{i}.1', 512, dims[3], 1)
    for i in range(3):
        shapes |= conv_bn(f'decode_head.lateral_convs.{i}', 512, dims[i], 1)
        shapes |= conv_bn(f'decode_head.fpn_convs.{i}', 512, 512, 3)
    return {
        **shapes,
        **conv_bn('decode_head.bottleneck', 512, dims[3] + 4 * 512, 3),
        **conv_bn('decode_head.fpn_bottleneck', 512, 4 * 512, 3),
        **conv('auxiliary_head.conv_seg', ADE20K, 256, 1),
        **conv_bn('auxiliary_head.convs.0', 256, dims[2], 3),
    }


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors that take one number each in a file, filled with distinct values."""
    return {
        name: torch.tensor(i) if not shape else torch.full((1,), 1.0 + i).expand(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def mark(value: Tensor) -> float:
    """The value that ``tensors`` gave it."""
    return value[(0,) * value.dim()].item()


def backbone(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(entry['shape']) for key, entry in golden.published_keys(name).items()}


def dense(heads: Callable[[list[int]], dict], size: str) -> dict[str, Tensor]:
    """Weights of a published detector or segmentor."""
    names = backbone(f'dense_pp_{size}')
    dims = [names[f'norms.{i}.norm.weight'][0] for i in range(4)]
    own = {
        f'backbone.{key}': shape
        for key, shape in names.items()
        if heads is not retinanet or not key.startswith('norms.0.')
    }
    return tensors(own | heads(dims))


@dataclass
class Published:
    """A published model: its config, its file, and what the converter must report."""

    config: str
    make: Callable[[], dict]
    family: str
    variant: str


def classifier(keys: str, size: int, config: str, variant: str) -> Published:
    def make() -> dict:
        return dict(model=tensors(backbone(keys)), config=dict(DATA=dict(IMG_SIZE=size)), epoch=9)

    return Published(f'imagenet/{config}_in1k', make, 'classifier', variant)


SIZES = {'t': 'tiny', 's': 'small', 'b': 'base'}


def detector(heads: Callable, size: str, epochs: int, recipe: str) -> Published:
    def make() -> dict:
        meta = dict(epoch=epochs, iter=epochs * 1833, CLASSES=('person', 'bicycle'))
        return dict(meta=meta, state_dict=dense(heads, SIZES[size]), optimizer=dict(state={}))

    name = heads.__name__.replace('_', '-')
    config = f'coco/{name}_dat-pp-{size}_fpn_{recipe}-{epochs // 12}x_coco'
    title = {
        'retinanet': 'RetinaNet',
        'mask-rcnn': 'Mask R-CNN',
        'cascade-mask-rcnn': 'Cascade Mask R-CNN',
    }
    return Published(config, make, title[name], f'dat-{size}++')


def segmentor(heads: Callable, size: str, recipe: str) -> Published:
    def make() -> dict:
        meta = dict(iter=160000, CLASSES=('wall', 'building'), PALETTE=[[120, 120, 120], [6, 6, 6]])
        return dict(meta=meta, state_dict=dense(heads, SIZES[size]))

    title = {semantic_fpn: 'Semantic FPN', upernet: 'UperNet'}[heads]
    config = f'ade20k/dat-pp-{SIZES[size]}_{recipe}_ade20k-512x512'
    return Published(config, make, title, f'dat-{size}++')


AMP = '32xb2-amp-ms-crop'
PUBLISHED = [
    classifier('imagenet_pp_tiny', 224, 'dat-pp-tiny_32xb128', 'dat-t++'),
    classifier('imagenet_pp_small', 224, 'dat-pp-small_32xb128', 'dat-s++'),
    classifier('imagenet_pp_base', 224, 'dat-pp-base_64xb64', 'dat-b++'),
    classifier('imagenet_pp_base', 384, 'dat-pp-base_64xb24', 'dat-b++'),
    classifier('imagenet_2022_tiny', 224, 'dat-tiny_32xb128', 'dat-t'),
    classifier('imagenet_2022_small', 224, 'dat-small_32xb128', 'dat-s'),
    classifier('imagenet_2022_base', 224, 'dat-base_32xb128', 'dat-b'),
    classifier('imagenet_2022_base_384', 384, 'dat-base_64xb24', 'dat-b with window_size 12'),
    *(detector(retinanet, size, n, AMP) for size in 'ts' for n in (12, 36)),
    *(detector(mask_rcnn, size, n, AMP) for size in 'ts' for n in (12, 36)),
    *(detector(cascade_mask_rcnn, 't', n, AMP) for n in (12, 36)),
    detector(cascade_mask_rcnn, 's', 36, '32xb2-ms-crop'),
    detector(cascade_mask_rcnn, 'b', 36, '64xb1-ms-crop'),
    *(segmentor(semantic_fpn, size, 'fpn_8xb4-40k') for size in 'tsb'),
    *(segmentor(upernet, size, 'upernet_8xb2-amp-160k') for size in 'ts'),
    segmentor(upernet, 'b', 'upernet_8xb2-160k'),
]
for _model in PUBLISHED[3], PUBLISHED[7]:
    _model.config += '-384px'


def save_tiny(path: Path, **changes: object) -> dict:
    """A published DAT-T++ classifier's file, and its content."""
    content = dict(model=tensors(backbone('imagenet_pp_tiny')), **changes)
    torch.save(content, path)
    return content


def custom_config(path: Path, arch: object, channels: int, classes: int) -> Path:
    path.write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier',\n"
        f"    backbone=dict(type='DAT', arch={arch!r}, out_indices=(3,)),\n"
        "    neck=dict(type='GlobalAveragePooling'),\n"
        f"    head=dict(type='LinearClsHead', num_classes={classes}, in_channels={channels}))\n"
    )
    return path
