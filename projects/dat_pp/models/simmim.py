"""The backbone in masked image modeling with mmpretrain's ``SimMIM``."""

from typing import Any

import torch
from torch import Tensor, nn

from .dat import DAT


class SimMIMDAT(DAT):
    """``DAT`` whose patches can be masked: a learned token takes their place (arXiv 2111.09886).

    Use it as ``backbone`` of mmpretrain's ``SimMIM`` with ``out_indices=(3,)``. ``DAT`` takes its
    checkpoints like any other and leaves the token out.

    Args:
        args, kwargs: See :class:`dat_pp.DAT`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mask_token = nn.Parameter(torch.empty(1, self.arch.embed_dims[0], 1, 1))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Features of images (B, in_channels, H, W).

        Args:
            x: Images.
            mask: (B, h, w), nonzero for masked patches; h x w is the size of the feature map at
                stride 4. None masks nothing.
        """
        x = self.embed(x)
        if mask is not None:
            x = torch.where(mask[:, None].bool(), self.mask_token.to(x.dtype), x)
        return self.forward_stages(x)
