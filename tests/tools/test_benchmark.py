"""benchmark.py: what is run in which order, memory of known functions, files, mistakes."""

import importlib.util
import json
import os
import resource
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
from torch import nn

from dat_pp import DAT
from dat_pp.benchmark import cases, measure, profile, report
from dat_pp.benchmark import run as main
from dat_pp.engine.errors import run_main
from dat_pp.ops import deformable, neighborhood

CPU = torch.device('cpu')
MODULES = {'deformable_attention': deformable, 'neighborhood_attention': neighborhood}
VARIABLE = 'DAT_PP_BACKEND'
SHORT = dict(base='dat-t++', mixers=['ND', 'N', 'D', 'D'])
SHORT_RUN = ['--models', 'dat-t', '--sizes', '32', '--repeat', '1']
MIB = 2**20


@pytest.fixture(scope='session')
def tool() -> SimpleNamespace:
    """The benchmark's modules."""
    return SimpleNamespace(
        main=main, contestants=cases, measure=measure, profile=profile, report=report
    )


@pytest.fixture
def small(tool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of five blocks in the place of DAT-T++, a small matrix product."""
    build = tool.contestants.build_model
    monkeypatch.setattr(
        tool.contestants,
        'build_model',
        lambda name: DAT(SHORT) if name == 'dat-t++' else build(name),
    )
    monkeypatch.setitem(tool.contestants.MATRIX_SIZE, 'cpu', 64)


def _run(tool: SimpleNamespace, folder: Path, *arguments: str) -> tuple[int, list[dict]]:
    """Exit code and results of one run."""
    code = run_main(tool.main.main, [*arguments, '--out-dir', str(folder)])
    return code, json.loads((folder / tool.report.JSON).read_text())['results']


def _contestant(tool: SimpleNamespace, name: str, run: Callable, **options: object) -> object:
    return tool.measure.Contestant(name, run, **options)


def test_models(
    small: None, tool: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    threads = torch.get_num_threads()
    names = ['dat-t++', 'dat-t++:reference', 'swin-t', 'convnext-t']
    arguments = ['--sizes', '2x64x48', '32', '--repeat', '2', '--threads', '1']
    code, results = _run(tool, tmp_path / 'a' / 'b', *arguments)
    assert code == 0
    assert torch.get_num_threads() == threads
    expected = [
        (size, kind, name)
        for size in ((2, 64, 48), (1, 32, 32))
        for kind in ('forward', 'train')
        for name in [*names, 'matrix product']
    ]
    assert [(tuple(r['size'].values()), r['pass'], r['name']) for r in results] == expected
    for row in results:
        assert len(row['times_s']) == 2
        assert row['median_s'] == statistics.median(row['times_s'])
        assert row['error'] is None
        low, high = row['quartiles_s']
        assert min(row['times_s']) <= low <= row['median_s'] <= high <= max(row['times_s'])
    first, reference, *others, product = results[:5]
    assert first['multiply_adds'] == reference['multiply_adds'] > 0
    assert all(row['multiply_adds'] for row in others)
    assert results[5]['multiply_adds'] == 3 * first['multiply_adds']
    assert first['images_per_s'] == 2 / first['median_s']
    assert product['multiply_adds'] == 64**3
    assert first['limit_s'] == pytest.approx(first['multiply_adds'] / (64**3 / product['median_s']))
    assert first['time_over_limit'] == pytest.approx(first['median_s'] / first['limit_s'])

    data = json.loads((tmp_path / 'a' / 'b' / 'benchmark.json').read_text())
    assert data['complete']
    assert data['machine']['threads'] == 1
    assert data['versions']['torch'] == torch.__version__
    assert data['arguments']['repeat'] == 2
    out, err = capfd.readouterr()
    assert 'profiler' not in err
    table = (tmp_path / 'a' / 'b' / 'benchmark.md').read_text()
    assert table.strip() in out
    lines = [line for line in table.splitlines() if line.startswith('|')]
    assert [cell.strip() for cell in lines[0].split('|')[1:-1]] == [
        *('size', 'pass', 'contestant', 'time (ms)', 'x swin-t', 'x convnext-t'),
        *('images/s', 'memory (MiB)', 'limit (ms)', 'time / limit'),
    ]
    assert len(lines) == 2 + len(expected)
    cells = [cell.strip() for cell in lines[2].split('|')[1:-1]]
    assert cells[:3] == ['2 x 64 x 48', 'forward', 'dat-t++']
    ratio = first['median_s'] / others[0]['median_s']
    assert float(cells[4]) == pytest.approx(ratio, rel=0.01)
    assert float(cells[7]) == pytest.approx(first['peak_bytes'] / MIB, rel=0.01)
    assert {path.name for path in (tmp_path / 'a' / 'b').iterdir()} == set(tool.report.FILES)
    pixels = matplotlib.image.imread(tmp_path / 'a' / 'b' / 'benchmark.png')
    assert pixels.shape[1] == 1800
    assert pixels[..., :3].std() > 0.05


def test_multiply_adds_of_a_model(tool: SimpleNamespace) -> None:
    """Products alone; norms and the like, which get_flops.py counts too, are not in it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(2))
    model.append(nn.Linear(16, 5))
    image = torch.zeros(2, 3, 4, 4)
    assert tool.contestants.count_products(model, image) == 2 * (3 * 9 * 8 * 16 + 8 * 16 * 5)
    broken = nn.Linear(7, 7)
    assert tool.contestants.count_products(broken, image) is None


