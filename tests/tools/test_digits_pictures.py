"""The contact sheets: truth beside prediction, whatever MMLab's visualizers keep."""

import json
import pickle

import cv2
import numpy as np
import torch

from demo.digits import data as digits
from demo.digits import pictures as digits_pictures


def test_a_perfect_segmentation_looks_like_the_truth(tmp_path):
    digits.convert(tmp_path / 'data', train_scenes=1, val_scenes=2)
    predictions = []
    for path in sorted((tmp_path / 'data' / 'ade20k' / 'annotations' / 'validation').glob('*')):
        labels = torch.from_numpy(cv2.imread(str(path), -1).astype(np.int64))[None]
        predictions.append(dict(img_path=f'{path.stem}.jpg', pred_sem_seg=dict(data=labels)))
    (tmp_path / 'predictions.pkl').write_bytes(pickle.dumps(predictions))
    sheet = tmp_path / 'sheet.png'
    digits_pictures.draw_segmentations(tmp_path / 'data', tmp_path / 'predictions.pkl', sheet)
    row = cv2.imread(str(sheet))[24:]
    step = 2 * digits.SCENE_SIZE + digits_pictures.GAP
    image, prediction, truth = (row[:192, i * step : i * step + 192] for i in range(3))
    assert np.array_equal(prediction, truth)
    assert not np.array_equal(prediction, image)


def test_detections_are_drawn(tmp_path):
    digits.convert(tmp_path / 'data', train_scenes=1, val_scenes=2)
    coco = json.loads((tmp_path / 'data/coco/annotations/instances_val.json').read_text())
    none = dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0), scores=torch.zeros(0), masks=[])
    predictions = [
        dict(img_id=image['id'], img_path=image['file_name'], pred_instances=none)
        for image in coco['images']
    ]
    (tmp_path / 'predictions.pkl').write_bytes(pickle.dumps(predictions))
    sheet = tmp_path / 'sheet.png'
    digits_pictures.draw_detections(tmp_path / 'data', tmp_path / 'predictions.pkl', sheet)
    step = 2 * digits.SCENE_SIZE + digits_pictures.GAP
    row = cv2.imread(str(sheet))[24:]
    truth, prediction = row[:192, :192], row[:192, step : step + 192]
    assert not np.array_equal(truth, prediction)  # boxes are drawn on the one only
