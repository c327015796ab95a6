"""Each package's `__init__` is its table of contents: its public names, imported when they are first used."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import vision
from tests.conftest import REPO, environment

PACKAGES = ['vision'] + [
    found.name
    for found in pkgutil.walk_packages(vision.__path__, 'vision.')
    if found.ispkg
    and found.name != 'vision.models.cpu'  # nobody imports from it: it registers itself
]


def test_importing_a_package_loads_none_of_its_modules():
    code = f"""
import importlib, sys
allowed = {{'vision.core.lazy', 'vision.core.startup', 'vision.models.cpu', 'vision.models.cpu.startup'}}
for package in {PACKAGES!r}:
    importlib.import_module(package)
loaded = {{name for name in sys.modules if name.split('.')[0] == 'vision'}} - set({PACKAGES!r})
assert loaded == allowed, loaded
assert not {{'jax', 'flax', 'tensorflow'}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=REPO, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('package', PACKAGES)
def test_public_names_can_be_imported(package):
    module = importlib.import_module(package)
    assert module.__doc__ and module.__all__ == sorted(set(module.__all__))
    for name in module.__all__:
        found = getattr(module, name)
        assert name in dir(module)
        if callable(found) and getattr(found, '__module__', '').startswith('vision.'):
            assert found.__doc__, name
    assert '__all__' in dir(module)


@pytest.mark.parametrize('package', PACKAGES)
def test_public_names_are_no_modules(package):
    """Importing a module sets it in its package, where it would hide a name that is spelt the same."""
    module = importlib.import_module(package)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert not modules & set(module.__all__)


@pytest.mark.parametrize('package', PACKAGES)
def test_an_unknown_name_is_an_error_that_names_the_package(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        _ = module.nonsense