def test_models_are_alike(tool: SimpleNamespace) -> None:
    """Four maps each, nothing random, gradients everywhere."""
    for name in ('dat-t', *tool.contestants.OTHER_MODELS):
        model = tool.contestants.build_model(name)
        model.train()
        image = torch.zeros(1, 3, 64, 64)
        once, twice = model(image), model(image)
        assert [out.shape[-1] for out in once] == [16, 8, 4, 2]
        assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_passes(tool: SimpleNamespace) -> None:
    models = tool.contestants.Models(tool.contestants.Setting(CPU))
    model = models.built['dat-t'] = nn.Conv2d(3, 4, 1)
    seen = []
    model.register_forward_hook(
        lambda _, args, out: seen.append((model.training, out.requires_grad, len(args[0])))
    )
    size = tool.contestants.Size(2, 8, 8)
    (contestant,) = models.contestants(['dat-t'], size, 'forward')
    seen.clear()
    contestant.run()
    assert model.weight.grad is None
    (contestant,) = models.contestants(['dat-t'], size, 'train')
    contestant.run()
    assert seen == [(False, False, 2), (True, True, 2)]
    torch.manual_seed(0)
    expected = torch.autograd.grad(
        model(torch.randn(2, 3, 8, 8)).square().mean(), list(model.parameters())
    )
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    contestant.clear()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_amp(tool: SimpleNamespace) -> None:
    setting = tool.contestants.Setting(CPU, amp=True)
    models = tool.contestants.Models(setting)
    model = models.built['dat-t'] = nn.Conv2d(3, 4, 1)
    dtypes = []
    model.register_forward_hook(lambda _, args, out: dtypes.append(out.dtype))
    size = tool.contestants.Size(1, 64, 64)
    (contestant,) = models.contestants(['dat-t'], size, 'train')
    contestant.run()
    assert dtypes[-1] == torch.bfloat16
    shapes = tool.contestants.stage_shapes(size)[1]
    for kind in tool.contestants.PASSES:
        names = tool.main.DEFAULT_OPERATORS
        for contestant in tool.contestants.operator_contestants(names, size, shapes, kind, setting):
            contestant.run()


