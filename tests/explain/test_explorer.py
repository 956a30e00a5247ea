"""The explorer page: what it holds, and, in a headless Chromium, what it shows."""

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import Browser, find_chromium
from tiny_models import TINY, V1, build

from dat_pp.explain import Block, DeformableBlock, ImageGeometry, Trace, trace
from dat_pp.explain.explorer import ExplorerPage, Prediction, Predictions, payload

CROPPED = ImageGeometry(size=(60, 80), shape=(64, 64), scale=(1.2, 0.9), offset=(4, 4))
FLIPPED = ImageGeometry(size=(50, 70), shape=(60, 64), scale=(1.2, 64 / 70), flipped=(False, True))
BOX = (10.0, 20.0, 30.0, 50.0)


def make_trace(arch: dict, **kwargs: object) -> Trace:
    """Two images of different geometry; the weights of tables are not zero, nor small."""
    model = build(arch, **kwargs)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if 'rpe_table' in name or 'rpb' in name:
            parameter.data.normal_(0, 1, generator=generator)
        elif 'conv_offset.proj' in name or 'proj_q' in name:
            parameter.data *= 8
    return trace(model, torch.randn(2, 3, 64, 64, generator=generator), [CROPPED, FLIPPED])


def pixels(geometry: ImageGeometry) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*geometry.size, 3), np.uint8)


@pytest.fixture(scope='module')
def traces() -> dict[str, Trace]:
    return {'2023': make_trace(TINY), '2022': make_trace(V1)}


