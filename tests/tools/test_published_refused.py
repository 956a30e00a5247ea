"""The converter of published checkpoints: files and targets that it refuses."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import backbone, custom_config, dense, retinanet, save_tiny, tensors


def test_other_number_of_classes(src: Path, dst: Path, tmp_path: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    content = save_tiny(src)
    content['model'] |= tensors({'cls_head.weight': (7, 512), 'cls_head.bias': (7,)})
    torch.save(content, src)
    convert(src, dst).assert_rejected(
        dst.parent,
        'fits no config; the closest is configs/imagenet/dat-pp-tiny_32xb128_in1k.py: ',
        'head.fc.weight is (7, 512) instead of (1000, 512)',
        '--config',
    )
    config = custom_config(tmp_path / 'seven.py', 'dat-t++', 512, 7)
    assert convert(src, dst, '--config', config).code == 0


def test_forced_config_that_does_not_fit(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src)
    config = 'configs/imagenet/dat-pp-small_32xb128_in1k.py'
    convert(src, dst, '--config', config).assert_rejected(
        dst.parent,
        f'SRC: {src} does not fit {config}: size mismatch: backbone.stem.conv1.weight is '
        '(32, 3, 3, 3) instead of (48, 3, 3, 3), ',
        ' and 585 more',
    )
    convert(src, dst, '--config', 'x.py').assert_rejected(dst.parent, 'config: no such file: x.py')


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
    convert(src, dst, '--config', config).assert_rejected(
        dst.parent,
        "own.py: needs 'mmpretrain', which is not installed: ",
        'pip install --no-build-isolation onedl-mmpretrain',
    )


def test_heads_that_differ(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmdet')
    state = dense(retinanet, 'small')
    del state['bbox_head.retina_reg.bias']
    state['neck.fpn_convs.5.conv.bias'] = torch.zeros(256)
    torch.save(dict(state_dict=state), src)
    convert(src, dst).assert_rejected(
        dst.parent,
        'is a RetinaNet that fits no config; the closest is configs/coco/retinanet_dat-pp-s_fpn_',
        'missing bbox_head.retina_reg.bias; unexpected neck.fpn_convs.5.conv.bias. ',
    )


def test_missing_file(src: Path, dst: Path, tmp_path: Path, convert: Callable) -> None:
    convert(src, dst).assert_rejected(dst.parent, f'SRC: no such file: {src}')
    convert(tmp_path, dst).assert_rejected(dst.parent, f'SRC: {tmp_path} is a folder')


def test_damaged_file(src: Path, dst: Path, convert: Callable) -> None:
    src.write_text('<html>quota exceeded</html>')
    convert(src, dst).assert_rejected(dst.parent, f'SRC: cannot read {src}: it is damaged')


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
            'is not a DAT checkpoint: there is no patch_proj.0.weight; its weights are '
            'patch_embed.proj.weight, norm.bias',
        ),
        (
            dict(state_dict=tensors({'backbone.conv1.weight': (64, 3, 7, 7), 'fc.bias': (9,)})),
            'is not a DAT checkpoint',
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
    convert(src, dst).assert_rejected(dst.parent, f'SRC: {src}', message)


def test_classes_that_are_not_names(src: Path, dst: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src, meta=dict(CLASSES=3))
    convert(src, dst).assert_rejected(dst.parent, f'SRC: {src}: CLASSES and PALETTE in its meta: ')


def test_converted_file_again(src: Path, dst: Path, tmp_path: Path, convert: Callable) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src)
    assert convert(src, tmp_path / 'once.pth').code == 0
    again = convert(tmp_path / 'once.pth', dst)
    again.assert_rejected(dst.parent, 'has the names of dat_pp already')


def assert_kept(target: Path, outcome: Any) -> None:
    """The target's content stays, and the one line on stderr says so."""
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert f'DST: {target} exists' in outcome.errors[0]
    assert target.read_text() == 'precious'


def test_existing_target(src: Path, tmp_path: Path, convert: Callable) -> None:
    existing = tmp_path / 'existing.pth'
    existing.write_text('precious')
    assert_kept(existing, convert(src, existing))  # before SRC is looked at


def test_target_created_meanwhile(
    src: Path, tmp_path: Path, convert: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('mmpretrain')
    save_tiny(src)
    target = tmp_path / 'target.pth'
    monkeypatch.setattr(torch, 'save', lambda content, path: target.write_text('precious'))
    assert_kept(target, convert(src, target))


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