@pytest.mark.parametrize('user', [None, 'blocked'])
def test_backends(
    user: str | None, small: None, tool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forced one runs, the default is not the user's variable, which stays as it was."""
    if user:
        monkeypatch.setenv(VARIABLE, user)
    else:
        monkeypatch.delenv(VARIABLE, raising=False)
    used = set()
    for operator, module in MODULES.items():
        for name, real in list(module.BACKENDS.items()):

            def record(
                *args: object, key: tuple = (operator, name), run: Callable = real.run
            ) -> object:
                used.add((*key, os.environ.get(VARIABLE)))
                return run(*args)

            monkeypatch.setitem(module.BACKENDS, name, replace(real, run=record))
    models = tool.contestants.Models(tool.contestants.Setting(CPU))
    names = ['dat-t++', 'dat-t++:blocked', 'dat-t++:reference']
    size = tool.contestants.Size(1, 64, 64)
    found = {}
    for contestant in models.contestants(names, size, 'train'):
        used.clear()
        contestant.run()
        found[contestant.name] = set(used)
        assert os.environ.get(VARIABLE) == user
    for name, backend in zip(names, ('native', 'blocked', 'reference'), strict=True):
        forced = name.partition(':')[2] or None
        assert found[name] == {(operator, backend, forced) for operator in MODULES}
    assert list(models.built) == ['dat-t++']


def test_backend_is_restored_after_an_error(
    tool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, 'blocked')
    with pytest.raises(KeyError), tool.contestants.forced('reference'):
        raise KeyError
    assert os.environ[VARIABLE] == 'blocked'


def test_operators(small: None, tool: SimpleNamespace, tmp_path: Path) -> None:
    arguments = ['--operators', '--sizes', '64', '--repeat', '1', '--passes', 'train']
    code, results = _run(tool, tmp_path, *arguments)
    assert code == 0
    names = list(tool.main.DEFAULT_OPERATORS)
    assert len(names) == 5
    expected = [(stage, name) for stage in (1, 2, 3) for name in [*names, 'matrix product']]
    # The last stage of DAT-T++ has no neighborhood attention.
    expected += [(4, name) for name in names if 'neighborhood' not in name]
    expected.append((4, 'matrix product'))
    assert [(row['stage']['stage'], row['name']) for row in results] == expected
    assert all(row['error'] is None and row['times_s'] for row in results)
    counted = {(row['stage']['stage'], row['name']): row['multiply_adds'] for row in results}
    # Queries, heads, head size, keys, and products of both passes.
    assert counted[1, 'deformable_attention'] == 256 * 2 * 32 * 4 * 2 * 3
    assert counted[1, 'scaled_dot_product_attention'] == counted[1, 'deformable_attention']
    assert counted[2, 'neighborhood_attention'] == 64 * 4 * 32 * 49 * 2 * 3
    assert counted[3, 'neighborhood_attention'] == 49 * 8 * 32 * 49 * 2 * 3  # padded to 7 x 7
    table = (tmp_path / 'benchmark.md').read_text()
    assert '| 1: 16 x 16, 2 heads |' in table
    assert 'x scaled_dot_product_attention' in table


def test_shapes_are_those_of_the_model(
    tool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, setting = {}, tool.contestants.Setting(CPU)
    for name, module in MODULES.items():

        def record(*args: object, name: str = name, run: Callable = module.reference.run) -> object:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            call = name, *((tuple(x.shape), x.dtype) for x in tensors)
            seen[call] = len(seen)
            return run(*args)

        fake = replace(module.BACKENDS['native'], run=record)
        monkeypatch.setitem(module.BACKENDS, 'native', fake)
    size = tool.contestants.Size(1, 70, 100)
    arch = dict(base='dat-t++', mixers=['ND', 'ND', 'ND', 'D'])
    with torch.no_grad():
        DAT(arch)(torch.zeros(1, 3, 70, 100))
    of_model = set(seen)
    seen.clear()
    for shapes in tool.contestants.stage_shapes(size):
        for contestant in tool.contestants.operator_contestants(
            tool.contestants.operators_in(list(MODULES), shapes), size, shapes, 'forward', setting
        ):
            contestant.run()
    assert set(seen) == of_model
    assert len(of_model) == 7


def test_order(tool: SimpleNamespace) -> None:
    """All once, then rounds of all, each begun by another one."""
    order = []
    contestants = [_contestant(tool, name, lambda name=name: order.append(name)) for name in 'abc']
    said = []
    found = tool.measure.compete(contestants, 4, CPU, said.append)
    assert ''.join(order) == 'abc' + 'abc' + 'bca' + 'cab' + 'abc'
    assert [len(found[name].times) for name in 'abc'] == [4, 4, 4]
    assert said[0] == 'a, warm-up'
    assert said[-1] == 'c, round 4 of 4'
    assert len(said) == len(order)


def test_clock(tool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run is timed: what clears after it is not."""
    now = 0.0

    def wait(duration: float) -> None:
        nonlocal now
        now += duration

    monkeypatch.setattr(tool.measure.time, 'perf_counter', lambda: now)
    waits = iter([100, 3, 5, 4])  # the first is the warm-up
    contestant = _contestant(tool, 'a', lambda: wait(next(waits)), clear=lambda: wait(1000))
    assert tool.measure.compete([contestant], 3, CPU)['a'].times == [3, 5, 4]


def test_row(tool: SimpleNamespace) -> None:
    """The arithmetic of a row, by hand."""
    contestants = [
        _contestant(tool, 'a', lambda: None, products=30),
        _contestant(tool, 'b', lambda: None),
        _contestant(tool, 'matrix product', lambda: None, products=1000),
    ]
    times = {'a': [4.0, 1.0, 2.0, 10.0, 3.0], 'b': [2.0], 'matrix product': [5.0, 10.0, 90.0]}
    found = {name: tool.measure.Measurement(list(t), 7) for name, t in times.items()}
    size = tool.contestants.Size(6, 1, 1)
    group = tool.main.Group(size, 'forward', None, ['a', 'b'])
    a, b, product = tool.main.rows(group, contestants, found)
    assert product['multiply_adds_per_s'] == 100
    assert (a['median_s'], a['quartiles_s']) == (3, [2, 4])
    assert (a['limit_s'], a['time_over_limit']) == (0.3, 10)
    assert (a['images_per_s'], a['peak_bytes'], a['times_s']) == (2, 7, times['a'])
    assert (b['median_s'], b['quartiles_s'], b['limit_s']) == (2, [2, 2], None)
    assert b['time_over_limit'] is None


def test_numbers(tool: SimpleNamespace) -> None:
    number = tool.report._number
    assert [number(x) for x in (None, 0, 1234.5, 12.345, 0.5, 0.001234)] == [
        *('-', '0', '1234', '12.3', '0.500', '0.00123')
    ]


def test_peak_memory(tool: SimpleNamespace) -> None:
    """What is alive at the same time, of tensors made in the run only."""
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
    for run, expected in ((three_then_one, 3), (one_at_a_time, 1), (lambda: None, 0)):
        peaks = {tool.measure.peak_memory(_contestant(tool, '', run), CPU) for _ in range(2)}
        (peak,) = peaks
        assert expected * MIB <= peak <= expected * MIB + slack


def test_peak_memory_of_training(tool: SimpleNamespace) -> None:
    """Gradients are in it, weights are not."""
    weight = torch.zeros(MIB // 4, requires_grad=True)

    def clear() -> None:
        weight.grad = None

    contestant = _contestant(tool, '', lambda: weight.sum().backward(), clear=clear)
    (found,) = tool.measure.compete([contestant], 0, CPU).values()
    assert MIB <= found.peak <= 2 * MIB + 1024
    assert weight.grad is None


def test_out_of_memory(
    small: None, tool: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one: more than the machine has. It leaves the rounds; the others stay."""
    build, calls = tool.contestants.build_model, []

    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            if not x.is_meta:
                calls.append(1)
            return (x.new_empty(2**46),)

    monkeypatch.setattr(
        tool.contestants, 'build_model', lambda name: Greedy() if name == 'dat-b' else build(name)
    )
    limits = resource.getrlimit(resource.RLIMIT_AS)
    arguments = [
        '--models',
        'dat-b',
        'dat-t++',
        '--sizes',
        '32',
        '--repeat',
        '2',
        '--passes',
        'forward',
    ]
    code, (greedy, other, product) = _run(tool, tmp_path, *arguments)
    assert code == 0
    assert len(calls) == 1
    assert greedy['error'] == 'out of memory'
    assert greedy['times_s'] == []
    assert greedy['median_s'] is None
    assert other['error'] is product['error'] is None
    assert len(other['times_s']) == 2
    row = next(
        line for line in (tmp_path / 'benchmark.md').read_text().splitlines() if 'dat-b' in line
    )
    assert 'out of memory' in row
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_memory_is_limited(tool: SimpleNamespace) -> None:
    """Linux would give more than there is, and kill the process when it is used."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = tool.measure._kilobytes(Path('/proc/self/status'), 'VmSize') * 1024
    available = tool.measure._kilobytes(Path('/proc/meminfo'), 'MemAvailable') * 1024
    with pytest.raises(RuntimeError) as caught, tool.measure.limited_memory(CPU):  # noqa: PT012
        assert before < resource.getrlimit(resource.RLIMIT_AS)[0] < before + available
        torch.empty(available, dtype=torch.uint8)
    assert tool.measure.is_out_of_memory(caught.value)
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
def test_kinds_of_errors(error: Exception, expected: bool, tool: SimpleNamespace) -> None:
    assert tool.measure.is_out_of_memory(error) == expected


def test_failure(
    small: None, tool: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another error is told too, and in the exit code."""
    monkeypatch.setattr(tool.contestants, 'build_model', lambda name: nn.Linear(7, 7))
    arguments = ['--models', 'dat-t', '--sizes', '32', '--repeat', '1']
    code, results = _run(tool, tmp_path, *arguments)
    assert code == 1
    assert [row['error'] is None for row in results] == [False, True] * 2
    assert 'shapes cannot be multiplied' in results[0]['error']


def test_interrupt(
    small: None,
    tool: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    compete, done = tool.main.compete, []

    def interrupted(*args: object) -> object:
        if len(done) == 2:
            on_disk = json.loads((tmp_path / 'benchmark.json').read_text())
            assert len(on_disk['results']) == 4
            raise KeyboardInterrupt
        done.append(1)
        return compete(*args)

    monkeypatch.setattr(tool.main, 'compete', interrupted)
    arguments = ['--models', 'dat-t++', '--sizes', '32', '40', '--repeat', '1']
    code, results = _run(tool, tmp_path, *arguments)
    assert code == 130
    assert [(row['size']['height'], row['pass']) for row in results[::2]] == [
        *((32, 'forward'), (32, 'train'))
    ]
    assert not json.loads((tmp_path / 'benchmark.json').read_text())['complete']
    assert 'interrupted' in (tmp_path / 'benchmark.md').read_text().splitlines()[0]
    assert (tmp_path / 'benchmark.png').exists()
    assert 'interrupted: what was measured is kept' in capfd.readouterr().err


def test_interrupt_at_once(
    tool: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.main, 'contestants_of', interrupt)
    assert tool.main.main(['--models', 'dat-t', '--out-dir', str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []
    assert 'interrupted: nothing was measured yet' in capfd.readouterr().err


def test_profile(
    small: None, tool: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    arguments = ['--profile', '--models', 'dat-t++', 'dat-t++:reference', '--sizes', '64']
    assert tool.main.main([*arguments, '--out-dir', str(tmp_path)]) == 0
    results = json.loads((tmp_path / 'profile.json').read_text())['results']
    assert [(row['name'], row['pass']) for row in results] == [
        *(('dat-t++', 'forward'), ('dat-t++:reference', 'forward')),
        *(('dat-t++', 'train'), ('dat-t++:reference', 'train')),
    ]
    for row in results:
        for times in (row['classes_s'], row['operators_s']):
            assert sum(times.values()) == pytest.approx(row['total_s'], rel=1e-3)
            assert list(times.values()) == sorted(times.values(), reverse=True)
        attention = 'softmax' if 'reference' in row['name'] else 'fused attention'
        expected = {'convolution', 'matrix product', 'sampling', attention}
        assert expected <= row['classes_s'].keys()
    assert 'autograd' not in results[0]['classes_s']
    assert 'autograd' in results[2]['classes_s']
    table = (tmp_path / 'profile.md').read_text()
    out, err = capfd.readouterr()
    assert table.strip() in out
    assert 'profiler' not in err
    assert table.count('\n| all ') == 2
    assert {path.name for path in tmp_path.iterdir()} == set(tool.report.PROFILE_FILES)


def test_profile_adds_up(tool: SimpleNamespace) -> None:
    """An operator's time is not also that of the operator which calls it."""
    x = torch.zeros(300, 300)
    layer = nn.Linear(300, 300)
    found = tool.profile.profile_pass(lambda: [layer(x) for _ in range(20)], CPU)
    whole = found['operators_s'][tool.profile.WHOLE]
    assert 0 < whole < found['total_s']
    assert sum(found['operators_s'].values()) == pytest.approx(found['total_s'], rel=1e-3)
    assert found['classes_s']['matrix product'] >= found['operators_s']['aten::addmm'] > 0
    times = tool.profile.profile_pass(lambda: None, CPU)
    assert times['classes_s'].keys() == {'outside of operators'}


def test_classes(tool: SimpleNamespace) -> None:
    expected = {
        'aten::mkldnn_convolution': 'convolution',
        'aten::convolution_backward': 'convolution',
        'aten::bmm': 'matrix product',
        'aten::_softmax': 'softmax',
        'aten::_softmax_backward_data': 'softmax',
        'aten::native_layer_norm_backward': 'normalisation',
        'aten::gelu_backward': 'activation',
        'aten::grid_sampler_2d_backward': 'sampling',
        'aten::_index_put_impl_': 'gather and scatter',
        'aten::mul_': 'elementwise',
        'aten::copy_': 'copy and layout',
        'aten::roll': 'copy and layout',
        'aten::_scaled_dot_product_flash_attention_for_cpu': 'fused attention',
        'dat_pp::deformable_attention_backward': 'fused attention',
        'GeneratedBackwardFor_dat_pp_native_attention_defaultBackward': 'fused attention',
        'autograd::engine::evaluate_function: MmBackward0': 'autograd',
        'aten::dropout': 'rest',
    }
    assert {name: tool.profile.class_of(name) for name in expected} == expected
    names = [name for names in tool.profile.CLASSES.values() for name in names.split()]
    assert len(set(names)) == len(names)


def test_sizes(tool: SimpleNamespace) -> None:
    parsed = {text: str(tool.main.parse_size(text)) for text in ('224', '512x2048', '8x224x192')}
    assert parsed == {
        '224': '1 x 224 x 224',
        '512x2048': '1 x 512 x 2048',
        '8x224x192': '8 x 224 x 192',
    }


def test_defaults(tool: SimpleNamespace, tmp_path: Path) -> None:
    args = tool.main.parse_args(['--out-dir', str(tmp_path)])
    plan = tool.main.check(args)
    assert [str(size) for size in plan.sizes] == [
        *('8 x 224 x 224', '4 x 384 x 384', '1 x 512 x 2048', '1 x 800 x 1344')
    ]
    assert plan.models == ['dat-t++', 'dat-t++:reference', 'swin-t', 'convnext-t']
    assert (plan.operators, plan.passes, plan.repeat) == ([], ['forward', 'train'], 7)
    args = tool.main.parse_args(['--out-dir', str(tmp_path), '--operators'])
    plan = tool.main.check(args)
    assert (plan.models, len(plan.operators)) == ([], 5)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ('--models dat-x', "--models: unknown 'dat-x'; choose one of dat-t, "),
        ('--models dat-t:fast', "--models: unknown backend 'fast' in 'dat-t:fast'; choose one of"),
        ('--models dat-t:', "--models: unknown backend '' in 'dat-t:'"),
        ('--models swin-t:reference', '--models: swin-t has no backends'),
        ('--operators softmax', "--operators: unknown 'softmax'; choose one of"),
        ('--operators scaled_dot_product_attention:triton', 'has no backends'),
        ('--operators deformable_attention:triton', "'deformable_attention:triton' cannot run: "),
        ('--sizes 224,224', "--sizes: '224,224' is not H, HxW or BATCHxHxW"),
        ('--sizes 1x2x3x4', "--sizes: '1x2x3x4' is not"),
        ('--sizes 0x224x224', "--sizes: batch and sides must be at least 1, got '0x224x224'"),
        ('--sizes 224 -5', "--sizes: '-5' is not"),
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
    tool: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setitem(
        deformable.BACKENDS,
        'triton',
        replace(
            deformable.BACKENDS['triton'],
            unsupported_reason=lambda *_: 'there is no GPU in this test',
        ),
    )
    folder = tmp_path / 'out'
    try:
        code = run_main(tool.main.main, [*arguments.split(), '--out-dir', str(folder)])
    except SystemExit as stopped:  # argparse's own
        code = stopped.code
    assert code == 2
    out, err = capsys.readouterr()
    assert expected in err.splitlines()[-1]
    assert 'usage' in err or len(err.splitlines()) == 1
    assert not out
    assert not folder.exists()


@pytest.mark.parametrize('name', ['benchmark.json', 'benchmark.md', 'benchmark.png'])
def test_nothing_is_overwritten(
    name: str, tool: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / name).write_text('mine')
    assert run_main(tool.main.main, [*SHORT_RUN, '--out-dir', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{name} exists; nothing is overwritten' in line
    assert (tmp_path / name).read_text() == 'mine'
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_that_is_a_file(
    tool: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / 'file').touch()
    folder = str(tmp_path / 'file' / 'below')
    assert run_main(tool.main.main, [*SHORT_RUN, '--out-dir', folder]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'not a folder that can be written to' in line


def test_missing_library(
    tool: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert run_main(tool.main.main, ['--out-dir', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "swin-t needs 'mmpretrain', which is not installed: pip install" in line
    assert 'onedl-mmpretrain' in line


def test_picture_of_both(tool: SimpleNamespace, tmp_path: Path) -> None:
    """Models and operators, every kind of gap: an error, one size only, no limit."""
    rows = []
    shapes = tool.contestants.stage_shapes(tool.contestants.Size(1, 64, 64))
    for stage in (None, shapes[0], shapes[3]):
        group = tool.main.Group(tool.contestants.Size(1, 64, 64), 'train', stage, [])
        contestants = [
            _contestant(tool, name, lambda: None, products=products)
            for name, products in (('dat-t++', None), ('swin-t', 9), ('matrix product', 1))
        ]
        found = {
            'dat-t++': tool.measure.Measurement([], None, 'out of memory'),
            'swin-t': tool.measure.Measurement([0.1, 0.2], 1000),
            'matrix product': tool.measure.Measurement([0.1], 0),
        }
        rows += tool.main.rows(group, contestants, found)
    data = dict(
        results=rows,
        machine=dict(cpu='Some CPU', threads=2),
        versions=dict(torch='2'),
        date='2030-01-02T03:04:05',
        dtype='float32',
        complete=True,
    )
    assert tool.report.conditions(data) == 'Some CPU, 2 threads, float32, PyTorch 2, 2030-01-02'
    tool.report.picture(data, tmp_path / 'a.png')
    assert matplotlib.image.imread(tmp_path / 'a.png')[..., :3].std() > 0.02
    assert tool.report.tables(data).count('out of memory') == 3
