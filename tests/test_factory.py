"""create_model: names, weights from files, and what it says about those that do not fit."""

import re
from pathlib import Path

import golden
import pytest
import torch
from tiny_models import TINY

from dat_pp import DAT, DATClassifier, catalog, convert_published, create_model
from dat_pp.factory import PUBLISHED, find
from dat_pp.models.arch import resolve_arch

LARGER = dict(TINY, embed_dims=[16, 32, 32, 32])


def save(path: Path, model: torch.nn.Module, prefix: str = '') -> Path:
    weights = {
        name if name.startswith('head.') else prefix + name: value
        for name, value in model.state_dict().items()
    }
    torch.save(dict(state_dict=weights), path)
    return path


@pytest.mark.parametrize(
    ('spellings', 'name'),
    [
        (['dat-t', 'DAT_tiny', 'dat-tiny_32xb128_in1k', 'dat_t.in1k'], 'dat-t'),
        (['dat-b-384', 'dat_b.in1k_384', 'dat-base_64xb24_in1k-384px'], 'dat-b-384'),
        (['dat-t++', 'DAT++-T', 'dat_t_pp', 'dat_t_pp.in1k', 'dat_pp_tiny'], 'dat-t++'),
        (['dat-pp-base_64xb64_in1k', 'dat-b++', 'DAT-B++'], 'dat-b++'),
        (['dat-pp-base_64xb24_in1k-384px', 'dat_b_pp.in1k_384'], 'dat-b++-384'),
    ],
)
def test_spellings(spellings: list[str], name: str) -> None:
    assert [find(spelling) for spelling in spellings] == [name] * len(spellings)


