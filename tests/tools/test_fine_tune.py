"""tools/fine_tune.py on three classes of scikit-learn's digits, in every layout that it takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import python
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from sklearn.datasets import load_digits

from dat_pp import catalog
from dat_pp.engine.class_counts import stated_classes
from dat_pp.engine.fine_tune.data import Data, Subset
from dat_pp.engine.fine_tune.project import ARCHS, TASKS, base_config, config_text, plan
from dat_pp.engine.fine_tune.split import split
from dat_pp.models.arch import ARCH_SETTINGS
from dat_pp.weights import read_checkpoint

ROOT = Path(__file__).parents[2]
NAMES = ['0', '1', '2']
PER_CLASS = 10
TASK_DATA = {
    'classification': ['folders'],
    'detection': ['scenes.json', 'scenes'],
    'instance-segmentation': ['scenes.json'],
    'segmentation': ['scenes', 'labels', '--classes', 'background', *NAMES],
}


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope='session')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three digits as class folders, as COCO annotations and with label maps."""
    root = tmp_path_factory.mktemp('three digits')
    source = load_digits()
    images: list[dict] = []
    annotations: list[dict] = []
    for label, name in enumerate(NAMES):
        for number, index in enumerate(np.flatnonzero(source.target == label)[:PER_CLASS]):
            ink = np.kron(source.images[index] / 16, np.ones((6, 6)))
            save(
                (np.dstack([ink] * 3) * 255).astype(np.uint8), root / f'folders/{name}/{number}.png'
            )
            image = len(images) + 1
            left, top = 7 * number % 48, 5 * image % 48
            scene = np.zeros((96, 96))
            scene[top : top + 48, left : left + 48] = ink
            file = f'{name}_{number}'
            save((np.dstack([scene] * 3) * 255).astype(np.uint8), root / f'scenes/{file}.png')
            save(((scene > 0.5) * (label + 1)).astype(np.uint8), root / f'labels/{file}_map.png')
            images.append(dict(id=image, file_name=f'{file}.png', width=96, height=96))
            right, bottom = left + 48, top + 48
            annotations.append(
                dict(
                    id=image,
                    image_id=image,
                    category_id=label + 1,
                    bbox=[left, top, 48, 48],
                    area=48 * 48,
                    iscrowd=0,
                    segmentation=[[left, top, right, top, right, bottom, left, bottom]],
                )
            )
    categories = [dict(id=0, name='all'), *(dict(id=int(n) + 1, name=n) for n in NAMES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'scenes.json').write_text(json.dumps(content))
    return root


@pytest.fixture(scope='session')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the demo's classifier, with ten classes."""
    cfg = Config.fromfile(catalog.config('digits/classification'))
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    path = tmp_path_factory.mktemp('weights') / 'digits.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture
def fine_tune(
    run: Callable, digits: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable:
    """Run the tool in a folder beside the project, with the small model and its weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').symlink_to(digits)

    def call(task: str, *argv: object) -> object:
        given = [str(each) for each in argv]
        defaults = {'--weights': str(weights), '--arch': 'digits', '--out': 'project'}
        options = [x for k, v in defaults.items() if k not in given for x in (k, v)]
        return run('fine_tune.run', task, *given, *options)

    return call


def data_of(task: str) -> list[str]:
    (*places, _), options = TASK_DATA[task], []
    if '--classes' in places:
        at = places.index('--classes')
        places, options = places[:at], TASK_DATA[task][at:]
    else:
        places = TASK_DATA[task]
    return [*(f'data/{place}' for place in places), *options]


@pytest.mark.parametrize('task', TASKS)
def test_project(task, fine_tune, tmp_path, weights):
    outcome = fine_tune(task, *data_of(task))
    assert outcome.code == 0, outcome.errors
    project = tmp_path / 'project'
    text = (project / 'config.py').read_text()
    assert len(text.splitlines()) <= 30
    # Read from another place: a project may be moved.
    moved = tmp_path / 'moved'
    project.rename(moved)
    cfg = Config.fromfile(moved / 'config.py')
    count = 3 + (task == 'segmentation')
    assert {n for _, n in stated_classes(cfg.model, 'model')} == {count}
    assert Path(cfg.load_from) == moved / 'weights.pth'
    listed = [Path(cfg[f'{name}_dataloader'].dataset.ann_file) for name in ('train', 'val')]
    assert all(path.parent == moved for path in listed)
    output = '\n'.join(outcome.output)
    assert '6 of 30 (20% of each class) are set aside' in output
    assert 'head.fc' in output  # ten classes: dropped, and named
    start = read_checkpoint(str(moved / 'weights.pth')).weights
    source = read_checkpoint(str(weights)).weights
    assert not any(name.startswith('head.fc') for name in start)
    backbone = {name for name in source if name.startswith('backbone.stages')}
    assert backbone <= start.keys()
    assert all(torch.equal(start[name], source[name]) for name in backbone)
    readme = (moved / 'README.md').read_text()
    for tool in ('train.py', 'test.py', 'predict.py', 'misc/check_dataset.py'):
        assert str(ROOT / 'tools' / tool) in readme


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_run(task, digits, weights, tmp_path):
    """In a fresh process: trains, tests and draws; then the project is a config like any other."""
    (tmp_path / 'data').symlink_to(digits)
    tool, project = ROOT / 'tools' / 'fine_tune.py', tmp_path / 'project'
    options = ['--weights', weights, '--arch', 'digits', '--out', 'project', '--epochs', '1']
    done = python(tmp_path, tool, task, *data_of(task), *options, '--run')
    assert done.returncode == 0, done.stderr
    assert f'{TASKS[task].metric}: ' in done.stdout + done.stderr
    assert (project / 'work_dir' / 'epoch_1.pth').is_file()
    assert list((project / 'vis').rglob('*.png'))
    checkpoint = project / 'work_dir' / 'epoch_1.pth'
    again = python(tmp_path, ROOT / 'tools/test.py', project / 'config.py', checkpoint)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('arch', ARCHS)
def test_config_of_every_model(task, arch, tmp_path):
    coco = dict(data_root='a', ann_file='b', data_prefix=dict(img=''))
    data = Data(['x', 'y'], Subset(5, coco), Subset(2, coco))
    base = base_config(task, arch)
    text = config_text(task, arch, base, data, plan(task, base, 5, None, None))
    assert len(text.splitlines()) <= 30
    (tmp_path / 'config.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert {count for _, count in stated_classes(cfg.model, 'model')} == {2}
    if arch != 'digits':
        dims = ARCH_SETTINGS[arch]['embed_dims']
        assert cfg.model.backbone.arch == arch
        neck = cfg.model.get('neck') or cfg.model.get('decode_head')
        found = cfg.model.head if task == 'classification' else neck
        expected = {'classification': dims[-1], 'detection': dims[1:]}.get(task, dims)
        assert found.in_channels == expected


def test_schedule_fits_the_data_and_the_batch():
    base = base_config('classification', 'dat-t++')
    small, large = (plan('classification', base, n, None, None) for n in (640, 1_000_000))
    assert small.epochs == 100
    assert large.epochs == 10
    half = plan('classification', base, 640, 32, 7)
    assert half.epochs == 7
    assert half.lr * 2 == pytest.approx(small.lr, rel=1e-2)
    assert small.lr == pytest.approx(4e-3 * 64 / 4096, rel=1e-2)
    assert plan('classification', base, 5, None, None).batch == 5


def test_split_is_stratified_and_repeatable():
    labels = [[i % 3] for i in range(30)] + [[3], [], [], [0, 4], [4]]
    train, val = split(labels)
    assert (train, val) == split(labels)
    assert sorted(train + val) == list(range(len(labels)))
    for label in (0, 1, 2):
        assert sum(label in labels[i] for i in val) in (2, 3)
    assert 30 in train  # the only image of its class
    assert sum(4 in labels[i] for i in val) == 1
    assert sum(not labels[i] for i in val) == 1


def test_train_and_val_folders(fine_tune, digits, tmp_path):
    for name in ('train', 'valid'):
        shutil.copytree(digits / 'folders', tmp_path / 'both' / name)
    outcome = fine_tune('classification', 'both')
    assert outcome.code == 0, outcome.errors
    assert '30 training and 30 validation images' in outcome.output
    assert not (tmp_path / 'project' / 'train.txt').exists()
    shutil.rmtree(tmp_path / 'both' / 'valid' / '1')
    other = fine_tune('classification', 'both', '--out', 'other')
    other.assert_rejected(tmp_path / 'other', 'class folders of', 'differ: 1')


def test_coco_folder_with_two_files(fine_tune, digits, tmp_path):
    root = tmp_path / 'coco'
    for name in ('train2017', 'val2017'):
        shutil.copytree(digits / 'scenes', root / name)
        (root / 'annotations').mkdir(exist_ok=True)
        shutil.copy(digits / 'scenes.json', root / 'annotations' / f'instances_{name}.json')
    outcome = fine_tune('detection', 'coco')
    assert outcome.code == 0, outcome.errors
    assert 'categories without annotations, left out: all' in outcome.output
    cfg = Config.fromfile(tmp_path / 'project' / 'config.py')
    assert cfg.train_dataloader.dataset.data_root == str(root / 'train2017')
    assert cfg.val_dataloader.dataset.data_root == str(root / 'val2017')
    # mmdet numbers the classes in the order of each file.
    path = root / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    content['categories'].reverse()
    path.write_text(json.dumps(content))
    other = fine_tune('detection', 'coco', '--out', 'other')
    other.assert_rejected(tmp_path / 'other', 'in another order')


def test_label_maps_in_one_folder(fine_tune, digits, tmp_path):
    for kind, source in (('images', 'scenes'), ('annotations', 'labels')):
        for name in ('training', 'validation'):
            shutil.copytree(digits / source, tmp_path / 'ade' / kind / name)
    (tmp_path / 'ade' / 'classes.txt').write_text('background\n0\n1\n2\n')
    outcome = fine_tune('segmentation', 'ade')
    assert outcome.code == 0, outcome.errors
    assert '30 training and 30 validation images' in outcome.output


def test_head_of_the_same_classes_is_kept(fine_tune, digits, tmp_path, weights):
    shutil.copytree(digits / 'folders', tmp_path / 'ten')
    for label in range(3, 10):
        shutil.copytree(tmp_path / 'ten' / '0', tmp_path / 'ten' / str(label))
    assert fine_tune('classification', 'ten').code == 0
    start = read_checkpoint(str(tmp_path / 'project' / 'weights.pth')).weights
    assert torch.equal(
        start['head.fc.weight'], read_checkpoint(str(weights)).weights['head.fc.weight']
    )


def broken_coco(change: Callable[[dict], None]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        content = json.loads((folder / 'data' / 'scenes.json').read_text())
        change(content)
        (folder / 'broken.json').write_text(json.dumps(content))
        return ['broken.json', 'data/scenes']

    return make


def wrong_value(folder: Path) -> list[str]:
    shutil.copytree(folder / 'data' / 'labels', folder / 'labels')
    save(np.full((96, 96), 9, np.uint8), folder / 'labels' / '0_0_map.png')
    return ['data/scenes', 'labels', '--classes', 'background', *NAMES]


def binary_masks(folder: Path) -> list[str]:
    for path in (folder / 'data' / 'labels').iterdir():
        pixels = np.asarray(Image.open(path))
        save((255 * (pixels > 0)).astype(np.uint8), folder / 'labels' / path.name)
    return ['data/scenes', 'labels', '--classes', 'background', 'digit']


def empty_folders(folder: Path) -> list[str]:
    for name in NAMES:
        (folder / 'empty' / name).mkdir(parents=True)
    return ['empty']


def broken_image(folder: Path) -> list[str]:
    shutil.copytree(folder / 'data' / 'folders', folder / 'folders')
    (folder / 'folders' / '1' / '3.png').write_text('no image')
    return ['folders']


def without_masks(content: dict) -> None:
    content['annotations'][0]['segmentation'] = []


def outside(content: dict) -> None:
    content['annotations'][3]['bbox'] = [90, 90, 48, 48]


def given(*places: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(places)


MISTAKES = {
    'no such data': ('classification', given('none'), 'data: no such file or folder: none'),
    'no class folders': ('classification', given('data/scenes'), 'no class folders in'),
    'no images': ('classification', empty_folders, 'no images in the class folder'),
    'broken image': ('classification', broken_image, '3.png'),
    'no annotations': ('detection', given('data/folders'), 'no annotation file (*.json) in'),
    'no categories': (
        'detection',
        broken_coco(lambda content: content.update(categories=[])),
        "the list 'categories' is empty",
    ),
    'no boxes': (
        'detection',
        broken_coco(lambda content: content.update(annotations=[])),
        "the list 'annotations' is empty",
    ),
    'no COCO': ('detection', broken_coco(dict.clear), "has no list 'images'"),
    'box outside': ('detection', broken_coco(outside), 'boxes outside the image'),
    'no masks': ('instance-segmentation', broken_coco(without_masks), 'boxes without masks'),
    'unnamed values': ('segmentation', given('data/scenes', 'data/labels'), 'values 0, 1, 2, 3'),
    'value beyond': ('segmentation', wrong_value, 'holds 9, beyond the 4 classes 0 to 3'),
    'binary masks': ('segmentation', binary_masks, 'hold one class only, background'),
    'no label maps': (
        'segmentation',
        given('data/scenes', 'data/folders', '--classes', 'a', 'b'),
        'no label map of',
    ),
    'batch of one': (
        'segmentation',
        given('data/scenes', 'data/labels', '--batch-size', '1'),
        'at least 2 images',
    ),
    'no epochs': ('classification', given('data/folders', '--epochs', '0'), '--epochs: expected'),
    'no weights': (
        'classification',
        given('data/folders', '--weights', 'none.pth'),
        '--weights: no such file: none.pth',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes(mistake, fine_tune, tmp_path):
    task, make, message = MISTAKES[mistake]
    fine_tune(task, *make(tmp_path)).assert_rejected(tmp_path / 'project', message)


def test_weights_of_another_model(fine_tune, tmp_path, weights):
    outcome = fine_tune('classification', 'data/folders', '--arch', 'dat-t++')
    outcome.assert_rejected(tmp_path / 'project', '--weights: ', 'does not fit a DAT with')


def test_project_exists(fine_tune, tmp_path):
    (tmp_path / 'project').mkdir()
    outcome = fine_tune('classification', 'data/folders')
    assert outcome.code == 2
    assert 'exists; give another name' in outcome.errors[0]
    assert not list((tmp_path / 'project').iterdir())


def test_library_missing(fine_tune, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    outcome = fine_tune('detection', 'data/scenes.json')
    outcome.assert_rejected(tmp_path / 'project', "detection needs 'mmdet'", 'pip install')
