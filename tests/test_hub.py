"""Models saved to folders in the hub format, and loaded from folders and ids."""

import json
import re
import shutil
import stat
import sys
from pathlib import Path

import golden
import pytest
import torch
import yaml
from fresh import python
from tiny_models import TINY, V1, build

import dat_pp
from dat_pp.hub import sha256
from dat_pp.hub.card import model_card
from dat_pp.hub.saving import published_result
from dat_pp.models import DATClassifier, SimMIMDAT

pytest.importorskip('safetensors')
FILES = ['README.md', 'config.json', 'model.safetensors']


def classifier(arch: dict | str = TINY, **kwargs: object) -> DATClassifier:
    torch.manual_seed(0)
    return DATClassifier(arch, **{'num_classes': 3, **kwargs})


@pytest.fixture(scope='module')
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('saved') / 'tiny'
    classifier().save_pretrained(folder, label_names=['cat', 'dog', 'owl'])
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A copy of a saved classifier, to be damaged."""
    return Path(shutil.copytree(saved_once, tmp_path / 'tiny'))


def config_of(folder: Path) -> dict:
    return json.loads((folder / 'config.json').read_text(encoding='utf-8'))


def same_state(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        theirs[name].dtype == value.dtype and torch.equal(theirs[name], value)
        for name, value in ours.items()
    )


def one_line(error: pytest.ExceptionInfo) -> str:
    """The message of an error, which is one line."""
    (line,) = str(error.value).splitlines()
    return line


# Round trips


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_classifier(dtype, tmp_path):
    model = classifier().to(dtype)
    model.save_pretrained(tmp_path / 'a')
    loaded = DATClassifier.from_pretrained(tmp_path / 'a')
    assert same_state(loaded, model)
    assert not loaded.training


@pytest.mark.parametrize(
    'arguments',
    [
        dict(arch=V1),
        dict(arch=dict(TINY, native_resolution=(64, 96), position_bias='log_cpb')),
        dict(in_channels=1, num_classes=7),
        dict(num_classes=0),
    ],
)
def test_settings(arguments, tmp_path):
    model = classifier(**arguments)
    model.save_pretrained(tmp_path / 'a')
    loaded = DATClassifier.from_pretrained(tmp_path / 'a', drop_path_rate=0.3)
    assert same_state(loaded, model)
    assert loaded.arch == model.arch
    images = torch.rand(1, model.in_chans, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model.eval()(images), rtol=0, atol=0)


def test_backbone(tmp_path):
    model = build(out_indices=(1, 2))
    model.save_pretrained(tmp_path / 'a')
    loaded = dat_pp.DAT.from_pretrained(tmp_path / 'a')
    assert same_state(loaded, model)
    assert loaded.out_indices == (1, 2)


def test_masked_image_modeling(tmp_path):
    """A pre-trained model with its mask token, and a backbone without it."""
    torch.manual_seed(0)
    model = SimMIMDAT(TINY, out_indices=(3,))
    model.save_pretrained(tmp_path / 'a')
    assert same_state(SimMIMDAT.from_pretrained(tmp_path / 'a'), model)
    state = dat_pp.DAT.from_pretrained(tmp_path / 'a').state_dict()
    assert model.state_dict().keys() - state.keys() == {'mask_token'}


def test_backbone_of_a_classifier(saved):
    """Without its head; output norms that a classifier does not have keep their initial values."""
    loaded = dat_pp.DAT.from_pretrained(saved, out_indices=(0, 3))
    own = classifier().state_dict()
    for name, value in loaded.state_dict().items():
        if name.startswith('norm'):
            assert torch.equal(value, torch.full_like(value, float(name.endswith('weight'))))
        else:
            assert torch.equal(value, own[name]), name


@pytest.mark.parametrize('case', ['pp_micro', 'pp_layer_scale', 'v1_micro'])
def test_golden_logits(case, tmp_path, monkeypatch):
    """Published weights, saved and loaded: the published logits."""
    monkeypatch.setenv('DAT_PP_BACKEND', 'reference')
    model = classifier(golden.arch_of(case), num_classes=10).double()
    state, _ = golden.published_state(case, model)
    ours = dat_pp.convert_published(state)
    model.load_state_dict({name.removeprefix('backbone.'): v for name, v in ours.items()})
    model.save_pretrained(tmp_path / 'a')
    loaded = DATClassifier.from_pretrained(tmp_path / 'a')
    images = golden.values.model_input(case, golden.CASES[case]['input_shape'])
    with torch.no_grad():
        logits = loaded(torch.from_numpy(images))
    (expected,) = golden.outputs(case)
    assert (logits - expected).abs().max() <= 1e-8 * expected.abs().max()


def test_create_model(saved):
    model = dat_pp.create_model(TINY, pretrained=saved, num_classes=3)
    assert same_state(model, classifier())
    assert model.pretrained_cfg['label_names'] == ['cat', 'dog', 'owl']


def test_labels_and_preprocessing(saved, tmp_path):
    model = DATClassifier.from_pretrained(saved)
    model.pretrained_cfg.update(mean=(0.5, 0.5, 0.5), file='/home/me/weights.pth')
    model.save_pretrained(tmp_path / 'a')
    cfg = DATClassifier.from_pretrained(tmp_path / 'a').pretrained_cfg
    assert cfg == {**classifier().pretrained_cfg, **cfg, 'mean': (0.5, 0.5, 0.5)}
    assert cfg['label_names'] == ['cat', 'dog', 'owl']
    assert 'file' not in cfg
    model.reset_classifier(2)
    model.save_pretrained(tmp_path / 'b')
    assert 'label_names' not in config_of(tmp_path / 'b')


# Writing


def test_files(saved):
    assert sorted(path.name for path in saved.iterdir()) == FILES
    assert len({stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()}) == 1
    assert config_of(saved)['dat_pp']['sha256'] == sha256(saved / 'model.safetensors')


def test_existing_folder_is_refused(saved):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    for target in (saved, saved / 'config.json'):
        with pytest.raises(FileExistsError) as error:
            classifier().save_pretrained(target)
        assert 'nothing written' in one_line(error)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_empty_folder_is_taken(tmp_path):
    classifier().save_pretrained(tmp_path)
    assert same_state(DATClassifier.from_pretrained(tmp_path), classifier())


def test_overwrite(saved):
    (saved / '.gitattributes').write_text('mine')
    model = classifier(num_classes=5)
    model.save_pretrained(saved, overwrite=True)
    assert same_state(DATClassifier.from_pretrained(saved), model)
    assert sorted(path.name for path in saved.iterdir()) == ['.gitattributes', *FILES]


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('no space left on device')

    monkeypatch.setattr('dat_pp.hub.saving.model_card', fail)
    with pytest.raises(OSError, match='no space'):
        classifier().save_pretrained(tmp_path / 'new' / 'a')
    assert list((tmp_path / 'new').iterdir()) == []


def test_interrupted_overwrite_does_not_load(saved, monkeypatch):
    replace = Path.replace

    def interrupted(self, target):
        if self.name != 'model.safetensors':
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        classifier(num_classes=5).save_pretrained(saved, overwrite=True)
    with pytest.raises(FileNotFoundError, match=r'no config\.json'):
        DATClassifier.from_pretrained(saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_wrong_number_of_labels(tmp_path):
    with pytest.raises(ValueError, match='2 label_names for 3 classes'):
        classifier().save_pretrained(tmp_path / 'a', label_names=['cat', 'dog'])
    assert list(tmp_path.iterdir()) == []


# Model card


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split('---\n')[1])


def test_card_claims_nothing(saved):
    """Neither a license nor a result of weights that nobody stated one for."""
    card = (saved / 'README.md').read_text(encoding='utf-8')
    front = front_matter(card)
    assert front['pipeline_tag'] == 'image-classification'
    assert 'license' not in front
    assert 'Not stated for these weights' in card
    assert 'None were given' in card


def test_card_gives_what_is_stated(tmp_path):
    stated = dict(metrics={'top-1': 61.2}, license='apache-2.0', source='Trained on digits.')
    classifier().save_pretrained(tmp_path / 'a', **stated)
    card = (tmp_path / 'a' / 'README.md').read_text(encoding='utf-8')
    assert front_matter(card)['license'] == 'apache-2.0'
    assert 'These weights: apache-2.0.' in card
    assert '| top-1 | 61.2 | these weights |' in card
    assert 'Trained on digits.' in card


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('dat-t++', ('dat-t++', 83.9)),
        ('dat-b++-384', ('dat-b++-384', 85.9)),
        (TINY, None),
        (dict(base='dat-t++', lpu=False), None),
    ],
)
def test_published_result(name, expected):
    """By architecture and input size; the card calls it the paper's."""
    with torch.device('meta'):
        model = dat_pp.create_model(name)
    assert published_result(model) == expected
    config = dict(
        num_classes=1000,
        pretrained_cfg={},
        dat_pp=dict(version='0', model='DATClassifier', arch=dict(coordinates='dat++')),
    )
    card = model_card(config, 0, published=expected, metrics={})
    assert ('| the paper, for DAT-' in card) == bool(expected)


