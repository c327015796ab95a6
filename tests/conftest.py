"""What the tests share: the slow ones on request, real data where it can be had, short runs."""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# A machine that is busy is no failure.
settings.register_profile('vision', deadline=None)
settings.load_profile('vision')

REPO = Path(__file__).parent.parent

# What one test compiled, the next need not: most of a short run is compilation.
# Workers of pytest-xdist share their parent's.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='vision-compiled-')
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'

# Folders with the four IDX files; the tests that need them are skipped without.
MNIST = os.environ.get('VISION_TEST_MNIST')
FASHION_MNIST = os.environ.get('VISION_TEST_FASHION_MNIST')


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the tests that take minutes')


def pytest_collection_modifyitems(config, items):
    if not config.getoption('--slow'):
        skip = pytest.mark.skip(reason='slow: run with --slow')
        for item in items:
            if 'slow' in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope='session')
def mnist() -> str:
    """The folder of MNIST's four IDX files."""
    return _folder('VISION_TEST_MNIST', MNIST)


@pytest.fixture(scope='session')
def fashion_mnist() -> str:
    """The folder of Fashion-MNIST's four IDX files."""
    return _folder('VISION_TEST_FASHION_MNIST', FASHION_MNIST)


def _folder(name, value):
    if value is None:
        if os.environ.get('CI'):
            pytest.fail(f'{name} must be set in CI')
        pytest.skip(f'{name} is not set')
    return value


def run_module(
    module: str, *args: str, devices: int = 1, **env: str
) -> subprocess.CompletedProcess:
    """Runs `python -m module args…` from the repository, on that many simulated devices.

    On one device and in this environment it runs in a fork of a process that has done the imports.
    """
    if devices == 1 and not env:
        server, words = _fork_server(), [module, *map(str, args)]
        server.stdin.write(json.dumps(words) + '\n')
        server.stdin.flush()
        return subprocess.CompletedProcess(words, *json.loads(server.stdout.readline()))
    return subprocess.run(
        command(module, *args),
        env=environment(devices, **env),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=600,
    )


@functools.cache
def _fork_server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, '-m', 'tests.fork_server'],
        env=environment(),
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def command(module: str, *args: str) -> list[str]:
    return [sys.executable, '-m', module, *map(str, args)]


def environment(devices: int = 1, **env: str) -> dict[str, str]:
    return {
        **os.environ,
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        'COLUMNS': '120',
        **env,
    }
