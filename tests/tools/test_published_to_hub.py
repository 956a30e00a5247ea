"""The converter of published checkpoints: folders in the hub format."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fresh import python
from published_models import backbone, custom_config, dense, retinanet, tensors

from dat_pp.models import DATClassifier

pytest.importorskip('mmpretrain')
pytest.importorskip('safetensors')
ROOT = Path(__file__).parents[2]


def save(path: Path) -> dict:
    """A published classifier's file with a value of its own for each name."""
    weights = tensors(backbone('imagenet_pp_tiny'))
    torch.save(dict(model=weights), path)
    return weights


def card_of(folder: Path) -> str:
    return (folder / 'README.md').read_text(encoding='utf-8')


@pytest.mark.slow
def test_classifier(src: Path, dst: Path, convert: Callable) -> None:
    published = save(src)
    outcome = convert(src, dst, '--to', 'hub')
    assert (outcome.code, outcome.errors) == (0, [])
    assert outcome.output[-1] == f"use       dat_pp.DATClassifier.from_pretrained('{dst}')"
    assert not any(line.startswith('test') for line in outcome.output)
    model = DATClassifier.from_pretrained(dst)
    values = [value.flatten()[0].item() for value in model.state_dict().values()]
    assert sorted(values) == sorted(value.flatten()[0].item() for value in published.values())
    assert torch.equal(model.head.fc.weight, published['cls_head.weight'])
    card = card_of(dst)
    assert 'license: apache-2.0' in card
    assert '| ImageNet-1K top-1 | 83.9 | the paper, for DAT-T++ |' in card
    assert 'Converted from `src.pth` (SHA-256 `' in card


@pytest.mark.slow
def test_config_decides(src: Path, dst: Path, convert: Callable) -> None:
    """Where the file does not tell which input size its model was trained at."""
    weights = tensors(backbone('imagenet_pp_base'))
    torch.save(dict(model={name: value.half() for name, value in weights.items()}), src)
    convert(src, dst, '--to', 'hub').assert_rejected(
        dst.parent,
        '--to hub: 2 configs fit, choose one with --config: configs/imagenet/dat-pp-base',
    )
    config = 'configs/imagenet/dat-pp-base_64xb24_in1k-384px.py'
    assert convert(src, dst, '--to', 'hub', '--config', config).code == 0
    cfg = json.loads((dst / 'config.json').read_text())['pretrained_cfg']
    assert (cfg['input_size'], cfg['crop_pct']) == ([3, 384, 384], 1.0)
    assert '| 85.9 | the paper, for DAT-B++-384 |' in card_of(dst)


def test_own_model(src: Path, dst: Path, tmp_path: Path, convert: Callable) -> None:
    """With another number of classes: neither the published license nor the published result."""
    weights = save(src) | tensors({'cls_head.weight': (7, 512), 'cls_head.bias': (7,)})
    torch.save(dict(model=weights), src)
    config = custom_config(tmp_path / 'seven.py', 'dat-t++', 512, 7)
    assert convert(src, dst, '--to', 'hub', '--config', config).code == 0
    assert DATClassifier.from_pretrained(dst).num_classes == 7
    assert 'license: ' not in card_of(dst)


def test_detector_is_refused(src: Path, dst: Path, convert: Callable) -> None:
    torch.save(dict(state_dict=dense(retinanet, 'tiny')), src)
    convert(src, dst, '--to', 'hub').assert_rejected(dst.parent, 'is no classifier')


@pytest.mark.slow
def test_script(src: Path, tmp_path: Path) -> None:
    save(src)
    script = ROOT / 'tools' / 'model_converters' / 'published_to_mmlab.py'
    done = python(tmp_path, script, 'src.pth', 'folder', '--to', 'hub')
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / 'folder' / 'model.safetensors').is_file()