def test_card_code_runs(saved):
    card = (saved / 'README.md').read_text(encoding='utf-8')
    (code,) = re.findall(r'^```python\n(.*?)^```', card, re.M | re.S)
    names: dict = {}
    exec(code.replace('PATH_OR_ID', str(saved)), names)
    assert same_state(names['model'], classifier())


# Folders that cannot be used


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_missing_file(name, saved):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        DATClassifier.from_pretrained(saved)
    assert f'no {name} in {saved}' in one_line(error)


def test_damaged_weights(saved):
    content = bytearray((saved / 'model.safetensors').read_bytes())
    content[-1] ^= 1
    (saved / 'model.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match='SHA-256') as error:
        DATClassifier.from_pretrained(saved)
    assert 'is damaged or of another model' in one_line(error)


@pytest.mark.parametrize('text', ['{"architecture": ', '[]', '{}', '{"dat_pp": {"arch": {}}}'])
def test_damaged_config(text, saved):
    (saved / 'config.json').write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match=r'config\.json') as error:
        DATClassifier.from_pretrained(saved)
    one_line(error)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (dict(num_classes=5), 'num_classes=3, then call reset_classifier(5)'),
        (dict(in_channels=1), 'stem.conv1.weight is (8, 3, 3, 3) instead of (8, 1, 3, 3)'),
        (dict(arch='dat-t++'), 'does not fit a DAT with embed_dims [64, 128, 256, 512]'),
    ],
)
def test_other_arguments(arguments, expected, saved):
    with pytest.raises(ValueError, match=r'does not fit|has a head') as error:
        DATClassifier.from_pretrained(saved, **arguments)
    assert expected in one_line(error)


