"""Paths in every form that callers use, and paths relative to a common folder."""

import os
from pathlib import Path

import pytest

from vision.core.errors import UserError
from vision.core.text import as_list, as_path, below, common_root


class Own:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize(
    'given', ['/a/b.png', b'/a/b.png', Path('/a/b.png'), Own('/a/b.png'), Own(b'/a/b.png')]
)
def test_one_path_is_a_list_of_one(given):
    assert as_list(given) == ['/a/b.png']
    assert as_list([given, 'c']) == ['/a/b.png', 'c']
    assert as_list(iter([given])) == ['/a/b.png']


def test_bytes_that_are_no_utf8_come_back():
    (text,) = as_list(b'/a/\xff.png')
    assert os.fsencode(text) == b'/a/\xff.png'


@pytest.mark.parametrize('given', [3, None, [None], ['a', 4], [['a']]])
def test_what_is_no_path_is_one_line(given):
    with pytest.raises(UserError, match='is not a path'):
        as_list(given)


def test_files_are_named_below_their_common_folder():
    files = ['/data/cat/1.png', '/data/cat/2.png', '/data/dog/1.png']
    root = common_root(files)
    assert root == '/data'
    assert [below(f, root) for f in files] == ['cat/1.png', 'cat/2.png', 'dog/1.png']
    assert below('/elsewhere/1.png', root) == '/elsewhere/1.png'
    assert below('/database/1.png', root) == '/database/1.png'
    assert below('/a', common_root(['/a', '/b/c'])) == 'a'
    assert common_root([]) == '' and below('/a', '') == '/a'
    assert common_root(['/data/cat/1.png']) == '/data/cat'


def test_one_path_has_its_home(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    for given in ('~/runs', b'~/runs', Path('~/runs')):
        assert as_path(given) == Path('/home/me/runs')
    with pytest.raises(UserError, match='is not a path'):
        as_path(['/a'])
