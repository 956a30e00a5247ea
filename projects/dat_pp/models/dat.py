"""The backbone of DAT (CVPR 2022, arXiv 2201.00520) and DAT++ (arXiv 2309.01430).

Four stages of blocks at strides 4, 8, 16 and 32: a stem embeds patches of the image, and
downsampling halves the feature map and widens it between stages (DAT, section 3.3, figure 3).
Blocks are in :mod:`dat_pp.models.block`, token mixers (deformable attention and the local ones) in
:mod:`dat_pp.models.mixers`, sizes in :mod:`dat_pp.models.arch`.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..hub import HubModule
from ..weights import load_pretrained
from .arch import NUM_STAGES, Arch, resolve_arch
from .block import FFN, ConvFFN, ConvNeXtBlock, Stage, TransformerBlock
from .features import FeatureInfo
from .layers import GELU2d, LayerNorm2d, PatchConv, named_sequential
from .mixers import MIXERS, build_mixer


class DAT(HubModule):
    """Deformable Attention Transformer: DAT and DAT++, a backbone.

    Takes images (B, in_channels, H, W) of any size and returns a tuple of feature maps
    (B, C_i, H_i, W_i), contiguous, one for each stage of ``out_indices`` in stage order, after its
    output norm. Strides are 4, 8, 16 and 32; with the overlapped embedding of DAT++ sizes are
    rounded up, with that of DAT down (at least to 1).

    Every output has a norm of its own, ``norm0`` to ``norm3``. A neck that ignores an output, as
    mmdet's FPN with ``start_level=1`` does, leaves that norm without a gradient, and
    DistributedDataParallel stops with an error. Return only what is used: ``out_indices=(1, 2, 3)``
    with ``start_level=0``.

    Args:
        arch: ``'dat-t'``, ``'dat-s'``, ``'dat-b'`` (2022), ``'dat-t++'``, ``'dat-s++'``,
            ``'dat-b++'``, or a dict of settings, see :class:`dat_pp.models.arch.Arch`. Its key
            ``base`` names the variant that the other keys change.
        in_channels: Channels of the images.
        drop_rate: Dropout after the output projections of attention and in the FFN.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        out_indices: Stages whose feature maps are returned. Stages beyond the last are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages (with
            their downsampling and output norms): no gradients, evaluation mode.
        with_cp: Save memory in training by recomputing every block in the backward pass.
        init_cfg: Initialization that ``init_weights`` makes, as in mmengine's modules.
            ``dict(type='Pretrained', checkpoint=...)`` also takes checkpoints of a whole
            classifier, detector or segmentor and files with the published names; see
            :func:`dat_pp.weights.load_pretrained`.

    Attributes:
        feature_info: Channels and reduction of the stages, a
            :class:`dat_pp.models.features.FeatureInfo`.

    Raises:
        ValueError: An argument is out of range or does not fit; the message names the choices.
    """

    hub_arguments: ClassVar = dict(in_channels='in_chans', out_indices='out_indices')

    def __init__(
        self,
        arch: str | dict | Arch = 'dat-t++',
        in_channels: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__()
        self.init_cfg: Any = copy.deepcopy(init_cfg)
        self.is_init = False  # mmengine initializes a module once
        self.arch = resolve_arch(arch)
        self.out_indices = _check_out_indices(out_indices)
        self.num_stages = self.out_indices[-1] + 1
        self.in_chans = in_channels  # timm's name
        self.feature_info = FeatureInfo(self.arch.embed_dims[: self.num_stages], self.out_indices)
        if frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ValueError(f'frozen_stages must be -1 to {NUM_STAGES}, got {frozen_stages!r}')
        self.frozen_stages = frozen_stages
        for name, rate in dict(
            drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate
        ).items():
            if not 0 <= rate < 1:
                raise ValueError(f'{name} must be in [0, 1), got {rate!r}')

        dims, depths = self.arch.embed_dims, [len(word) for word in self.arch.mixers]
        drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist()
        self.stem = _stem(in_channels, dims[0], self.arch.overlapped)
        self.downsamples = nn.ModuleList(
            _downsample(dims[i], dims[i + 1], self.arch.overlapped)
            for i in range(self.num_stages - 1)
        )
        self.stages = nn.ModuleList()
        for i in range(self.num_stages):
            rates, drop_paths = drop_paths[: depths[i]], drop_paths[depths[i] :]
            blocks = [
                _block(self.arch, i, letter, drop_rate, attn_drop_rate, drop_path)
                for letter, drop_path in zip(self.arch.mixers[i], rates)
            ]
            self.stages.append(Stage(*blocks, with_cp=with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(dims[i]))
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.forward_stages(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """Embed images (B, in_channels, H, W) in patches, at stride 4."""
        # Channels-last memory format from here on: every layer keeps that of its input.
        return self.stem(x.contiguous(memory_format=torch.channels_last))

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the stages for embedded images."""
        outs = []
        for i in range(self.num_stages):
            x = self.forward_stage(i, x)
            if i in self.out_indices:
                # Some operators, such as mmcv's RoIAlign on CPUs, read any memory as NCHW.
                outs.append(getattr(self, f'norm{i}')(x).contiguous())
        return tuple(outs)

    def forward_stage(self, i: int, x: Tensor) -> Tensor:
        """Stage i, after its downsampling: (B, C_(i-1), H, W) -> (B, C_i, H_i, W_i)."""
        return self.stages[i](self.downsamples[i - 1](x) if i > 0 else x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass, or stop doing so; ``with_cp`` in timm."""
        for stage in self.stages:
            stage.with_cp = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the published recipe exempts from weight decay.

        These are the position bias tables of deformable and window attention. Biases and norms,
        which it exempts too, are left to the optimizer, as in timm.
        """
        tables = re.compile(r'\.(rpe_table|relative_position_bias_table)\b')
        return {name for name, _ in self.named_parameters() if tables.search(name)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group the parameters by layer, for timm's optimizers.

        The layers are those of :meth:`get_layer_depth`.

        Args:
            coarse: Whether a stage, in place of a block, is a layer.
        """
        first: tuple[int, ...] = () if coarse else (0,)
        downsamples = [
            (rf'^downsamples\.{i}\.', (i + 1, *first)) for i in range(len(self.downsamples))
        ]
        stages = r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)'
        return dict(stem=r'^(?:stem|mask_token)', blocks=[*downsamples, (stages, None)])

    def init_weights(self) -> None:
        """Initialize by ``init_cfg``, once, as mmengine's modules do.

        Checkpoints are loaded through :func:`dat_pp.weights.load_pretrained`; other types of
        initialization are mmengine's.

        Raises:
            ImportError: ``init_cfg`` has another type, and mmengine is not installed.
        """
        if self.is_init:
            return
        init_cfg = self.init_cfg
        cfgs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
        pretrained = [cfg for cfg in cfgs if cfg['type'] == 'Pretrained']
        others = [cfg for cfg in cfgs if cfg['type'] != 'Pretrained']
        try:
            from mmengine.model import BaseModule
        except ModuleNotFoundError as error:
            if others:
                raise ImportError(
                    f'init_cfg type {others[0]["type"]!r} needs mmengine: pip install '
                    "'dat_pp[mmlab]'"
                ) from error
        else:
            self.init_cfg = others
            BaseModule.init_weights(self)
            self.init_cfg = init_cfg
        for cfg in pretrained:
            load_pretrained(self, cfg['checkpoint'], cfg.get('prefix'))
        self.is_init = True

    # What mmengine's BaseModule.init_weights asks of a module beside ``init_cfg``.
    @property
    def _is_init(self) -> bool:
        return self.is_init

    @_is_init.setter
    def _is_init(self, value: bool) -> None:
        self.is_init = value

    def _dump_init_info(self) -> None:
        from mmengine.model import BaseModule

        BaseModule._dump_init_info(self)

    def train(self, mode: bool = True) -> 'DAT':
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen: list[nn.Module] = [self.stem]
        for i in range(min(self.frozen_stages, self.num_stages)):
            frozen.append(self.stages[i])
            if i > 0:
                frozen.append(self.downsamples[i - 1])
            if i in self.out_indices:
                frozen.append(getattr(self, f'norm{i}'))
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning rate decay.

        The stem (with a mask token) is layer 0, and each block is the next layer. A downsampling
        belongs to the block after it; output norms share the last layer with what follows the
        backbone.

        Args:
            param_name: Name of the parameter; one without ``prefix`` is not the backbone's.
            prefix: Prefix of the backbone's parameters, e.g. ``'backbone.'``.

        Returns:
            The layer and the number of layers, which is the number of blocks + 2.
        """
        depths = [len(word) for word in self.arch.mixers]
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        part, *indices = param_name[len(prefix) :].split('.')
        if part in ('stem', 'mask_token'):
            return 0, num_layers
        if part == 'stages':
            stage, block = int(indices[0]), int(indices[1])
        elif part == 'downsamples':
            stage, block = int(indices[0]) + 1, 0
        else:
            return num_layers - 1, num_layers
        return sum(depths[:stage]) + block + 1, num_layers


def _check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    stages = range(NUM_STAGES)
    if not indices or len(set(indices)) < len(indices) or any(i not in stages for i in indices):
        raise ValueError(f'out_indices must be different stages of 0, 1, 2, 3; got {out_indices!r}')
    return tuple(sorted(indices))


def _stem(in_channels: int, channels: int, overlapped: bool) -> nn.Sequential:
    """Patch embedding at stride 4."""
    if not overlapped:
        return named_sequential(
            conv1=PatchConv(in_channels, channels, 4, 4), norm1=LayerNorm2d(channels)
        )
    return named_sequential(
        conv1=nn.Conv2d(in_channels, channels // 2, 3, 2, 1),
        norm1=LayerNorm2d(channels // 2),
        act=GELU2d(),
        conv2=nn.Conv2d(channels // 2, channels, 3, 2, 1),
        norm2=LayerNorm2d(channels),
    )


def _downsample(in_channels: int, channels: int, overlapped: bool) -> nn.Sequential:
    """Halve the feature map between two stages."""
    if overlapped:
        conv = nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False)
    else:
        conv = PatchConv(in_channels, channels, 2, 2, bias=False)
    return named_sequential(conv=conv, norm=LayerNorm2d(channels))


def _block(
    arch: Arch, stage: int, letter: str, drop: float, attn_drop: float, drop_path: float
) -> nn.Module:
    """A block of a stage with the mixer of ``letter``."""
    channels = arch.embed_dims[stage]
    ffn = (ConvFFN if arch.conv_ffn[stage] else FFN)(channels, arch.ffn_ratio[stage], drop)
    mixer = build_mixer(letter, arch, stage, drop=drop, attn_drop=attn_drop)
    lpu, layer_scale = arch.lpu[stage], arch.layer_scale_init_value[stage]
    if not MIXERS[letter].residual:
        return ConvNeXtBlock(channels, mixer, ffn, lpu, drop_path)
    return TransformerBlock(channels, mixer, ffn, lpu, layer_scale, drop_path)
