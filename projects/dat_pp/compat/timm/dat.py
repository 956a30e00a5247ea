"""The published classifiers in timm's registry; importing this module registers them."""

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
    resolve_pretrained_cfg,
)
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ...factory import CODE, PUBLISHED, Published
from ...models import DATClassifier
from ...models.layers import PatchConv
from ...models.mixers import MIXERS
from ...weights import fit, read_checkpoint, split_weights, with_our_names

NAMES = {
    'dat_t.in1k': 'dat-t',
    'dat_s.in1k': 'dat-s',
    'dat_b.in1k': 'dat-b',
    'dat_b_384.in1k': 'dat-b-384',
    'dat_t_pp.in1k': 'dat-t++',
    'dat_s_pp.in1k': 'dat-s++',
    'dat_b_pp.in1k': 'dat-b++',
    'dat_b_pp.in1k_384': 'dat-b++-384',
}
"""Name in timm, with the tag of the weights, and name in :data:`dat_pp.factory.PUBLISHED`.

As in timm, a tag changes the preprocessing and a name the architecture: at 384 x 384, DAT-B has
larger windows and position bias tables, DAT-B++ does not.
"""


def _pretrained_cfg(published: Published) -> dict[str, Any]:
    cfg = published.default_cfg()
    description = f'ImageNet-1K top-1 accuracy {cfg["top1"]} %, as published'
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    return {key: cfg[key] for key in cfg if key in known} | dict(description=description)


default_cfgs = generate_default_cfgs(
    {name: _pretrained_cfg(PUBLISHED[key]) for name, key in NAMES.items()}
)

# Their Python code depends on the size of the feature map, so torch.fx must not trace it.
register_notrace_module(PatchConv)
for _mixer in MIXERS.values():
    register_notrace_module(_mixer.module)


class FeaturePyramid(FeatureGetterNet):
    """Feature maps of the stages, without norms: what ``features_only=True`` creates."""

    model: DATClassifier

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See :meth:`dat_pp.DAT.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor], model: DATClassifier, source: str = 'the checkpoint'
) -> dict[str, Tensor]:
    """Weights for ``model``, which timm then adapts to other input channels and classes.

    Args:
        state_dict: Weights of a classifier, detector, segmentor or backbone, under our names or the
            published ones.
        model: The model to load them into.
        source: What an error message calls them.

    Raises:
        ValueError: They are weights of another variant.
    """
    backbone, head, _ = split_weights(with_our_names(state_dict))
    name = f'{model.default_cfg["first_conv"]}.weight'
    conv, own = backbone.get(name), model.get_parameter(name)
    adapted = conv is not None and conv.shape[:1] + conv.shape[2:] == own.shape[:1] + own.shape[2:]
    fitted, _ = fit(model, backbone | {name: own} if adapted else backbone, source)
    return {key: backbone[key] if key == name else value for key, value in fitted.items()} | head


def _build(
    arch: Any,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    proj_drop_rate: float = 0.0,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> DATClassifier:
    """A classifier with timm's arguments: ``drop_rate`` is that of the head."""
    with nullcontext() if device is None else torch.device(device):
        model = DATClassifier(
            arch,
            in_channels=in_chans,
            head_drop_rate=drop_rate,
            drop_rate=proj_drop_rate,
            **kwargs,
        )
    return model.to(dtype=dtype)


def _create(
    variant: str,
    pretrained: bool,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    arch: Any = None,
    **kwargs: Any,
) -> nn.Module:
    overlay = dict(pretrained_cfg_overlay or {})
    source = 'the checkpoint'
    if pretrained:
        cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
        if not (cfg.has_weights or cfg.state_dict):
            raise ValueError(
                f'pretrained=True downloads nothing: save the weights of {variant} that are linked '
                f'in {CODE} (and in docs/model_zoo) with a browser and give their path, '
                'pretrained_cfg_overlay=dict(file=PATH)'
            )
        if cfg.file and cfg.source != 'local-dir' and not cfg.state_dict:
            source = f'checkpoint {cfg.file}'
            overlay |= _read(cfg.file)
    key = default_cfgs[variant].tags[0]
    model = build_model_with_cfg(
        _build,
        variant,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=partial(checkpoint_filter_fn, source=source),
        pretrained_strict=False,  # the filter has compared the names
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls=FeaturePyramid),
        arch=arch or PUBLISHED[NAMES[f'{variant}.{key}']].arch,
        **kwargs,
    )
    for part in (model, *model.children()):
        getattr(part, 'pretrained_cfg', {}).pop('state_dict', None)  # a copy of the weights
    return model


def _read(path: str) -> dict[str, Any]:
    """Weights of a file and the number of classes that they are for, as entries of a cfg.

    timm's own reader refuses published files, which hold more than tensors, and a file that is
    used with the number of classes of another loses its head without a word.
    """
    weights = with_our_names(read_checkpoint(path).weights)
    _, head, _ = split_weights(weights)
    return dict(state_dict=weights, num_classes=len(next(iter(head.values()), ())))


@register_model
def dat_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DAT-T (arXiv 2201.00520)."""
    return _create('dat_t', pretrained, **kwargs)


@register_model
def dat_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DAT-S (arXiv 2201.00520)."""
    return _create('dat_s', pretrained, **kwargs)


@register_model
def dat_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DAT-B (arXiv 2201.00520)."""
    return _create('dat_b', pretrained, **kwargs)


@register_model
def dat_b_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DAT-B with the windows and position bias tables for 384 x 384 (arXiv 2201.00520)."""
    return _create('dat_b_384', pretrained, **kwargs)


@register_model
def dat_t_pp(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DAT-T++ (arXiv 2309.01430)."""
    return _create('dat_t_pp', pretrained, **kwargs)


@register_model
def dat_s_pp(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DAT-S++ (arXiv 2309.01430)."""
    return _create('dat_s_pp', pretrained, **kwargs)


@register_model
def dat_b_pp(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DAT-B++ (arXiv 2309.01430)."""
    return _create('dat_b_pp', pretrained, **kwargs)
