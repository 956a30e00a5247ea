"""Write a folder in the hub format."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..factory import PUBLISHED
from ..models.arch import resolve_arch
from ..models.classifier import default_cfg
from .card import model_card
from .fetch import CARD, CONFIG, FILES, INSTALL, WEIGHTS, sha256
from .module import HubModule

# Of pretrained_cfg; its other entries are about the weights that it came with.
PREPROCESSING = default_cfg().keys()


def save(
    model: HubModule,
    folder: str | os.PathLike[str],
    label_names: Sequence[str] | None,
    metrics: Mapping[str, Any] | None,
    license: str | None,
    source: str | None,
    overwrite: bool,
) -> None:
    """See :meth:`dat_pp.hub.HubModule.save_pretrained`."""
    try:
        import numpy  # noqa: F401  safetensors uses it and installs without it
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ImportError(f'saving a model needs safetensors and numpy: {INSTALL}') from error
    config = _config(model, label_names, license)
    target = Path(folder).expanduser().absolute()
    if os.path.lexists(target) and not target.is_dir():
        raise FileExistsError(f'{folder} is a file: nothing written, choose another folder')
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise FileExistsError(
            f'{folder} exists: nothing written, choose another folder or pass overwrite=True'
        )
    partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
    partial.mkdir(parents=True)
    try:
        weights = {name: v.detach().cpu().contiguous() for name, v in model.state_dict().items()}
        save_file(weights, partial / WEIGHTS, metadata=dict(format='pt'))
        config['dat_pp']['sha256'] = sha256(partial / WEIGHTS)
        (partial / CONFIG).write_text(_json(config), encoding='utf-8')
        # safetensors lets nobody but the owner read its file.
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)
        card = model_card(
            config,
            sum(parameter.numel() for parameter in model.parameters()),
            published=published_result(model),
            metrics=metrics or {},
            license=license,
            source=source,
        )
        (partial / CARD).write_text(card, encoding='utf-8')
        if not target.exists():
            partial.rename(target)
            return
        # Interrupted, this leaves a folder that does not load: no config.json.
        (target / CONFIG).unlink(missing_ok=True)
        for name in FILES:
            (partial / name).replace(target / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _json(config: dict[str, Any]) -> str:
    """JSON with a list on one line."""
    text = json.dumps(config, indent=2, ensure_ascii=False)
    lists = re.compile(r'\[\n\s*([^\[\]{}]*?)\s*\]')
    return lists.sub(lambda found: '[' + re.sub(r'\n\s*', ' ', found[1]) + ']', text) + '\n'


def _config(model: Any, label_names: Sequence[str] | None, license: str | None) -> dict[str, Any]:
    """Content of config.json: what timm reads, and under ``dat_pp`` what :func:`fetch` returns."""
    cfg = getattr(model, 'pretrained_cfg', {})
    num_classes = getattr(model, 'num_classes', 0)
    if label_names is None:
        known = cfg.get('label_names') or ()
        label_names = known if len(known) == num_classes else ()
    elif len(label_names) != num_classes:
        raise ValueError(f'{len(label_names)} label_names for {num_classes} classes')
    pretrained_cfg = {key: cfg[key] for key in cfg if key in PREPROCESSING}
    pretrained_cfg['num_classes'] = num_classes
    if size := _input_size(model):
        pretrained_cfg['input_size'] = size
    if license:
        pretrained_cfg['license'] = license
    arch = dataclasses.asdict(model.arch)
    variant, settings = _closest_variant(arch)
    model_args: dict[str, Any] = {} if arch == settings else dict(arch=arch)
    dtypes = (v.dtype for v in model.state_dict().values() if v.is_floating_point())
    return dict(
        architecture=variant,
        num_classes=num_classes,
        num_features=arch['embed_dims'][-1],
        **(dict(label_names=list(label_names)) if label_names else {}),
        **(dict(model_args=model_args) if model_args else {}),
        pretrained_cfg=pretrained_cfg,
        dat_pp=dict(
            version=__version__,
            model=type(model).__name__,
            arch=arch,
            arguments={name: getattr(model, key) for name, key in model.hub_arguments.items()},
            dtype=str(next(dtypes)).removeprefix('torch.'),
        ),
    )


def _closest_variant(arch: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name in timm of the published model that shares most settings, and its settings."""
    models = {name: dataclasses.asdict(resolve_arch(row.arch)) for name, row in PUBLISHED.items()}
    name = max(models, key=lambda name: sum(arch[key] == models[name][key] for key in arch))
    return name.replace('++', '_pp').replace('-', '_'), models[name]


def published_result(model: Any) -> tuple[str, float] | None:
    """Name and top-1 accuracy of the published classifier with this architecture and input."""
    size = _input_size(model)
    for name, row in PUBLISHED.items():
        if size == (3, row.input_size, row.input_size) and model.arch == resolve_arch(row.arch):
            return name, row.top1
    return None


def _input_size(model: Any) -> tuple[int, ...]:
    """Channels, height and width of the input; empty if the model has no preprocessing."""
    size = getattr(model, 'pretrained_cfg', {}).get('input_size', ())
    return (model.in_chans, *size[1:]) if size else ()
