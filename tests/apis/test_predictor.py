"""dat_pp.apis in programs: predictions, weights and class names."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tools.published_models import backbone
from tools.tiny_tasks import images_of

from dat_pp.apis import load_predictor, predict
from dat_pp.apis.inputs import read_image
from dat_pp.engine.errors import UserError


def test_predict_without_a_folder(pictures, predictors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = pictures(tmp_path, 2)
    results = predict(paths, predictors('segmentation'))
    assert [found['image'] for found in results.predictions] == list(map(str, paths))
    assert results.predictions[0]['label_map'].shape == (32, 32)
    assert not results.failed
    assert sorted(tmp_path.iterdir()) == paths
    with pytest.raises(UserError, match='--weights: needs a checkpoint file'):
        predict('a.png', 'dat-t++')
    with pytest.raises(UserError, match='--explain: needs an output folder'):
        predict('a.png', 'dat-t++', 'weights.pth', explain=True)


def test_predictions_do_not_depend_on_the_batch(predictors):
    """Images of several sizes in one call."""
    predictor = predictors('segmentation')
    images = [image[: 32 - 4 * (i % 2)] for i, image in enumerate(images_of(5, 4))]
    together = predictor(images)
    assert [indices for indices, _ in predictor.batches(images)] == [[0, 2], [1, 3]]
    for image, found in zip(images, together, strict=True):
        (alone,) = predictor([image])
        assert found.label_map.shape == image.shape[:2]
        assert (found.label_map != alone.label_map).mean() < 1e-2


def test_score_threshold(pictures, predictors, tmp_path):
    (path,) = pictures(tmp_path, 1)
    everything = predict(path, predictors('detection'), score_thr=0).predictions[0]
    middle = float(np.median(everything['scores']))
    some = predict(path, predictors('detection'), score_thr=middle).predictions[0]
    assert some['scores'] == [score for score in everything['scores'] if score >= middle]
    assert 0 < len(some['masks']) == len(some['scores']) < len(everything['scores'])
    none = predict(path, predictors('detection'), score_thr=1).predictions[0]
    assert none['bboxes'] == none['masks'] == none['classes'] == []
    image = read_image(path)
    (found,) = predictors('detection')([image])
    drawn = predictors('detection').draw(image, found)
    plain = np.asarray(Image.fromarray(image).resize((320, 320), Image.Resampling.BICUBIC))
    assert np.abs(drawn.astype(int) - plain).mean() < 3  # nothing is drawn


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_does_not_run(tasks, tmp_path):
    content = torch.load(tasks('classification').checkpoint, weights_only=True)
    content['meta']['harm'] = Malicious(tmp_path / 'harm')
    torch.save(content, tmp_path / 'weights.pth')
    with pytest.raises(UserError, match=r'unsafe: it names \w+\.mkdir'):
        load_predictor(tasks('classification').config, tmp_path / 'weights.pth', 'cpu')
    assert not (tmp_path / 'harm').exists()
    torch.load(tmp_path / 'weights.pth', weights_only=False)
    assert (tmp_path / 'harm').exists()


@pytest.mark.parametrize(
    ('meta', 'expected'),
    [
        (dict(dataset_meta=dict(classes=('x', 'y'))), ['x', 'y']),
        (dict(CLASSES=('x', 'y')), ['x', 'y']),  # MMLab's earlier releases
        ({}, ['a', 'b']),  # of the config's dataset
        (dict(CLASSES=('x', 'y', 'z')), ['a', 'b']),  # of another model
    ],
)
def test_class_names(meta, expected, tasks, tmp_path):
    content = torch.load(tasks('segmentation').checkpoint, weights_only=True)
    torch.save(content | dict(meta=meta), tmp_path / 'weights.pth')
    predictor = load_predictor(tasks('segmentation').config, tmp_path / 'weights.pth', 'cpu')
    assert predictor.classes == expected
    assert len(predictor.palette) == 2


@pytest.mark.slow
def test_published_file_and_name(pictures, tmp_path):
    """Weights under published names, ImageNet's class names, and the name of the paper."""
    generator = torch.Generator().manual_seed(0)
    shapes = backbone('imagenet_pp_tiny')
    weights = {k: 0.02 * torch.randn(s, generator=generator) for k, s in shapes.items()}
    torch.save(dict(model=weights), tmp_path / 'published.pth')
    (path,) = pictures(tmp_path, 1)
    (found,) = predict(path, 'DAT-T++', tmp_path / 'published.pth', device='cpu').predictions
    assert len(found['pred_scores']) == 1000
    assert len(found['pred_class']) > 2  # words, not the number of the class
    assert not found['pred_class'].isdigit()


def test_reading_is_that_of_the_pipelines(tmp_path):
    """RGB instead of BGR, and turned upright."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / 'a.jpg', exif=exif)
    found = read_image(tmp_path / 'a.jpg')
    assert found.shape == (30, 20, 3)
    np.testing.assert_array_equal(found[..., ::-1], cv2.imread(str(tmp_path / 'a.jpg')))


def test_labels_are_drawn_where_mmseg_draws_them(predictors):
    visualizer = predictors('segmentation').inferencer.visualizer
    for seed in range(5):
        mask = (np.random.default_rng(seed).random((7, 9)) < 0.4).astype(np.uint8)
        expected = type(visualizer)._get_center_loc(visualizer, mask)
        np.testing.assert_array_equal(visualizer._get_center_loc(mask), expected)
