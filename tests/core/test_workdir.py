"""Workdirs: configs that may resume a run, possible paths, and limited file systems."""

import errno
import fcntl
import json
import os

import pytest

from configs import digits_lenet5
from tests.core import test_checkpoints as checkpoint_tests
from tests.task.judged import RANK
from tests.training.tiny import tiny_config
from vision.core import config as config_lib
from vision.core import workdir
from vision.core.checkpoints import Checkpoints, newest_step
from vision.core.errors import UserError
from vision.training import train


def test_a_run_older_than_a_key_goes_on_and_one_with_another_value_does_not(tmp_path):
    config = digits_lenet5.get_config()
    stored = json.loads(config.to_json_best_effort())
    del stored['data']['repeats'], stored['data']['views']
    (tmp_path / 'config.json').write_text(json.dumps(stored))
    workdir.check_config(tmp_path, config)
    assert 'repeats' in config.data and 'views' in config.data
    config.data.repeats = 2
    with pytest.raises(UserError, match=r'data\.repeats'):
        workdir.check_config(tmp_path, config)


def test_names_that_are_not_utf8_are_written_as_json_has_them(tmp_path):
    value = {'command': ['--data=photos\udce9'], 'class_names': ['è', '犬']}
    workdir.write_text(tmp_path / 'a.json', json.dumps(value, ensure_ascii=False))
    assert workdir.read_json(tmp_path, 'a.json') == value


# Unusual paths, and file systems that lack some calls.


@pytest.mark.parametrize(
    'name',
    ['run[1]', 'a*b?', 'sp ace', '"quo\'ted"', '%20', 'line\nbreak', '{}$x', '-dash', '~ within~', 'ümläut', 'a\\b', ':'],
)  # fmt: skip
def test_checkpoints_are_found_again_whatever_the_path_is(tmp_path, name):
    (tmp_path / name).mkdir()
    checkpoint_tests.save(tmp_path / name, [3, 5], {3: (0.5, 1.0), 5: (0.4, 1.0)})
    assert checkpoint_tests.steps_of(tmp_path / name) == [3, 5]
    assert newest_step(tmp_path / name) == 5
    with Checkpoints(tmp_path / name, RANK, read_only=True) as checkpoints:
        assert checkpoints.find('best') == 3
        got, _ = checkpoints.restore(5, checkpoint_tests.state(0))
    assert int(got.step) == 5


def test_what_is_written_is_read_back_whatever_the_path_is(tmp_path, monkeypatch):
    path = tmp_path / '[1]*? "q" %20{}$x~é\n-'
    config = config_lib.resolve(digits_lenet5.get_config())
    workdir.create(path)
    workdir.describe(path, config)
    assert workdir.read_config(path).to_dict() == config.to_dict()
    monkeypatch.chdir(tmp_path)
    assert workdir.locate('~nobody-has-this-name') == tmp_path / '~nobody-has-this-name'
    assert workdir.locate('-x/') == tmp_path / '-x'
    assert workdir.create('-x') == workdir.check_place('-x') == tmp_path / '-x'


def lacking(monkeypatch, code, *calls):
    """Makes system calls fail as on a file system that does not support them."""

    def fails(*_, **__):
        raise OSError(code, os.strerror(code))

    for call in calls:
        module, name = call.split('.')
        monkeypatch.setattr({'os': os, 'fcntl': fcntl}[module], name, fails)
    monkeypatch.setattr(workdir, '_told', set())


@pytest.mark.parametrize('code', [errno.ENOTSUP, errno.ENOLCK, errno.EPERM, errno.ENOSYS])
@pytest.mark.parametrize(
    ('call', 'says'),
    [
        ('fcntl.flock', 'two runs'),
        ('os.fsync', 'power cut'),
        ('os.replace', 'a kill at the wrong moment'),
        ('os.utime', ''),
    ],
)
def test_a_file_system_that_lacks_a_call_is_warned_of_and_used(
    tmp_path, monkeypatch, caplog, call, says, code
):
    lacking(monkeypatch, code, call)
    path = workdir.create(tmp_path / 'run')
    with workdir.Lock(path):
        for text in ('one', 'two', 'three'):
            workdir.write_text(path / 'file.txt', text)
            assert (path / 'file.txt').read_text() == text
    assert sorted(p.name for p in path.iterdir()) == ['.lock', 'file.txt']
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == bool(says) and all(says in text for text in warnings)


def test_a_checkpoint_is_whole_where_no_file_takes_the_name_of_another(tmp_path, monkeypatch):
    lacking(monkeypatch, errno.EXDEV, 'os.replace', 'os.fsync')
    checkpoint_tests.save(tmp_path, [3])
    assert (tmp_path / 'checkpoints' / '3' / 'checksums.json').exists()
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        assert int(checkpoints.restore(3, checkpoint_tests.state(0))[0].step) == 3


def test_other_failures_of_the_disk_are_failures(tmp_path, monkeypatch):
    lacking(monkeypatch, errno.EIO, 'os.fsync')
    with pytest.raises(OSError, match='Input/output'):
        workdir.write_text(tmp_path / 'file.txt', 'text')


def test_without_links_a_path_that_needs_one_is_refused(tmp_path, monkeypatch):
    lacking(monkeypatch, errno.EPERM, 'os.symlink')
    for name in ('[1]', 'plain'):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match='letters and digits'):
        Checkpoints(tmp_path / '[1]', RANK)
    assert not any((tmp_path / '[1]').iterdir())
    with Checkpoints(tmp_path / 'plain', RANK):
        pass


@pytest.mark.slow
def test_a_run_goes_through_on_a_file_system_that_lacks_all_of_them(tmp_path, monkeypatch, caplog):
    lacking(
        monkeypatch,
        errno.ENOTSUP,
        'fcntl.flock',
        'os.fsync',
        'os.replace',
        'os.link',
        'os.symlink',
        'os.utime',
    )
    config = tiny_config(training__stop_after='12 steps')
    train(config, tmp_path / 'run')
    config.training.stop_after = None
    assert train(config, tmp_path / 'run')['test']['count'] == 360
    assert len([record for record in caplog.records if record.levelname == 'WARNING']) == 3
