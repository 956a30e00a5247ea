"""The converter of published checkpoints: what fits, what is kept, every refusal."""

import importlib.util
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
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
    dense,
    mark,
    retinanet,
    tensors,
)

import dat_pp
from dat_pp.engine import convert as converter
from dat_pp.engine.errors import run_main

ROOT = Path(__file__).parents[2]
LIBRARIES = {'imagenet': 'mmpretrain', 'coco': 'mmdet', 'ade20k': 'mmseg'}
BUFFERS = ('relative_position_index', 'attn_mask')
# The configs of a family are built for its first model; the others take as long together.
FIRST = {model.family: model for model in reversed(PUBLISHED)}.values()
ALL = [
    pytest.param(model, marks=[] if model in FIRST else pytest.mark.slow, id=model.config)
    for model in PUBLISHED
]


@dataclass
class Outcome:
    code: int
    errors: list[str]
    report: list[str]


@pytest.fixture
def convert(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Outcome]:
    """Call the tool as its script does, in the repository's folder."""
    monkeypatch.chdir(ROOT)

    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        code = run_main(converter.main, [str(arg) for arg in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.err.splitlines(), captured.out.splitlines())

    return call


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return tmp_path / 'src.pth'


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / 'new' / 'folder' / 'dst.pth'


def save_tiny(path: Path, **changes: object) -> dict:
    """A published DAT-T++ classifier's file, and its content."""
    content = dict(model=tensors(backbone('imagenet_pp_tiny')), **changes)
    torch.save(content, path)
    return content


def assert_refused(outcome: Outcome, dst: Path, *expected: str) -> None:
    assert outcome.code == 2
    assert len(outcome.errors) == 1, outcome.errors
    for text in ('error: ', *expected):
        assert text in outcome.errors[0]
    assert not dst.exists()
    assert not dst.parent.exists()
    assert outcome.report == []


def build(config: Path) -> torch.nn.Module:
    """The config's model without values, the library's own way."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


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
    report = '\n'.join(outcome.report)
    assert f'model     {model.family}\n' in report
    assert f'variant   {model.variant}' in report
    relative = config.relative_to(ROOT)
    assert [line for line in outcome.report if line.startswith('config')] == [
        f'config    {relative}'
    ]
    assert 'expected  not stated' not in outcome.report
    command = f'python tools/test.py {relative} {dst}'
    assert f'test      {command}' in outcome.report
    assert (f'          {command} --tta' in outcome.report) == ('ade20k' in model.config)

    written = torch.load(dst, weights_only=True)
    published = content.get('model') or content['state_dict']
    for name, value in published.items():
        if name.startswith(('neck.', 'rpn_head.', 'roi_head.', 'bbox_head.', 'decode_', 'auxil')):
            assert mark(written['state_dict'][name]) == mark(value), name
    kept = [value for name, value in published.items() if not name.endswith(BUFFERS)]
    assert sorted(map(mark, written['state_dict'].values())) == sorted(map(mark, kept))
    dropped = len(published) - len(kept)
    assert any(f'{dropped} buffers' in line for line in outcome.report) == bool(dropped)
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
    configs = [line.split()[1] for line in outcome.report if line.startswith('config')]
    assert configs == [f'configs/imagenet/dat-pp-base_{config}.py']
    assert 'left out  config, max_accuracy, epoch' in outcome.report


@pytest.mark.parametrize('size', [None, 512])
def test_all_fitting_configs_are_listed(
    size: int | None, src: Path, dst: Path, convert: Callable
) -> None:
    pytest.importorskip('mmpretrain')
    config = dict(DATA=dict(IMG_SIZE=size))
    torch.save(dict(model=tensors(backbone('imagenet_pp_base')), config=config), src)
    outcome = convert(src, dst)
    assert outcome.code == 0, outcome.errors
    assert '2 configs fit: the accuracy tells which one it is' in outcome.report
    for config in ('64xb64_in1k', '64xb24_in1k-384px'):
        path = f'configs/imagenet/dat-pp-base_{config}.py'
        assert f'test      python tools/test.py {path} {dst}' in outcome.report
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
    assert 'left out  config, optimizer' in outcome.report


def test_classes_that_are_not_names(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src, meta=dict(CLASSES=3))
    assert_refused(convert(src, dst), dst, f'SRC: {src}: CLASSES and PALETTE in its meta: ')


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
    (config,) = [line.split()[1] for line in outcome.report if line.startswith('config')]
    installed = package / '.mim' / 'configs' / 'imagenet' / 'dat-pp-tiny_32xb128_in1k.py'
    assert (ROOT / config).samefile(installed)


# Custom configs


def custom_config(path: Path, arch: object, channels: int, classes: int) -> Path:
    path.write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier',\n"
        f"    backbone=dict(type='DAT', arch={arch!r}, out_indices=(3,)),\n"
        "    neck=dict(type='GlobalAveragePooling'),\n"
        f"    head=dict(type='LinearClsHead', num_classes={classes}, in_channels={channels}))\n"
    )
    return path


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
    assert any(line.startswith('config') and 'micro.py' in line for line in outcome.report)

    model.load_state_dict(torch.load(dst)['state_dict'])
    shape = golden.CASES[case]['input_shape']
    with torch.no_grad():
        out = model(torch.from_numpy(golden.values.model_input(case, shape)))
    (want,) = golden.outputs(case)
    assert (out - want).abs().max() <= 1e-8 * want.abs().max()


def test_other_number_of_classes(src: Path, dst: Path, tmp_path: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    content = save_tiny(src)
    content['model'] |= tensors({'cls_head.weight': (7, 512), 'cls_head.bias': (7,)})
    torch.save(content, src)
    assert_refused(
        convert(src, dst),
        dst,
        'fits no config; the closest is configs/imagenet/dat-pp-tiny_32xb128_in1k.py: ',
        'head.fc.weight is (7, 512) instead of (1000, 512)',
        '--config',
    )
    config = custom_config(tmp_path / 'seven.py', 'dat-t++', 512, 7)
    assert convert(src, dst, '--config', config).code == 0


# Refusals


def test_forced_config_that_does_not_fit(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src)
    config = 'configs/imagenet/dat-pp-small_32xb128_in1k.py'
    assert_refused(
        convert(src, dst, '--config', config),
        dst,
        f'SRC: {src} does not fit {config}: size mismatch: backbone.stem.conv1.weight is '
        '(32, 3, 3, 3) instead of (48, 3, 3, 3), ',
        ' and 585 more',
    )
    assert_refused(convert(src, dst, '--config', 'x.py'), dst, 'config: no such file: x.py')


def test_missing_library(
    src: Path, dst: Path, tmp_path: Path, convert: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(src)
    config = custom_config(tmp_path / 'own.py', 'dat-t++', 512, 1000)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        'importlib.util.find_spec',
        lambda name, *args: None if name == 'mmpretrain' else found(name, *args),
    )
    assert_refused(
        convert(src, dst, '--config', config),
        dst,
        "own.py: needs 'mmpretrain', which is not installed: ",
        'pip install --no-build-isolation onedl-mmpretrain',
    )


def test_heads_that_differ(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmdet')
    state = dense(retinanet, 'small')
    del state['bbox_head.retina_reg.bias']
    state['neck.fpn_convs.5.conv.bias'] = torch.zeros(256)
    torch.save(dict(state_dict=state), src)
    assert_refused(
        convert(src, dst),
        dst,
        'is a RetinaNet that fits no config; the closest is configs/coco/retinanet_dat-pp-s_fpn_',
        'missing bbox_head.retina_reg.bias; unexpected neck.fpn_convs.5.conv.bias. ',
    )


def test_existing_target(src: Path, tmp_path: Path, convert: Callable) -> None:
    existing = tmp_path / 'existing.pth'
    existing.write_text('precious')
    outcome = convert(src, existing)  # before SRC is looked at
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert f'DST: {existing} exists' in outcome.errors[0]
    assert existing.read_text() == 'precious'


def test_target_created_meanwhile(
    src: Path, tmp_path: Path, convert: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src)
    target = tmp_path / 'target.pth'
    monkeypatch.setattr(torch, 'save', lambda content, path: target.write_text('precious'))
    outcome = convert(src, target)
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert f'DST: {target} exists' in outcome.errors[0]
    assert target.read_text() == 'precious'


def test_interrupted_writing(
    src: Path, dst: Path, convert: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src)

    def save(content: object, path: Path) -> None:
        path.write_bytes(b'half')
        raise OSError('no space left')

    monkeypatch.setattr(torch, 'save', save)
    outcome = convert(src, dst)
    assert outcome.errors == [f'error: DST: cannot write {dst}: no space left']
    assert list(dst.parent.iterdir()) == []


def test_missing_file(src: Path, dst: Path, tmp_path: Path, convert: Callable) -> None:
    assert_refused(convert(src, dst), dst, f'SRC: no such file: {src}')
    assert_refused(convert(tmp_path, dst), dst, f'SRC: {tmp_path} is a folder')


def test_damaged_file(src: Path, dst: Path, convert: Callable) -> None:
    src.write_text('<html>quota exceeded</html>')
    assert_refused(convert(src, dst), dst, f'SRC: cannot read {src}: it is damaged')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([1, 2], 'holds no weights'),
        (dict(epoch=3), 'holds no weights'),
        (dict(model={}), 'holds no weights'),
        (dict(model={'patch_proj.0.weight': 3}), 'holds no weights'),
        (dict(model=torch.nn.Linear(1, 1)), 'holds no weights'),
        (
            dict(model=tensors({'patch_embed.proj.weight': (96, 3, 4, 4), 'norm.bias': (768,)})),
            'another model than DAT: there is no patch_proj.0.weight; its weights are '
            'patch_embed.proj.weight, norm.bias',
        ),
        (
            dict(state_dict=tensors({'backbone.conv1.weight': (64, 3, 7, 7), 'fc.bias': (9,)})),
            'another model than DAT',
        ),
        (
            dict(state_dict=tensors({'backbone.stem.conv1.weight': (32, 3, 3, 3)})),
            'has the names of dat_pp already: use it as it is',
        ),
        (
            dict(model=tensors({'patch_proj.0.weight': (64, 3, 4, 4)})),
            'not a complete published DAT checkpoint: missing patch_proj.0.bias',
        ),
        (dict(model=tensors(backbone('dense_pp_tiny'))), 'not the head of a classifier, '),
    ],
)
def test_not_a_published_model(
    content: object, message: str, src: Path, dst: Path, convert: Callable
) -> None:
    torch.save(content, src)
    assert_refused(convert(src, dst), dst, f'SRC: {src}', message)


def test_converted_file_again(src: Path, dst: Path, tmp_path: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src)
    assert convert(src, tmp_path / 'once.pth').code == 0
    again = convert(tmp_path / 'once.pth', dst)
    assert_refused(again, dst, 'has the names of dat_pp already')


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
    assert 'left out  config, other' in outcome.report
    torch.load(dst, weights_only=True)
