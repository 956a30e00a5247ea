"""Stand-in for the 2D attention of NATTEN up to 0.17, on CPUs and GPUs, with its position bias.

NATTEN 0.20 dropped the relative position bias, the separate QK and AV operators and CPUs. Code
written for an older version runs unchanged after ::

    from dat_pp.compat import natten
    natten.install('0.14.6')  # the version that the code was written for

    from natten import NeighborhoodAttention2D

Modules have NATTEN's parameters, so checkpoints load as they are, and compute the same numbers
through :func:`dat_pp.ops.neighborhood_attention`. Windows are square and of odd size, and there are
no causal windows, additional keys, 1D or 3D. PyTorch is all it needs.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import neighborhood_attention
from ..ops.checks import check_queries, check_window
from ..ops.neighborhood import reference

Size = int | tuple[int, int]


class NeighborhoodAttention2D(nn.Module):
    """``natten.NeighborhoodAttention2D`` with the signature of NATTEN 0.14 and 0.15.

    (B, H, W, C) -> (B, H, W, C). An input smaller than ``kernel_size * dilation`` is zero-padded at
    the bottom and right before the projections, and the padding takes part as keys, as in NATTEN up
    to 0.15.

    Args:
        dim: Channels C.
        num_heads: Attention heads; divides ``dim``.
        kernel_size: Odd side of the window.
        dilation: Distance between neighboring keys of a window.
        rel_pos_bias: Whether there is a relative position bias ``rpb``.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        qk_scale: Factor of the logits. Default: ``(dim / num_heads) ** -0.5``.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
        bias: NATTEN 0.14's name of ``rel_pos_bias``; counts if given.
        is_causal: Must be False.

    Raises:
        ValueError: Sizes that do not fit, or a causal window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Size,
        dilation: Size | None = 1,
        rel_pos_bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        bias: bool | None = None,
        is_causal: bool | tuple[bool, bool] = False,
    ) -> None:
        super().__init__()
        _refuse(is_causal=is_causal)
        if dim % num_heads:
            raise ValueError(f'num_heads must divide dim, got {num_heads} and {dim}')
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.kernel_size = _kernel(kernel_size)
        self.dilation = _square('dilation', dilation or 1)
        self.window_size = self.kernel_size * self.dilation
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if rel_pos_bias if bias is None else bias:
            size = 2 * self.kernel_size - 1
            self.rpb = nn.Parameter(torch.empty(num_heads, size, size))
            nn.init.trunc_normal_(self.rpb, std=0.02)
        else:
            self.register_parameter('rpb', None)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        missing = [max(0, self.window_size - size) for size in (height, width)]
        if any(missing):
            x = F.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(3)
        x = na2d(
            q,
            k,
            v,
            self.kernel_size,
            self.dilation,
            rpb=self.rpb,
            scale=self.scale,
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        return self.proj_drop(self.proj(x[:, :height, :width].flatten(3)))

    def extra_repr(self) -> str:
        return (
            f'head_dim={self.head_dim}, num_heads={self.num_heads}, '
            f'kernel_size={self.kernel_size}, dilation={self.dilation}, '
            f'rel_pos_bias={self.rpb is not None}'
        )


class NeighborhoodAttention2DSince017(NeighborhoodAttention2D):
    """``natten.NeighborhoodAttention2D`` with the signature of NATTEN 0.17.

    The fifth argument is ``is_causal``, and there is no position bias by default. An input smaller
    than the window is padded as in older versions, where 0.17 raises an error.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Size,
        dilation: Size = 1,
        is_causal: bool | tuple[bool, bool] = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            kernel_size,
            dilation,
            rel_pos_bias,
            qkv_bias,
            qk_scale,
            attn_drop,
            proj_drop,
            is_causal=is_causal,
        )


def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Size = 1,
    is_causal: bool | tuple[bool, bool] = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """Neighborhood attention in one operator, differentiable in all tensors.

    Args:
        query: (B, H, W, h, d); heads come after the axes of the map, as in NATTEN 0.17.
        key: In the shape and dtype of ``query``.
        value: In the shape and dtype of ``query``.
        kernel_size: Odd side K of the window.
        dilation: Distance between neighboring keys of a window.
        is_causal: Must be False.
        rpb: Relative position bias, (h, 2 K - 1, 2 K - 1); None for no bias.
        scale: Factor of the logits. Default: ``d ** -0.5``.
        dropout_p: Probability of dropping an attention weight; 0 when not training.

    Returns:
        (B, H, W, h, d).

    Raises:
        ValueError: As :func:`dat_pp.ops.neighborhood_attention`, or a causal window.
    """
    _refuse(is_causal=is_causal)
    kernel = _kernel(kernel_size)
    heads, dim = query.shape[-2:]
    if rpb is None:
        rpb = query.new_zeros(heads, 2 * kernel - 1, 2 * kernel - 1)
    if scale is not None and scale != dim**-0.5:
        query = query * (scale * dim**0.5)
    q, k, v = (x.movedim(-2, 1) for x in (query, key, value))
    _check_bias(q, rpb, kernel)
    out = neighborhood_attention(q, k, v, rpb, dropout_p, dilation=_square('dilation', dilation))
    return out.movedim(1, -2)


def natten2dqkrpb(
    query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Size, dilation: Size
) -> Tensor:
    """Logits: products of queries, as they are, and the keys in their windows, plus bias.

    Args:
        query: (B, h, H, W, d), scaled by the caller.
        key: In the shape of ``query``.
        rpb: Relative position bias, (h, 2 K - 1, 2 K - 1); None for no bias.
        kernel_size: Odd side K of the window.
        dilation: Distance between neighboring keys of a window.

    Returns:
        (B, h, H, W, K * K), in the dtype of ``query``. Differentiable in all tensors.

    Raises:
        ValueError: Shapes that do not fit, or a map smaller than ``K * dilation``.
    """
    kernel, dilation = _window(query, kernel_size, dilation)
    if key.shape != query.shape:
        raise ValueError(f'key must be {tuple(query.shape)} as query is, got {tuple(key.shape)}')
    if rpb is not None:
        _check_bias(query, rpb, kernel)
        rpb = rpb.to(query.dtype)
    return reference.logits(query, key, rpb, kernel, dilation).flatten(-2)


def natten2dqk(query: Tensor, key: Tensor, kernel_size: Size, dilation: Size) -> Tensor:
    """:func:`natten2dqkrpb` without a bias."""
    return natten2dqkrpb(query, key, None, kernel_size, dilation)


def natten2dav(attn: Tensor, value: Tensor, kernel_size: Size, dilation: Size) -> Tensor:
    """Sum of the values in each window, weighted.

    Args:
        attn: Weights, (B, h, H, W, K * K).
        value: (B, h, H, W, d), in the dtype of ``attn``.
        kernel_size: Odd side K of the window.
        dilation: Distance between neighboring keys of a window.

    Returns:
        (B, h, H, W, d). Differentiable in both tensors.

    Raises:
        ValueError: Shapes that do not fit, or a map smaller than ``K * dilation``.
    """
    kernel, dilation = _window(value, kernel_size, dilation)
    expected = (*value.shape[:-1], kernel**2)
    if attn.shape != expected:
        raise ValueError(f'attn must be {tuple(expected)}, got {tuple(attn.shape)}')
    return reference.weighted_sum(attn.unflatten(-1, (kernel, kernel)), value, dilation)


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    dilation: Size = 1,
    additional_keys: None = None,
    is_causal: bool | tuple[bool, bool] = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """:func:`natten2dqkrpb` under the name it has since NATTEN 0.15, heads first as there."""
    _refuse(additional_keys=additional_keys, is_causal=is_causal)
    return natten2dqkrpb(query, key, rpb, kernel_size, dilation)


def na2d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Size = 1,
    additional_values: None = None,
    is_causal: bool | tuple[bool, bool] = False,
) -> Tensor:
    """:func:`natten2dav` under the name it has since NATTEN 0.15."""
    _refuse(additional_values=additional_values, is_causal=is_causal)
    return natten2dav(attn, value, kernel_size, dilation)


def use_fused_na(mode: bool = True, **options: Any) -> None:
    """Do nothing: the modules always run one fused operator."""


FUNCTIONS = (na2d, na2d_av, na2d_qk, natten2dav, natten2dqk, natten2dqkrpb)


def install(version: str = '0.14.6') -> None:
    """Make ``import natten`` give this stand-in, in this process.

    Args:
        version: The version of NATTEN that the code was written for; becomes
            ``natten.__version__`` and decides which signature ``NeighborhoodAttention2D`` has.

    Raises:
        ValueError: There is no stand-in for this version.
        RuntimeError: NATTEN has been imported already.
    """
    release = tuple(int(part) for part in version.split('.')[:2] if part.isdigit())
    if not (0, 14) <= release < (0, 18):
        raise ValueError(f'version must be from 0.14 to 0.17, got {version}')
    loaded = sys.modules.get('natten')
    if loaded is not None and not hasattr(loaded, '_dat_pp'):
        raise RuntimeError('natten has been imported: call install() before')
    attention = NeighborhoodAttention2DSince017 if release >= (0, 17) else NeighborhoodAttention2D
    modules = dict(NeighborhoodAttention2D=attention, NeighborhoodAttention=attention)
    functions = {function.__name__: function for function in FUNCTIONS}
    natten = _module('natten', _dat_pp=True, __version__=version, __path__=[], **modules)
    natten.use_fused_na = use_fused_na
    natten.na2d = _module('natten.na2d', **modules)
    natten.natten2d = _module('natten.natten2d', **modules)
    natten.functional = _module('natten.functional', **functions)


def _module(name: str, **attributes: Any) -> Any:
    module = ModuleType(name, __doc__)
    module.__spec__ = ModuleSpec(name, None)  # importlib.util.find_spec asks for one
    vars(module).update(attributes)
    sys.modules[name] = module
    return module


def _refuse(**arguments: Any) -> None:
    """Raise a ValueError if one of these arguments asks for something."""
    for name, value in arguments.items():
        if value is not None and (any(value) if isinstance(value, tuple) else value is not False):
            raise ValueError(f'{name} is not supported by the stand-in for NATTEN')


def _square(name: str, size: Size) -> int:
    """The size of both axes."""
    if isinstance(size, int):
        return size
    first, *others = size
    if any(other != first for other in others):
        raise ValueError(f'{name} must be the same for both axes, got {tuple(size)}')
    return first


def _kernel(size: Size) -> int:
    kernel = _square('kernel_size', size)
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f'kernel_size must be odd, got {kernel}')
    return kernel


def _window(x: Tensor, kernel_size: Size, dilation: Size) -> tuple[int, int]:
    """Kernel size and dilation, of a window that fits into the map."""
    check_queries(x)
    kernel, step = _kernel(kernel_size), _square('dilation', dilation)
    check_window(x.shape[2], x.shape[3], kernel, step)
    return kernel, step


def _check_bias(q: Tensor, rpb: Tensor, kernel: int) -> None:
    expected = (q.shape[1], 2 * kernel - 1, 2 * kernel - 1)
    if rpb.shape != expected:
        raise ValueError(f'rpb must be {expected}, got {tuple(rpb.shape)}')
