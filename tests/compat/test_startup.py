"""The start-up hook, in a folder that Python reads .pth files from."""

from pathlib import Path

import mmengine
import pytest
from fresh import python

from dat_pp.compat import startup

PACKAGES = Path(mmengine.__file__).parents[1]


def test_install_status_remove(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def run(action: str) -> str:
        startup.main([action, '--folder', str(tmp_path)])
        return capsys.readouterr().out

    assert run('status').endswith(': not installed\n')
    assert run('install').endswith(': installed\n')
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        '_dat_pp_imports.py',
        'dat_pp_startup.pth',
    ]
    assert run('status').endswith(': installed\n')
    (tmp_path / '_dat_pp_imports.py').write_text('# older\n')
    assert 'another version' in run('status')
    assert run('remove').endswith(': not installed\n')
    assert list(tmp_path.iterdir()) == []
    assert run('remove').endswith(': not installed\n')


def test_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        startup.main(['install', '--folder', str(tmp_path / 'none')])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("_dat_pp_imports.py'")


def test_start_up_imports_one_module(tmp_path: Path) -> None:
    """What Python pays at start-up, whether or not the program uses mmengine."""
    startup.install(str(tmp_path))
    code = (
        'import site, sys; before = set(sys.modules)\n'
        f'site.addsitedir({str(tmp_path)!r}); print(*set(sys.modules) - before)'
    )
    done = python(tmp_path, '-I', '-c', code)
    assert done.stdout == '_dat_pp_imports\n', done.stderr


@pytest.mark.slow
def test_without_the_package(tmp_path: Path) -> None:
    """Left behind by an uninstallation, it changes nothing and says nothing."""
    startup.install(str(tmp_path))
    (tmp_path / 'mine.py').write_text("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'\n")
    code = (
        f'import site, sys; site.addsitedir({str(tmp_path)!r})\n'
        'from mmengine import Config; import mmengine.runner\n'
        "print(Config.fromfile('mine.py').train_cfg.max_epochs, 'dat_pp' in sys.modules)"
    )
    # Without site-packages' own .pth files, one of which leads to this package.
    done = python(tmp_path, '-S', '-c', code, path=str(PACKAGES))
    assert (done.stdout, done.stderr) == ('12 False\n', '')


@pytest.mark.slow
def test_package_that_cannot_be_imported(tmp_path: Path) -> None:
    """One line, and the program that imports mmengine goes on."""
    startup.install(str(tmp_path))
    (tmp_path / 'dat_pp.py').write_text("raise ImportError('torch is too old')\n")
    code = f'import site; site.addsitedir({str(tmp_path)!r}); import mmengine.runner; print(1)'
    done = python(tmp_path, '-c', code, path=str(tmp_path))
    assert (done.stdout, done.returncode) == ('1\n', 0)
    assert done.stderr == 'dat_pp cannot be imported: torch is too old\n'


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    command = ['-m', 'dat_pp.compat.startup', 'status', '--folder', tmp_path]
    done = python(tmp_path, *command)
    assert done.stdout == f'{tmp_path}/dat_pp_startup.pth: not installed\n', done.stderr
