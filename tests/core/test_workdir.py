"""Which configs a workdir goes on with."""

import json

import pytest

from configs import digits_lenet5
from vision.core import workdir
from vision.core.errors import UserError


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
