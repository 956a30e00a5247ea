"""The converter of published checkpoints: what fits, what is kept, its report."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import golden
import pytest
import torch
from fresh import python
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from published_models import (
    PUBLISHED,
    Published,
    backbone,
    custom_config,
    mark,
    save_tiny,
    tensors,
)

import dat_pp
from dat_pp.engine import convert as converter

ROOT = Path(__file__).parents[2]
LIBRARIES = {'imagenet': 'mmpretrain', 'coco': 'mmdet', 'ade20k': 'mmseg'}
BUFFERS = ('relative_position_index', 'attn_mask')
# The configs of a family are built for its first model; the others take as long together.
FIRST = {model.family: model for model in reversed(PUBLISHED)}.values()
ALL = [
    pytest.param(model, marks=[] if model in FIRST else pytest.mark.slow, id=model.config)
    for model in PUBLISHED
]


def build(config: Path) -> torch.nn.Module:
    """The config's model without values, the library's own way."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.slow
def test_script(src: Path, tmp_path: Path) -> None:
    """In a process of its own and another folder: the file, the report and nothing else."""
    pytest.importorskip('mmpretrain')
    save_tiny(src)
    script = ROOT / 'tools' / 'model_converters' / 'published_to_mmlab.py'
    done = python(tmp_path, script, 'src.pth', 'dst.pth')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('model     classifier\nvariant   dat-t++\n')
    assert torch.load(tmp_path / 'dst.pth', weights_only=True)['state_dict']


# Every published model


def test_every_published_model_is_covered() -> None:
    assert len(PUBLISHED) == len({model.config for model in PUBLISHED}) == 8 + 12 + 6


@pytest.mark.parametrize('model', ALL)
def test_published_model(model: Published, src: Path, dst: Path, convert: Callable) -> None:
    config = ROOT / 'configs' / f'{model.config}.py'
    pytest.importorskip(LIBRARIES[config.parent.name])
    content = model.make()
    torch.save(content, src)
    outcome = convert(src, dst)
    assert (outcome.code, outcome.errors) == (0, [])
    report = '\n'.join(outcome.output)
    assert f'model     {model.family}\n' in report
    assert f'variant   {model.variant}' in report
    relative = config.relative_to(ROOT)
    assert [line for line in outcome.output if line.startswith('config')] == [
        f'config    {relative}'
    ]
    assert 'expected  not stated' not in outcome.output
    command = f'python tools/test.py {relative} {dst}'
    assert f'test      {command}' in outcome.output
    assert (f'          {command} --tta' in outcome.output) == ('ade20k' in model.config)

    written = torch.load(dst, weights_only=True)
    published = content.get('model') or content['state_dict']
    for name, value in published.items():
        if name.startswith(('neck.', 'rpn_head.', 'roi_head.', 'bbox_head.', 'decode_', 'auxil')):
            assert mark(written['state_dict'][name]) == mark(value), name
    kept = [value for name, value in published.items() if not name.endswith(BUFFERS)]
    assert sorted(map(mark, written['state_dict'].values())) == sorted(map(mark, kept))
    dropped = len(published) - len(kept)
    assert any(f'{dropped} buffers' in line for line in outcome.output) == bool(dropped)
    build(config).load_state_dict(written['state_dict'], assign=True)


# Entries other than weights


class CfgNode(dict):
    """As yacs pickles its settings: items, and attributes beside them."""

    def __init__(self, items: dict) -> None:
        super().__init__(items)
        self.__dict__['__immutable__'] = True


@pytest.mark.parametrize(('size', 'config'), [(224, '64xb64_in1k'), (384, '64xb24_in1k-384px')])
def test_settings_that_are_objects(
    size: int, config: str, src: Path, dst: Path, convert: Callable
) -> None:
    """224 and 384 have the same names: the stored settings, which stay unopened, tell."""
    pytest.importorskip('mmpretrain')
    import numpy as np

    settings = CfgNode(dict(DATA=CfgNode(dict(IMG_SIZE=size)), path=Path('x')))
    accuracy = np.float64(84.9)
    model = tensors(backbone('imagenet_pp_base'))
    torch.save(dict(model=model, config=settings, max_accuracy=accuracy, epoch=299), src)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(src, weights_only=True)
    outcome = convert(src, dst)
    assert outcome.code == 0, outcome.errors
    configs = [line.split()[1] for line in outcome.output if line.startswith('config')]
    assert configs == [f'configs/imagenet/dat-pp-base_{config}.py']
    assert 'left out  config, max_accuracy, epoch' in outcome.output


@pytest.mark.parametrize('size', [None, 512])
def test_all_fitting_configs_are_listed(
    size: int | None, src: Path, dst: Path, convert: Callable
) -> None:
    pytest.importorskip('mmpretrain')
    config = dict(DATA=dict(IMG_SIZE=size))
    torch.save(dict(model=tensors(backbone('imagenet_pp_base')), config=config), src)
    outcome = convert(src, dst)
    assert outcome.code == 0, outcome.errors
    assert '2 configs fit: the accuracy tells which one it is' in outcome.output
    for config in ('64xb64_in1k', '64xb24_in1k-384px'):
        path = f'configs/imagenet/dat-pp-base_{config}.py'
        assert f'test      python tools/test.py {path} {dst}' in outcome.output
    assert dst.exists()


