"""The pages and metafiles of the model zoo: complete, as published, and as generated."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope
from published import PUBLISHED

from dat_pp.engine import model_zoo as zoo
from dat_pp.engine.errors import run_main
from dat_pp.engine.noise import silence
from dat_pp.engine.preflight import check_model

ROOT = Path(__file__).parents[2]
FOLDERS = tuple(PUBLISHED)

# Task and dataset of every metric.
TASKS = {
    'Top 1 Accuracy': ('Image Classification', 'ImageNet-1k'),
    'Top 5 Accuracy': ('Image Classification', 'ImageNet-1k'),
    'box AP': ('Object Detection', 'COCO'),
    'mask AP': ('Instance Segmentation', 'COCO'),
    'mIoU': ('Semantic Segmentation', 'ADE20K'),
    'mIoU(ms+flip)': ('Semantic Segmentation', 'ADE20K'),
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


def _published(folder: str) -> dict[str, dict[str, float | None]]:
    """Results by config; of configs that were not published, no results."""
    none = dict.fromkeys(PUBLISHED[folder][0].results)
    names = [model['Name'] for model in _metafile(folder)['Models']]
    return dict.fromkeys(names, none) | {row.config: row.results for row in PUBLISHED[folder]}


def test_results_are_the_published_ones(folder: str) -> None:
    published = _published(folder)
    for model in _metafile(folder)['Models']:
        found = {}
        for result in model.get('Results', []):
            for metric, value in result['Metrics'].items():
                assert (result['Task'], result['Dataset']) == TASKS[metric]
                found[metric] = value
        expected = published.pop(model['Name'])
        assert found == {k: v for k, v in expected.items() if v is not None}, model['Name']
    assert not published


def test_results_on_the_page(folder: str) -> None:
    page = (ROOT / 'configs' / folder / 'README.md').read_text()
    rows = [line.strip('| ').split(' | ') for line in page.splitlines() if '[config](' in line]
    for *cells, config in rows:
        results = _published(folder)[re.search(r'\((.+)\.py\)', config)[1]]
        assert cells[-2:] == ['-' if v is None else str(round(v, 2)) for v in results.values()]


def test_weights_of_every_published_model(folder: str) -> None:
    """Two share pages each, on the page as well."""
    models = [model for model in _metafile(folder)['Models'] if 'Weights' in model]
    assert {model['Name'] for model in models} == {row.config for row in PUBLISHED[folder]}
    links, configs = [], []
    for model in models:
        published = model['Published']
        links += [model['Weights'], published['Mirror']]
        configs.append((published['Repository'], published.get('Tag'), published['Config']))
    assert {urlsplit(link).netloc for link in links} <= zoo.HOSTS.keys()
    assert len(set(links)) == 2 * len(set(configs)) == 2 * len(models)
    page = (ROOT / 'configs' / folder / 'README.md').read_text()
    assert re.findall(r'\((https://[^)]*(?:1drv|tsinghua|drive\.google)[^)]*)\)', page) == links


def test_titles() -> None:
    """How papers write the models that file names spell in lower case."""
    page = (ROOT / 'configs' / 'imagenet' / 'README.md').read_text()
    titles = re.findall(r'^\| (DAT-.+?) \|', page, re.MULTILINE)
    assert titles[:8] == [
        'DAT-T++', 'DAT-S++', 'DAT-B++', 'DAT-B++ at 384 x 384',
        'DAT-T', 'DAT-S', 'DAT-B', 'DAT-B at 384 x 384',
    ]  # fmt: skip
    assert 'DAT-T++ (overlapped, lpu)' in titles
    page = (ROOT / 'configs' / 'coco' / 'README.md').read_text()
    assert '| Cascade Mask R-CNN, DAT-B++ |' in page


def test_parameters(folder: str, configs: dict[str, Config]) -> None:
    stored = _stored(folder)
    for name, cfg in configs.items():
        with silence(), torch.device('meta'):
            init_default_scope(cfg.default_scope)
            model = check_model(cfg, pretrained=False)
        assert sum(p.numel() for p in model.parameters()) == stored[name]['Parameters'], name


@pytest.mark.slow
def test_nothing_is_stale(tmp_path: Path) -> None:
    """All models measured again, as a user would from another folder."""
    script = ROOT / 'tools' / 'misc' / 'update_model_zoo.py'
    done = subprocess.run(
        [sys.executable, script, '--check'], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ''), done.stdout + done.stderr


def test_a_model_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule does not matter, the size of the images does."""
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
    """A copy of configs/ade20k, on which the tool runs without reading or measuring models."""
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
    monkeypatch.setattr(zoo, 'DATASETS', {'ade20k': 'ADE20K'})
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
        ('README.md', '<!-- models -->', '', 'README.md: no lines <!-- models -->'),
        ('README.md', '<!-- /weights -->', '', 'README.md: no lines <!-- weights -->'),
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
            if link.startswith('https://'):
                continue
            file, _, heading = link.partition('#')
            assert (path / file).is_file(), link
            headings = re.findall(r'^#+ (.+)$', (path / file).read_text(), re.MULTILINE)
            assert not heading or heading in [h.lower().replace(' ', '-') for h in headings]
        # Configs in the table of weights are those of the published repositories.
        text = re.sub('<!-- weights -->.*<!-- /weights -->', '', text, flags=re.DOTALL)
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
