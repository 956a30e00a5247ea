"""RoI extractors, losses and box decoding in float32 inside mixed precision, as published.

OpenMMLab's 2.x libraries ran these parts outside of autocast, in float32 (``force_fp32``); their
successors run them in half precision. Both wrappers below are registered in mmengine's root
registry, work in any config of mmdet or mmseg, and change nothing in float32 training and tests::

    custom_imports = dict(imports=['dat_pp'])
    model = dict(
        rpn_head=dict(type='Float32Head', base='RPNHead', ...),
        roi_head=dict(bbox_roi_extractor=dict(type='Float32RoIExtractor', ...)))
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

# What 2.x ran in float32, by the names of 3.x: losses, and decoding predictions to boxes (in
# training, RPN's proposals and the boxes between the stages of a cascade).
HEAD_METHODS = ('loss_by_feat', 'loss_and_target', 'predict_by_feat', 'refine_bboxes')


@MODELS.register_module(name='Float32RoIExtractor')
def float32_roi_extractor(base: str = 'SingleRoIExtractor', **settings: Any) -> nn.Module:
    """Build an RoI extractor of mmdet that converts features and RoIs to float32.

    mmdet 3 casts RoIs to the dtype of the features. In half precision this rounds coordinates to
    half a pixel or worse, and width x height overflows from 256 x 256 on, so that in training such
    RoIs are taken from the last level.

    Args:
        base: Type of the extractor.
        settings: Its other settings.

    Returns:
        A subclass's instance, whose results have the dtype of the features.

    Raises:
        KeyError: ``base`` is not registered.
    """
    return _subclass(_find(base), ('forward',), True)(**settings)


@MODELS.register_module(name='Float32Head')
def float32_head(base: str, **settings: Any) -> nn.Module:
    """Build a head of mmdet or mmseg that computes losses and decodes boxes in float32.

    Args:
        base: Type of the head.
        settings: Its other settings.

    Returns:
        A subclass's instance.

    Raises:
        KeyError: ``base`` is not registered.
        TypeError: It has none of ``HEAD_METHODS``.
    """
    cls = _find(base)
    methods = tuple(name for name in HEAD_METHODS if hasattr(cls, name))
    if not methods:
        raise TypeError(f"Float32Head: '{base}' has none of the methods {', '.join(HEAD_METHODS)}")
    return _subclass(cls, methods, False)(**settings)


def _find(name: str) -> type:
    """Look a module's class up in the registry of the current scope."""
    with MODELS.switch_scope_and_registry(None) as registry:
        cls = registry.get(name)
    if cls is None:
        raise KeyError(f"base: no module '{name}' is registered in scope '{registry.scope}'")
    return cls


@functools.cache
def _subclass(base: type, methods: tuple[str, ...], restore_dtype: bool) -> type[nn.Module]:
    overrides: dict[str, Any] = {
        name: _in_float32(getattr(base, name), restore_dtype) for name in methods
    }

    def reduce(self: nn.Module) -> tuple:
        # pickle finds no class of this name in the file.
        return _new, (base, methods, restore_dtype), self.__dict__

    overrides |= {'__module__': __name__, '__reduce__': reduce}
    return type(f'Float32{base.__name__}', (base,), overrides)


def _new(*arguments: Any) -> nn.Module:
    """An instance without attributes, for pickle to fill."""
    cls = _subclass(*arguments)
    return cls.__new__(cls)


def _in_float32(method: Callable, restore_dtype: bool) -> Callable:
    """Wrap a method to run outside of autocast, on float32 tensors.

    Args:
        method: Takes tensors, or lists, tuples and dicts of them, among its arguments.
        restore_dtype: Cast the result to the dtype of the first floating point tensor passed.
    """

    @functools.wraps(method)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        first = next((t for t in _tensors((args, kwargs)) if t.is_floating_point()), None)
        if first is None or (
            first.dtype == torch.float32 and not torch.is_autocast_enabled(first.device.type)
        ):
            return method(self, *args, **kwargs)
        args, kwargs = _to_float32((args, kwargs))
        with torch.autocast(first.device.type, enabled=False):
            result = method(self, *args, **kwargs)
        return result.to(first.dtype) if restore_dtype else result

    return wrapper


# Containers of these very types only: a subclass may not be rebuilt from its items.
def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif type(value) in (list, tuple, dict):
        for item in value.values() if type(value) is dict else value:
            yield from _tensors(item)


def _to_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if type(value) is dict:
        return {key: _to_float32(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to_float32(item) for item in value)
    return value
