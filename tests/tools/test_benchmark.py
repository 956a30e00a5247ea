"""benchmark.py: what runs in which order, memory of known functions, results, mistakes."""

import importlib.util
import json
import os
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch import nn

from dat_pp import DAT
from dat_pp.benchmark import cases, figure, measure, operators, plan, profile, report, results
from dat_pp.benchmark import run as benchmark
from dat_pp.benchmark.measure import Case
from dat_pp.engine.errors import run_main

CPU = torch.device('cpu')
VARIABLE = 'DAT_PP_BACKEND'
SHORT = dict(base='dat-t++', mixers=['ND', 'N', 'D', 'D'])
MIB = 2**20


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five blocks in place of DAT-T++, and a small matrix product."""
    build = cases.build_model
    monkeypatch.setattr(
        cases, 'build_model', lambda name: DAT(SHORT) if name == 'dat-t++' else build(name)
    )
    monkeypatch.setitem(operators.MATRIX_SIZE, 'cpu', 64)


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


def run(folder: Path, *arguments: str) -> tuple[int, list[dict]]:
    """Exit code and results of one run."""
    code = run_main(benchmark.main, [*arguments, '--out-dir', str(folder)])
    return code, json.loads((folder / report.JSON).read_text())['results']


# Runs


@pytest.mark.slow
def test_models(short: None, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    threads, folder = torch.get_num_threads(), tmp_path / 'a' / 'b'
    names = ['dat-t++', 'dat-t++:reference', 'swin-t', 'convnext-t']
    code, rows = run(folder, '--sizes', '2x64x48', '--repeat', '2', '--threads', '1')
    assert code == 0
    assert torch.get_num_threads() == threads
    assert [(row['pass'], row['name']) for row in rows] == [
        (mode, name) for mode in ('forward', 'train') for name in [*names, 'matrix product']
    ]
    for row in rows:
        assert len(row['times_s']) == 2
        assert row['median_s'] == statistics.median(row['times_s'])
        assert row['error'] is None
    first, reference, *baselines, product = rows[:5]
    assert first['macs'] == reference['macs'] > 0
    assert all(row['macs'] for row in baselines)
    assert rows[5]['macs'] == 3 * first['macs']
    assert product['macs'] == 64**3

    data = json.loads((folder / 'benchmark.json').read_text())
    assert data['complete']
    assert data['machine']['threads'] == 1
    assert data['versions']['torch'] == torch.__version__
    assert data['arguments']['repeat'] == 2
    out, err = capfd.readouterr()
    assert 'profiler' not in err
    table = (folder / 'benchmark.md').read_text()
    assert table.strip() in out
    lines = [line for line in table.splitlines() if line.startswith('|')]
    assert [cell.strip() for cell in lines[0].split('|')[1:-1]] == [
        *('size', 'pass', 'case', 'time (ms)', 'x swin-t', 'x convnext-t'),
        *('images/s', 'memory (MiB)', 'limit (ms)', 'time / limit'),
    ]
    assert len(lines) == 2 + len(rows)
    cells = [cell.strip() for cell in lines[2].split('|')[1:-1]]
    assert cells[:3] == ['2 x 64 x 48', 'forward', 'dat-t++']
    ratio = first['median_s'] / baselines[0]['median_s']
    assert float(cells[4]) == pytest.approx(ratio, rel=0.01)
    assert float(cells[7]) == pytest.approx(first['peak_bytes'] / MIB, rel=0.01)
    assert {path.name for path in folder.iterdir()} == set(report.FILES)
    pixels = matplotlib.image.imread(folder / 'benchmark.png')
    assert pixels.shape[1] == 1800
    assert pixels[..., :3].std() > 0.05


@pytest.mark.slow
def test_operators(short: None, tmp_path: Path) -> None:
    code, rows = run(tmp_path, '--operators', '--sizes', '64', '--repeat', '1', '--passes', 'train')
    assert code == 0
    names = list(plan.DEFAULT_OPERATORS)
    expected = [(stage, name) for stage in (1, 2, 3) for name in [*names, 'matrix product']]
    # The last stage of DAT-T++ has no neighborhood attention.
    expected += [(4, name) for name in names if 'neighborhood' not in name]
    expected.append((4, 'matrix product'))
    assert [(row['stage']['stage'], row['name']) for row in rows] == expected
    assert all(row['error'] is None and row['times_s'] for row in rows)
    macs = {(row['stage']['stage'], row['name']): row['macs'] for row in rows}
    # Queries, heads, head size, keys, two matrix products, and three times them in training.
    assert macs[1, 'deformable_attention'] == 256 * 2 * 32 * 4 * 2 * 3
    assert macs[1, 'scaled_dot_product_attention'] == macs[1, 'deformable_attention']
    assert macs[2, 'neighborhood_attention'] == 64 * 4 * 32 * 49 * 2 * 3
    assert macs[3, 'neighborhood_attention'] == 49 * 8 * 32 * 49 * 2 * 3  # padded to 7 x 7
    table = (tmp_path / 'benchmark.md').read_text()
    assert '| 1: 16 x 16, 2 heads |' in table
    assert 'x scaled_dot_product_attention' in table


def test_operators_run_in_mixed_precision() -> None:
    setting, size = cases.Setting(CPU, amp=True), cases.Size(1, 64, 64)
    shapes = operators.stage_shapes(size)[1]
    for mode in cases.PASSES:
        for case in operators.operator_cases(plan.DEFAULT_OPERATORS, size, shapes, mode, setting):
            case.run()


def test_interrupt(
    linear: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    finished = []

    def interrupted(*args: object) -> object:
        if len(finished) == 2:
            on_disk = json.loads((tmp_path / 'benchmark.json').read_text())
            assert len(on_disk['results']) == 4
            raise KeyboardInterrupt
        finished.append(1)
        return measure.measure_interleaved(*args)

    monkeypatch.setattr(benchmark, 'measure_interleaved', interrupted)
    code, rows = run(tmp_path, '--models', 'dat-t', '--sizes', '32', '40', '--repeat', '1')
    assert code == 130
    assert [(row['size']['height'], row['pass']) for row in rows[::2]] == [
        *((32, 'forward'), (32, 'train'))
    ]
    assert not json.loads((tmp_path / 'benchmark.json').read_text())['complete']
    assert 'interrupted' in (tmp_path / 'benchmark.md').read_text().splitlines()[0]
    assert (tmp_path / 'benchmark.png').exists()
    assert 'interrupted: what was measured is kept' in capfd.readouterr().err


def test_interrupt_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, 'cases_of', interrupt)
    assert benchmark.main(['--models', 'dat-t', '--out-dir', str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []
    assert 'interrupted: nothing was measured yet' in capfd.readouterr().err


def test_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is reported in the results and by the exit code."""
    monkeypatch.setattr(cases, 'build_model', lambda name: nn.Linear(7, 7))
    code, rows = run(tmp_path, '--models', 'dat-t', '--sizes', '32', '--repeat', '1')
    assert code == 1
    assert [row['error'] is None for row in rows] == [False, True] * 2
    assert 'shapes cannot be multiplied' in rows[0]['error']


