"""The table of token mixers, and what every row of it must do."""

import pytest
import torch
from tiny_models import TINY, build
from torch import nn

from dat_pp import DAT
from dat_pp.models.arch import resolve_arch
from dat_pp.models.block import ConvNeXtBlock, TransformerBlock
from dat_pp.models.mixers import MIXERS, Mixer, build_mixer


def test_letter_builds_its_row() -> None:
    words = ['N', 'N', ''.join(MIXERS), 'N']
    model = build(dict(TINY, mixers=words))
    for stage, word in zip(model.stages, words, strict=True):
        for block, letter in zip(stage, word, strict=True):
            row = MIXERS[letter]
            assert type(block.mixer) is row.module
            assert type(block) is (TransformerBlock if row.residual else ConvNeXtBlock)


class Scale(nn.Module):
    """The smallest mixer that could be added."""

    def __init__(self, factor: int, drop: float, attn_drop: float) -> None:
        super().__init__()
        self.factor = factor

    @staticmethod
    def settings(arch: object, stage: int) -> dict[str, int]:
        return dict(factor=stage)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_row_is_all_that_a_mixer_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXERS, 'E', Mixer(Scale, 'scaling'))
    model = build(dict(TINY, mixers=['ND', 'NE', 'ND', 'ED']))
    assert type(model.stages[1][1].mixer) is type(model.stages[3][0].mixer) is Scale
    assert model.stages[3][0].mixer.factor == 3
    assert model(torch.rand(1, 3, 32, 32))[-1].shape == (1, 32, 1, 1)


def test_unknown_letter() -> None:
    with pytest.raises(
        ValueError, match='arch mixers in stage 2 must be a word of the letters'
    ) as e:
        DAT(dict(TINY, mixers=['ND', 'ND', 'NE', 'DD']))
    for letter, row in MIXERS.items():
        assert f'{letter} ({row.description})' in str(e.value)
    assert str(e.value).endswith("got 'NE'")
    with pytest.raises(KeyError):
        build_mixer('E', resolve_arch(TINY), 0, drop=0.0, attn_drop=0.0)


@pytest.mark.parametrize('size', [(1, 1), (3, 17), (20, 9)])
@pytest.mark.parametrize('letter', MIXERS)
def test_shape_is_kept(letter: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    mixer = build_mixer(letter, resolve_arch(TINY), 2, drop=0.1, attn_drop=0.1)
    x = torch.rand(2, 32, *size, requires_grad=True)
    out = mixer(x.contiguous(memory_format=torch.channels_last))
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert size == (1, 1) or x.grad.any()  # a single position may have no neighbors to mix


def test_shifted_windows_see_other_positions() -> None:
    arch = resolve_arch(dict(TINY, window_size=4))
    local, shifted = (build_mixer(letter, arch, 2, drop=0.0, attn_drop=0.0) for letter in 'LS')
    shifted.load_state_dict(local.state_dict())

    def seen(mixer: nn.Module) -> list[list[int]]:
        """Where the position in row 1 and column 1 of an 8 x 8 map gets its output from."""
        x = torch.rand(1, 32, 8, 8, requires_grad=True)
        mixer(x)[0, :, 1, 1].sum().backward()
        return (x.grad[0].abs().sum(0) > 1e-20).nonzero().tolist()

    assert seen(local) == [[y, x] for y in range(4) for x in range(4)]
    # Windows begin 2 positions earlier; the first is cut off from the last by the mask.
    assert seen(shifted) == [[y, x] for y in range(2) for x in range(2)]
