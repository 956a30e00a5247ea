"""What every test starts from."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _no_default_scope() -> None:
    """mmengine keeps the library that a test chose for the life of the process."""
    DefaultScope._instance_dict.clear()
