"""Tiny models with seeded weights, and images for them."""

from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tools.tiny_tasks import CLASSES, Task, images_of, make_task, save

from dat_pp.apis import Predictor, load_predictor
from dat_pp.engine.config import read_config
from dat_pp.engine.noise import silence
from dat_pp.engine.preflight import check_model


@pytest.fixture(scope='session')
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Task]:
    """A task by name, with seeded weights in its folder."""

    @cache
    def make(name: str) -> Task:
        task = make_task(name, tmp_path_factory.mktemp(name))
        torch.manual_seed(0)
        with silence():
            model = check_model(config_of(task), pretrained=False)
        meta = dict(dataset_meta=dict(classes=CLASSES))
        task.work_dir.mkdir()
        torch.save(dict(state_dict=model.state_dict(), meta=meta), task.checkpoint)
        return task

    return make


def config_of(task: Task) -> Config:
    return read_config(Namespace(config=str(task.config), cfg_options=None))


@pytest.fixture(scope='session')
def predictors(tasks: Callable) -> Callable[[str], Predictor]:
    return cache(lambda name: load_predictor(tasks(name).config, tasks(name).checkpoint, 'cpu'))


@pytest.fixture
def pictures() -> Callable:
    """Write ``a.png``, ``b.png``, ... to a folder."""

    def write(folder: Path, count: int = 2) -> list[Path]:
        paths = [folder / f'{"abc"[i]}.png' for i in range(count)]
        for path, image in zip(paths, images_of(3, count)):
            save(image, path)
        return paths

    return write
