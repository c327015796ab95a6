"""Shared fixtures and options: three tiers, real data sets if they are there, one trained run."""

import atexit
import fcntl
import gc
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings

from tests import tiers
from tests.processes import (
    LEAST_EFFORT,
    LESS_EFFORT,
    REPO,
    command,
    environment,
    run_module,
    start_server,
)

__all__ = ['REPO', 'command', 'environment', 'run_module']

# Workers of pytest-xdist and all commands share a folder of compiled programs.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='vision-compiled-')
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
    os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), LEAST_EFFORT]).strip()
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

# Folders with the four IDX files. Tests that need them are skipped if they are missing.
MNIST = os.environ.get('VISION_TEST_MNIST')
FASHION_MNIST = os.environ.get('VISION_TEST_FASHION_MNIST')

LONGEST = (
    'tests/test_docs.py',
    'tests/training/test_distributed.py',
    'tests/training/test_resume.py',
    'tests/models/',
    'tests/training/',
    'tests/prediction/',
)

# Limits in CI, in seconds: one quick test without its fixtures, and the whole quick suite, which
# should take ten minutes on two cores (CONTRIBUTING.md).
TEST_LIMIT, SUITE_LIMIT = 20, 12 * 60


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also tests of tens of seconds')
    parser.addoption('--nightly', action='store_true', help='also tests of minutes')


def pytest_configure(config):
    # The slow tier tries more random examples. There is no deadline: a busy machine is not a
    # failure.
    slow = config.getoption('--slow') or config.getoption('--nightly')
    os.environ[tiers.VARIABLE] = 'slow' if slow else 'quick'
    settings.register_profile('quick', deadline=None, max_examples=20)
    settings.register_profile('slow', deadline=None, max_examples=200)
    settings.load_profile(os.environ[tiers.VARIABLE])
    if not hasattr(config, 'workerinput'):
        config.pluginmanager.register(_Limits(config, not slow), 'vision-limits')


def pytest_sessionstart(session):
    # The server's imports and the collection of the tests take seconds each: do both at once.
    if hasattr(session.config, 'workerinput'):
        start_server()


def pytest_collection_finish():
    gc.freeze()  # the garbage collector need not visit the imported modules


def pytest_collection_modifyitems(config, items):
    for tier in ('slow', 'nightly'):
        if not config.getoption(f'--{tier}'):
            skip = pytest.mark.skip(reason=f'{tier}: run with --{tier}')
            for item in items:
                if tier in item.keywords:
                    item.add_marker(skip)
    # Run the files with the longest tests first, so that all workers end at about the same time.
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives all tests of a file to one worker, so that each fixture trains once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


class _Limits:
    """Fails a quick suite or a quick test that takes too long in CI."""

    def __init__(self, config, quick):
        self._on = bool(os.environ.get('CI')) and quick
        self._began, self._seconds = time.monotonic(), {}

    def pytest_runtest_logreport(self, report):
        # Neither shared fixtures nor waiting for a busy machine count as a test's time.
        busy = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
        if report.when == 'call' and not busy:
            self._seconds[report.nodeid] = report.duration

    def pytest_terminal_summary(self, terminalreporter):
        for line in self._broken():
            terminalreporter.write_line(f'too slow: {line}', red=True)

    def pytest_sessionfinish(self, session):
        if self._broken() and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _broken(self):
        if not self._on:
            return []
        slow = [f'{name}: {s:.0f} s' for name, s in self._seconds.items() if s > TEST_LIMIT]
        total = time.monotonic() - self._began
        return slow + ([f'all of them: {total:.0f} s'] if total > SUITE_LIMIT else [])


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


@pytest.fixture(scope='session')
def digits_run(tmp_path_factory) -> Path:
    """The workdir of the README's first command, trained once for all tests and workers.

    The quick tests train a quarter of the epochs, which reach about the same accuracy. Tests may
    add to its report. A test that changes the run itself must copy it.
    """
    root = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        root = root.parent  # the folder that all workers share
    workdir = root / 'digits_run'
    with open(root / 'digits_run.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / 'digits_run.done').exists():
            short = ['--config.training.duration=15 epochs'] if tiers.quick() else []
            done = run_module(
                'experiments.train',
                '--config=configs/digits_lenet5.py',
                f'--workdir={workdir}',
                *short,
                XLA_FLAGS=LESS_EFFORT,
            )
            assert done.returncode == 0, done.stderr
            (root / 'digits_run.done').touch()
    return workdir


@pytest.fixture(scope='session')
def workdir(digits_run):
    return digits_run


@pytest.fixture(scope='session')
def classifier(workdir):
    from vision.prediction import Classifier

    return Classifier.from_workdir(workdir)


@pytest.fixture(scope='session')
def index_file(classifier, tmp_path_factory):
    """The file of an index of the run's validation split. A test that changes it must copy it."""
    from vision.search import search

    path = tmp_path_factory.mktemp('index') / 'i'
    made, _ = search.build(classifier, [search.whole_split(classifier.run, 'validation')])
    made.save(path)
    return path


@pytest.fixture(scope='session')
def digits():
    """The test split of the digits."""
    from vision.data import arrays

    return arrays.digits('test')


@pytest.fixture(scope='session')
def photos():
    """Five photographs of several sizes from scikit-image and scikit-learn, uint8 [H, W, 3]."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return [china, flower, skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
