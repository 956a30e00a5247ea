"""Reading checkpoint files: where weights may be, what is refused, and that no code is run."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from tiny_models import TINY
from torch import Tensor, nn

from dat_pp import DAT
from dat_pp.weights import compare, load_pretrained, read_checkpoint

WEIGHTS = {'backbone.conv.weight': torch.arange(4.0), 'head.bias': torch.ones(2)}
OTHER = {name: -value for name, value in WEIGHTS.items()}


def wrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f'module.{name}': value for name, value in weights.items()}


LAYOUTS = {
    'mmengine': dict(state_dict=WEIGHTS, meta=dict(epoch=3), optimizer=None),
    'published': dict(model=WEIGHTS, config=None),
    'weights alone': WEIGHTS,
    'parallel': wrapped(WEIGHTS),
    'parallel, in an entry': dict(state_dict=wrapped(WEIGHTS)),
    'timm, averaged': dict(state_dict=OTHER, state_dict_ema=WEIGHTS),
    'averaged': dict(model=OTHER, model_ema=wrapped(WEIGHTS)),
    # EMAHook saves the averaged weights as state_dict.
    'mmengine, averaged': dict(state_dict=WEIGHTS, ema_state_dict=wrapped(OTHER)),
    'averaged alone': dict(ema_state_dict={'steps': torch.tensor(7), **wrapped(WEIGHTS)}),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'checkpoint.pth'


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layout(layout: str, path: Path) -> None:
    torch.save(LAYOUTS[layout], path)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.weights, WEIGHTS)
    assert (checkpoint.entry is None) == (
        LAYOUTS[layout].keys() <= wrapped(WEIGHTS).keys() | WEIGHTS.keys()
    )
    assert checkpoint.content.keys() == LAYOUTS[layout].keys()


@pytest.mark.parametrize(
    'layout',
    [
        lambda weights: weights,
        lambda weights: dict(state_dict=wrapped(weights)),
        lambda weights: dict(state_dict_ema=weights, state_dict={}),
        lambda weights: dict(ema_state_dict={'steps': torch.tensor(7), **wrapped(weights)}),
    ],
    ids=['weights alone', 'parallel', 'timm, averaged', 'averaged alone'],
)
def test_pretrained(layout: Callable, path: Path) -> None:
    """``init_cfg`` takes every layout, through the one reader."""
    source, backbone = DAT(TINY), DAT(TINY)
    torch.save(layout(source.state_dict()), path)
    load_pretrained(backbone, str(path))
    assert_same(backbone.state_dict(), source.state_dict())


def test_entries_can_be_limited(path: Path) -> None:
    """mmengine's runner knows no entry but ``state_dict``."""
    torch.save(dict(model=WEIGHTS, epoch=3), path)
    message = 'tensors by name, on their own or under state_dict; found model, epoch'
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path, entries=['state_dict'])


