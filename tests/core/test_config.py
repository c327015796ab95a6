"""Configs: JSON round trip, comparison by key, absolute paths, and checks of values."""

import enum
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import folder_finetune
from tests.processes import run_module
from vision.core import config as config_lib
from vision.core import workdir
from vision.core.config_keys import KEYS, Duration, Fold, Pattern, Share
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


def explained(*flags):
    """Returns the values that a command line sets in a config."""
    done = run_module('experiments.train', *flags, '--explain=all', '--format=json')
    assert done.returncode == 0, done.stderr
    return {row['key']: row['value'] for row in json.loads(done.stdout)}


@pytest.mark.parametrize('nothing', ['', 'None'])
def test_the_command_line_can_take_back_what_a_config_file_sets(nothing):
    flags = [f'--config.{key}={nothing}' for key in ('init_from', 'freeze')]
    values = explained('--config=configs/folder_finetune.py:frozen', *flags)
    assert folder_finetune.get_config('frozen').freeze
    assert values['init_from'] is values['freeze'] is None


def test_none_is_a_value_of_every_optional_key(tmp_path):
    values = {
        str: 'a',
        Pattern: 'a',
        int: 3,
        float: 0.5,
        Duration: '3 epochs',
        Share: '10%',
        Fold: '2/5',
    }
    optional = {key.name: values[key.kind] for key in KEYS if key.optional}
    del optional['data.test']  # data.fold is given
    optional |= {'data.path': 'x', 'data.splits': {'train': 'a'}, 'model.stem': None}
    # A config file gives every optional key a value; the command line sets all to None.
    file = tmp_path / 'own.py'
    file.write_text(f"""
from vision.core.config import default_config
def get_config():
    config = default_config()
    config.update_from_flattened_dict({optional})
    return config
""")
    assert len(optional) > 8
    flags = [f'--config.{name}=None' for name in optional]
    values = explained(f'--config={file}', '--config.data.source=tfds', *flags)
    assert {values[name] for name in optional if name in values} == {None}
    assert explained(f'--config={file}', '--config.model.name=vgg11', '--config.model.stem=small')[
        'model.stem'
    ] == 'small'  # fmt: skip


def test_values_of_numpy_and_jax_become_plain():
    config = config_lib.default_config()
    config.optimizer.lr = np.float32(0.5)
    config.weight_decay = jnp.array(0.25)
    config.training.batch_size = np.int64(64)
    config.optimizer.nesterov = np.bool_(True)
    config.preprocess.std = np.array([0.5, 0.25])
    config.lr_factors = [['fc', np.float64(2)]]
    config.model = ConfigDict({'name': 'lenet5', 'dtype': jnp.bfloat16})
    config.data.path = Path('/data')
    # The JSON is the same before and after the conversion.
    resolved = config_lib.resolve(config)
    assert json.loads(config_lib.to_json(resolved)) == json.loads(config_lib.to_json(config))
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == resolved.to_dict()
    # Values and types are those of Python.
    for got, expected in (
        (resolved.optimizer.lr, 0.5),
        (resolved.weight_decay, 0.25),
        (resolved.training.batch_size, 64),
        (resolved.optimizer.nesterov, True),
        (resolved.preprocess.std, (0.5, 0.25)),
        (resolved.lr_factors, (('fc', 2.0),)),
        (resolved.model.dtype, 'bfloat16'),
        (resolved.data.path, '/data'),
    ):
        assert got == expected and type(got) is type(expected)
    assert config_lib.plain([np.dtype('float32'), np.float16]) == ('float32', 'float16')
    # Floats keep their shortest decimal form.
    as_written = [
        np.float32(0.1),
        np.array([0.1, 0.7], np.float32),
        jnp.float32(1e-4),
        np.longdouble(0.1),
    ]
    assert config_lib.plain(as_written) == (0.1, (0.1, 0.7), 1e-4, 0.1)
    # Enum members become their values.
    kinds = (
        enum.Enum('Kinds', {'A': 'a'}, type=str),
        enum.IntEnum('Sizes', {'B': 3}),
        enum.Enum('Any', {'C': 0.5}),
    )
    assert config_lib.plain([member for kind in kinds for member in kind]) == ('a', 3, 0.5)


def test_a_config_file_with_values_of_numpy_can_be_overridden(tmp_path):
    file = tmp_path / 'own.py'
    file.write_text("""
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from vision.core.config import default_config
def get_config():
    config = default_config()
    config.model = ConfigDict({'name': 'lenet5', 'dtype': jnp.bfloat16})
    config.optimizer.lr, config.weight_decay = np.float32(0.5), np.float32(0.25)
    return config
""")
    values = explained(
        f'--config={file}', '--config.model.dtype=float32', '--config.optimizer.lr=2'
    )
    assert values['model.dtype'] == 'float32' and values['optimizer.lr'] == 2.0
    assert values['weight_decay'] == 0.25


