"""train.py and test.py on tiny data: what the flags do, and runs of several processes."""

import contextlib
import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_tasks import CLASSES, Task

TOOLS = Path(__file__).parents[2] / 'tools'
PREDICTION = {'classification': 'pred_score', 'detection': 'pred_instances'}
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason='checks runs without a GPU')


def weights(path: Path) -> dict:
    state = torch.load(path, map_location='cpu', weights_only=False)['state_dict']
    # FlexibleRunner saves the names of the wrapped model.
    return {name.removeprefix('module.'): value for name, value in state.items()}


def assert_same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(weights(one), weights(other), rtol=tolerance, atol=tolerance)


def logged_metrics(work_dir: Path) -> dict:
    """The last values that a run logged."""
    training, testing = (
        list(work_dir.glob(f'*/{name}.json')) for name in ('vis_data/scalars', '*')
    )
    (scalars,) = training or testing
    return json.loads(scalars.read_text().splitlines()[-1])


# The metrics as they follow from the dumped predictions and the data alone, by task.


def classification_metrics(task: Task, predictions: list[dict]) -> dict[str, float]:
    correct = [
        int(each['pred_score'].argmax()) == CLASSES.index(Path(each['img_path']).parent.name)
        for each in predictions
    ]
    return {'accuracy/top1': 100 * sum(correct) / len(correct)}


def detection_metrics(task: Task, predictions: list[dict]) -> dict[str, float]:
    truth, metrics = COCO(str(task.data / 'val.json')), {}
    for kind in ('bbox', 'segm'):
        found = []
        for each in predictions:
            instances = each['pred_instances']
            for box, mask, score, label in zip(
                *(instances[key] for key in ('bboxes', 'masks', 'scores', 'labels')), strict=True
            ):
                left, top, right, bottom = map(float, box)
                common = dict(image_id=each['img_id'], category_id=int(label) + 1)
                shape = dict(segmentation=mask)
                if kind == 'bbox':
                    shape = dict(bbox=[left, top, right - left, bottom - top])
                found.append({**common, **shape, 'score': float(score)})
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        metrics[f'coco/{kind}_mAP'] = evaluation.stats[0]
    return metrics


def segmentation_metrics(task: Task, predictions: list[dict]) -> dict[str, float]:
    found = np.stack([each['pred_sem_seg']['data'].squeeze(0) for each in predictions])
    names = [Path(each['img_path']).stem for each in predictions]
    labels = [task.data / 'labels' / 'val' / f'{name}.png' for name in names]
    truth = np.stack([np.asarray(Image.open(path)) for path in labels])
    pairs = [(found == label, truth == label) for label in range(len(CLASSES))]
    ious = [(one & other).sum() / (one | other).sum() for one, other in pairs]
    return {'mIoU': 100 * float(np.mean(ious)), 'aAcc': 100 * float((found == truth).mean())}


@pytest.mark.slow
def test_metrics_follow_from_the_predictions(trained, run, tmp_path):
    """Training and testing log the metrics of the dumped predictions; all images are drawn."""
    out, figures = tmp_path / 'out.pkl', tmp_path / 'figures'
    outcome = run(
        'test', trained.config, trained.checkpoint, '--work-dir', tmp_path / 'work',
        '--out', out, '--show-dir', figures,
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 3
    assert 'seg_logits' not in predictions[0]
    assert len(list(figures.rglob('*.png'))) == 3
    expected = globals()[f'{trained.name}_metrics'](trained, predictions)
    for work_dir in (trained.work_dir, tmp_path / 'work'):
        found = logged_metrics(work_dir)
        # Logged with two or three digits.
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=6e-3)


