"""The operators, and tests in which no backend is forced."""

import pytest
from operators import OPERATORS, Operator


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> Operator:
    return OPERATORS[request.param]


@pytest.fixture
def default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('DAT_PP_BACKEND', raising=False)
