"""Cells of a feature map and pixels of the image before resize, crop, flip and padding."""

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.models import SegDataPreProcessor
from tiny_models import TINY, V1, build
from torch import Tensor

from dat_pp.explain import ImageGeometry, trace


def blob(size: tuple[int, int], center: tuple[float, float]) -> np.ndarray:
    """A BGR image with one bright spot, whose centroid tells where a pipeline moved it."""
    y, x = np.ogrid[: size[0], : size[1]]
    spot = np.exp(-((y - center[0]) ** 2 + (x - center[1]) ** 2) / (2 * 6.0**2))
    return (255 * spot).astype(np.uint8)[..., None].repeat(3, -1)


def centroid(image: Tensor) -> Tensor:
    """(y, x) of the spot in pixels of the model's input (C, H, W)."""
    weight = image.double().mean(0)
    axes = (torch.arange(length).double() for length in weight.shape)
    y, x = axes
    return torch.stack([(weight.sum(1) * y).sum(), (weight.sum(0) * x).sum()]) / weight.sum()


def run_pipeline(scope: str, image: np.ndarray, steps: list[dict]) -> dict:
    """What a test pipeline of ``scope`` makes of an image, without a file."""
    init_default_scope(scope)
    packs = {'mmpretrain': 'PackInputs', 'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs'}
    keys = ['ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction']
    pack = dict(type=packs[scope], meta_keys=keys)
    shape = image.shape[:2]
    return Compose([*steps, pack])(dict(img=image, img_shape=shape, ori_shape=shape))


RESIZE = dict(type='Resize', scale=(160, 96), keep_ratio=True)
FLIP = dict(type='RandomFlip', prob=1.0)
PIPELINES = {
    'mmdet': ('mmdet', [RESIZE]),
    'mmdet, padded by the pipeline': ('mmdet', [RESIZE, dict(type='Pad', size_divisor=64)]),
    'mmdet, flipped': ('mmdet', [RESIZE, dict(FLIP, direction='horizontal')]),
    'mmdet, flipped diagonally': ('mmdet', [RESIZE, dict(FLIP, direction='diagonal')]),
    'mmseg': ('mmseg', [RESIZE]),
    'mmseg, flipped vertically': ('mmseg', [RESIZE, dict(FLIP, direction='vertical')]),
    'mmpretrain': (
        'mmpretrain',
        [dict(type='Resize', scale=(128, 128)), dict(type='CenterCrop', crop_size=112)],
    ),
    'mmpretrain, ratio kept': (
        'mmpretrain',
        [dict(type='ResizeEdge', scale=101), dict(type='CenterCrop', crop_size=96)],
    ),
    'mmpretrain, cropped first': (
        'mmpretrain',
        [dict(type='CenterCrop', crop_size=50), dict(type='Resize', scale=64)],
    ),
}


@pytest.mark.parametrize('center', [(20, 30), (33, 52)])
@pytest.mark.parametrize('name', PIPELINES)
def test_pixels_before_a_pipeline(name, center):
    """A spot of an image is found where the geometry says, before and after the pipeline."""
    scope, steps = PIPELINES[name]
    image = blob((60, 84), center)
    packed = run_pipeline(scope, image, steps)
    geometry = ImageGeometry.from_metainfo(packed['data_samples'].metainfo)
    assert geometry.size == (60, 84)
    if 'padded' in name:
        assert packed['inputs'].shape[1:] == (128, 192)
        assert geometry.shape == (96, 134)
    moved = centroid(packed['inputs'])
    expected = centroid(torch.from_numpy(image).permute(2, 0, 1))
    # Beyond half a pixel, parts of the spot were cut off.
    assert (geometry.to_original(moved) - expected).abs().max() < 0.35
    torch.testing.assert_close(geometry.to_original(geometry.to_input(expected)), expected)


CENTERS = [(20.0, 30.0), (70.0, 40.0)]


@pytest.mark.parametrize(
    ('scope', 'preprocessor', 'size'),
    [
        ('mmdet', DetDataPreprocessor(pad_size_divisor=32), (160, 160)),
        # mmseg tests images of different sizes one by one.
        ('mmseg', SegDataPreProcessor(test_cfg=dict(size=(160, 192))), (160, 192)),
    ],
)
def test_padding_of_the_data_preprocessor(scope, preprocessor, size):
    """Images of different sizes, resized and padded to one size."""
    centers = CENTERS if scope == 'mmdet' else CENTERS[:1]
    images = [blob((60, 84), CENTERS[0]), blob((100, 64), CENTERS[1])][: len(centers)]
    packed = [run_pipeline(scope, image, [RESIZE]) for image in images]
    data = preprocessor(pseudo_collate(packed), False)
    traced = trace(build(TINY), data)
    assert traced.input_size == tuple(data['inputs'].shape[2:]) == size
    for image, center, geometry in zip(data['inputs'], centers, traced.images, strict=True):
        found = geometry.to_original(centroid(image))
        assert (found - torch.tensor(center)).abs().max() < 0.35
    for block in traced.deformable:
        cells = (block.positions.double() + 1) / 2 * (torch.tensor(block.size) - 1)
        factors = [sample.scale_factor[::-1] for sample in data['data_samples']]
        scale = torch.tensor(factors, dtype=torch.float64)[:, None, None]
        expected = (cells * (4 * 2**block.stage) + 0.5) / scale - 0.5
        torch.testing.assert_close(block.positions_in_pixels, expected)