@pytest.mark.slow
def test_tta_flips(trained, run, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(trained.config.read_text())
    if trained.name == 'detection':
        refused = run('test', config, trained.checkpoint, '--work-dir', tmp_path / 'no', '--tta')
        refused.assert_rejected(tmp_path / 'no', '--tta', 'instance segmentation')
        with config.open('a') as file:
            file.write("model['roi_head']['mask_head'] = None\nval_evaluator['metric'] = 'bbox'\n")
        checkpoint = tmp_path / 'boxes.pth'
        state = weights(trained.checkpoint)
        torch.save({k: v for k, v in state.items() if 'mask_head' not in k}, checkpoint)
    else:
        checkpoint = trained.checkpoint
    first = []
    for flags in ([], ['--tta']):
        out = tmp_path / 'out.pkl'
        outcome = run(
            'test', config, checkpoint, '--work-dir', tmp_path / 'work', '--out', out, *flags
        )
        assert outcome.code == 0, outcome.errors
        predictions = pickle.loads(out.read_bytes())
        assert len(predictions) == 3
        first.append(predictions[0])
    assert ('flip' in first[1]) != ('flip' in first[0])


@pytest.mark.slow
def test_resume_continues_exactly(classification, run, tmp_path):
    task, two_epochs = classification, ['--cfg-options', 'train_cfg.max_epochs=2']
    run('train', task.config, '--work-dir', tmp_path / 'straight', *two_epochs)
    run('train', task.config, '--work-dir', task.work_dir)
    first = shutil.copy(task.checkpoint, tmp_path / 'first.pth')
    run('train', task.config, '--work-dir', task.work_dir, '--resume', *two_epochs)
    run('train', task.config, '--work-dir', tmp_path / 'named', '--resume', first, *two_epochs)
    for folder in (task.work_dir, tmp_path / 'named'):
        assert_same_weights(tmp_path / 'straight' / 'epoch_2.pth', folder / 'epoch_2.pth')
    assert not (tmp_path / 'named' / 'epoch_1.pth').exists()


@CPU_ONLY
@pytest.mark.slow
@pytest.mark.parametrize('runner', ['Runner', 'FlexibleRunner'])
def test_amp_is_bfloat16_on_a_cpu(runner, classification, run):
    task = classification
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--amp',
        '--cfg-options', f'runner_type={runner}',
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    runner, dtypes = outcome.runner, []
    runner.model.backbone.stem.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    batch = next(iter(runner.train_dataloader))
    runner.model.train_step(batch, runner.optim_wrapper)
    assert dtypes == [torch.bfloat16]


FLOAT32_PARTS = (
    'model.roi_head.bbox_roi_extractor.type=Float32RoIExtractor',
    'model.roi_head.mask_roi_extractor.type=Float32RoIExtractor',
    'model.rpn_head.type=Float32Head',
    'model.rpn_head.base=RPNHead',
)


@CPU_ONLY
@pytest.mark.slow
@pytest.mark.parametrize('parts', [(), FLOAT32_PARTS])
def test_amp_of_a_two_stage_detector_on_a_cpu(parts, detection, run):
    """bfloat16 if RoIs stay in float32, else float32 throughout: RoIAlign and NMS need that."""
    task = detection
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--amp', '--cfg-options',
        'train_dataloader.batch_size=2', *parts,
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    wrapper = type(outcome.runner.optim_wrapper).__name__
    assert wrapper == ('CPUAmpOptimWrapper' if parts else 'OptimWrapper')


@pytest.mark.slow
@pytest.mark.parametrize('runner', ['Runner', 'FlexibleRunner'])
def test_compile(runner, classification, run):
    """``compile`` of the config reaches torch.compile; eager compiles nothing, so is quick."""
    task = classification
    outcome = run(
        'train', task.config, '--work-dir', task.work_dir, '--no-validate', '--cfg-options',
        f'runner_type={runner}', 'compile.backend=eager',
        "model.backbone.arch.mixers=['N','D','D','D']",
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    assert 'torch._dynamo' in type(outcome.runner.model.train_step).__module__ or hasattr(
        outcome.runner.model.train_step, '_torchdynamo_orig_callable'
    )
    assert weights(task.checkpoint)


def test_auto_scale_lr(classification, run):
    task = classification
    outcome = run('train', task.config, '--work-dir', task.work_dir, '--auto-scale-lr')
    # Batches of 4 where the config says 8.
    assert outcome.runner.optim_wrapper.get_lr()['lr'] == [0.05 * 4 / 8]
    shutil.rmtree(task.work_dir)
    task.add_config('auto_scale_lr = None\n')
    refused = run('train', task.config, '--work-dir', task.work_dir, '--auto-scale-lr')
    refused.assert_rejected(task.work_dir, '--auto-scale-lr', 'base_batch_size')


def test_no_validate_and_default_work_dir(classification, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run('train', classification.config, '--no-validate')
    assert outcome.code == 0, outcome.errors
    assert logged_metrics(Path('work_dirs/classification')).keys() >= {'loss', 'lr'}
    assert outcome.runner.val_loop is None


# Several processes


def free_port() -> str:
    """A port that no process uses, below those that the system hands out to connections."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(('127.0.0.1', port))
            return str(port)
    raise OSError('no free port')


def launch(script: str, folder: Path, *argv: object) -> None:
    port = free_port()
    env = {**os.environ, 'PYTHON': sys.executable, 'PORT': port, 'OMP_NUM_THREADS': '1'}
    env['PYTHONPATH'] = str(Path(__file__).parent)  # for record_losses
    command = [TOOLS / script, *map(str, argv)]
    done = subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr


@CPU_ONLY
@pytest.mark.slow
@pytest.mark.parametrize('runner', ['Runner', 'FlexibleRunner'])
def test_two_processes_equal_one(runner, classification, run, tmp_path, monkeypatch):
    task = classification
    task.add_config(
        "custom_imports['imports'] += ['record_losses']\n"
        "custom_hooks = [dict(type='RecordLosses')]\n"
        'train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=3)\n'
        f'runner_type = {runner!r}\n'
    )
    monkeypatch.syspath_prepend(Path(__file__).parent)
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert run('train', task.config, '--work-dir', one).code == 0
    launch(
        'dist_train.sh', tmp_path, task.config, 2,
        '--work-dir', two, '--cfg-options', 'train_dataloader.batch_size=2',
    )  # fmt: skip
    losses = [json.loads((folder / 'losses.json').read_text()) for folder in (one, two)]
    assert len(losses[0]) == 6
    assert losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert_same_weights(one / 'epoch_3.pth', two / 'epoch_3.pth', tolerance=1e-5)
    if runner == 'FlexibleRunner':
        return

    checkpoint = one / 'epoch_3.pth'
    outs = [tmp_path / '1.pkl', tmp_path / '2.pkl']
    run('test', task.config, checkpoint, '--work-dir', one, '--out', outs[0])
    launch(
        'dist_test.sh', tmp_path, task.config, checkpoint, 2, '--work-dir', two, '--out', outs[1]
    )
    results = [pickle.loads(out.read_bytes()) for out in outs]
    assert [each['img_path'] for each in results[0]] == [each['img_path'] for each in results[1]]
    for each, other in zip(*results, strict=True):
        torch.testing.assert_close(each['pred_score'], other['pred_score'])
