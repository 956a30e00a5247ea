"""``arch``: names, defaults, values per stage, documentation, and every refusal."""

import ast
import dataclasses
import inspect

import pytest
from tiny_models import ALL_MIXERS, TINY

from dat_pp import DAT
from dat_pp.models.arch import ARCH_SETTINGS, Arch, resolve_arch
from dat_pp.models.mixers import MIXERS


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('dat-xl', "unknown arch 'dat-xl'; choose one of 'dat-t', 'dat-s'"),
        (7, 'name or a dict, got int'),
        (dict(base='swin-t'), "unknown arch 'swin-t'"),
        (dict(TINY, depths=[1, 1, 1, 1]), "unknown arch key 'depths'; the keys are 'embed_dims'"),
        (dict(embed_dims=16), "arch needs 'mixers', 'num_heads'"),
        (dict(TINY, num_heads=None), "arch needs 'num_heads'"),
        (dict(TINY, embed_dims=[16, 16, 32]), 'embed_dims must be one value or 4'),
        (dict(TINY, lpu=[True] * 5), 'lpu must be one value or 4, one per stage; got 5'),
        (dict(TINY, num_heads=3), 'num_heads 3 do not divide embed_dims 16 in stage 0'),
        (dict(TINY, offset_groups=3), 'offset_groups 3 do not divide num_heads 1 in stage 0'),
        (dict(TINY, mixers=['ND', '', 'ND', 'DD']), 'in stage 1 must be a word'),
        (dict(TINY, mixers=['ND', 3, 'ND', 'DD']), 'in stage 1 must be a word'),
        (dict(TINY, embed_dims=[0, 16, 32, 32]), 'embed_dims must be positive integers, got 0'),
        (dict(TINY, num_heads=[True, 2, 2, 4]), 'num_heads must be positive integers, got True'),
        (dict(TINY, embed_dims=[15, 16, 32, 32]), 'an even number of channels, got 15'),
        (dict(TINY, position_bias='rpe'), "'rpe' unknown; choose one of 'table', 'none'"),
        (dict(TINY, coordinates='2023'), "'2023' unknown; choose one of 'dat\\+\\+', 'dat'"),
        (dict(TINY, neighborhood_kernel_size=6), 'neighborhood_kernel_size 6 in stage 0 must be'),
        (dict(TINY, offset_kernel_sizes=4), 'offset_kernel_sizes 4 in stage 0 must be odd'),
        (dict(ALL_MIXERS, window_size=8), 'window_size 8 in stage 0 must be odd'),
        (dict(TINY, mixers=['S', 'N', 'N', 'N'], window_size=1), 'cannot be shifted'),
        (dict(TINY, lpu='yes'), "lpu must be True or False, got 'yes'"),
        (dict(TINY, overlapped=1), 'overlapped must be True or False, got 1'),
        (dict(TINY, offset_range='2'), "offset_range must be numbers, got '2'"),
        (dict(TINY, native_resolution=[64]), 'native_resolution must be one size or'),
        (dict(TINY, native_resolution=2.5), 'native_resolution must be positive integers'),
    ],
)
def test_invalid_arch(arch: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        DAT(arch)
    assert '\n' not in str(error.value)


def test_stages_that_are_not_built_are_checked() -> None:
    arch = dict(TINY, neighborhood_kernel_size=[7, 7, 7, 6], mixers=['D', 'D', 'D', 'N'])
    with pytest.raises(ValueError, match='neighborhood_kernel_size 6 in stage 3 must be odd'):
        DAT(arch, out_indices=(0,))


def test_settings_of_unused_mixers_are_not_checked() -> None:
    assert resolve_arch(dict(TINY, window_size=8)).window_size == [8] * 4


def test_base() -> None:
    named, derived = DAT('dat-t++').arch, DAT(dict(base='dat-t++', lpu=False)).arch
    assert derived.lpu == [False] * 4
    assert dataclasses.replace(derived, lpu=named.lpu) == named


def test_values_per_stage() -> None:
    arch = resolve_arch(dict(TINY, window_size=(7, 7, 14, 7), native_resolution=[32, 64]))
    assert arch.embed_dims == [16, 16, 32, 32]
    assert arch.ffn_ratio == [4] * 4
    assert arch.window_size == [7, 7, 14, 7]
    assert arch.native_resolution == (32, 64)
    assert resolve_arch(TINY).native_resolution == (64, 64)


def test_arch_is_an_object() -> None:
    """It cannot be changed, and a resolved one serves as ``arch`` again."""
    arch = resolve_arch(TINY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        arch.lpu = False
    assert DAT(arch, out_indices=(0,)).arch is arch
    assert Arch(**TINY) == arch


def test_settings_are_documented() -> None:
    """Every field is followed by a docstring, which a documentation generator shows."""
    (definition,) = ast.parse(inspect.getsource(Arch)).body
    documented = [
        field.target.id
        for field, text in zip(definition.body, definition.body[1:])
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value.value, str)
    ]
    assert documented == [field.name for field in dataclasses.fields(Arch)]


@pytest.mark.parametrize('name', ARCH_SETTINGS)
def test_published_variant(name: str) -> None:
    arch = resolve_arch(name)
    assert len(arch.mixers) == 4
    assert {letter for word in arch.mixers for letter in word} <= MIXERS.keys()
    assert (arch.coordinates == 'dat++') == name.endswith('++')
