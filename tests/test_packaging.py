"""What pip installs: metadata, and a wheel that is built from the source distribution."""

import os
import re
import shutil
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from build.util import project_wheel_metadata
from fresh import SITE_PACKAGES, python
from packaging.requirements import Requirement

import dat_pp

ROOT = Path(__file__).parents[1]
EXTRAS = {'docs', 'explain', 'export', 'hub', 'mmlab', 'tests', 'timm'}
IN_SOURCE_TREE = {'.mim', 'configs', '__pycache__'}  # written by an editable install, or by Python


def copy_source(target: Path, *names: str) -> Path:
    """Copy a part of the repository: building leaves files in the source tree."""
    for name in names:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns(*IN_SOURCE_TREE, '*.egg-info')
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture
def metadata_source(tmp_path: Path) -> Path:
    """All that the metadata is made of."""
    names = ('setup.py', 'pyproject.toml', 'README.md', 'CITATION.cff', 'LICENSE', 'requirements')
    return copy_source(tmp_path / 'source', *names, 'projects/dat_pp/__init__.py')


def test_metadata(metadata_source):
    found = project_wheel_metadata(metadata_source, isolated=False)
    assert found['Version'] == dat_pp.__version__
    assert found['License-Expression'] == 'Apache-2.0'
    assert found['License-File'] == 'LICENSE'
    assert found['Requires-Python'] == '>=3.10'
    assert found['Description-Content-Type'] == 'text/markdown'
    assert set(found.get_all('Provides-Extra')) == EXTRAS
    requirements = [Requirement(line) for line in found.get_all('Requires-Dist')]
    assert [str(r) for r in requirements if r.marker is None] == ['torch>=2.6']
    for extra in EXTRAS:
        assert any(r.marker and r.marker.evaluate(dict(extra=extra)) for r in requirements), extra


def test_lowest_torch_is_the_documented_one():
    page = (ROOT / 'docs' / 'install.md').read_text(encoding='utf-8')
    project = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    (lowest,) = re.findall(r"'torch>=([\d.]+)'", project)
    assert f'| PyTorch | {lowest} or later' in page


def test_old_setuptools_is_refused(tmp_path):
    """With --no-build-isolation pip takes what is installed; mim's is 60.2."""
    code = (
        "import runpy, setuptools; setuptools.__version__ = '60.2.0'\n"
        f'runpy.run_path({str(ROOT / "setup.py")!r})\n'
    )
    done = python(tmp_path, '-c', code)
    assert done.returncode == 1
    assert done.stderr.startswith('dat_pp is built with setuptools 77 or later, here is 60.2.0')
    assert len(done.stderr.splitlines()) == 1


def relative_links(description: str) -> list[str]:
    return re.findall(r'\]\((?!\w+:)[^)]*\)', description)


def test_description_has_no_dead_links(metadata_source):
    """A package index has none of the repository's files."""
    assert relative_links((ROOT / 'README.md').read_text(encoding='utf-8'))
    description = project_wheel_metadata(metadata_source, isolated=False).get_payload()
    assert relative_links(description) == []
    assert '![' not in description
    assert '](https://arxiv.org/abs/2309.01430)' in description


def test_description_links_to_the_repository(metadata_source):
    with (metadata_source / 'CITATION.cff').open('a', encoding='utf-8') as file:
        file.write("repository-code: 'https://example.org/dat_pp'\n")
    description = project_wheel_metadata(metadata_source, isolated=False).get_payload()
    assert relative_links(description) == []
    assert '[Installation](https://example.org/dat_pp/blob/HEAD/docs/install.md)' in description
    figure = 'https://example.org/dat_pp/raw/HEAD/docs/figures/backbone.svg'
    assert re.search(rf'!\[[^\]]+\]\({figure}\)', description)


@pytest.fixture(scope='module')
def wheel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp('packaging')
    names = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'CITATION.cff', 'LICENSE')
    folders = ('requirements', 'projects', 'configs', 'tools', 'tests')
    copy_source(folder / 'source', *names, 'CHANGELOG.md', 'model-index.yml', *folders)
    command = ['-m', 'build', '--no-isolation', '--outdir', str(folder / 'dist')]
    done = python(folder, *command, str(folder / 'source'))
    assert done.returncode == 0, done.stderr[-2000:]
    (sdist,) = (folder / 'dist').glob('*.tar.gz')
    (wheel,) = (folder / 'dist').glob('*.whl')
    done = python(folder, '-m', 'twine', 'check', '--strict', str(sdist), str(wheel))
    assert done.returncode == 0, done.stdout
    zipfile.ZipFile(wheel).extractall(folder / 'installed')
    return folder / 'installed'