def test_backbone_has_no_head(tmp_path):
    build(out_indices=(3,)).save_pretrained(tmp_path / 'a')
    with pytest.raises(ValueError, match='no classification head') as error:
        DATClassifier.from_pretrained(tmp_path / 'a')
    assert 'num_classes=0' in one_line(error)
    loaded = DATClassifier.from_pretrained(tmp_path / 'a', num_classes=0)
    assert same_state(loaded, build(out_indices=(3,)))


def test_file_instead_of_folder(saved):
    with pytest.raises(ValueError, match='is a file; expected a folder') as error:
        DATClassifier.from_pretrained(saved / 'config.json')
    one_line(error)


def test_neither_folder_nor_id():
    with pytest.raises(FileNotFoundError, match='no such folder: dat-t') as error:
        DATClassifier.from_pretrained('dat-t++')
    one_line(error)


@pytest.mark.parametrize('missing', ['safetensors', 'huggingface_hub'])
def test_missing_package(missing, saved, tmp_path, monkeypatch):
    """Named with the extra that installs it; a folder needs no huggingface_hub."""
    for name in [name for name in sys.modules if name.partition('.')[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    calls = {
        'safetensors': [
            lambda: classifier().save_pretrained(tmp_path / 'a'),
            lambda: DATClassifier.from_pretrained(saved),
        ],
        'huggingface_hub': [lambda: DATClassifier.from_pretrained('owner/tiny')],
    }
    for call in calls[missing]:
        with pytest.raises(ImportError) as error:
            call()
        assert f'needs {missing}' in one_line(error)
        assert "pip install 'dat_pp[hub]'" in one_line(error)
    if missing == 'huggingface_hub':
        assert same_state(DATClassifier.from_pretrained(saved), classifier())


def test_safetensors_without_numpy(tmp_path, monkeypatch):
    """It installs without numpy and needs it to write."""
    monkeypatch.setitem(sys.modules, 'numpy', None)
    with pytest.raises(ImportError, match='needs safetensors and numpy') as error:
        classifier().save_pretrained(tmp_path / 'a')
    one_line(error)
    assert list(tmp_path.iterdir()) == []


# Ids


@pytest.fixture
def cache(saved, tmp_path) -> Path:
    """huggingface_hub's cache after a download of owner/tiny at branch main and tag v1."""
    pytest.importorskip('huggingface_hub')
    repository = tmp_path / 'cache' / 'models--owner--tiny'
    commit = '0123456789abcdef0123456789abcdef01234567'
    shutil.copytree(saved, repository / 'snapshots' / commit)
    (repository / 'refs').mkdir()
    for name in ('main', 'v1'):
        (repository / 'refs' / name).write_text(commit)
    return repository.parent


def test_id_in_cache(cache):
    arguments = dict(cache_dir=cache, local_files_only=True)
    for revision in (None, 'v1'):
        model = DATClassifier.from_pretrained('owner/tiny', revision=revision, **arguments)
        assert same_state(model, classifier())


def test_create_model_by_id(cache, tmp_path):
    """Without network, as huggingface_hub's users set it."""
    code = (
        'import dat_pp; from tiny_models import TINY\n'
        "model = dat_pp.create_model(TINY, pretrained='owner/tiny', num_classes=3)\n"
        "print(model.pretrained_cfg['label_names'])\n"
    )
    before = f"import os; os.environ.update(HF_HUB_CACHE={str(cache)!r}, HF_HUB_OFFLINE='1')\n"
    done = python(tmp_path, '-c', before + code, path=str(Path(__file__).parent))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['cat', 'dog', 'owl']"


def test_id_that_is_not_there(cache):
    with pytest.raises(FileNotFoundError, match='no folder owner/other') as error:
        DATClassifier.from_pretrained('owner/other', cache_dir=cache, local_files_only=True)
    one_line(error)


def test_what_is_asked_of_the_hub(saved, monkeypatch):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    asked = []

    def snapshot_download(repository, **options):
        asked.append((repository, options))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    DATClassifier.from_pretrained('owner/tiny', revision='v1', token='secret')
    ((repository, options),) = asked
    assert repository == 'owner/tiny'
    assert sorted(options.pop('allow_patterns')) == FILES
    assert options == dict(revision='v1', token='secret', cache_dir=None, local_files_only=False)


def test_folder_is_preferred_to_id(saved, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
    saved.rename(tmp_path / 'name')
    (tmp_path / 'owner').mkdir()
    (tmp_path / 'name').rename(tmp_path / 'owner' / 'name')
    monkeypatch.chdir(tmp_path)
    assert same_state(DATClassifier.from_pretrained('owner/name'), classifier())


# Documentation, configs


@pytest.mark.slow
def test_page(tmp_path):
    """The code of docs/hub.md, in an empty folder."""
    pytest.importorskip('timm')
    page = Path(__file__).parents[1] / 'docs' / 'hub.md'
    code = re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)
    assert len(code) == 3
    done = python(tmp_path, '-c', '\n'.join([*code, 'print(model.num_classes)']))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '2'
    assert sorted(path.name for path in (tmp_path / 'cats').iterdir()) == FILES


def test_weights_in_a_config(saved):
    file = saved / 'model.safetensors'
    model = build(init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    model.init_weights()
    assert torch.equal(model.stem.conv1.weight, classifier().stem.conv1.weight)


# timm


def test_timm_local_folder(saved):
    timm = pytest.importorskip('timm')
    model = timm.create_model(f'local-dir:{saved}', pretrained=True)
    assert same_state(model, classifier())
    assert model.pretrained_cfg['label_names'] == ['cat', 'dog', 'owl']
    assert timm.data.resolve_model_data_config(model)['crop_mode'] == 'squash'


def test_timm_settings(tmp_path):
    """Channels, classes and every setting of the architecture."""
    timm = pytest.importorskip('timm')
    model = classifier(dict(base='dat-t', **V1), in_channels=1, num_classes=7)
    model.pretrained_cfg['input_size'] = (3, 224, 224)  # as of a published model with 3 channels
    model.save_pretrained(tmp_path / 'a')
    assert same_state(timm.create_model(f'local-dir:{tmp_path / "a"}', pretrained=True), model)


@pytest.mark.slow
def test_timm_id(cache, tmp_path):
    pytest.importorskip('timm')
    code = (
        f"import os; os.environ.update(HF_HUB_CACHE={str(cache)!r}, HF_HUB_OFFLINE='1')\n"
        "import dat_pp, timm; model = timm.create_model('hf-hub:owner/tiny', pretrained=True)\n"
        'print(type(model) is dat_pp.DATClassifier, model.num_classes)\n'
    )
    done = python(tmp_path, '-c', code)
    assert (done.returncode, done.stdout) == (0, 'True 3\n'), done.stderr


def test_model_of_timm_is_saved(tmp_path):
    """The published result is found although timm's config holds lists."""
    timm = pytest.importorskip('timm')
    model = timm.create_model('dat_t_pp', num_classes=3, arch=TINY)
    model.save_pretrained(tmp_path / 'a')
    assert same_state(DATClassifier.from_pretrained(tmp_path / 'a'), model)
    with torch.device('meta'):
        model = timm.create_model('dat_b_pp.in1k_384')
    model.pretrained_cfg['input_size'] = list(model.pretrained_cfg['input_size'])
    assert published_result(model) == ('dat-b++-384', 85.9)