def test_out_of_memory(linear: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that asks for more than the machine has is not run again; the others are."""
    build, calls = cases.build_model, []

    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            if not x.is_meta:
                calls.append(1)
            return (x.new_empty(2**46),)

    monkeypatch.setattr(
        cases, 'build_model', lambda name: Greedy() if name == 'dat-b' else build(name)
    )
    limits = resource.getrlimit(resource.RLIMIT_AS)
    code, (greedy, other, product) = run(
        tmp_path, '--models', 'dat-b', 'dat-t', '--sizes', '32', '--repeat', '2',
        '--passes', 'forward',
    )  # fmt: skip
    assert code == 0
    assert len(calls) == 1
    assert (greedy['error'], greedy['times_s'], greedy['median_s']) == ('out of memory', [], None)
    assert other['error'] is product['error'] is None
    assert len(other['times_s']) == 2
    lines = (tmp_path / 'benchmark.md').read_text().splitlines()
    assert 'out of memory' in next(line for line in lines if 'dat-b' in line)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@pytest.mark.slow
def test_profile(short: None, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    arguments = ['--profile', '--models', 'dat-t++', 'dat-t++:reference', '--sizes', '64']
    assert benchmark.main([*arguments, '--out-dir', str(tmp_path)]) == 0
    rows = json.loads((tmp_path / 'profile.json').read_text())['results']
    assert [(row['name'], row['pass']) for row in rows] == [
        *(('dat-t++', 'forward'), ('dat-t++:reference', 'forward')),
        *(('dat-t++', 'train'), ('dat-t++:reference', 'train')),
    ]
    for row in rows:
        for times in (row['classes_s'], row['operators_s']):
            assert sum(times.values()) == pytest.approx(row['total_s'], rel=1e-3)
            assert list(times.values()) == sorted(times.values(), reverse=True)
        attention = 'softmax' if 'reference' in row['name'] else 'fused attention'
        assert {'convolution', 'matrix product', 'sampling', attention} <= row['classes_s'].keys()
    assert 'autograd' not in rows[0]['classes_s']
    assert 'autograd' in rows[2]['classes_s']
    table = (tmp_path / 'profile.md').read_text()
    out, err = capfd.readouterr()
    assert table.strip() in out
    assert 'profiler' not in err
    assert table.count('\n| all ') == 2
    assert {path.name for path in tmp_path.iterdir()} == set(report.PROFILE_FILES)


# Cases


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
    with pytest.raises(KeyError), cases.forced('reference'):
        raise KeyError
    assert os.environ.get(VARIABLE) == user


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


# Measurements


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


# Results


def test_row() -> None:
    """The arithmetic of a row, by hand."""
    members = [
        Case('a', lambda: None, macs=30),
        Case('b', lambda: None),
        Case('matrix product', lambda: None, macs=1000),
    ]
    times = {'a': [4.0, 1.0, 2.0, 10.0, 3.0], 'b': [2.0], 'matrix product': [5.0, 10.0, 90.0]}
    found = {name: measure.Measurement(list(t), 7) for name, t in times.items()}
    group = plan.Group(cases.Size(6, 1, 1), 'forward', None, ['a', 'b'])
    a, b, product = results.rows(group, members, found)
    assert product['macs_per_s'] == 100
    assert (a['median_s'], a['quartiles_s']) == (3, [2, 4])
    assert (a['limit_s'], a['time_over_limit']) == (0.3, 10)
    assert (a['images_per_s'], a['peak_bytes'], a['times_s']) == (2, 7, times['a'])
    assert (b['median_s'], b['quartiles_s'], b['limit_s']) == (2, [2, 2], None)
    assert b['time_over_limit'] is None


def test_numbers_have_three_digits() -> None:
    texts = [report.number(x) for x in (None, 0, 1234.5, 12.345, 0.5, 0.001234)]
    assert texts == ['-', '0', '1234', '12.3', '0.500', '0.00123']


def test_figure_with_gaps(tmp_path: Path) -> None:
    """Models and operators, with an error, without a limit, with one stage only."""
    rows = []
    size = cases.Size(1, 64, 64)
    shapes = operators.stage_shapes(size)
    for stage in (None, shapes[0], shapes[3]):
        group = plan.Group(size, 'train', stage, [])
        members = [
            Case(name, lambda: None, macs=macs)
            for name, macs in (('dat-t++', None), ('swin-t', 9), ('matrix product', 1))
        ]
        found = {
            'dat-t++': measure.Measurement([], None, 'out of memory'),
            'swin-t': measure.Measurement([0.1, 0.2], 1000),
            'matrix product': measure.Measurement([0.1], 0),
        }
        rows += results.rows(group, members, found)
    data = dict(
        results=rows,
        machine=dict(cpu='Some CPU', threads=2),
        versions=dict(torch='2'),
        date='2030-01-02T03:04:05',
        dtype='float32',
        complete=True,
    )
    assert report.conditions(data) == 'Some CPU, 2 threads, float32, PyTorch 2, 2030-01-02'
    figure.draw(data, tmp_path / 'a.png')
    assert matplotlib.image.imread(tmp_path / 'a.png')[..., :3].std() > 0.02
    assert report.tables(data).count('out of memory') == 3


# Mistakes


def test_sizes() -> None:
    parsed = {text: str(plan.parse_size(text)) for text in ('224', '512x2048', '8x224x192')}
    assert parsed == {
        '224': '1 x 224 x 224', '512x2048': '1 x 512 x 2048', '8x224x192': '8 x 224 x 192'
    }  # fmt: skip


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ('--models dat-x', "--models: unknown 'dat-x'; choose one of dat-t, "),
        ('--models dat-t:fast', "--models: unknown backend 'fast' in 'dat-t:fast'; choose one of"),
        ('--models dat-t:', "--models: unknown backend '' in 'dat-t:'"),
        ('--models swin-t:reference', '--models: swin-t has no backends'),
        ('--operators softmax', "--operators: unknown 'softmax'; choose one of"),
        ('--operators scaled_dot_product_attention:triton', 'has no backends'),
        ('--sizes 224,224', "--sizes: '224,224' is not H, HxW or BATCHxHxW"),
        ('--sizes 1x2x3x4', "--sizes: '1x2x3x4' is not"),
        ('--sizes 0x224x224', "--sizes: batch and sides must be at least 1, got '0x224x224'"),
        ('--passes back', 'invalid choice'),
        ('--repeat 0', '--repeat must be at least 1, got 0'),
        ('--threads 0', '--threads must be at least 1, got 0'),
        ('--device cuda', '--device cuda: no CUDA device is available'),
        ('--profile --operators', '--profile is for models'),
    ],
)
def test_mistakes(
    arguments: str,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    folder = tmp_path / 'out'
    try:
        code = run_main(benchmark.main, [*arguments.split(), '--out-dir', str(folder)])
    except SystemExit as stopped:  # argparse's own
        code = stopped.code
    assert code == 2
    out, err = capsys.readouterr()
    assert expected in err.splitlines()[-1]
    assert 'usage' in err or len(err.splitlines()) == 1
    assert not out
    assert not folder.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='triton can run there')
def test_backend_that_cannot_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    name = 'deformable_attention:triton'
    arguments = ['--operators', name, '--out-dir', str(tmp_path / 'out')]
    assert run_main(benchmark.main, arguments) == 2
    assert f"--operators: '{name}' cannot run: " in capsys.readouterr().err


@pytest.mark.parametrize('name', report.FILES)
def test_nothing_is_overwritten(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / name).write_text('mine')
    assert run_main(benchmark.main, ['--models', 'dat-t', '--out-dir', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{name} exists; nothing is overwritten' in line
    assert (tmp_path / name).read_text() == 'mine'
    assert len(list(tmp_path.iterdir())) == 1


def test_out_dir_below_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / 'file').touch()
    folder = str(tmp_path / 'file' / 'below')
    assert run_main(benchmark.main, ['--models', 'dat-t', '--out-dir', folder]) == 2
    assert 'not a folder that can be written to' in capsys.readouterr().err


def test_missing_library(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert run_main(benchmark.main, ['--out-dir', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "swin-t needs 'mmpretrain', which is not installed: pip install" in line
    assert 'onedl-mmpretrain' in line
