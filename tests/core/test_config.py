"""Configs on disk: read back as they were, compared by key, their paths absolute."""

import pytest
from absl.flags import FlagValues
from ml_collections import ConfigDict, config_flags

from configs import folder_finetune
from tests.conftest import REPO
from vision.core import config as config_lib
from vision.core import workdir
from vision.core.errors import UserError

pytestmark = pytest.mark.smoke


def test_a_config_is_read_back_as_it_was():
    config = config_lib.default_config()
    config.preprocess.mean = (0.1, 0.2, 0.3)
    config.training.stop_after = '3 steps'
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert config_lib.differences(config, again) == []


def test_differences_name_the_keys_and_both_values():
    old, new = config_lib.default_config(), config_lib.default_config()
    new.optimizer.lr, new.model.name = 0.5, 'resnet18'
    assert config_lib.differences(old, new) == [
        "model.name is 'lenet5' there and 'resnet18' here",
        'optimizer.lr is 0.1 there and 0.5 here',
    ]


@pytest.mark.parametrize('key', config_lib.MAY_DIFFER)
def test_stopping_logging_and_keeping_may_differ(key):
    old, new = config_lib.default_config(), config_lib.default_config()
    section, name = key.split('.')
    new[section][name] = 3 if name == 'keep' else '3 steps'
    assert config_lib.differences(old, new) == []


@pytest.mark.parametrize('key', ['init_from', 'freeze'])
@pytest.mark.parametrize('nothing', ['', 'None'])
def test_the_command_line_can_take_back_what_a_config_file_sets(key, nothing, monkeypatch):
    file = REPO / 'configs' / 'folder_finetune.py'
    argv = ['train', f'--config={file}:frozen', f'--config.{key}={nothing}']
    monkeypatch.setattr('sys.argv', argv)  # where ml_collections looks for overrides
    holder = FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=holder)
    holder(argv)
    assert folder_finetune.get_config('frozen')[key]
    assert config_lib.resolve(holder.config)[key] is None


def test_paths_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights').mkdir()
    config = config_lib.default_config()
    config.data = ConfigDict({'source': 'idx', 'path': 'mnist', 'data_dir': '~/data'})
    config.init_from = 'weights'
    resolved = config_lib.resolve(config)
    assert resolved.data.path == str(tmp_path / 'mnist')
    assert resolved.data.data_dir.startswith('/') and '~' not in resolved.data.data_dir
    assert resolved.init_from == str(tmp_path / 'weights')
    assert config.data.path == 'mnist'
    config.init_from = 'hf:timm/resnet50.tv_in1k'
    assert config_lib.resolve(config).init_from == config.init_from


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'colour': 1}, "unknown config key 'colour'"),
        ({'training': ConfigDict({'batch_size': 3})}, 'config.training'),
        ({'model': ConfigDict()}, 'config.model.name'),
    ],
)
def test_a_config_that_is_not_whole_is_refused(change, says):
    config = config_lib.default_config()
    with config.unlocked():
        for key, value in change.items():
            del_first = key in config
            if del_first:
                del config[key]
            config[key] = value
    with pytest.raises(UserError, match=says):
        config_lib.check(config)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'config.json'
    workdir.write_text(path, 'one')
    monkeypatch.setattr(workdir.os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('killed')))
    with pytest.raises(OSError, match='killed'):
        workdir.write_text(path, 'two')
    assert path.read_text() == 'one'


def test_other_evaluations_are_no_other_run():
    old, new = config_lib.default_config(), config_lib.default_config()
    new.evals.held_out = ConfigDict({'split': 'validation'})
    config_lib.check(new)
    assert config_lib.differences(old, new) == []


@pytest.mark.parametrize('views', [0, -1, 1.5, '2'])
def test_views_are_a_whole_number(views):
    config = config_lib.default_config()
    config.data = ConfigDict({'source': 'digits', 'views': views})
    with pytest.raises(UserError, match=r'data\.views=.* must be a whole number from 1 on'):
        config_lib.check(config)


@pytest.mark.parametrize('repeats', [0, -1, 1.5, 129, '4'])
def test_repeats_that_make_no_sense_are_refused(repeats):
    config = config_lib.default_config()
    config.data = ConfigDict({'source': 'digits', 'repeats': repeats})
    with pytest.raises(UserError, match=r'data\.repeats='):
        config_lib.check(config)
