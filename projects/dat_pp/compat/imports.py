"""Call a function once a module has been imported, without importing the module.

``dat_pp.compat.startup`` copies this file to where every Python process loads it at start-up, so
it imports nothing but ``sys``.
"""

import sys

TYPE_CHECKING = False  # as type checkers read it; `typing` itself takes milliseconds to load
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class ImportWatcher:
    """A finder that lets the other finders find a module and calls back after its execution.

    It watches for the life of the process, so a module that is reloaded is handled again.
    """

    def __init__(self) -> None:
        self.callbacks: dict[str, dict[str, Callable[[ModuleType], None]]] = {}

    def find_spec(
        self, name: str, path: 'Sequence[str] | None' = None, target: 'ModuleType | None' = None
    ) -> 'ModuleSpec | None':
        if name not in self.callbacks:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: 'ModuleType') -> None:
                execute(module)
                for callback in list(self.callbacks[name].values()):
                    callback(module)

            spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]  # of one spec
        return spec


def when_imported(name: str, callback: 'Callable[[ModuleType], None]') -> None:
    """Call ``callback(module)`` after every execution of the module ``name``.

    That includes the last one, if the module is already loaded. A callback of the same module and
    qualified name replaces the former one, so that the module that registers it can be reloaded.
    """
    # By name: there may be two copies of this class.
    watcher: Any = next((f for f in sys.meta_path if type(f).__name__ == 'ImportWatcher'), None)
    if watcher is None:
        watcher = ImportWatcher()
        sys.meta_path.insert(0, watcher)
    key = f'{callback.__module__}.{callback.__qualname__}'
    watcher.callbacks.setdefault(name, {})[key] = callback
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, '_initializing', False):
        callback(module)


def replacing(function: 'Any', original: 'Callable') -> 'Any':
    """Mark ``function`` as the replacement of ``original``, which can be found through it."""
    function._dat_pp_original = original
    return function


def import_when_needed(package: str) -> None:
    """Import ``package``, if it is installed, once mmengine may need its configs or models.

    That is when ``mmengine.runner`` is imported, as every tool does that builds a model, and before
    the first base ``library::...`` of a config is looked for.
    """

    def import_package(_: 'ModuleType') -> None:
        try:
            __import__(package)
        except Exception as error:  # the program that imports mmengine may not need it
            if getattr(error, 'name', None) != package:
                print(f'{package} cannot be imported: {error}', file=sys.stderr)

    def import_for_bases(module: 'ModuleType') -> None:
        get_cfg_path = getattr(module.Config, '_get_cfg_path', None)
        if get_cfg_path is None:  # a version of mmengine that is not known here
            return

        def import_first(cfg_path: str, *others: str) -> tuple[str, str | None]:
            if '::' in cfg_path:
                module.Config._get_cfg_path = staticmethod(get_cfg_path)
                import_package(module)  # which replaces the function in turn
                return module.Config._get_cfg_path(cfg_path, *others)
            return get_cfg_path(cfg_path, *others)

        module.Config._get_cfg_path = staticmethod(replacing(import_first, get_cfg_path))

    when_imported('mmengine.runner', import_package)
    # Watched from the start because it imports mmengine.runner: a callback that is registered in
    # the middle of a module's execution is called only if the module was watched before.
    when_imported('mmengine.infer.infer', import_package)
    when_imported('mmengine.config.config', import_for_bases)