def test_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of mmengine, with its backends."""

    def load(url: str, map_location: str) -> dict:
        assert (url, map_location) == ('https://example.com/x.pth', 'cpu')
        return dict(state_dict=WEIGHTS)

    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', load)
    assert_same(read_checkpoint('https://example.com/x.pth').weights, WEIGHTS)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f'^no such file: {tmp_path}/absent.pth$'):
        read_checkpoint(tmp_path / 'absent.pth')
    with pytest.raises(ValueError, match=f'^{tmp_path} is a folder; expected a checkpoint file$'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        ([1, 2], 'found list'),
        (torch.ones(2), 'found Tensor'),
        ({}, 'found dict'),
        (dict(epoch=3), 'found epoch'),
        (dict(model={}), 'found model'),
        (dict(model={'a': 3}), 'found model'),
        (dict(state_dict={3: torch.ones(1)}), 'found state_dict'),
        (dict(WEIGHTS, epoch=3), 'found backbone.conv.weight, head.bias, epoch'),
        ({f'a{i}': i for i in range(10)}, 'found a0, a1, a2, a3, a4, a5, a6, a7 and 2 more'),
        (dict(model=nn.Linear(1, 1)), 'found model'),
    ],
)
def test_no_weights(content: object, found: str, path: Path) -> None:
    """One line, also where the weights are to initialize a backbone."""
    torch.save(content, path)
    for read in (read_checkpoint, lambda path: load_pretrained(DAT(TINY), str(path))):
        with pytest.raises(ValueError, match=f'^{path} holds no weights: expected') as error:
            read(path)
        assert str(error.value).endswith(found)
        assert '\n' not in str(error.value)


def truncated(path: Path) -> None:
    torch.save(dict(model=torch.rand(10_000)), path)
    path.write_bytes(path.read_bytes()[:-10_000])


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('a', 'b')


@pytest.mark.parametrize(
    'make',
    [
        truncated,
        other_zip,
        lambda path: path.write_bytes(b''),
        lambda path: path.write_text('<html>quota exceeded</html>'),
        lambda path: path.write_bytes(pickle.dumps([1, 2])[:-1]),
        lambda path: torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path),
    ],
    ids=['truncated', 'other zip', 'empty', 'web page', 'half a pickle', 'TorchScript'],
)
def test_damaged_file(make: Callable, path: Path, recwarn: pytest.WarningsRecorder) -> None:
    make(path)
    recwarn.clear()
    with pytest.raises(ValueError, match=f'^cannot read {path}: .*not a PyTorch checkpoint') as e:
        read_checkpoint(path)
    assert '\n' not in str(e.value)
    assert not recwarn.list


# No code of a file is run


CALLS = []


def called(*args: object) -> dict:
    CALLS.append(args)
    return {}


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


class Settings(dict):
    """As yacs pickles its settings: items, and attributes beside them."""

    def __init__(self, items: dict) -> None:
        super().__init__(items)
        self.__dict__['__immutable__'] = True


def test_functions_are_not_called(path: Path) -> None:
    content = dict(model=WEIGHTS, config=Call(called, 'x'), other=[Call(exec, 'raise OSError')])
    torch.save(content, path)
    assert_same(read_checkpoint(path).weights, WEIGHTS)
    assert CALLS == []
    torch.save(Call(called, 'x'), path)
    torch.load(path, weights_only=False)
    assert CALLS.pop() == ('x',)  # the file does call


def test_pretrained_runs_no_code(path: Path) -> None:
    source, backbone = DAT(TINY), DAT(TINY)
    torch.save(dict(state_dict=source.state_dict(), meta=Call(called, 'x')), path)
    load_pretrained(backbone, str(path))
    assert CALLS == []
    assert_same(backbone.state_dict(), source.state_dict())


@pytest.mark.parametrize('zipped', [True, False])
def test_shell_commands_are_refused(zipped: bool, path: Path, tmp_path: Path) -> None:
    touched = tmp_path / 'touched'
    content = dict(model=WEIGHTS, config=Call(os.system, f'touch {touched}'))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match='unsafe' if zipped else 'damaged'):
        read_checkpoint(path)
    assert not touched.exists()


def test_weights_that_are_a_call(path: Path) -> None:
    torch.save(dict(model=Call(called, 1)), path)
    with pytest.raises(ValueError, match='holds no weights'):
        read_checkpoint(path)
    assert CALLS == []


def test_objects_beside_the_weights(path: Path) -> None:
    """What mmengine's runner, yacs and numpy leave in files; plain data stay readable."""
    history = HistoryBuffer([1.0], [1])
    meta = dict(epoch=3, time=np.float64(2.5), sizes=np.arange(3))
    settings = Settings(dict(DATA=Settings(dict(IMG_SIZE=384)), path=Path('x')))
    content = dict(state_dict=WEIGHTS, message_hub=dict(loss=history), meta=meta, config=settings)
    torch.save(content, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.weights, WEIGHTS)
    assert checkpoint.content['meta']['epoch'] == 3
    assert checkpoint.content['config']['DATA']['IMG_SIZE'] == 384


def test_file_of_before_pytorch_1_6(path: Path) -> None:
    torch.save(dict(state_dict=WEIGHTS), path, _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(path).weights, WEIGHTS)


# What does not fit


def test_mismatch() -> None:
    model = nn.Linear(2, 3)
    assert not compare(model, model.state_dict())
    weights = {'weight': torch.ones(3, 4), **{f'x{i}': torch.ones(1) for i in range(5)}}
    mismatch = compare(model, weights)
    assert len(mismatch) == 7
    assert str(mismatch) == (
        'missing bias; unexpected x0, x1, x2 and 2 more; '
        'size mismatch: weight is (3, 4) instead of (3, 2)'
    )