@pytest.mark.parametrize('name', PUBLISHED)
def test_every_model(name: str) -> None:
    with torch.device('meta'):
        model = create_model(name, num_classes=10)
    cfg = model.default_cfg
    assert model.arch == resolve_arch(PUBLISHED[name].arch)
    assert model.get_submodule(cfg['first_conv']).in_channels == 3
    assert model.get_submodule(cfg['classifier']).out_features == 10
    assert cfg['pool_size'] == tuple(size // 32 for size in cfg['input_size'][1:])


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_facts_are_those_of_the_configs(name: str) -> None:
    """Accuracy of the metafile; size and crop of the test pipeline; mean and std."""
    from mmengine.config import Config

    entries = {}
    for model in catalog.models('mmpretrain'):
        try:
            entries[find(model['Name'])] = model
        except ValueError:
            continue  # an ablation
    cfg = PUBLISHED[name].default_cfg()
    (result,) = entries[name]['Results']
    assert result['Metrics']['Top 1 Accuracy'] == pytest.approx(cfg['top1'], abs=0.051)
    config = Config.fromfile(entries[name]['Config'])
    resize, *crop = (
        step for step in config.test_pipeline if step['type'] in ('Resize', 'CenterCrop')
    )
    size = cfg['input_size'][-1]
    assert (crop[0]['crop_size'] if crop else size) == size
    assert resize['scale'] == (int(size / cfg['crop_pct']),) * 2
    assert resize['interpolation'] == cfg['interpolation']
    data = config.data_preprocessor
    assert data['mean'] == pytest.approx([255 * value for value in cfg['mean']])
    assert data['std'] == pytest.approx([255 * value for value in cfg['std']])


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('dat-x++', "unknown model 'dat-x++'; did you mean dat-t++ or dat-s++ or dat-b++?"),
        ('dta-tiny', "unknown model 'dta-tiny'; did you mean dat-t"),
        ('swin_t', f"unknown model 'swin_t'; choose one of {', '.join(PUBLISHED)}"),
        ('dat-pp-tiny_sra_32xb128_in1k', "unknown model 'dat-pp-tiny_sra_32xb128_in1k'; "),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared
        create_model(name)
    assert str(error.value).startswith(message)
    assert '\n' not in str(error.value)


def test_features_only() -> None:
    model = create_model('dat-t++', features_only=True, out_indices=(1, 3), in_chans=1)
    assert type(model) is DAT
    info = model.feature_info
    assert (info.channels(), info.reduction()) == ([128, 512], [8, 32])
    assert info.module_name() == ['stages.1', 'stages.3']
    with torch.no_grad():
        maps = model.eval()(torch.rand(1, 1, 64, 64))
    assert [tuple(one.shape) for one in maps] == [(1, 128, 8, 8), (1, 512, 2, 2)]
    assert [stage['num_chs'] for stage in info] == [64, 128, 256, 512]


def test_arguments_reach_the_model() -> None:
    model = create_model(TINY, num_classes=3, in_chans=1, proj_drop_rate=0.25, drop_path_rate=0.5)
    assert model.stem.conv1.in_channels == model.default_cfg['input_size'][0] == 1
    assert model.stages[0][0].ffn.drop.p == 0.25
    assert model.stages[3][1].drop_path.rate == 0.5
    with pytest.raises(TypeError, match='not_an_argument'):
        create_model(TINY, not_an_argument=1)


def test_features_of_a_classifier_file(tmp_path: Path) -> None:
    """A plain file of the classifier, and one of mmpretrain: the head is left out."""
    source = create_model(TINY, num_classes=3)
    for prefix in ('', 'backbone.'):
        path = save(tmp_path / 'a.pth', source, prefix)
        model = create_model(TINY, pretrained=path, features_only=True, out_indices=(3,))
        for name, value in model.state_dict().items():
            assert torch.equal(value, source.state_dict()[name])


def test_pretrained_true() -> None:
    with pytest.raises(ValueError, match='pretrained=True downloads nothing: save the weights'):
        create_model('dat-t++', pretrained=True)
    assert isinstance(create_model(TINY, pretrained=False), DATClassifier)


@pytest.mark.parametrize('name', ['absent.pth', 'folder/absent.safetensors', './absent'])
def test_missing_file(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f'no such file: {name}'):
        create_model(TINY, pretrained=name)


def test_damaged_safetensors(tmp_path: Path) -> None:
    pytest.importorskip('safetensors')
    path = tmp_path / 'a.safetensors'
    path.write_bytes(b'<html>')
    with pytest.raises(ValueError, match=r'cannot read .*a\.safetensors: it is damaged'):
        create_model(TINY, pretrained=path)


def test_head_of_another_size(tmp_path: Path) -> None:
    path = save(tmp_path / 'a.pth', create_model(TINY, num_classes=7))
    with pytest.raises(ValueError, match='has a head of 7 classes, the model one of 3') as error:
        create_model(TINY, pretrained=path, num_classes=3)
    assert str(error.value).endswith(
        'create the model with num_classes=7, then call reset_classifier(3) for a new head'
    )
    model = create_model(TINY, pretrained=path, num_classes=7)
    model.reset_classifier(3)
    assert create_model(TINY, pretrained=path, num_classes=0).head.fc(1) == 1


def test_file_without_a_head(tmp_path: Path) -> None:
    path = save(tmp_path / 'a.pth', DAT(TINY, out_indices=(3,)))
    with pytest.raises(ValueError, match=r'has no classification head .*num_classes=0, then call'):
        create_model(TINY, pretrained=path, num_classes=3)
    model = create_model(TINY, pretrained=path, num_classes=0)
    assert torch.equal(model.norm3.weight, torch.load(path)['state_dict']['norm3.weight'])


@pytest.mark.parametrize(
    ('file', 'variant'),
    [('imagenet_pp_small', 'dat-s++'), ('imagenet_2022_base_384', 'dat-b')],
)
def test_file_of_another_variant(file: str, variant: str, tmp_path: Path) -> None:
    """The message names it, whether the file has published names or ours."""
    entries = golden.published_keys(file)
    state = {name: torch.zeros(()).expand(entry['shape']) for name, entry in entries.items()}
    for name, content in [('a', dict(model=state)), ('b', convert_published(state))]:
        path = tmp_path / f'{name}.pth'
        torch.save(content, path)
        with pytest.raises(ValueError, match=f': it holds a {re.escape(variant)}; ') as error:
            create_model('dat-t++', pretrained=path)
        assert '\n' not in str(error.value)


def test_file_of_no_published_variant(tmp_path: Path) -> None:
    path = save(tmp_path / 'a.pth', create_model(LARGER))
    with pytest.raises(ValueError, match='does not fit a DAT with embed_dims') as error:
        create_model(TINY, pretrained=path)
    assert 'it holds' not in str(error.value)
