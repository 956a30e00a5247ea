"""benchmark.py: complete runs, interruptions and failures, results, mistakes."""

import importlib.util
import json
import resource
import statistics
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch import nn

from dat_pp import DAT
from dat_pp.benchmark import cases, figure, measure, operators, plan, report, results
from dat_pp.benchmark import run as benchmark
from dat_pp.benchmark.measure import Case
from dat_pp.engine.errors import run_main
from dat_pp.ops import triton

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
def pointwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pointwise layer in place of every model."""
    monkeypatch.setattr(cases, 'build_model', lambda name: nn.Conv2d(3, 4, 1))


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


def test_interrupt(
    pointwise: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
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
    """An error is reported in the results and by the exit code; a repeated size is one."""
    monkeypatch.setattr(cases, 'build_model', lambda name: nn.Linear(7, 7))
    code, rows = run(tmp_path, '--models', 'dat-t', '--sizes', '32', '1x32x32', '--repeat', '1')
    assert code == 1
    assert [row['error'] is None for row in rows] == [False, True] * 2
    assert 'shapes cannot be multiplied' in rows[0]['error']


def test_out_of_memory(pointwise: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(triton, 'interpreted', lambda: False)
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