@pytest.mark.parametrize('key', ['preprocess.mean[0]', 'preprocess.mean[7]', 'optimizer[0]'])
def test_an_entry_of_a_tuple_is_refused_in_one_line(key):
    done = run_module(
        'experiments.train', '--config=configs/digits_lenet5.py', f'--config.{key}=0.5'
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert f'--config.{key}=0.5: single entries cannot be set' in done.stderr


@pytest.mark.parametrize(
    'value',
    [lambda x: x, int, {1, 2}, 1j, object(), np.clongdouble(1), np.datetime64('2026-01-01', 'ns'), np.bytes_(b'a'),
     jax.random.key(0)],
)  # fmt: skip
def test_what_no_json_holds_is_refused_by_its_name(value):
    config = config_lib.default_config()
    config.model.padding = (0, value)
    with pytest.raises(UserError, match=r'config\.model\.padding is a'):
        config_lib.resolve(config)


def test_rates_by_pattern_are_pairs_and_were_a_section_once():
    config = config_lib.default_config()
    config.lr_factors = ((r'layer1\.conv', 0.1), ('backbone', 0.5))
    text = config_lib.to_json(config_lib.resolve(config))
    assert config_lib.from_json(text).lr_factors == config.lr_factors
    config.lr_factors = {'backbone': 0.5}
    with pytest.raises(
        UserError, match=r"lr_factors={'backbone': 0.5} .* as \(\('backbone', 0.1\),\)"
    ):
        config_lib.resolve(config)
    old = json.loads(text) | {'lr_factors': {'conv1': 0.1, 'backbone': 0.5}}
    read = config_lib.from_json(json.dumps(old))
    assert read.lr_factors == (('conv1', 0.1), ('backbone', 0.5))
    config_lib.check(read)


@pytest.mark.parametrize('key', KEYS, ids=lambda key: key.name)
def test_a_declared_key_has_a_default_that_fits_and_a_meaning(key):
    key.check(key.default)
    assert key.meaning and '\n' not in key.meaning and key.describe()
    # A config.json without the key gets its default.
    values = json.loads(config_lib.to_json(config_lib.default_config()))
    del (values[key.section] if key.section else values)[key.leaf]
    read = config_lib.from_json(json.dumps(values))
    assert read.to_dict() == config_lib.default_config().to_dict()


@pytest.mark.parametrize(
    ('key', 'value', 'says'),
    [
        ('training.keep', 2.0, 'a whole number of 1 or more'),
        ('training.keep', True, 'a whole number of 1 or more'),
        ('weight_decay', 'small', 'a number of 0 or more'),
        ('preprocess.mean', (), 'a tuple of numbers'),
        ('preprocess.mean', (0.1, 'a'), 'a tuple of numbers'),
        ('preprocess.std', (0.1, 0.0), 'a tuple of numbers above 0'),
        ('preprocess.normalise', 'datset', "Did you mean 'dataset'"),
        ('training.patience', '0 epochs', 'a duration .* above 0 or None'),
        ('data.cache', 'raws', "Did you mean 'raw'"),
        ('lr_factors', ('head', 0.1), 'a tuple of pairs'),
        ('lr_factors', (('head', -1),), 'factors of 0 or more'),
        ('lr_factors', (('(', 1.0),), r"'\(' is not a regular expression"),
        ('seed', None, 'a whole number in'),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(key, value, says):
    config = config_lib.default_config()
    section, _, name = key.rpartition('.')
    (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match=f'{key}.*{says}'):
        config_lib.check(config)


def test_a_section_that_is_replaced_has_the_defaults_of_its_declared_keys():
    config = config_lib.default_config()
    config.data = ConfigDict({'source': 'digits'})
    config.optimizer = ConfigDict({'name': 'adam', 'lr': 1e-3})
    config.schedule = ConfigDict({'name': 'constant'})
    resolved = config_lib.resolve(config)
    assert resolved.data == config_lib.default_config().data
    assert resolved.schedule.warmup == '0 steps'
    assert resolved.optimizer.clip_norm is None and 'momentum' not in resolved.optimizer
    assert config_lib.differences(config_lib.from_json(config_lib.to_json(config)), resolved) == []
    del config.optimizer['lr']
    with pytest.raises(UserError, match=r'config\.optimizer\.lr is missing'):
        config_lib.resolve(config)


def test_paths_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights').mkdir()
    config = config_lib.default_config()
    config.data = ConfigDict({'source': 'idx', 'path': 'mnist', 'data_dir': '~/data'})
    config.init_from = 'weights'
    config.task = {'name': 'distillation', 'teacher': 'weights'}
    resolved = config_lib.resolve(config)
    assert resolved.task.teacher == str(tmp_path / 'weights')
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


@pytest.mark.parametrize('repeats', [0, -1, 1.5, 129, '4'])
def test_repeats_that_make_no_sense_are_refused(repeats):
    config = config_lib.default_config()
    config.data = ConfigDict({'source': 'digits', 'repeats': repeats})
    with pytest.raises(UserError, match=r'data\.repeats='):
        config_lib.check(config)


@pytest.mark.parametrize(
    ('source', 'rules'), [('folder', 1), ('list', 1), ('digits', 2), ('npz', 2)]
)
def test_a_run_of_before_keeps_its_splits_or_is_refused_in_one_line(source, rules):
    """Its config keeps the old rules wherever it is read; a new run must ask for them."""
    new = config_lib.default_config()
    new.data.source = source
    old = json.loads(config_lib.to_json(new))
    for key in ('rules', 'validation', 'test', 'fold'):
        del old['data'][key]
    read = config_lib.from_json(json.dumps(old))
    assert read.data.rules == rules
    told = config_lib.differences(read, new)
    assert told == ([] if rules == 2 else ['data.rules is 1 there and 2 here'])
    new.data.rules = rules
    assert config_lib.differences(read, new) == []


def test_a_share_may_replace_the_number_that_a_config_file_has():
    values = explained(
        '--config=configs/mnist_lenet5.py',
        '--config.data.validation=10%',
        '--config.data.source=idx',
    )
    assert values['data.validation'] == '10%'


def test_a_value_that_contains_itself_is_refused():
    value = [1]
    value.append(value)
    with pytest.raises(UserError, match='config: the value contains itself'):
        config_lib.plain(value)
