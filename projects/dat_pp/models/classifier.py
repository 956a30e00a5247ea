"""The classifier of the published models, with the methods that timm's users expect."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .arch import Arch
from .dat import DAT
from .features import take_indices

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ClassifierHead(nn.Module):
    """Global average pooling, dropout and a linear layer ``fc``: (B, C, H, W) -> (B, num_classes).

    Without pooling, the linear layer is applied at each position: (B, num_classes, H, W).

    Args:
        in_features: Channels C of the feature map.
        num_classes: 0 leaves the linear layer out.
        global_pool: ``'avg'``, or ``''`` for none.
        drop_rate: Dropout before the linear layer.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f'num_classes must be an integer of 0 or more, got {num_classes!r}')
        if global_pool not in ('avg', ''):
            raise ValueError(f"global_pool must be 'avg' or '' (none), got {global_pool!r}")
        if not 0 <= drop_rate < 1:
            raise ValueError(f'head_drop_rate must be in [0, 1), got {drop_rate!r}')
        self.global_pool = global_pool
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(in_features, num_classes, device=device, dtype=dtype)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(x.mean((2, 3)) if self.global_pool else x)
        if pre_logits:
            return x
        return self.fc(x) if self.global_pool else self.fc(x.movedim(1, -1)).movedim(-1, 1)


class DATClassifier(DAT):
    """DAT and DAT++ with the published classification head: norm, average pooling, linear layer.

    Takes images (B, in_channels, H, W) of any size and returns logits (B, num_classes). Parameters
    have the names of :class:`DAT`, beside ``head.fc.weight`` and ``head.fc.bias``.

    Args:
        arch: See :class:`DAT`.
        num_classes: Number of classes; 0 returns pooled features (B, num_features) instead.
        global_pool: ``'avg'``, or ``''`` for logits (or features) at each position of the feature
            map, (B, num_classes, H / 32, W / 32).
        head_drop_rate: Dropout before the linear layer.
        kwargs: ``in_channels``, ``drop_rate``, ``attn_drop_rate``, ``drop_path_rate``,
            ``frozen_stages``, ``with_cp`` and ``init_cfg`` of :class:`DAT`.

    Attributes:
        num_features: Channels of the last feature map.
        head_hidden_size: Channels of the pooled features; the same here.
        feature_info: Channels and reduction of the stages, a list of dicts.
        default_cfg: Input size, preprocessing and names of the first and last layer, as in timm;
            ``pretrained_cfg`` is the same.

    Raises:
        ValueError: An argument is out of range or does not fit; the message names the choices.
    """

    hub_arguments: ClassVar = dict(in_channels='in_chans', num_classes='num_classes')

    def __init__(
        self,
        arch: str | dict | Arch = 'dat-t++',
        num_classes: int = 1000,
        global_pool: str = 'avg',
        head_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, out_indices=(3,), **kwargs)
        self.num_features = self.head_hidden_size = self.arch.embed_dims[-1]
        self.num_classes = num_classes
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, head_drop_rate)
        self.default_cfg = self.pretrained_cfg = default_cfg(
            num_classes=num_classes, input_size=(self.in_chans, 224, 224)
        )

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # logits, not feature maps
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Last feature map, after its norm: (B, in_channels, H, W) -> (B, C, H / 32, W / 32)."""
        x = self.embed(x)
        for i in range(self.num_stages):
            x = self.forward_stage(i, x)
        return self.norm3(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of a feature map (B, C, H, W).

        Args:
            x: Output of :meth:`forward_features`.
            pre_logits: Whether to return the pooled features (B, C) instead.
        """
        return self.head(x, pre_logits)

    def get_classifier(self) -> nn.Module:
        """The linear layer; an identity if ``num_classes`` is 0."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by one with new weights.

        Args:
            num_classes: Number of classes; 0 for none.
            global_pool: ``'avg'``, ``''`` for none, or None to keep it.
        """
        weight = next(self.parameters())
        global_pool = self.head.global_pool if global_pool is None else global_pool
        self.head = ClassifierHead(
            self.num_features,
            num_classes,
            global_pool,
            self.head.drop.p,
            device=weight.device,
            dtype=weight.dtype,
        ).train(self.training)
        self.num_classes = num_classes

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the feature maps of the stages, as timm's models do.

        Args:
            x: Images (B, in_channels, H, W).
            indices: Stages to return, in network order: None for all, n for the last n, or a
                sequence, in which negative ones count from the end.
            norm: Whether the last stage is returned after its norm; the others have none.
            stop_early: Whether to compute no stage beyond the last of ``indices``.
            output_fmt: ``'NCHW'`` or ``'NHWC'``, for the intermediate feature maps.
            intermediates_only: Whether to return them alone.

        Returns:
            The feature maps; unless ``intermediates_only``, the result of
            :meth:`forward_features` (with ``stop_early``, of the last computed stage) before them.

        Raises:
            ValueError: A stage does not exist, or the format is unknown.
        """
        if output_fmt not in ('NCHW', 'NHWC'):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt!r}")
        taken = take_indices(self.num_stages, indices)
        intermediates = []
        x = self.embed(x)
        for i in range(taken[-1] + 1 if stop_early else self.num_stages):
            x = self.forward_stage(i, x)
            last = i == self.num_stages - 1
            normed = self.norm3(x) if last and (norm or not intermediates_only) else x
            if i in taken:
                out = normed if norm else x
                # Contiguous, as the feature maps of DAT are.
                nhwc = output_fmt == 'NHWC'
                intermediates.append(out.permute(0, 2, 3, 1) if nhwc else out.contiguous())
            x = normed
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what :meth:`forward_intermediates` does not need for these stages.

        Args:
            indices: Stages to keep, see :meth:`forward_intermediates`.
            prune_norm: Whether to remove the norm of the last stage.
            prune_head: Whether to remove the head.

        Returns:
            The stages that were asked for, from 0.
        """
        taken = take_indices(self.num_stages, indices)
        shorter = taken[-1] + 1 < self.num_stages
        self.num_stages = taken[-1] + 1
        self.stages = self.stages[: self.num_stages]
        self.downsamples = self.downsamples[: self.num_stages - 1]
        if shorter or prune_norm:
            self.norm3 = nn.Identity()
        if shorter:
            self.num_features = self.head_hidden_size = self.arch.embed_dims[taken[-1]]
        if shorter or prune_head:
            self.reset_classifier(0, '')
        return taken


def default_cfg(
    input_size: tuple[int, int, int] = (3, 224, 224), crop_pct: float = 0.875, **changes: Any
) -> dict[str, Any]:
    """Input size and preprocessing of a classifier under timm's names.

    The published evaluation resizes images to a square without keeping their aspect ratio
    (``crop_mode='squash'``), whose central crop is the input.
    """
    return {
        'num_classes': 1000,
        'input_size': input_size,
        'pool_size': (input_size[1] // 32, input_size[2] // 32),
        'crop_pct': crop_pct,
        'crop_mode': 'squash',
        'interpolation': 'bicubic',
        'mean': IMAGENET_MEAN,
        'std': IMAGENET_STD,
        'first_conv': 'stem.conv1',
        'classifier': 'head.fc',
        'fixed_input_size': False,
        **changes,
    }
