"""What figures show is what the trace says."""

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from tiny_models import TINY, V1, build

from dat_pp import explain
from dat_pp.explain import ImageGeometry, Trace
from dat_pp.explain.figures import attention_received, default_blocks

SIZE = 80, 100  # of the original image


def traced(arch: dict = TINY, crop: bool = False) -> Trace:
    """A trace of one image, enlarged to 128 x 160, or of its crop."""
    scale = 128 / SIZE[0], 160 / SIZE[1]
    if crop:
        geometry = ImageGeometry(SIZE, (96, 96), scale, (16, 32))
    else:
        geometry = ImageGeometry(SIZE, (128, 160), scale)
    torch.manual_seed(1)
    return explain.trace(build(arch), torch.rand(1, 3, *geometry.shape), [geometry])


def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


def panels(figure: Figure) -> dict[str, object]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def scatters(axes: object) -> list[PathCollection]:
    return [c for c in axes.collections if isinstance(c, PathCollection)]


@pytest.mark.parametrize('arch', [TINY, V1])
def test_points_are_the_positions(arch):
    trace = traced(arch)
    shown = panels(explain.points_figure(trace, rgb()))
    blocks = default_blocks(trace)
    assert [block.name for block in blocks] == ['2.1', '3.1']
    assert len(shown) == sum(block.groups for block in blocks)
    for block in blocks:
        for group in range(block.groups):
            axes = shown[f'block {block.name}, group {group + 1} of {block.groups}']
            *_, reference, samples = scatters(axes)
            expected = block.positions_in_pixels[0, group].flip(-1).numpy()
            np.testing.assert_allclose(samples.get_offsets(), expected)
            start = block.in_pixels(block.reference.clamp(-1, 1))[0, group].flip(-1).numpy()
            np.testing.assert_allclose(reference.get_offsets(), start)
            received = attention_received(block)[group].numpy()
            np.testing.assert_allclose(samples.get_sizes() / samples.get_sizes()[0],
                                       received / received[0], rtol=1e-5)  # fmt: skip


def test_received_is_relative_to_the_mean_of_the_group():
    for block in traced().deformable:
        received = attention_received(block)
        torch.testing.assert_close(received.mean(1), torch.ones(block.groups))
        whole = block.received()[0].unflatten(0, (block.groups, -1)).mean(1)
        torch.testing.assert_close(received / received[:, :1], whole / whole[:, :1])


def test_queries_and_their_keys():
    trace, queries = traced(), [(10.0, 20.0), (70.0, 90.0)]
    shown = panels(explain.queries_figure(trace, rgb(), queries))
    for block in default_blocks(trace):
        for number, query in enumerate(queries, start=1):
            axes = shown[f'block {block.name}, query {number}']
            cell = block.geometry.to_cell(query, 0)
            (star,) = axes.lines
            center = block.queries_in_pixels([cell])[0, 0].tolist()
            assert star.get_xydata().tolist() == [center[::-1]]
            (keys,) = scatters(axes)
            weights = block.attention([cell])[0, :, 0].unflatten(0, (block.groups, -1)).mean(1)
            order = weights.flatten().argsort()
            relative = (weights / weights.max()).flatten()[order]
            np.testing.assert_allclose(keys.get_array(), relative, rtol=1e-5)
            points = block.positions_in_pixels[0].flatten(0, 1)[order].flip(-1)
            np.testing.assert_allclose(keys.get_offsets(), points)


def test_panel_per_head():
    trace = traced()
    block = trace.block('3.1')
    figure = explain.queries_figure(trace, rgb(), [(9, 9)], blocks=['3.1'], by_head=True)
    for head in range(4):
        (keys,) = scatters(panels(figure)[f'block 3.1, query 1, head {head + 1}'])
        weights = block.attention([block.geometry.to_cell((9, 9), 0)])[0, head, 0]
        group = head // 2
        strongest = block.positions_in_pixels[0, group, weights.argmax()].flip(-1)
        np.testing.assert_allclose(keys.get_offsets()[-1], strongest)
        assert np.count_nonzero(keys.get_array()) == len(weights)  # the other group's keys are none


def test_heat_follows_the_attention(monkeypatch):
    """All attention to one sample: the map peaks there, and its mean is 1."""
    trace = traced()
    block = trace.block('2.1')
    heat = explain.heat_map(trace, [block], side=100)
    assert heat.shape == (80, 100)
    assert heat.mean() == pytest.approx(1)

    def one(self: object, inside: bool = False) -> torch.Tensor:
        received = torch.zeros_like(block.k[..., 0])
        received[:, :, 3] = 5
        return received

    monkeypatch.setattr(type(block), 'received', one)
    monkeypatch.setitem(block.__dict__, 'positions_in_pixels', torch.full((1, 2, 20, 2), 30.0))
    heat = explain.heat_map(trace, [block], side=100)
    assert np.unravel_index(heat.argmax(), heat.shape) == pytest.approx((30, 30), abs=1)
    (first,) = explain.strongest(trace, [block], count=1)
    assert first == pytest.approx((30, 30), abs=1)


@pytest.mark.parametrize('crop', [False, True])
def test_strongest_pixels_lie_apart_and_inside(crop):
    trace = traced(crop=crop)
    found = explain.strongest(trace, default_blocks(trace))
    top, left, bottom, right = trace.images[0].seen
    assert len(found) == 3
    assert all(top <= y <= bottom and left <= x <= right for y, x in found)
    for i, (y0, x0) in enumerate(found):
        assert all(np.hypot(y0 - y1, x0 - x1) >= (bottom - top) / 4 - 1 for y1, x1 in found[:i])


