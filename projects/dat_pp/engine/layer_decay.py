"""Layer-wise learning rate decay for detectors and segmentors."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

LayerDepth = Callable[[str], tuple[int, int]]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Scale the learning rate of each backbone layer by its distance from the output.

    A parameter of layer ``i`` of ``n`` gets ``lr * layer_decay_rate ** (n - 1 - i)``; everything
    outside the backbone keeps its learning rate. mmdet's and mmseg's own constructors know a few
    backbones by class name. This one asks the backbone for ``get_layer_depth(name, prefix)``, which
    ``DAT`` and several of mmpretrain's backbones have. It works in all three libraries, wherever in
    the model the backbone is (``student.backbone`` of a semi-supervised detector, for example).

    Args:
        optim_wrapper_cfg: As in mmengine's ``DefaultOptimWrapperConstructor``.
        paramwise_cfg: ``layer_decay_rate`` in (0, 1], and the options of mmengine's constructor
            (``custom_keys``, ``norm_decay_mult``, ...), which are applied first: an ``lr_mult`` and
            the layer's scale multiply.

    Raises:
        ValueError: ``layer_decay_rate`` or the optimizer's ``lr`` is missing or out of range, or no
            module of the model has ``get_layer_depth``.

    Example::

        optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            constructor='BackboneLayerDecayConstructor',
            paramwise_cfg=dict(
                layer_decay_rate=0.9,
                custom_keys={'rpe_table': dict(decay_mult=0.0)},
            ),
        )
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg needs layer_decay_rate in (0, 1], got {rate!r}')
        if self.base_lr is None:
            raise ValueError('layer-wise decay needs the lr of the optimizer')

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """Append one group per parameter, as mmengine does, with the scaled learning rate."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:  # a recursive call: the groups are scaled once, when all of them exist
            return
        rate = self.paramwise_cfg['layer_decay_rate']
        names = {parameter: name for name, parameter in module.named_parameters()}
        depths = _layer_depths(module)
        scales: Counter[float] = Counter()
        for group in params:
            (parameter,) = group['params']
            name = names[parameter]
            scale = 1.0
            for backbone, layer_depth in depths.items():
                if name.startswith(backbone):
                    layer, num_layers = layer_depth(name)
                    scale = rate ** (num_layers - 1 - layer)
            group.setdefault('lr', self.base_lr)
            group['lr'] *= scale
            group['param_name'] = name
            scales[scale] += 1
        for scale, count in sorted(scales.items()):
            print_log(f'layer decay -- lr x {scale:.4g}: {count} parameters', logger='current')


def _layer_depths(model: nn.Module) -> dict[str, LayerDepth]:
    """Map the prefix of each backbone's parameters (``'backbone.'``) to its layer depth."""
    depths: dict[str, LayerDepth] = {}
    for name, module in model.named_modules():
        # mmpretrain's classifiers have the method as well, but only pass it on to their backbone.
        if hasattr(module, 'get_layer_depth') and not hasattr(module, 'backbone'):
            prefix = f'{name}.' if name else ''
            depths[prefix] = partial(module.get_layer_depth, prefix=prefix)
    if not depths:
        raise ValueError(
            f'layer-wise learning rate decay needs a backbone with get_layer_depth; '
            f'{type(model).__name__} has none'
        )
    return depths
