"""How errors of tools are reported, and which messages of the libraries are hidden."""

import logging
import warnings
from collections.abc import Callable

import pytest
import torch
from mmengine.logging import MMLogger

from dat_pp.engine.errors import RunError, UserError, message_of, run_main
from dat_pp.engine.noise import hide_noise, hide_printed


def failing(error: Exception) -> Callable:
    def main(argv: object) -> None:
        raise error

    return main


def test_user_error_is_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert run_main(failing(UserError('no such file: a'))) == 2
    assert capsys.readouterr().err == 'error: no such file: a\n'
    monkeypatch.setenv('DAT_PP_TRACEBACK', '1')
    assert run_main(failing(UserError('no such file: a'))) == 2
    assert 'Traceback' in capsys.readouterr().err


def test_exit_code():
    assert run_main(lambda argv: 3) == 3
    assert run_main(lambda argv: object()) == 0
    with pytest.raises(KeyError):
        run_main(failing(KeyError('a')))


@pytest.mark.parametrize('variable', ['LOCAL_RANK', 'SLURM_LOCALID'])
def test_processes_that_report(
    variable: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """One process per machine reports a mistake; each one reports a file that it cannot read."""
    monkeypatch.setenv(variable, '1')
    assert run_main(failing(UserError('a'))) == 2
    assert capsys.readouterr().err == ''
    assert run_main(failing(RunError('b'))) == 2
    assert capsys.readouterr().err == 'error: b\n'


def test_message_of_a_worker():
    """PyTorch raises a worker's exception again with its traceback as the message."""
    try:
        raise RunError('data: cannot read a.png: broken')
    except RunError:
        wrapped = torch._utils.ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(RunError) as raised:
        wrapped.reraise()
    assert message_of(raised.value) == 'data: cannot read a.png: broken'
    assert message_of(KeyError('a')) == 'a'
    assert message_of(ValueError()) == 'ValueError'


def test_noise_is_hidden_by_name(capsys: pytest.CaptureFixture):
    logger = MMLogger.get_current_instance()
    shown: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            with hide_noise():
                warnings.warn('faster_coco_eval is not installed, ...', stacklevel=1)
                warnings.warn('the learning rate is 0', stacklevel=1)
                logger.warning('The prefix is not set in metric class IoUMetric.')
                logger.warning('The prefix is not set in metric class Mine.')
    finally:
        logger.removeHandler(handler)
    assert [str(each.message) for each in caught] == ['the learning rate is 0']
    assert shown == ['The prefix is not set in metric class Mine.']
    with hide_printed():
        print('Could not import OneDL. Skipping OneDL datasets.')
        print('reading')
    assert capsys.readouterr().out == 'reading\n'
