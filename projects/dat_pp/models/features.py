"""What timm's users ask about the feature maps of a backbone."""

from collections.abc import Sequence
from typing import Any


class FeatureInfo(list[dict[str, Any]]):
    """Channels and reduction of the stages, with the methods of timm's ``FeatureInfo``.

    A list with one dict per stage: ``num_chs``, ``reduction`` (the stride), ``module`` and
    ``index``. The methods answer for the stages of ``out_indices`` only.

    Args:
        channels: Channels of each stage.
        out_indices: Stages whose feature maps are returned.
    """

    def __init__(self, channels: Sequence[int], out_indices: Sequence[int]) -> None:
        super().__init__(
            dict(num_chs=num_chs, reduction=4 * 2**i, module=f'stages.{i}', index=i)
            for i, num_chs in enumerate(channels)
        )
        self.out_indices = tuple(out_indices)

    def channels(self) -> list[int]:
        """Channels of each output."""
        return self._get('num_chs')

    def reduction(self) -> list[int]:
        """Stride of each output in pixels of the image."""
        return self._get('reduction')

    def module_name(self) -> list[str]:
        """Name of the module that computes each output, before its norm."""
        return self._get('module')

    def _get(self, key: str) -> list[Any]:
        return [self[i][key] for i in self.out_indices]


def take_indices(num_stages: int, indices: int | Sequence[int] | None) -> list[int]:
    """Stages that ``indices`` means, sorted: None all, n the last n, else those of a sequence.

    Raises:
        ValueError: There is no such stage, or none is asked for.
    """
    stages = range(num_stages)
    if indices is None:
        return list(stages)
    if isinstance(indices, int):
        taken = [num_stages - i for i in range(indices, 0, -1)]
    else:
        taken = sorted({i + num_stages if i < 0 else i for i in indices})
    if not taken or any(i not in stages for i in taken):
        raise ValueError(f'indices must be stages of 0 to {num_stages - 1}, got {indices!r}')
    return taken
