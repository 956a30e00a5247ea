"""FLOP counters see the custom operators as they see the reference."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operators import CUSTOM, OPERATORS, Operator
from torch.utils.flop_counter import FlopCounterMode

from dat_pp.ops import flops

SIZES = {
    'deformable': dict(batch=2, groups=2, group_heads=2, size=(5, 7), samples=9, dim=8),
    'neighborhood': dict(batch=2, heads=2, size=(4, 6), dim=8),
}


def count(operator: Operator, name: str, backend: str, backward: bool) -> int:
    leaves = operator.leaves(**SIZES[name])
    with FlopCounterMode(display=False) as counter:
        out = operator.function(*leaves, backend=backend)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('backend', CUSTOM)
@pytest.mark.parametrize('name', OPERATORS)
def test_same_as_reference(name: str, backend: str, backward: bool) -> None:
    operator = OPERATORS[name]
    expected = count(operator, name, 'reference', backward)
    assert count(operator, name, backend, backward) == expected > 0


def test_values() -> None:
    """Two matrix products, two FLOPs per MAC."""
    assert flops.deformable_attention_flops((2, 3, 4, 5, 6), (2, 3, 7, 6)) == (
        2 * 2 * (2 * 3) * (4 * 5) * 7 * 6
    )
    assert (
        flops.neighborhood_attention_flops(
            (2, 3, 4, 5, 6), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6), (3, 5, 5)
        )
        == 2 * 2 * (2 * 3) * (4 * 5) * 9 * 6
    )


def test_every_custom_operator_has_a_formula() -> None:
    registered = {
        schema.name
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith('dat_pp::')
    }
    assert registered == set(flops.FORMULAS)
    assert len(registered) == 8


@pytest.mark.slow
@pytest.mark.parametrize('first', ['dat_pp', 'torch.utils.flop_counter'])
def test_import_order(first: str, tmp_path: Path) -> None:
    script = (
        f'import importlib.util, {first}, dat_pp, torch\n'
        "importlib.util.find_spec('torch.utils.flop_counter')  # imports nothing\n"
        'import torch.utils.flop_counter as counter\n'
        'operator = torch.ops.dat_pp.triton_deformable_attention_backward\n'
        'print(counter.flop_registry[operator]((1, 1, 2, 2, 8), (1, 1, 2, 2, 8), (1, 1, 3, 8)))\n'
    )
    run = subprocess.run(
        [sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout.split() == [str(8 * 4 * 3 * 8)], run.stderr
