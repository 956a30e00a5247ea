"""Exported graphs hold PyTorch's own operators unless a backend is forced."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from operators import CUSTOM, DEVICE, OPERATORS, Operator
from torch import Tensor, nn

pytestmark = [
    pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning'),
    pytest.mark.usefixtures('default_backend'),
]


class Module(nn.Module):
    def __init__(self, operator: Operator, backend: str | None = None) -> None:
        super().__init__()
        self.operator, self.backend = operator, backend

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.operator.function(*inputs, backend=self.backend)


def operators_of(program: torch.export.ExportedProgram) -> set[str]:
    """Namespaces and names of the operators of a graph."""
    return {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}


@pytest.mark.parametrize('strict', [False, True])
def test_default(operator: Operator, strict: bool) -> None:
    inputs = operator.make(size=(3, 4))
    program = torch.export.export(Module(operator), tuple(inputs), strict=strict)
    assert not [name for name in operators_of(program) if name.startswith('dat_pp')]
    expected = operator.function(*inputs, backend='reference')
    torch.testing.assert_close(program.module()(*inputs), expected)


@pytest.mark.parametrize('backend', CUSTOM)
def test_forced(operator: Operator, backend: str) -> None:
    inputs = operator.make(size=(3, 4))
    program = torch.export.export(Module(operator, backend), tuple(inputs))
    name = operator.function.__name__
    assert f'dat_pp.{backend}_{name}.default' in operators_of(program)
    assert torch.equal(program.module()(*inputs), operator.function(*inputs, backend=backend))


def test_dynamic_sizes() -> None:
    """A graph of the default backend runs maps of other sizes."""
    operator = OPERATORS['neighborhood']
    size = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    inputs = operator.make(batch=2, size=(7, 9))
    program = torch.export.export(
        Module(operator), tuple(inputs), dynamic_shapes={'inputs': (size, size, size, {})}
    )
    for batch, shape in ((3, (8, 5)), (2, (16, 16)), (4, (5, 31))):
        others = [*operator.make(batch=batch, size=shape)[:3], inputs[3]]
        expected = operator.function(*others, backend='reference')
        torch.testing.assert_close(program.module()(*others), expected)


@contextlib.contextmanager
def onnx_export(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What both ONNX exporters say while they trace; their own packages are not needed."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
        yield


def test_onnx_default(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = operator.make()
    with onnx_export(monkeypatch):
        traced = torch.jit.trace(Module(operator), tuple(inputs), check_trace=False)
    assert 'dat_pp::' not in str(traced.inlined_graph)


@pytest.mark.parametrize('backend', CUSTOM)
def test_onnx_forced(operator: Operator, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"backend is '{backend}', .* no ONNX form; set DAT_PP_BACKEND=reference"
    with onnx_export(monkeypatch), pytest.raises(ValueError, match=message):
        operator.function(*operator.make(), backend=backend)


@pytest.mark.skipif(DEVICE != 'cpu', reason='the backend for CPUs')
def test_eager_default_is_native(operator: Operator) -> None:
    """Otherwise the tests above prove nothing."""
    inputs = operator.make()
    traced = torch.jit.trace(Module(operator), tuple(inputs), check_trace=False)
    assert 'dat_pp::native' in str(traced.inlined_graph)
