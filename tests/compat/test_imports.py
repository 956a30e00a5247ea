"""Callbacks on imports, on modules written for the test."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dat_pp.compat.imports import import_when_needed, when_imported


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that can be imported, with ``value = 1``."""
    name = f'watched_{tmp_path.name.replace("-", "_")}'
    (tmp_path / f'{name}.py').write_text('value = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_callback_before_and_after_import(name: str) -> None:
    """It sees the executed module; whoever asks later is called at once; nothing is imported."""
    seen = []

    def early(module: object) -> None:
        seen.append(('early', module.value))
        module.value = 2

    def late(module: object) -> None:
        seen.append(('late', module.value))

    when_imported(name, early)
    assert name not in sys.modules
    assert seen == []
    module = importlib.import_module(name)
    assert seen == [('early', 1)]
    when_imported(name, late)
    assert seen == [('early', 1), ('late', 2)]
    importlib.reload(module)
    assert seen[2:] == [('early', 1), ('late', 2)]
    assert module.value == 2


def test_callback_registered_during_the_import(name: str, tmp_path: Path) -> None:
    """It is called at the end, if the module was watched before."""
    (tmp_path / f'{name}.py').write_text(
        'from dat_pp.compat.imports import when_imported\n'
        'when_imported(__name__, lambda module: setattr(module, "value", module.value + 1))\n'
        'value = 1\n'
    )
    when_imported(name, lambda _: None)
    assert importlib.import_module(name).value == 2


def test_hook_leaves_an_unknown_mmengine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No base can be intercepted where mmengine has no such function; importing it still works."""
    callbacks = {}
    monkeypatch.setattr('dat_pp.compat.imports.when_imported', callbacks.__setitem__)
    import_when_needed('dat_pp')
    module = SimpleNamespace(Config=type('Config', (), {}))
    callbacks['mmengine.config.config'](module)
    assert '_get_cfg_path' not in vars(module.Config)


def test_same_callback_replaces_the_former(name: str) -> None:
    seen = []

    def register(number: int) -> None:
        def callback(_: object) -> None:
            seen.append(number)

        when_imported(name, callback)

    register(1)
    register(2)
    importlib.import_module(name)
    assert seen == [2]
