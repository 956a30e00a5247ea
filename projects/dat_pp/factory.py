"""Create plain PyTorch models by name."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .models import DAT, DATClassifier
from .models.arch import Arch
from .models.classifier import default_cfg
from .weights import load_pretrained

CODE = 'https://github.com/LeapLabTHU/DAT'


class Published(NamedTuple):
    """A published ImageNet-1K classifier: a row of :data:`PUBLISHED`."""

    arch: str | dict[str, Any]
    top1: float
    """Top-1 accuracy in percent, as the paper gives it."""
    input_size: int = 224
    crop_pct: float = 0.875

    def default_cfg(self) -> dict[str, Any]:
        """Preprocessing and origin of the published weights under timm's names."""
        base = self.arch if isinstance(self.arch, str) else self.arch['base']
        return default_cfg(
            input_size=(3, self.input_size, self.input_size),
            crop_pct=self.crop_pct,
            license='apache-2.0',
            origin_url=CODE,
            paper_ids='arXiv:2309.01430' if base.endswith('++') else 'arXiv:2201.00520',
            top1=self.top1,
        )


PUBLISHED = {
    'dat-t': Published('dat-t', 82.0),
    'dat-s': Published('dat-s', 83.7),
    'dat-b': Published('dat-b', 84.0),
    # Resized to 438 x 438.
    'dat-b-384': Published(
        dict(base='dat-b', window_size=12, native_resolution=384), 84.8, 384, 0.8767
    ),
    'dat-t++': Published('dat-t++', 83.9),
    'dat-s++': Published('dat-s++', 84.6),
    'dat-b++': Published('dat-b++', 84.9),
    'dat-b++-384': Published('dat-b++', 85.9, 384, 1.0),
}
"""The published classifiers by name; :func:`find` takes other spellings of the names too."""

SIZES = {'tiny': 't', 'small': 's', 'base': 'b'}
# What configs and timm add to a name: 32xb128, in1k, 224px.
SUFFIX = re.compile(r'\d+xb\d+|in1k|224|224px')
HUB_ID = re.compile(r'\w[\w.-]*/[\w.-]+(?<!\.pth)(?<!\.pt)(?<!\.safetensors)')


def find(name: str) -> str:
    """Key of :data:`PUBLISHED` for a name in any spelling.

    Case, the order of the parts and what separates them do not matter, ``pp`` stands for ``++``
    and ``tiny`` for ``t``: ``dat_t_pp``, ``DAT-T++`` and ``dat-pp-tiny_32xb128_in1k`` are
    ``dat-t++``.

    Raises:
        ValueError: There is no such model; the message suggests similar names.
    """
    models = {_parts(key): key for key in PUBLISHED}
    parts = _parts(name)
    if parts in models:
        return models[parts]
    near = difflib.get_close_matches(name.lower().replace('_', '-'), PUBLISHED, cutoff=0.5)
    raise ValueError(
        f'unknown model {name!r}; '
        + (
            f'did you mean {" or ".join(near)}?'
            if near
            else f'choose one of {", ".join(PUBLISHED)}'
        )
    )


def _parts(name: str) -> frozenset[str]:
    words = re.split(r'[-_. ]+', name.lower().replace('++', '-pp-').replace('384px', '384'))
    return frozenset(SIZES.get(word, word) for word in words if word and not SUFFIX.fullmatch(word))


def create_model(
    name: str | Mapping[str, Any] | Arch,
    pretrained: str | os.PathLike[str] | bool | None = None,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    **kwargs: Any,
) -> DAT:
    """Create a classifier or a feature pyramid, without weights or with those of a file.

    Args:
        name: A published model in any spelling, see :func:`dat_pp.factory.find`, or a dict of the
            settings of :class:`dat_pp.models.arch.Arch`.
        pretrained: A checkpoint file: published, converted, of OpenMMLab's libraries or
            ``.safetensors``; a folder that ``save_pretrained`` wrote; or the id of a repository on
            the Hugging Face Hub (``owner/name``). Nothing is downloaded for True: published weights
            must be downloaded by hand.
        num_classes: Classes of the classifier; 0 returns pooled features.
        features_only: Whether to create the backbone, :class:`dat_pp.DAT`, which returns a tuple
            of feature maps (B, C_i, H / stride, W / stride) and has ``feature_info``.
        out_indices: Its stages whose feature maps are returned.
        kwargs: Other arguments of :class:`dat_pp.DATClassifier` or :class:`dat_pp.DAT`;
            timm's ``in_chans`` and ``proj_drop_rate`` stand for ``in_channels`` and ``drop_rate``.

    Returns:
        A :class:`dat_pp.DATClassifier`, (B, 3, H, W) -> (B, num_classes), or a
        :class:`dat_pp.DAT`, in training mode.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ImportError: A package that the file needs is not installed; the message names the extra.
        ValueError: Unknown name, argument out of range, or weights of another variant or another
            number of classes.
    """
    for alias, argument in {'in_chans': 'in_channels', 'proj_drop_rate': 'drop_rate'}.items():
        if alias in kwargs:
            kwargs[argument] = kwargs.pop(alias)
    published = None
    arch: Any = name
    if isinstance(name, str):
        published = PUBLISHED[find(name)]
        arch = published.arch
    model: DAT
    if features_only:
        model = DAT(arch, out_indices=out_indices, **kwargs)
    else:
        model = DATClassifier(arch, num_classes=num_classes, **kwargs)
        if published:
            model.default_cfg = model.pretrained_cfg = published.default_cfg()
    if pretrained is not None and pretrained is not False:
        _load(model, pretrained)
    return model


def _load(model: DAT, pretrained: Any) -> None:
    if pretrained is True:
        raise ValueError(
            f'pretrained=True downloads nothing: save the weights that are linked in {CODE} '
            '(and in docs/model_zoo) with a browser and give their path, pretrained=PATH'
        )
    path = os.fspath(pretrained)
    if os.path.isdir(path) or (HUB_ID.fullmatch(path) and not os.path.exists(path)):
        from .hub import fetch

        saved = fetch(path)
        load_pretrained(model, str(saved.weights))
        if isinstance(model, DATClassifier):
            model.pretrained_cfg = saved.pretrained_cfg
    else:
        load_pretrained(model, path)