def test_meta(src: Path, dst: Path, convert: Callable) -> None:
    import hashlib

    pytest.importorskip('mmseg')
    torch.save(PUBLISHED[-6].make(), src)
    assert convert(src, dst).code == 0
    assert torch.load(dst, weights_only=True)['meta'] == dict(
        dat_pp_version=dat_pp.__version__,
        source=dict(file='src.pth', sha256=hashlib.sha256(src.read_bytes()).hexdigest()),
        dataset_meta=dict(classes=('wall', 'building'), palette=[(120, 120, 120), (6, 6, 6)]),
    )
    assert [path.name for path in dst.parent.iterdir()] == ['dst.pth']


def test_other_entries_that_are_not_dicts(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src, config='DATA: {IMG_SIZE: 224}', meta=[1], optimizer=None)
    outcome = convert(src, dst)
    assert outcome.code == 0, outcome.errors
    assert 'left out  config, optimizer' in outcome.output


def test_weights_of_a_parallel_model(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    weights = tensors(backbone('imagenet_pp_tiny'))
    torch.save(dict(model={f'module.{name}': value for name, value in weights.items()}), src)
    assert convert(src, dst).code == 0
    written = torch.load(dst)['state_dict']
    assert torch.equal(written['head.fc.weight'], weights['cls_head.weight'])


def test_expected_result(tmp_path: Path) -> None:
    config = tmp_path / 'configs' / 'some' / 'one.py'
    config.parent.mkdir(parents=True)
    assert converter.expected_result(config) == 'not stated'
    models = [
        dict(Name=name, Config=f'configs/some/{name}.py', Results=[dict(Metrics=metrics)])
        for name, metrics in [
            ('one', {'box AP': 50.5, 'mask AP': 45.1}),
            ('two', {'box AP': 1.0}),
        ]
    ]
    (config.parent / 'metafile.yml').write_text(json.dumps(dict(Models=models)))
    assert converter.expected_result(config) == 'box AP 50.5, mask AP 45.1'
    assert converter.expected_result(config.with_name('three.py')) == 'not stated'
    del models[0]['Config']  # then its name is the config's
    (config.parent / 'metafile.yml').write_text(json.dumps(dict(Models=models)))
    assert converter.expected_result(config) == 'box AP 50.5, mask AP 45.1'


def test_configs_of_an_installed_package(
    src: Path, dst: Path, tmp_path: Path, convert: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of a repository around it."""
    pytest.importorskip('mmpretrain')
    package = tmp_path / 'site-packages' / 'dat_pp'
    shutil.copytree(ROOT / 'configs', package / '.mim' / 'configs')
    shutil.copy(ROOT / 'model-index.yml', package / '.mim')
    monkeypatch.setattr('dat_pp.catalog.PACKAGE', package)
    save_tiny(src)
    outcome = convert(src, dst)
    assert outcome.code == 0, outcome.errors
    (config,) = [line.split()[1] for line in outcome.output if line.startswith('config')]
    installed = package / '.mim' / 'configs' / 'imagenet' / 'dat-pp-tiny_32xb128_in1k.py'
    assert (ROOT / config).samefile(installed)


# Custom configs


def test_golden_output(src: Path, dst: Path, tmp_path: Path, convert: Callable) -> None:
    """A published file gives the published numbers after conversion."""
    pytest.importorskip('mmpretrain')
    case = 'pp_micro'
    arguments = golden.CASES[case]['arguments']
    config = custom_config(tmp_path / 'micro.py', golden.arch_of(case), arguments['dims'][-1], 10)
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile(config).model).double().eval()
    state, _ = golden.published_state(case, model)
    torch.save(dict(model=state), src)
    outcome = convert(src, dst, '--config', config)
    assert outcome.code == 0, outcome.errors
    assert any(line.startswith('config') and 'micro.py' in line for line in outcome.output)

    model.load_state_dict(torch.load(dst)['state_dict'])
    shape = golden.CASES[case]['input_shape']
    with torch.no_grad():
        out = model(torch.from_numpy(golden.values.model_input(case, shape)))
    (want,) = golden.outputs(case)
    assert (out - want).abs().max() <= 1e-8 * want.abs().max()


CALLS = []


def called(text: str) -> dict:
    CALLS.append(text)
    return {}


class Call:
    """Calls a function when it is unpickled."""

    def __reduce__(self) -> tuple:
        return called, ('x',)


def test_functions_in_a_file_are_not_called(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src, config=Call(), other=[Call()])
    outcome = convert(src, dst)
    assert outcome.code == 0, outcome.errors
    assert CALLS == []
    assert 'left out  config, other' in outcome.output
    torch.load(dst, weights_only=True)
