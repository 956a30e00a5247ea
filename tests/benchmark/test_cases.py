"""What the benchmark measures: models and operators, their passes, backends and MACs."""

import os
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dat_pp import DAT
from dat_pp.benchmark import cases, operators, plan
from dat_pp.ops import deformable_attention

CPU = torch.device('cpu')
VARIABLE = 'DAT_PP_BACKEND'


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> list:
    """A pointwise layer in place of every model; returns what is seen in each of its passes."""
    seen = []

    def build(name: str) -> nn.Module:
        model = nn.Conv2d(3, 4, 1)
        model.register_forward_hook(
            lambda _, args, out: (
                args[0].is_meta
                or seen.append(
                    (model.training, out.requires_grad, out.dtype, os.environ.get(VARIABLE))
                )
            )
        )
        return model

    monkeypatch.setattr(cases, 'build_model', build)
    return seen


def test_macs_of_a_model() -> None:
    """Matrix products and convolutions only; get_flops.py counts norms and the like, too."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(2))
    model.append(nn.Linear(16, 5))
    image = torch.zeros(2, 3, 4, 4)
    assert cases.count_macs(model, image) == 2 * (3 * 9 * 8 * 16 + 8 * 16 * 5)
    assert cases.count_macs(nn.Linear(7, 7), image) is None


@pytest.mark.parametrize('name', ['dat-t', *cases.BASELINES])
def test_models_are_comparable(name: str) -> None:
    """Each model gives four maps, and nothing in it is random."""
    model = cases.build_model(name)
    model.train()
    image = torch.zeros(1, 3, 64, 64)
    once, twice = model(image), model(image)
    assert [out.shape[-1] for out in once] == [16, 8, 4, 2]
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_passes(linear: list) -> None:
    models, size = cases.Models(cases.Setting(CPU)), cases.Size(2, 8, 8)
    (case,) = models.cases(['dat-t'], size, 'forward')
    case.run()
    model = models.built['dat-t']
    assert model.weight.grad is None
    (case,) = models.cases(['dat-t'], size, 'train')
    case.run()
    assert [each[:2] for each in linear] == [(False, False), (True, True)]
    torch.manual_seed(0)
    loss = model(torch.randn(2, 3, 8, 8)).square().mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    case.clear()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_amp(linear: list) -> None:
    models = cases.Models(cases.Setting(CPU, amp=True))
    (case,) = models.cases(['dat-t'], cases.Size(1, 64, 64), 'train')
    case.run()
    assert [each[2] for each in linear] == [torch.bfloat16]


@pytest.mark.parametrize('user', [None, 'blocked'])
def test_backend_is_forced(user: str | None, linear: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case without a backend does not use the user's; the variable is restored."""
    if user:
        monkeypatch.setenv(VARIABLE, user)
    else:
        monkeypatch.delenv(VARIABLE, raising=False)
    models = cases.Models(cases.Setting(CPU))
    names = ['dat-t', 'dat-t:blocked', 'dat-t:reference']
    for mode in cases.PASSES:
        linear.clear()
        for case in models.cases(names, cases.Size(1, 8, 8), mode):
            case.run()
            assert os.environ.get(VARIABLE) == user
        assert [each[3] for each in linear] == [None, 'blocked', 'reference']
    assert list(models.built) == ['dat-t']


def test_operators_run_in_mixed_precision() -> None:
    setting, size = cases.Setting(CPU, amp=True), cases.Size(1, 64, 64)
    shapes = operators.stage_shapes(size)[1]
    for mode in cases.PASSES:
        for case in operators.operator_cases(plan.DEFAULT_OPERATORS, size, shapes, mode, setting):
            case.run()


def test_gradients_of_an_operator_are_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = []

    def record(*args: torch.Tensor) -> torch.Tensor:
        inputs.extend(args)
        return deformable_attention(*args)

    monkeypatch.setattr(operators, 'deformable_attention', record)
    size, setting = cases.Size(1, 32, 32), cases.Setting(CPU)
    shapes = operators.stage_shapes(size)[0]
    names = ['deformable_attention']
    (case,) = operators.operator_cases(names, size, shapes, 'train', setting)
    case.run()
    differentiated = [tensor for tensor in inputs if tensor.grad is not None]
    assert len(differentiated) == 5  # not the query axes
    case.clear()
    assert all(tensor.grad is None for tensor in inputs)


def test_operators_have_the_shapes_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    names = ('deformable_attention', 'neighborhood_attention')
    for path, module in list(sys.modules.items()):
        for name in names if path.startswith(('dat_pp.models.', 'dat_pp.benchmark.')) else ():
            original = getattr(module, name, None)
            if callable(original):

                def record(*args: object, name: str = name, run: Callable = original) -> object:
                    tensors = [x for x in args if isinstance(x, torch.Tensor)]
                    seen.add((name, *((tuple(x.shape), x.dtype) for x in tensors)))
                    return run(*args)

                monkeypatch.setattr(module, name, record)
    size, setting = cases.Size(1, 70, 100), cases.Setting(CPU)
    arch = dict(base='dat-t++', mixers=['ND', 'ND', 'ND', 'D'])
    with torch.no_grad():
        DAT(arch)(torch.zeros(1, 3, 70, 100))
    of_model = set(seen)
    assert len(of_model) == 7
    seen.clear()
    for shapes in operators.stage_shapes(size):
        for case in operators.operator_cases(names, size, shapes, 'forward', setting):
            case.run()
    assert seen == of_model
