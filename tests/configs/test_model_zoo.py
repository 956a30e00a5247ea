"""The model tables and metafiles: complete, with the published results, and as generated."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from dat_pp.engine import model_zoo as zoo
from dat_pp.engine.errors import run_main

ROOT = Path(__file__).parents[2]
FOLDERS = ('imagenet', 'coco', 'ade20k')

# What the papers and the published code report, by config.
RESULTS = {
    # top-1, top-5
    'imagenet': {
        'dat-pp-tiny_32xb128_in1k': (83.864, 96.734),
        'dat-pp-small_32xb128_in1k': (84.6, None),
        'dat-pp-base_64xb64_in1k': (84.9, None),
        'dat-pp-base_64xb24_in1k-384px': (85.9, None),
        'dat-tiny_32xb128_in1k': (82.034, 95.850),
        'dat-small_32xb128_in1k': (83.686, 96.392),
        'dat-base_32xb128_in1k': (84.028, 96.686),
        'dat-base_64xb24_in1k-384px': (84.754, 96.982),
    },
    # box AP, mask AP
    'coco': {
        'retinanet_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco': (46.8, None),
        'retinanet_dat-pp-t_fpn_32xb2-amp-ms-crop-3x_coco': (49.2, None),
        'retinanet_dat-pp-s_fpn_32xb2-amp-ms-crop-1x_coco': (48.3, None),
        'retinanet_dat-pp-s_fpn_32xb2-amp-ms-crop-3x_coco': (50.2, None),
        'mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco': (48.7, 43.7),
        'mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-3x_coco': (50.5, 45.1),
        'mask-rcnn_dat-pp-s_fpn_32xb2-amp-ms-crop-1x_coco': (49.8, 44.5),
        'mask-rcnn_dat-pp-s_fpn_32xb2-amp-ms-crop-3x_coco': (51.2, 45.7),
        'cascade-mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco': (52.2, 45.0),
        'cascade-mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-3x_coco': (53.0, 46.0),
        'cascade-mask-rcnn_dat-pp-s_fpn_32xb2-ms-crop-3x_coco': (54.2, 46.9),
        'cascade-mask-rcnn_dat-pp-b_fpn_64xb1-ms-crop-3x_coco': (54.5, 47.0),
    },
    # mIoU at one scale, at several with flipping
    'ade20k': {
        'dat-pp-tiny_fpn_8xb4-40k_ade20k-512x512': (48.4, 48.8),
        'dat-pp-small_fpn_8xb4-40k_ade20k-512x512': (49.9, 50.7),
        'dat-pp-base_fpn_8xb4-40k_ade20k-512x512': (50.4, 51.1),
        'dat-pp-tiny_upernet_8xb2-amp-160k_ade20k-512x512': (49.4, 50.3),
        'dat-pp-small_upernet_8xb2-amp-160k_ade20k-512x512': (50.5, 51.2),
        'dat-pp-base_upernet_8xb2-160k_ade20k-512x512': (51.0, 51.5),
    },
}
TASKS = {
    'imagenet': [('Image Classification', 'ImageNet-1k', ('Top 1 Accuracy', 'Top 5 Accuracy'))],
    'coco': [
        ('Object Detection', 'COCO', ('box AP',)),
        ('Instance Segmentation', 'COCO', ('mask AP',)),
    ],
    'ade20k': [('Semantic Segmentation', 'ADE20K', ('mIoU', 'mIoU(ms+flip)'))],
}


@pytest.fixture(scope='session', params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope='session')
def configs(folder: str) -> dict[str, Config]:
    return zoo.read_configs(ROOT / 'configs' / folder)


def _metafile(folder: str) -> dict:
    return yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())


def _stored(folder: str) -> dict[str, dict[str, int]]:
    """FLOPs and parameters in a metafile."""
    keys = ('FLOPs', 'Parameters')
    return {
        m['Name']: {key: m['Metadata'][key] for key in keys} for m in _metafile(folder)['Models']
    }


def test_every_config_is_listed(folder: str) -> None:
    names = {path.stem for path in (ROOT / 'configs' / folder).glob('*.py')}
    models = _metafile(folder)['Models']
    assert sorted(model['Name'] for model in models) == sorted(names)
    for model in models:
        assert model['Config'] == f'configs/{folder}/{model["Name"]}.py'
    page = (ROOT / 'configs' / folder / 'README.md').read_text()
    linked = re.findall(r'\[config\]\((.+)\.py\)', page)
    assert linked == [model['Name'] for model in models]


def test_results_are_the_published_ones(folder: str) -> None:
    for model in _metafile(folder)['Models']:
        values = RESULTS[folder].get(model['Name'], (None, None))
        expected, left = [], list(values)
        for task, dataset, metrics in TASKS[folder]:
            found = {metric: left.pop(0) for metric in metrics}
            found = {metric: value for metric, value in found.items() if value is not None}
            if found:
                expected.append({'Task': task, 'Dataset': dataset, 'Metrics': found})
        assert model.get('Results', []) == expected, model['Name']
    assert RESULTS[folder].keys() <= {model['Name'] for model in _metafile(folder)['Models']}


def test_results_on_the_page(folder: str) -> None:
    page = (ROOT / 'configs' / folder / 'README.md').read_text()
    rows = [line.strip('| ').split(' | ') for line in page.splitlines() if '[config](' in line]
    for *cells, config in rows:
        name = re.search(r'\((.+)\.py\)', config)[1]
        values = RESULTS[folder].get(name, (None, None))
        assert cells[-2:] == ['-' if v is None else str(round(v, 2)) for v in values]


def test_parameters(folder: str, configs: dict[str, Config]) -> None:
    from dat_pp.engine.flops import measure_params

    stored = _stored(folder)
    for name, cfg in configs.items():
        assert sum(measure_params(cfg).values()) == stored[name]['Parameters'], name


def test_flops(folder: str, configs: dict[str, Config]) -> None:
    found = zoo.measure_all(configs.values())
    assert dict(zip(configs, found, strict=True)) == _stored(folder)


def test_one_model_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules do not matter, the size of images does."""
    measured = []

    def measure(cfg: Config) -> object:
        measured.append(Path(cfg.filename).stem)
        return type('Complexity', (), dict(total_flops=len(measured), total_params=0))

    monkeypatch.setattr(zoo, 'measure', measure)
    names = {
        'coco': [f'mask-rcnn_dat-pp-{x}_coco' for x in _schedules('t', 's')],
        'imagenet': ['dat-pp-base_64xb64_in1k', 'dat-pp-base_64xb24_in1k-384px'],
    }
    for folder, stems in names.items():
        paths = [ROOT / 'configs' / folder / f'{stem}.py' for stem in stems]
        found = zoo.measure_all(Config.fromfile(path) for path in paths)
        assert len({numbers['FLOPs'] for numbers in found}) == 2
    assert measured == [names['coco'][0], names['coco'][2], *names['imagenet']]


