"""Call a function once a module has been imported, without importing the module.

``dat_pp.compat.startup`` copies this file to where every Python process may load it at start-up,
so it imports nothing but ``sys``.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as type checkers read it; `typing` itself takes milliseconds to load
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class ImportWatcher:
    """A finder that lets the other finders find a module and calls back after its execution.

    It watches for the life of the process, so a module that is reloaded is handled again.
    """

    def __init__(self) -> None:
        self.callbacks: dict[str, dict[str, Callable[[ModuleType], None]]] = {}

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name not in self.callbacks:
            return None
        finders = [finder for finder in sys.meta_path if not isinstance(finder, type(self))]
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                for callback in list(self.callbacks[name].values()):
                    callback(module)

            spec.loader.exec_module = execute_and_call
        return spec


def when_imported(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call ``callback(module)`` now if the module ``name`` is loaded, and after every execution.

    A callback of the same module and name replaces the former one, so that the module that
    registers it can be reloaded.
    """
    watcher = next((f for f in sys.meta_path if type(f).__qualname__ == 'ImportWatcher'), None)
    if watcher is None:
        watcher = ImportWatcher()
        sys.meta_path.insert(0, watcher)
    key = f'{callback.__module__}.{callback.__qualname__}'
    watcher.callbacks.setdefault(name, {})[key] = callback
    module = sys.modules.get(name)
    spec = getattr(module, '__spec__', None)
    if module is not None and not getattr(spec, '_initializing', False):
        callback(module)
