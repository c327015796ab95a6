"""Every config key, and every argument of the functions that a config names, is explained."""

import pytest

from tests.conftest import REPO
from tests.processes import run_module
from tests.training.tiny import tiny_config
from vision.core.config_keys import KEYS
from vision.core.errors import UserError
from vision.data import SOURCES
from vision.models import MODELS
from vision.studies.config_help import explain, markdown
from vision.task import TASKS
from vision.task.losses import LOSSES
from vision.training.optimizer import OPTIMIZERS
from vision.training.schedules import SCHEDULES
from vision.training.step import UPDATES

REGISTRIES = {
    'task': TASKS,
    'model': MODELS,
    'data': SOURCES,
    'loss': LOSSES,
    'update': UPDATES,
    'optimizer': OPTIMIZERS,
    'schedule': SCHEDULES,
}


def rows_of(section, **overrides):
    return {row['key']: row for row in explain(tiny_config(**overrides), section)}


def test_all_keys_have_their_value_and_default():
    rows = rows_of('all', optimizer__lr=0.3)
    assert {key.name for key in KEYS} <= rows.keys()
    assert (rows['optimizer.lr']['value'], rows['optimizer.lr']['default']) == (0.3, 0.1)
    assert rows['training.batch_size']['type'] == 'a whole number of 1 or more'
    assert rows['evals.NAME.split']['default'] == 'test'
    assert {'seed', 'update.name'} <= rows.keys()
    assert list(rows_of('training.keep')) == ['training.keep'] and list(rows_of('seed')) == ['seed']
    assert all(key.startswith('training.') for key in rows_of('training'))


@pytest.mark.parametrize('section', REGISTRIES)
def test_the_arguments_of_all_that_a_section_can_name(section):
    """Our arguments have a line in a docstring; those of optax and Flax have at least a default."""
    key = 'source' if section == 'data' else 'name'
    for name in REGISTRIES[section]:
        rows = rows_of(section, **{f'{section}__{key}': name})
        assert rows[f'{section}.{key}']['value'] == name
        if section in ('data', 'loss', 'update', 'schedule'):
            assert all(row['meaning'] or row['type'] for row in rows.values()), (name, rows)


def my_loss(logits, targets, power: float = 2.0):
    """A loss.

    Args:
      logits, targets: [B, K].
      power: of the difference; a second
        line. And a second sentence.
    """


def test_arguments_have_type_default_and_the_docstrings_line():
    assert rows_of('loss', loss__name=f'{__name__}:my_loss', loss__power=1.0)['loss.power'] == {
        'key': 'loss.power', 'value': 1.0, 'default': 2.0, 'type': 'of type float',
        'meaning': 'of the difference; a second line',
    }  # fmt: skip
    assert rows_of('data', data__source='folder')['data.path']['default'] == 'required'
    assert rows_of('model', model__name='resnet18')['model.stem']['type'].startswith('one of')


def test_an_unknown_section_is_refused_naming_the_sections():
    with pytest.raises(UserError, match=r"Did you mean 'optimizer'.*Known: all, data, evals"):
        explain(tiny_config(), 'optimiser')
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        explain(tiny_config(schedule__name='cosin'), 'schedule')


def test_the_command_needs_no_workdir_and_prints_a_table():
    done = run_module(
        'experiments.train', '--config=configs/digits_lenet5.py', '--explain=schedule'
    )
    assert done.returncode == 0, done.stderr
    assert 'schedule.warmup' in done.stdout and 'schedule.end' in done.stdout


def test_the_page_is_made_from_the_declarations():
    """To update the page:

    python -c 'from vision.studies.config_help import *; print(markdown(), end="")' > docs/configs.md
    """
    assert (REPO / 'docs' / 'configs.md').read_text() == markdown()
