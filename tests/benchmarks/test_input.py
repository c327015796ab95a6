"""The input benchmark: the size of its files, its peers, and its throughput."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import input as input_lib
from vision.core.errors import UserError


def test_files_are_of_the_size_that_is_claimed(tmp_path):
    source = input_lib.make_jpegs(tmp_path, 6)
    for path in source.paths:
        assert Image.open(path).size == (500, 375)
        assert 60_000 <= Path(path).stat().st_size <= 100_000


def test_peers_that_do_not_run_are_the_users_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(input_lib, '_FILES', 2)
    with pytest.raises(UserError, match='the only peer is torchvision'):
        input_lib.input_speed('dali', None, 1)
    with pytest.raises(UserError, match='none/python'):
        input_lib._peer(str(tmp_path), 'none/python', 1)


def test_our_rate_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(input_lib, '_TIMED', 2)
    assert input_lib._ours(input_lib.make_jpegs(tmp_path, 20)) > 10
