"""Layers that replace PyTorch's own: same results in any memory format, channels-last is kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dat_pp.models.layers import GELU2d, PointwiseConv
from dat_pp.models.mixers.deformable import SharedDepthwiseConv

CHANNELS_LAST = torch.channels_last
FORMATS = [torch.contiguous_format, CHANNELS_LAST]


def with_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of the input and the parameters."""
    x = x.detach().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('size', [(1, 1), (7, 5), (1, 9)])
def test_pointwise_conv(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    expected = nn.Conv2d(6, 10, 1).double()
    layer = PointwiseConv(6, 10).double()
    layer.load_state_dict(expected.state_dict())
    x = torch.randn(3, 6, *size).double()
    found = with_gradients(layer, x.contiguous(memory_format=memory_format))
    for actual, want in zip(found, with_gradients(expected, x), strict=True):
        torch.testing.assert_close(actual, want)
    assert found[0].is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_gelu(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, 5, 4).contiguous(memory_format=memory_format)
    torch.testing.assert_close(GELU2d()(x), F.gelu(x))
    assert GELU2d()(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding'), [(5, 2, 2), (3, 1, 1), (4, 4, 0), (16, 16, 0)]
)
def test_shared_depthwise_conv(
    kernel: int, stride: int, padding: int, memory_format: torch.memory_format
) -> None:
    """The result is that of a convolution with each group as an image of its own."""
    torch.manual_seed(0)
    layer = SharedDepthwiseConv(4, kernel, stride, padding).double()
    plain = nn.Conv2d(4, 4, kernel, stride, padding, groups=4).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 12, 16, 9).double()
    folded = nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Flatten(0, 1))
    if kernel > 9:  # the width
        folded.append(nn.ZeroPad2d((0, kernel - 9, 0, 0)))
    folded.append(plain)
    folded.append(nn.Unflatten(0, (2, 3))).append(nn.Flatten(1, 2))

    found = with_gradients(layer, x.contiguous(memory_format=memory_format))
    for actual, want in zip(found, with_gradients(folded, x), strict=True):
        torch.testing.assert_close(actual, want)
