"""User-defined modules: copied to the workdir with their imports, and importable from there."""

import importlib
import sys

import pytest

from vision.core import own_code


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An imported user-defined package, and a module beside it that the package imports."""
    root = tmp_path / 'mine'
    # A folder called 'lib' is not a library.
    (root / 'my_package' / 'lib').mkdir(parents=True)
    (root / 'my_package' / '__init__.py').touch()
    (root / 'my_package' / 'lib' / 'words.py').write_text('from my_helper import WORD\n')
    (root / 'my_package' / 'task.py').write_text('from my_package.lib.words import WORD\n')
    (root / 'my_helper.py').write_text("WORD = 'kept'\n")
    (root / 'not_imported.py').touch()
    monkeypatch.setattr(sys, 'path', [str(root), *sys.path])
    importlib.import_module('my_package.task')
    yield root
    forget()


def forget():
    for name in [n for n in sys.modules if n.startswith('my_')]:
        del sys.modules[name]


def test_what_is_kept_is_imported_where_the_original_is_gone(mine, tmp_path, monkeypatch):
    workdir = tmp_path / 'run'
    own_code.keep(workdir, ['my_package.task', 'vision.task', 'numpy', 'no_such_module'])
    kept = {str(p.relative_to(workdir / 'modules')) for p in workdir.rglob('*.py')}
    files = ('__init__.py', 'task.py', 'lib/words.py')
    assert kept == {*(f'my_package/{file}' for file in files), 'my_helper.py'}

    forget()
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != str(mine)])
    with pytest.raises(ImportError):
        importlib.import_module('my_package.task')
    own_code.make_importable(workdir)
    importlib.invalidate_caches()
    found = importlib.import_module('my_package.task')
    assert found.WORD == 'kept' and found.__file__.startswith(str(workdir))


def test_a_run_that_goes_on_by_what_was_kept_keeps_it(mine, tmp_path, monkeypatch):
    workdir = tmp_path / 'run'
    own_code.keep(workdir, ['my_package.task'])
    forget()
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != str(mine)])
    own_code.make_importable(workdir)
    importlib.invalidate_caches()
    importlib.import_module('my_package.task')
    before = {path: path.read_bytes() for path in workdir.rglob('*.py')}
    own_code.keep(workdir, ['my_package.task'])
    assert {path: path.read_bytes() for path in workdir.rglob('*.py')} == before


def test_the_original_comes_first(mine, tmp_path):
    workdir = tmp_path / 'run'
    own_code.keep(workdir, ['my_package.task'])
    forget()
    own_code.make_importable(workdir)
    assert importlib.import_module('my_package.task').__file__.startswith(str(mine))


def test_a_workdir_without_modules_changes_nothing(tmp_path):
    before = list(sys.path)
    own_code.make_importable(tmp_path)
    assert sys.path == before
