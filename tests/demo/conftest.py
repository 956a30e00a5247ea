"""A small digits dataset, written once."""

from pathlib import Path

import pytest

from demo.digits import data as digits


@pytest.fixture(scope='session')
def scenes() -> dict[str, int]:
    """How many scenes `data_root` has."""
    return dict(train=12, val=6)


@pytest.fixture(scope='session')
def data_root(scenes: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset; not to be changed."""
    path = tmp_path_factory.mktemp('data') / 'digits'
    assert digits.convert(path, scenes)
    return path