def test_queries_of_the_padding():
    """What samples receive from the image alone: the queries whose centers lie in it."""
    images = torch.rand(2, 3, 64, 64)
    geometry = [ImageGeometry((64, 64), (64, 64)), ImageGeometry((40, 30), (40, 30))]
    for block in trace(build(TINY), images, geometry).deformable:
        inside = block.geometry.inside()
        stride = 64 // block.size[0]
        rows, columns = -(-40 // stride), -(-30 // stride)  # centers at 0, stride, ...
        assert inside[0].all()
        assert inside[1].sum() == rows * columns
        assert inside[1, :rows, :columns].all()
        torch.testing.assert_close(
            block.received(inside=True).sum(-1),
            inside.flatten(1).sum(1)[:, None].expand(-1, block.heads).float(),
        )
        expected = block.attention(inside[1].nonzero()).sum(2)[1]
        torch.testing.assert_close(block.received(inside=True)[1], expected)


@pytest.mark.parametrize('arch', [TINY, V1])
def test_cells_lie_where_their_convolutions_look(arch):
    """The gradient of a stage's map is centered at the pixel that the geometry names."""
    model = build(arch).double()
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    traced = trace(model, x.detach())
    maps, out = [], model.embed(x)
    for i in range(4):
        out = out if i == 0 else model.downsamples[i - 1](out)
        maps.append(out)
    for block in traced:
        cell = block.size[0] // 2, block.size[1] // 2 - 1
        (grad,) = torch.autograd.grad(
            maps[block.stage][0, :, cell[0], cell[1]].abs().sum(), x, retain_graph=True
        )
        seen = grad[0].abs().sum(0).nonzero().double()
        center = (seen.amin(0) + seen.amax(0)) / 2
        assert torch.equal(block.queries_in_pixels([cell])[0, 0], center)
        assert block.geometry.to_cell(tuple(center.tolist()), 0) == cell


def test_flipped_image():
    """The trace of a flipped call, in pixels of the image as it was: mirrored, and of that call."""
    model, image = build(TINY).double(), torch.rand(1, 3, 64, 96, dtype=torch.float64)
    whole = dict(size=(64, 96), shape=(64, 96))
    flipped = trace(model, image.flip(-1))
    back = trace(model, image.flip(-1), [ImageGeometry(**whole, flipped=(False, True))])
    both = trace(
        model,
        torch.cat([image, image.flip(-1)]),
        [ImageGeometry(**whole), ImageGeometry(**whole, flipped=(False, True))],
    )
    upright = trace(model, image)
    for a, b, c, d in zip(flipped.deformable, back.deformable, both.deformable, upright.deformable):
        assert torch.equal(a.positions, b.positions)
        y, x = a.positions_in_pixels.unbind(-1)
        torch.testing.assert_close(b.positions_in_pixels, torch.stack([y, 95 - x], -1))
        torch.testing.assert_close(c.positions_in_pixels[1:], b.positions_in_pixels)
        torch.testing.assert_close(c.positions_in_pixels[:1], d.positions_in_pixels)
        torch.testing.assert_close(c.received()[1:], a.received())
        assert not torch.allclose(a.positions, d.positions)


def test_metainfo_is_needed():
    with pytest.raises(ValueError, match='img_shape is missing in the metainfo'):
        ImageGeometry.from_metainfo(dict(ori_shape=(3, 3)))


def test_scale_from_the_sizes_alone():
    geometry = ImageGeometry.from_metainfo(dict(ori_shape=(50, 100), img_shape=(25, 200)))
    assert geometry.scale == (0.5, 2.0)
    assert geometry == ImageGeometry.from_metainfo(
        dict(ori_shape=(50, 100), img_shape=(25, 200, 3), scale_factor=(2.0, 0.5))
    )


def test_pixel_outside():
    geometry = trace(build(), torch.rand(1, 3, 64, 96)).block('0.1').geometry
    assert geometry.to_cell((63.4, 95.4), 0) == (15, 23)
    with pytest.raises(ValueError, match=r'\(64, 3\) is outside of the 64 x 96 image$'):
        geometry.to_cell((64, 3), 0)
    crop = ImageGeometry((80, 80), (64, 64), offset=(8, 8))
    geometry = trace(build(), torch.rand(1, 3, 64, 64), [crop]).block('0.1').geometry
    assert geometry.to_cell((8, 71), 0) == (0, 15)
    with pytest.raises(
        ValueError, match='80 x 80 image, of which the model saw rows 8 to 71, columns 8 to 71'
    ):
        geometry.to_cell((3, 3), 0)
