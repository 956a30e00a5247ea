"""tools/predict.py, as users start it and with what they get wrong."""

import io
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from fresh import python
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from PIL import Image
from pycocotools import mask as coco_mask
from tools.tiny_tasks import CLASSES, TASKS, images_of

from dat_pp.apis import predict
from dat_pp.apis import run as tool
from dat_pp.engine.config import read_config
from dat_pp.engine.errors import run_main

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {'classification': 'val/*/*.png', 'detection': 'val/*.png', 'segmentation': 'images/val/*'}


@pytest.fixture
def call(
    tmp_path: Path, tasks: Callable, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable:
    """Run the tool in an empty folder; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *argv: object, weights: object = None) -> tuple[int, str, str]:
        task = tasks(name)
        model = '--model', task.config, '--weights', weights or task.checkpoint
        capfd.readouterr()
        code = run_main(tool.main, [str(a) for a in (*argv, *model, '--out-dir', 'out')])
        return code, *capfd.readouterr()

    return call


def written(folder: Path) -> list[str]:
    out = folder / 'out'
    return sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file())


@pytest.mark.parametrize('name', TASKS)
def test_json_is_what_the_model_predicts(name, call, tasks, predictors, tmp_path):
    """As in the tests of the model: its dataset, pipeline and ``test_step``."""
    task = tasks(name)
    code, out, errors = call(
        name,
        *sorted(task.data.glob(IMAGES[name])),
        *('--batch-size', '2'),
        *(('--score-thr', '0') if name == 'detection' else ()),
    )
    assert (code, errors) == (0, '')
    assert out.splitlines()[-1] == 'out: predictions for 3 images'
    files = [f'preds/{i}.json' for i in range(3)] + [f'vis/{i}.png' for i in range(3)]
    if name == 'segmentation':
        files += [f'preds/{i}.png' for i in range(3)]
    assert written(tmp_path) == sorted(files)
    args = Namespace(config=str(task.config), cfg_options=None)
    dataset = DATASETS.build(read_config(args).test_dataloader.dataset)
    model = predictors(name).model
    for data in dataset:
        with torch.no_grad():
            (expected,) = model.test_step(pseudo_collate([data]))
        path = Path(expected.img_path)
        found = json.loads((tmp_path / 'out' / 'preds' / f'{path.stem}.json').read_text())
        assert (Path(found['image']).name, found['size']) == (path.name, [32, 32])
        CHECKS[name](found, expected, tmp_path / 'out' / 'preds')
        drawn = np.asarray(Image.open(tmp_path / 'out' / 'vis' / f'{path.stem}.png'))
        assert drawn.shape == (320, 320, 3)  # enlarged for drawing
        original = np.asarray(Image.open(path).resize((320, 320), Image.Resampling.BICUBIC))
        assert 2 < np.abs(drawn.astype(int) - original).mean() < 110


def check_classification(found: dict, expected: SimpleNamespace, folder: Path) -> None:
    np.testing.assert_allclose(found['pred_scores'], expected.pred_score, atol=1e-5)
    label = expected.pred_label.item()
    assert (found['pred_label'], found['pred_class']) == (label, CLASSES[label])
    assert found['pred_score'] == max(found['pred_scores'])
    assert [each['class'] for each in found['top5']] == [CLASSES[label], CLASSES[1 - label]]


def check_detection(found: dict, expected: SimpleNamespace, folder: Path) -> None:
    instances = expected.pred_instances
    assert len(instances) > 3
    assert found['labels'] == instances.labels.tolist()
    assert found['classes'] == [CLASSES[label] for label in found['labels']]
    np.testing.assert_allclose(found['scores'], instances.scores, atol=1e-5)
    np.testing.assert_allclose(found['bboxes'], instances.bboxes, atol=1e-3)
    masks = np.stack([coco_mask.decode(mask) for mask in found['masks']])
    assert (masks.astype(bool) != instances.masks.numpy()).mean() < 1e-3


def check_segmentation(found: dict, expected: SimpleNamespace, folder: Path) -> None:
    label_map = np.asarray(Image.open(folder / found['label_map']))
    assert label_map.dtype == np.uint8
    assert (label_map != expected.pred_sem_seg.data[0].numpy()).mean() < 1e-2
    assert found['pixels'] == [(label_map == label).sum() for label in found['labels']]
    assert found['classes'] == [CLASSES[label] for label in found['labels']]


CHECKS = dict(
    classification=check_classification,
    detection=check_detection,
    segmentation=check_segmentation,
)


def test_unreadable_files_are_named_and_others_go_on(pictures, call, tmp_path):
    """A text, an empty file, a truncated PNG, a damaged video."""
    (good, _) = pictures(tmp_path, 2)
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty.jpg').touch()
    content = io.BytesIO()
    Image.fromarray(images_of(0, 1)[0]).resize((200, 200)).save(content, 'PNG')
    (tmp_path / 'half.png').write_bytes(content.getvalue()[: len(content.getvalue()) // 2])
    (tmp_path / 'clip.mp4').write_text('no video')
    files = 'text.png', 'empty.jpg', 'half.png', 'clip.mp4'
    code, out, errors = call('classification', *files[:2], good, *files[2:], 'b.png')
    assert code == 1
    assert [line.split(': ')[2] for line in errors.splitlines() if line.startswith('error')] == [
        f'cannot read {name}' for name in files
    ]
    assert 'error: image: cannot read half.png: image file is truncated' in errors
    assert 'error: image: cannot read empty.jpg: empty file\n' in errors
    assert 'imdecode' not in errors
    assert 'incomplete' not in errors  # logged by OpenCV
    assert out.splitlines()[-2:] == [
        'out: predictions for 2 images',
        'not read: text.png, empty.jpg, half.png, clip.mp4',
    ]
    assert written(tmp_path) == ['preds/a.json', 'preds/b.json', 'vis/a.png', 'vis/b.png']


def test_nothing_read(call, tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    code, out, _ = call('classification', 'text.png')
    assert (code, out.splitlines()) == (1, ['out: nothing written', 'not read: text.png'])
    assert not (tmp_path / 'out').exists()


def test_folders_patterns_and_equal_names(pictures, call, tmp_path):
    for folder in ('one', 'two'):
        pictures(tmp_path / folder)
    (tmp_path / 'one' / 'notes.txt').touch()
    code, _, errors = call('classification', 'one', 't*/*a.*', 'two/b.png')
    assert (code, errors) == (0, '')
    found = {
        path.stem: json.loads(path.read_text())['image']
        for path in (tmp_path / 'out' / 'preds').iterdir()
    }
    assert found == {
        'a': 'one/a.png',
        'b': 'one/b.png',
        'a-2': 'two/a.png',
        'b-2': 'two/b.png',
    }


def make_video(path: Path, count: int = 3) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 12, (64, 48))
    for index in range(count):
        frame = np.full((48, 64, 3), 40 * index, np.uint8)
        frame[..., 2] = 200  # red
        writer.write(frame)
    writer.release()


@pytest.mark.parametrize('name', ['classification', 'segmentation'])
def test_video(name, call, tmp_path):
    make_video(tmp_path / 'clip.mp4')
    code, out, errors = call(name, 'clip.mp4', '--batch-size', '2')
    assert (code, errors) == (0, '')
    assert out.splitlines()[-1] == 'out: predictions for 3 images'
    suffixes = ('.json', '.png') if name == 'segmentation' else ('.json',)
    preds = [f'preds/clip/{i:06}{suffix}' for i in range(3) for suffix in suffixes]
    assert written(tmp_path) == [*preds, 'vis/clip.mp4']
    last = json.loads((tmp_path / 'out' / 'preds' / 'clip' / '000002.json').read_text())
    assert (last['image'], last['frame'], last['size']) == ('clip.mp4', 2, [48, 64])
    drawn = cv2.VideoCapture(str(tmp_path / 'out' / 'vis' / 'clip.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 12
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    _, frame = drawn.read()
    assert frame.shape == (48 * 7, 64 * 7, 3)
    if name == 'classification':  # BGR: red as before
        assert frame[-40:, -40:, 2].mean() > frame[-40:, -40:, 0].mean() + 100
    code, _, errors = call(name, 'clip.mp4')
    assert (code, errors) == (2, 'error: --out-dir: out/vis/clip.mp4 exists; '
                                 '--overwrite replaces it\n')  # fmt: skip


def test_progress_bar(pictures, call, tmp_path, monkeypatch):
    pictures(tmp_path, 3)
    monkeypatch.setenv('FORCE_COLOR', '1')
    code, _, errors = call('classification', 'a.png', 'b.png', 'c.png')
    assert code == 0
    assert 'Predicting' in errors
    assert '3/3' in errors


MISTAKES = {
    'no image': ('none.png', 'image: no such file or folder: none.png'),
    'no image in a folder': ('empty', 'image: no images in the folder empty (.bmp, .gif'),
    'no match': ('*.jpeg', 'image: no images or videos match *.jpeg'),
    'missing model': (
        'a.png --model dat-q++',
        "--model: dat_pp has no config 'dat-q++'",
    ),
    'missing config': ('a.png --model ./none.py', 'config: no such file: ./none.py'),
    'missing weights': ('a.png --weights none.pth', '--weights: no such file: none.pth'),
    'no weights': ('a.png --weights a.png', '--weights: cannot read a.png: it is damaged'),
    'weights of another model': (
        'a.png --weights other.pth',
        '--weights: other.pth does not fit CONFIG: missing backbone.stem.conv1.weight',
    ),
    'missing library': (
        'a.png --model missing.py',
        "config missing.py: needs 'mmseg', which is not installed: pip install",
    ),
    'no library': (
        'a.png --model other.py',
        "config other.py: default_scope is None, expected mmpretrain, mmdet, mmseg",
    ),
    'no pipeline': (
        'a.png --model bare.py',
        'config bare.py: needs a model and a pipeline in test_dataloader.dataset',
    ),
    'folder is a file': ('a.png --out-dir a.png', '--out-dir: cannot write a.png/vis/file: '),
    'device': ('a.png --device cuda:77', '--device cuda:77: '),
    'unknown device': ('a.png --device cpo', '--device cpo: '),
    'batch size': ('a.png --batch-size 0', '--batch-size: expected at least 1, got 0'),
    'score': ('a.png --score-thr 30', '--score-thr: expected 0 to 1, got 30'),
    'score of a classifier': (
        'a.png --score-thr 0.5',
        '--score-thr: only for detectors; classification is none',
    ),
}  # fmt: skip


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistake_is_one_line(pictures, mistake, tasks, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, expected = MISTAKES[mistake]
    argv = text.split()
    task = tasks('classification')
    pictures(tmp_path)
    (tmp_path / 'empty').mkdir()
    torch.save(dict(a=torch.zeros(1)), tmp_path / 'other.pth')
    (tmp_path / 'missing.py').write_text("default_scope = 'mmseg'\n")
    (tmp_path / 'other.py').write_text('model = dict()\n')
    (tmp_path / 'bare.py').write_text("default_scope = 'mmpretrain'\n")
    if mistake == 'missing library':
        monkeypatch.setattr('importlib.util.find_spec', lambda _: None)
    defaults = {'--model': task.config, '--weights': task.checkpoint, '--out-dir': 'out'}
    for flag, value in defaults.items():
        if flag not in argv:
            argv += [flag, str(value)]
    before = sorted(tmp_path.rglob('*'))
    code = run_main(tool.main, argv)
    out, errors = capfd.readouterr()
    assert (code, out, len(errors.splitlines())) == (2, '', 1), errors
    assert errors.startswith(f'error: {expected.replace("CONFIG", str(task.config))}'), errors
    assert sorted(tmp_path.rglob('*')) == before


def test_existing_files_are_kept(pictures, call, tmp_path):
    pictures(tmp_path)
    (tmp_path / 'out' / 'preds').mkdir(parents=True)
    (tmp_path / 'out' / 'preds' / 'b.json').write_text('mine')
    code, out, errors = call('classification', 'a.png', 'b.png')
    assert (code, out) == (2, '')
    assert errors == 'error: --out-dir: out/preds/b.json exists; --overwrite replaces it\n'
    assert written(tmp_path) == ['preds/b.json']
    assert call('classification', 'a.png', 'b.png', '--overwrite')[0] == 0
    assert json.loads((tmp_path / 'out' / 'preds' / 'b.json').read_text())['image'] == 'b.png'


def test_explain(pictures, call, tmp_path):
    pictures(tmp_path)
    code, _, errors = call(
        'detection', 'a.png', 'b.png', '--explain', '--score-thr', '0', '--batch-size', '2'
    )
    assert (code, errors) == (0, '')
    files = 'points.png', 'queries.png', 'heat.png', 'trace.npz'
    explained = [path for path in written(tmp_path) if path.startswith('explain')]
    assert explained == sorted(f'explain/{name}/{file}' for name in 'ab' for file in files)
    found = json.loads((tmp_path / 'out' / 'preds' / 'b.json').read_text())
    x0, y0, x1, y1 = found['bboxes'][np.argmax(found['scores'])]
    with np.load(tmp_path / 'out' / 'explain' / 'b' / 'trace.npz') as arrays:
        center = [min((y0 + y1) / 2, 31), min((x0 + x1) / 2, 31)]
        np.testing.assert_allclose(arrays['queries'][0], center, atol=1e-3)


def test_centers_at_the_border_are_explained(pictures, predictors, tmp_path, monkeypatch):
    """A box may reach to the end of the last pixel, whose center is half a pixel before it."""
    monkeypatch.setattr(predictors('detection'), 'centers', lambda _: [(32.0, 31.5)])
    (path,) = pictures(tmp_path, 1)
    predict(path, predictors('detection'), out_dir=tmp_path / 'out', explain=True)
    with np.load(tmp_path / 'out' / 'explain' / 'a' / 'trace.npz') as arrays:
        assert arrays['queries'].tolist() == [[31, 31]]


@pytest.mark.slow
def test_script_in_a_fresh_process(pictures, tasks, tmp_path):
    """The whole command, from a folder that has nothing of this repository."""
    pictures(tmp_path)
    (tmp_path / 'text.png').write_text('no image')
    task = tasks('segmentation')
    argv = ['--model', task.config, '--weights', task.checkpoint, '--out-dir', 'out']
    done = python(tmp_path, ROOT / 'tools' / 'predict.py', 'a.png', 'text.png', 'b.png', *argv)
    assert done.returncode == 1
    assert done.stdout == 'out: predictions for 2 images\nnot read: text.png\n'
    assert done.stderr == (
        'error: image: cannot read text.png: not an image, or in a format that OpenCV cannot '
        'decode\n'
    )
    names = [f'preds/{name}.{suffix}' for name in 'ab' for suffix in ('json', 'png')]
    assert written(tmp_path) == [*names, 'vis/a.png', 'vis/b.png']