def _schedules(*sizes: str) -> list[str]:
    return [f'{size}_fpn_32xb2-amp-ms-crop-{x}' for size in sizes for x in ('1x', '3x')]


def test_page_and_metafile_are_as_generated(folder: str, configs: dict[str, Config]) -> None:
    path = ROOT / 'configs' / folder
    text = (path / 'metafile.yml').read_text()
    assert zoo.update_metafile(text, folder, configs, _stored(folder)) == text
    page = (path / 'README.md').read_text()
    assert zoo.update_readme(page, text, folder, configs) == page


@pytest.fixture(scope='module')
def ade20k() -> dict[str, Config]:
    return zoo.read_configs(ROOT / 'configs' / 'ade20k')


@pytest.fixture
def copy(ade20k: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ade20k which the generator works on, without reading or measuring."""
    folder = tmp_path / 'configs' / 'ade20k'
    shutil.copytree(ROOT / 'configs' / 'ade20k', folder)
    numbers = next(iter(_stored('ade20k').values()))
    by_config = {id(cfg): _stored('ade20k')[name] for name, cfg in ade20k.items()}
    new = ade20k['dat-pp-tiny_fpn_8xb4-40k_ade20k-512x512'].copy()

    def read_configs(path: Path) -> dict[str, Config]:
        return {file.stem: ade20k.get(file.stem, new) for file in sorted(path.glob('*.py'))}

    def measure_all(configs: Iterable[Config]) -> list[dict]:
        return [by_config.get(id(cfg), numbers) for cfg in configs]

    monkeypatch.setattr(zoo, 'ROOT', tmp_path)
    monkeypatch.setattr(zoo, 'DATA', {'ade20k': 'ADE20K'})
    monkeypatch.setattr(zoo, 'read_configs', read_configs)
    monkeypatch.setattr(zoo, 'measure_all', measure_all)
    return folder


def test_stale_files(copy: Path, capsys: pytest.CaptureFixture) -> None:
    assert zoo.main(['--check']) == 0
    assert capsys.readouterr().out == ''
    config = copy / 'dat-pp-tiny_fpn_8xb4-40k_ade20k-512x512.py'
    shutil.copy(config, copy / 'dat-pp-tiny_fpn_8xb8-40k_ade20k-512x512.py')
    readme, metafile = copy / 'README.md', copy / 'metafile.yml'
    before = readme.read_text(), metafile.read_text()
    assert zoo.main(['--check']) == 1
    assert capsys.readouterr().out.splitlines() == [
        'stale: configs/ade20k/metafile.yml',
        'stale: configs/ade20k/README.md',
    ]
    assert (readme.read_text(), metafile.read_text()) == before
    assert zoo.main([]) == 0
    assert '| - | - | [config](dat-pp-tiny_fpn_8xb8-40k_ade20k-512x512.py) |' in readme.read_text()
    assert zoo.main(['--check']) == 0
    readme.write_text(readme.read_text().replace('| 48.4 |', '| 48.5 |'))
    capsys.readouterr()
    assert zoo.main(['--check']) == 1
    assert capsys.readouterr().out.splitlines() == ['stale: configs/ade20k/README.md']


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'expected'),
    [
        ('README.md', '<!-- models -->', '', 'README.md: no lines'),
        ('metafile.yml', 'Name: dat-pp-tiny_fpn', 'Name: gone_fpn', 'metafile.yml: no such config'),
    ],
)
def test_mistakes(file: str, old: str, new: str, expected: str, copy: Path, capsys) -> None:
    path = copy / file
    path.write_text(path.read_text().replace(old, new))
    assert run_main(zoo.main, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_links() -> None:
    for folder in (*FOLDERS, 'digits'):
        path = ROOT / 'configs' / folder
        text = (path / 'README.md').read_text()
        for link in re.findall(r'\]\(([^)]+)\)', text):
            if not link.startswith('https://'):
                assert (path / link).is_file(), link
        for name in re.findall(r'\b(?:configs|tools)/[\w./-]+\.(?:py|sh)\b', text):
            assert (ROOT / name).is_file(), name


def test_model_index() -> None:
    imports = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(imports) == sorted(f'configs/{f}/metafile.yml' for f in (*FOLDERS, 'digits'))
    names, collections = [], []
    for name in imports:
        meta = yaml.safe_load((ROOT / name).read_text())
        collections += [collection['Name'] for collection in meta['Collections']]
        names += [model['Name'] for model in meta['Models']]
        for collection in meta['Collections']:
            assert (ROOT / collection['README']).is_file()
            assert collection['Paper']['URL'].startswith('https://arxiv.org/abs/')
        for model in meta['Models']:
            assert model['In Collection'] in [c['Name'] for c in meta['Collections']]
            assert (ROOT / model['Config']).is_file()
    assert len(set(names)) == len(names)
    assert len(set(collections)) == len(collections)
