"""Measuring: the order of runs, their times, the memory of known functions, profiles."""

import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from dat_pp.benchmark import measure, profile
from dat_pp.benchmark.measure import Case

CPU = torch.device('cpu')
MIB = 2**20


def test_order() -> None:
    """All cases once, then rounds of all, each begun by another case."""
    order, said = [], []
    found = measure.measure_interleaved(
        [Case(name, lambda name=name: order.append(name)) for name in 'abc'], 4, CPU, said.append
    )
    assert ''.join(order) == 'abc' + 'abc' + 'bca' + 'cab' + 'abc'
    assert [len(found[name].times) for name in 'abc'] == [4, 4, 4]
    assert (said[0], said[-1]) == ('a, warm-up', 'c, round 4 of 4')
    assert len(said) == len(order)


def test_only_the_run_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def wait(duration: float) -> None:
        nonlocal now
        now += duration

    monkeypatch.setattr(measure.time, 'perf_counter', lambda: now)
    waits = iter([100, 3, 5, 4])  # the first is the warm-up
    case = Case('a', lambda: wait(next(waits)), clear=lambda: wait(1000))
    assert measure.measure_interleaved([case], 3, CPU)['a'].times == [3, 5, 4]


def test_peak_memory() -> None:
    """The tensors of a run that are alive at the same time, exact and reproducible."""
    x = torch.zeros(MIB // 4)

    def three_then_one() -> None:
        y = x + 1
        z = y * 2  # two alive
        w = z + y  # three
        del y, z
        w.add_(1)

    def one_at_a_time() -> None:
        y = x + 1
        for _ in range(5):
            del y
            y = x + 1
        y.add_(1)

    slack = 1024  # scalars
    for function, expected in ((three_then_one, 3), (one_at_a_time, 1), (lambda: None, 0)):
        (peak,) = {measure.peak_memory(Case('', function), CPU) for _ in range(2)}
        assert expected * MIB <= peak <= expected * MIB + slack


def test_peak_memory_of_training() -> None:
    """Gradients count, weights do not."""
    weight = torch.zeros(MIB // 4, requires_grad=True)

    def clear() -> None:
        weight.grad = None

    case = Case('', lambda: weight.sum().backward(), clear=clear)
    (found,) = measure.measure_interleaved([case], 0, CPU).values()
    assert MIB <= found.peak <= 2 * MIB + 1024
    assert weight.grad is None


def test_memory_is_limited() -> None:
    """Linux would grant more than there is, and kill the process when it is used."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = measure._kilobytes(Path('/proc/self/status'), 'VmSize') * 1024
    available = measure._kilobytes(Path('/proc/meminfo'), 'MemAvailable') * 1024
    with pytest.raises(RuntimeError) as caught, measure.limited_memory(CPU):  # noqa: PT012
        assert before < resource.getrlimit(resource.RLIMIT_AS)[0] < before + available
        torch.empty(available, dtype=torch.uint8)
    assert measure.is_out_of_memory(caught.value)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError('CUDA out of memory'), True),
        (RuntimeError('std::bad_alloc'), True),
        (RuntimeError('shapes do not fit'), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert measure.is_out_of_memory(error) == expected


def test_profile_adds_up() -> None:
    """The time of an operator is not also counted for the operator that calls it."""
    x, layer = torch.zeros(300, 300), nn.Linear(300, 300)
    found = profile.profile_pass(lambda: [layer(x) for _ in range(20)], CPU)
    assert 0 < found['operators_s'][profile.WHOLE] < found['total_s']
    assert sum(found['operators_s'].values()) == pytest.approx(found['total_s'], rel=1e-3)
    assert found['classes_s']['matrix product'] >= found['operators_s']['aten::addmm'] > 0
    times = profile.profile_pass(lambda: None, CPU)
    assert times['classes_s'].keys() == {'outside of operators'}


def test_classes_of_operators() -> None:
    expected = {
        'aten::mkldnn_convolution': 'convolution',
        'aten::convolution_backward': 'convolution',
        'aten::_softmax_backward_data': 'softmax',
        'aten::_index_put_impl_': 'gather and scatter',
        'aten::mul_': 'elementwise',
        'aten::_scaled_dot_product_flash_attention_for_cpu': 'fused attention',
        'dat_pp::deformable_attention_backward': 'fused attention',
        'GeneratedBackwardFor_dat_pp_native_attention_defaultBackward': 'fused attention',
        'autograd::engine::evaluate_function: MmBackward0': 'autograd',
        'aten::dropout': 'rest',
    }
    assert {name: profile.class_of(name) for name in expected} == expected
    names = [name for names in profile.CLASSES.values() for name in names.split()]
    assert len(set(names)) == len(names)
