"""Compare weights with a model, name by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Mismatch:
    """Why weights do not fit a model; falsy if they do.

    Attributes:
        missing: Names that only the model has.
        unexpected: Names that only the weights have.
        sizes: Names whose shapes differ, with both shapes.
    """

    missing: list[str]
    unexpected: list[str]
    sizes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.sizes)

    def __str__(self) -> str:
        """One line: the first names of each list, and how many more there are."""
        titles = 'missing ', 'unexpected ', 'size mismatch: '
        lists = zip(titles, (self.missing, self.unexpected, self.sizes))
        return '; '.join(title + some(names) for title, names in lists if names)


def compare(expected: nn.Module | Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mismatch:
    """Compare weights with a model (its parameters and persistent buffers), name by name."""
    if isinstance(expected, nn.Module):
        expected = expected.state_dict()
    return Mismatch(
        missing=[name for name in expected if name not in weights],
        unexpected=[name for name in weights if name not in expected],
        sizes=[
            f'{name} is {tuple(weights[name].shape)} instead of {tuple(value.shape)}'
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        ],
    )


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + rest
