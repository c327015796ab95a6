"""The trained run on the digits, and its classifier."""

import pytest

from vision.data import arrays
from vision.prediction import Classifier


@pytest.fixture(scope='session')
def workdir(digits_run):
    return digits_run


@pytest.fixture(scope='session')
def classifier(workdir):
    return Classifier.from_workdir(workdir)


@pytest.fixture(scope='session')
def digits():
    return arrays.digits('test')