def test_panels_show_what_the_model_saw():
    trace = traced(crop=True)
    top, left, bottom, right = trace.images[0].seen
    assert (top, left, bottom, right) == (9.5, 19.5, 69.5, 79.5)
    for figure in (explain.points_figure, explain.queries_figure, explain.heat_figure):
        for axes in panels(figure(trace, rgb())).values():
            (x0, x1), (y1, y0) = axes.get_xlim(), axes.get_ylim()
            assert x0 < left < x0 + 4
            assert right < x1 < right + 4
            assert y0 < top < y0 + 4
            assert bottom < y1 < bottom + 4


def test_photograph_is_shrunk_and_keeps_its_place():
    size = 1000, 3000
    geometry = ImageGeometry(size, (64, 192), (0.064, 0.064))
    trace = explain.trace(build(), torch.rand(1, 3, 64, 192), [geometry])
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[:, 1500:] = 255
    for axes in panels(explain.points_figure(trace, rgb, blocks=['0.1', '2.1'])).values():
        (image,) = axes.images
        assert image.get_array().shape == (400, 1200, 3)
        assert image.get_extent() == [-0.5, 2999.5, 999.5, -0.5]
        bright = image.get_array()[0, :, 0] == 1
        assert not bright[:600].any()
        assert bright[600:].all()


def test_gallery_shows_every_image():
    torch.manual_seed(0)
    trace = explain.trace(build(), torch.rand(3, 3, 64, 64))
    images = [np.full((64, 64), 50 * i, np.uint8) for i in range(3)]
    figure = explain.gallery_figure(trace, images, ['a', 'b', 'c'], columns=2)
    right = [axes for axes in figure.axes if len(scatters(axes)) == len(trace.deformable)]
    assert len(right) == 3
    for image, axes in enumerate(right):
        for block, samples in zip(trace.deformable, scatters(axes), strict=True):
            points = block.positions_in_pixels[image].flatten(0, 1).flip(-1)
            np.testing.assert_allclose(samples.get_offsets(), points)


MAGIC = {'png': b'\x89PNG', 'pdf': b'%PDF', 'svg': b'<?xml'}


@pytest.mark.parametrize('format', MAGIC)
def test_files(format, tmp_path):
    """Figures of each format, the same bytes each time; text stays text in vector formats."""
    trace = traced()
    folders = [tmp_path / 'a' / 'new', tmp_path / 'b']
    for folder in folders:
        paths = explain.draw(
            trace, rgb(), folder, queries=[(9, 9)], blocks=['0.1'], format=format, title='a title'
        )
        names = [f'points.{format}', f'queries.{format}', f'heat.{format}', 'trace.npz']
        assert [path.name for path in paths] == names
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(names)
    for name in names[:3]:
        content = (folders[0] / name).read_bytes()
        assert content.startswith(MAGIC[format])
        assert content == (folders[1] / name).read_bytes()
        if format == 'svg':
            assert b'>a title<' in content


def test_arrays(tmp_path):
    trace, queries = traced(), [(10.0, 20.0), (70.0, 90.0)]
    explain.draw(trace, rgb(), tmp_path, queries=queries, blocks=['0.1'])
    with np.load(tmp_path / 'trace.npz') as file:
        arrays = dict(file)
    assert arrays['size'].tolist() == list(SIZE)
    assert arrays['queries'].tolist() == [list(query) for query in queries]
    assert arrays['blocks'].tolist() == [block.name for block in trace]
    for block in trace.deformable:
        for name in ('reference', 'positions', 'positions_in_pixels'):
            assert np.array_equal(arrays[f'{block.name}/{name}'], getattr(block, name)[0])
        assert np.array_equal(arrays[f'{block.name}/received'], block.received()[0])
    for block in [*trace.deformable, *trace.neighborhood]:
        cells = arrays[f'{block.name}/cells']
        assert cells.tolist() == [list(block.geometry.to_cell(q, 0)) for q in queries]
        assert np.array_equal(arrays[f'{block.name}/attention'], block.attention(cells)[0])
    near = trace.block('0.0')
    assert np.array_equal(arrays['0.0/neighbors'], near.neighbors(arrays['0.0/cells']))


def test_mistakes(tmp_path):
    trace = traced()
    with pytest.raises(ValueError, match=r'block 2\.0 is neighborhood .* deformable: 0\.1, 1\.1'):
        explain.draw(trace, rgb(), tmp_path / 'new', blocks=['2.0'])
    with pytest.raises(ValueError, match=r"no block '5\.0'"):
        explain.heat_figure(trace, rgb(), blocks=['5.0'])
    with pytest.raises(ValueError, match='outside of the 80 x 100 image'):
        explain.draw(trace, rgb(), tmp_path / 'new', queries=[(80, 3)])
    with pytest.raises(ValueError, match='the image is 8 x 9 pixels, that of the trace 80 x 100'):
        explain.points_figure(trace, np.zeros((8, 9)))
    none = explain.trace(build(dict(TINY, mixers=['N'] * 4)), torch.rand(1, 3, 80, 100))
    with pytest.raises(ValueError, match='no block with deformable attention'):
        explain.heat_figure(none, rgb())
    assert not list(tmp_path.iterdir())