def files_below(folder: Path, ignored: set[str]) -> set[Path]:
    files = (path.relative_to(folder) for path in folder.rglob('*') if path.is_file())
    return {path for path in files if not ignored & set(path.parts)}


@pytest.mark.slow
def test_wheel_holds_the_package(wheel_folder):
    """Every file of it, headers and C++ sources too."""
    package = files_below(ROOT / 'projects' / 'dat_pp', IN_SOURCE_TREE)
    assert files_below(wheel_folder / 'dat_pp', IN_SOURCE_TREE) == package


@pytest.mark.slow
@pytest.mark.parametrize('name', ['configs', 'tools'])
def test_wheel_holds_copies(wheel_folder, name):
    copies = wheel_folder / 'dat_pp' / '.mim' / name
    assert not copies.is_symlink()
    assert files_below(copies, set()) == files_below(ROOT / name, {'__pycache__'})


@pytest.mark.slow
def test_wheel_resolves_its_own_configs(wheel_folder, tmp_path):
    """By name, through mmengine's hub, and in the lazy form, which has a file for every config."""
    lazy = wheel_folder / 'dat_pp' / 'configs'
    names = {path.relative_to(lazy).as_posix() for path in lazy.rglob('*.py')}
    configs = [path.relative_to(ROOT / 'configs') for path in (ROOT / 'configs').glob('[!_]*/*.py')]
    assert names == {path.as_posix().replace('-', '_') for path in configs}
    (tmp_path / 'mine.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n    from dat_pp.configs.digits.mask_rcnn import *\n'
        'model.update(dict(backbone=dict(drop_path_rate=0.25)))\n'
    )
    code = (
        'from mmengine.config import Config\n'
        "cfg = Config.fromfile('mine.py')\n"
        'print(cfg.default_scope, cfg.model.backbone.drop_path_rate, cfg.model.backbone.type)\n'
        "cfg.dump('dumped.py')\n"
        "print(Config.fromfile('dumped.py').model.backbone == cfg.model.backbone)\n"
        'import dat_pp; from mmengine.hub import get_config\n'
        "cfg = get_config('dat_pp::digits/classification.py')\n"
        "print(dat_pp.__file__, cfg.filename, dat_pp.config('digits/classification'), sep='\\n')\n"
    )
    done = python(tmp_path, '-c', code, path=str(wheel_folder))
    assert done.returncode == 0, done.stderr[-2000:]
    *lazy_lines, package, hub, by_name = done.stdout.splitlines()
    assert lazy_lines == ['mmdet 0.25 DAT', 'True']
    assert Path(package).is_relative_to(wheel_folder)
    assert Path(hub).is_relative_to(wheel_folder)
    assert os.path.samefile(hub, by_name)


WITH_TORCH_ALONE = """
import torch, dat_pp
model = dat_pp.create_model('dat_t_pp', num_classes=5).eval()
with torch.no_grad():
    print(tuple(model(torch.rand(1, 3, 64, 64)).shape))
print(dat_pp.__file__)
print(dat_pp.config('coco/dino-5scale_dat-pp-t_8xb2-12e_coco'))
"""


@pytest.fixture
def torch_alone(tmp_path: Path) -> Path:
    """A folder with torch and the packages that it requires."""
    folder = tmp_path / 'packages'
    folder.mkdir()
    pending, links = ['torch'], set()
    while pending:
        distribution = metadata.distribution(pending.pop())
        links |= {file.parts[0] for file in distribution.files or () if file.parts[0] != '..'}
        required = [Requirement(line) for line in distribution.requires or ()]
        pending += [r.name for r in required if not r.marker or r.marker.evaluate(dict(extra=''))]
    for name in links - {'__pycache__'}:
        (folder / name).symlink_to(SITE_PACKAGES / name)
    return folder


@pytest.mark.slow
def test_wheel_works_with_torch_alone(wheel_folder, torch_alone, tmp_path):
    path = os.pathsep.join([str(wheel_folder), str(torch_alone)])
    # -S: without this environment's packages.
    done = python(tmp_path, '-S', '-W', 'ignore', '-c', WITH_TORCH_ALONE, path=path)
    assert done.returncode == 0, done.stderr[-2000:]
    shape, *files = done.stdout.splitlines()
    assert shape == '(1, 5)'
    assert all(Path(file).is_relative_to(wheel_folder) for file in files)
