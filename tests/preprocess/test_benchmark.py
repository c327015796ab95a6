"""The benchmark's own work: its files are what it says, and its figures are read."""

from pathlib import Path

import pytest
from PIL import Image

from vision.core.errors import UserError
from vision.preprocess import benchmark as benchmark_lib


def test_files_are_of_the_size_that_is_claimed(tmp_path):
    source = benchmark_lib.make_jpegs(tmp_path, 6)
    for path in source.paths:
        assert Image.open(path).size == (500, 375)
        assert 60_000 <= Path(path).stat().st_size <= 100_000


def test_peers_that_do_not_run_are_the_users_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_lib, '_FILES', 2)
    with pytest.raises(UserError, match='the only peer is torchvision'):
        benchmark_lib.benchmark('dali', None, 1)
    with pytest.raises(UserError, match='none/python'):
        benchmark_lib._peer(str(tmp_path), 'none/python', 1)


def test_our_rate_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_lib, '_TIMED', 2)
    assert benchmark_lib._ours(benchmark_lib.make_jpegs(tmp_path, 20)) > 10