def make_page(found: Trace, **kwargs: object) -> ExplorerPage:
    page = ExplorerPage('tiny', images=2)
    regions = np.zeros(CROPPED.size, np.uint8)
    regions[10:30, 20:50] = 1
    seven = Predictions([Prediction('</script>seven', 0.9, BOX)], regions)
    page.add('first.png', pixels(CROPPED), found, predictions=seven, **kwargs)
    page.add('second.png', pixels(FLIPPED), found, image=1, **kwargs)
    return page


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page computes rows of attention, as it does for large images."""

    def form_of(block):
        return 'products' if isinstance(block, DeformableBlock) else 'weights', 1000

    monkeypatch.setattr(payload, 'form_of', form_of)
    monkeypatch.setattr('dat_pp.explain.explorer.page.form_of', form_of)


def read(page: ExplorerPage) -> dict:
    return json.loads(re.search(r'id="info">(.*)</script>', page.html())[1])


def test_stored_weights_are_those_of_the_trace(traces):
    for block in (traces['2023'].deformable[-1], traces['2023'].neighborhood[0]):
        info, data = payload.pack(block, 1)
        _, start, count = info['parts']['weights']
        codes = np.frombuffer(zlib.decompress(data), np.uint16, count, start)
        height, width = block.size
        cells = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        expected = block.attention(cells)[1].flatten(2).transpose(0, 1).numpy()
        codes = codes.reshape(expected.shape).astype(float)
        np.testing.assert_allclose(codes / codes.sum(-1, keepdims=True), expected, atol=2e-5)


@pytest.mark.parametrize('size', [(224, 224), (800, 1344)])
def test_form_of_published_sizes(size):
    """Weights at 224 x 224; queries, keys and tables where a weight per sample would be more."""
    height, width = size[0] // 16, size[1] // 16
    samples = -(-height // 2) * -(-width // 2)
    block = object.__new__(DeformableBlock)
    values = dict(
        q=torch.empty(1, 8, height, width, 32, device='meta'),
        k=torch.empty(1, 8, samples, 32, device='meta'),
        positions=torch.empty(1, 4, samples, 2, device='meta'),
        bias=None,
        geometry=SimpleNamespace(size=(height, width)),
    )
    for name, value in values.items():
        object.__setattr__(block, name, value)
    form, size_in_bytes = payload.form_of(block)
    assert form == ('weights' if size == (224, 224) else 'products')
    assert size_in_bytes < 3e6


def test_bias_without_formula_is_stored_as_weights():
    found = make_trace(dict(TINY, position_bias='log_cpb'))
    assert {payload.form_of(block)[0] for block in found.deformable} == {'weights'}


def test_page_says_what_it_leaves_out(traces):
    """The last deformable block of each stage comes first, then others; named ones before all."""
    found = traces['2023']
    whole = make_page(found)
    assert [block['name'] for block in read(whole)['images'][0]['blocks']] == [
        block.name for block in found
    ]
    page = ExplorerPage('tiny', limit=0.105)
    page.add('first.png', pixels(CROPPED), found)
    image = read(page)['images'][0]
    assert len(page.html().encode()) < 105_000
    kept = {block['name'] for block in image['blocks']}
    left = {name for name, *_ in image['omitted']}
    assert kept | left == {block.name for block in found}
    assert left
    assert left.isdisjoint({'3.1'})
    page = ExplorerPage('tiny', limit=0.105)
    page.add('first.png', pixels(CROPPED), found, blocks=['1.0'])
    image = read(page)['images'][0]
    assert image['shown'] == '1.0'


def test_images_share_the_page(traces):
    """Each gets its part, or at least one block; those that do not fit are named."""
    found = traces['2023']
    page = ExplorerPage('tiny', images=4, limit=0.2)
    fits = [page.add(f'{i}.png', pixels(CROPPED), found) for i in range(8)]
    assert fits == sorted(fits, reverse=True)
    content = read(page)
    assert len(content['images']) == sum(fits) >= 4
    assert content['absent'] == [f'{i}.png' for i in range(8) if not fits[i]]
    assert len({len(image['blocks']) for image in content['images'][:4]}) == 1
    assert len(page.html().encode()) < 200_000


def test_nothing_fits(traces):
    page = ExplorerPage('tiny', limit=0.01)
    assert not page.add('first.png', pixels(CROPPED), traces['2023'])
    with pytest.raises(ValueError, match=r'no image fits in a page of 0\.01 MB'):
        page.html()


def test_other_image(traces):
    page = ExplorerPage('tiny')
    with pytest.raises(ValueError, match='image is 50 x 70 pixels, that of the trace 60 x 80'):
        page.add('first.png', pixels(FLIPPED), traces['2023'])


def test_names_cannot_end_the_script(traces):
    """A label of the data with '</script>' in it stays a label."""
    page = make_page(traces['2022'])
    assert read(page)['images'][0]['predictions'][0]['label'] == '</script>seven'
    assert page.html().count('</script>') == page.html().count('<script')


def test_predictions_of_samples():
    instances = type('Instances', (SimpleNamespace,), {})(
        scores=torch.tensor([0.5, 0.9, 0.1]),
        labels=torch.tensor([1, 0, 1]),
        bboxes=torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [0, 0, 1, 1]]),
        masks=torch.tensor([[[1, 1, 0]], [[0, 1, 0]], [[0, 0, 1]]], dtype=torch.bool),
    )
    found = Predictions.from_sample(SimpleNamespace(pred_instances=instances), ['a', 'b'])
    assert [(p.label, p.box) for p in found.items] == [('a', (5, 4, 7, 6)), ('b', (1, 0, 3, 2))]
    assert found.regions.tolist() == [[2, 1, 0]]
    assert found.centers == [(6, 5), (2, 1)]
    labels = SimpleNamespace(data=torch.tensor([[[3, 3], [3, 0]]]))
    found = Predictions.from_sample(SimpleNamespace(pred_sem_seg=labels))
    assert [(p.label, p.score) for p in found.items] == [('class 3', 0.75), ('class 0', 0.25)]
    assert found.regions.tolist() == [[1, 1], [1, 2]]
    found = Predictions.from_sample(SimpleNamespace(pred_score=torch.tensor([0.2, 0.8])))
    assert [p.label for p in found.items] == ['class 1', 'class 0']


def test_scripts_are_in_the_page(traces):
    """The page loads nothing, and no address stands in it."""
    html = make_page(traces['2023']).html()
    assert "default-src 'none'" in html
    assert '<script src' not in html
    assert not re.findall(r'https?://', html)


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if not executable:
        pytest.skip('no Chromium: apt-get install chromium')
    found = Browser(executable, tmp_path_factory.mktemp('profile'))
    yield found
    found.close()


def show(browser: Browser, page: ExplorerPage, folder: Path, **kwargs: object) -> None:
    browser.open(page.write(folder / 'explorer.html'), **kwargs)
    browser.run('explorer.ready')
    browser.run('new Promise((done) => setTimeout(done, 50))')


def window_of(browser: Browser, y: float, x: float) -> list[float]:
    """Where a pixel of the image is in the window, from the left and the top."""
    browser.run("document.getElementById('view').scrollIntoView()")
    return browser.run(f"""(() => {{
        const box = document.getElementById('overlay').getBoundingClientRect();
        const [left, top] = explorer.view.place({y}, {x});
        return [box.left + left + MARGIN, box.top + top + MARGIN];
    }})()""")


def click(browser: Browser, y: float, x: float) -> None:
    browser.click(*window_of(browser, y, x))


def expect_circles(browser: Browser, block: Block, image: int, cell: tuple, head: int | None):
    """The circles are at the samples of the trace, and have their weights."""
    weights = block.attention([cell])[image, :, 0].flatten(1)  # (heads, N)
    if isinstance(block, DeformableBlock):
        points = block.positions_in_pixels[image]
    else:
        neighbors = block.neighbors([cell]).double().flatten(0, 2)
        points = block.geometry.to_pixels(neighbors.expand(2, -1, -1))[image, None]
    groups = len(points)
    if head is None:
        shown = dict(enumerate(weights.unflatten(0, (groups, -1)).mean(1)))
    else:
        shown = {head // (block.heads // groups): weights[head]}
    circles = browser.run('explorer.circles')
    assert len(circles) == sum(map(len, shown.values()))
    for circle in circles:
        group, sample = circle['group'], circle['sample']
        weight = float(shown[group][sample])
        assert circle['weight'] == pytest.approx(weight, rel=0.01, abs=1e-5)
        assert [circle['y'], circle['x']] == pytest.approx(points[group, sample].tolist(), abs=0.01)


def check_clicks(browser: Browser, found: Trace) -> None:
    for image, (y, x) in enumerate([(33, 45), (20, 60)]):
        for block in found.deformable + found.neighborhood:
            for head in (None, block.heads - 1):
                choice = f"{{image: {image}, block: '{block.name}', head: {json.dumps(head)}}}"
                browser.run(f'explorer.choose({choice}).then(() => 0)')
                browser.run('(explorer.state.held = false)')
                click(browser, y, x)
                cell = block.geometry.to_cell((y, x), image)
                expect_circles(browser, block, image, cell, head)
    assert browser.errors == []


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['2023', '2022'])
def test_click_shows_the_weights_of_the_trace(browser, traces, variant, tmp_path):
    show(browser, make_page(traces[variant]), tmp_path)
    check_clicks(browser, traces[variant])
    assert [url for url in browser.requests if not url.startswith('data:')] == [
        (tmp_path / 'explorer.html').as_uri()
    ]


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['2023', '2022'])
def test_click_shows_computed_weights(browser, traces, variant, tmp_path, computed):
    """From half-precision queries, keys and tables."""
    page = make_page(traces[variant])
    forms = {b['form'] for b in read(page)['images'][0]['blocks'] if 'grid' in b}
    assert forms == {'products'}
    show(browser, page, tmp_path)
    check_clicks(browser, traces[variant])


@pytest.mark.slow
def test_pointer_and_keys_move_the_query(browser, traces, tmp_path):
    show(browser, make_page(traces['2023']), tmp_path)
    browser.run("explorer.choose({block: '1.1'}).then(() => 0)")
    click(browser, 30, 40)
    block = traces['2023'].block('1.1')
    row, column = block.geometry.to_cell((30, 40), 0)
    where = "document.getElementById('where').textContent"
    assert browser.run(where).startswith(f'Row {row}, column {column} of ')
    browser.run("document.getElementById('overlay').focus()")
    for key in ('ArrowRight', 'ArrowDown', 'ArrowDown'):
        browser.key(key)
    assert browser.run(where).startswith(f'Row {row + 2}, column {column + 1} of ')
    left, top = window_of(browser, 5, 5)
    browser.mouse('mouseMoved', left, top)  # the query is held
    assert browser.run(where).startswith(f'Row {row + 2}, column {column + 1} of ')
    browser.key('Escape')
    browser.mouse('mouseMoved', left + 1, top)
    row, column = block.geometry.to_cell((5, 5), 0)
    assert browser.run(where).startswith(f'Row {row}, column {column} of ')
    browser.key(']')
    assert browser.run('explorer.state.block.name') == '2.0'
    browser.key('.')
    assert browser.run('explorer.state.head') == 0
    assert browser.errors == []


@pytest.mark.slow
def test_layers_and_themes(browser, traces, tmp_path):
    """Each layer changes the image, the toggle changes the theme, and a phone need not scroll."""
    browser.theme('light')
    show(browser, make_page(traces['2023']), tmp_path, width=390, height=844, phone=True)
    assert browser.run('document.documentElement.scrollWidth') == 390
    pictures = "['base', 'overlay'].map((id) => document.getElementById(id).toDataURL()).join()"
    browser.run("explorer.choose({block: '1.1'}).then(() => 0)")
    seen = {browser.run(pictures)}
    boxes = "document.querySelectorAll('#layers input')"
    count = browser.run(f'{boxes}.length')
    assert count == 5
    for i in range(1, count):
        browser.run(f'{boxes}[{i}].click()')
        seen.add(browser.run(pictures))
    assert len(seen) == count
    browser.run("explorer.choose({block: '3.1'}).then(() => 0)")  # a stage without neighborhoods
    assert browser.run(f'{boxes}.length') == 4
    theme = 'document.documentElement.dataset.theme'
    assert browser.run(theme) == 'light'
    browser.run("document.getElementById('theme').click()")
    assert browser.run(theme) == 'dark'
    browser.run("document.getElementById('viewer').style.width = 0, layout()")
    browser.theme('dark')
    show(browser, make_page(traces['2022']), tmp_path)
    assert browser.run(theme) == 'dark'
    unnamed = browser.run("""[...document.querySelectorAll('button, input, [role], nav')].filter(
        (e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).length""")
    assert unnamed == 0
    assert browser.errors == []


@pytest.mark.slow
def test_large_image_answers_at_once(browser, tmp_path):
    """The row of a query and its circles, 800 x 1344: the median of 21 moves takes under 50 ms."""
    found = trace(build(TINY), torch.randn(1, 3, 800, 1344))
    page = ExplorerPage('tiny', limit=3)
    page.add('large.png', np.zeros((800, 1344, 3), np.uint8), found)
    forms = {info['name']: info['form'] for info in read(page)['images'][0]['blocks']}
    assert forms['3.1'] == 'products'
    show(browser, page, tmp_path)
    browser.run("explorer.choose({block: '3.1'}).then(() => 0)")
    assert len(browser.run('explorer.circles')) == 2 * 25 * 42
    times = browser.run("""Array.from({ length: 21 }, (_, i) => {
        const start = performance.now();
        explorer.moveTo([37 * i, 61 * i]);
        return performance.now() - start;
    })""")
    assert sorted(times)[10] < 50
    assert browser.errors == []
