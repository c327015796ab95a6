"""Sweeps: parsing of grids, independent trials, and resuming."""

import json
import signal

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from tests.processes import Process, run_module
from tests.tiers import split
from tests.training.tiny import tiny_config
from vision.core.config import to_json
from vision.core.errors import UserError
from vision.studies.grid import make_trials, read_grid
from vision.studies.sweeps import over_seeds, sweep, sweep_tables


@pytest.mark.parametrize(
    ('grid', 'parsed'),
    [
        ('optimizer.lr=0.1,0.03;seed=0,1', {'optimizer.lr': [0.1, 0.03], 'seed': [0, 1]}),
        ('config.seed=3', {'seed': [3]}),
        (
            'preprocess.train=resize(32)|randaugment(2, 9),resize(32);',
            {'preprocess.train': ['resize(32)|randaugment(2, 9)', 'resize(32)']},
        ),
        ('training.duration=5 epochs, 10 epochs', {'training.duration': ['5 epochs', '10 epochs']}),
        ("schedule.at=('1 epochs','2 epochs'),()", {'schedule.at': [('1 epochs', '2 epochs'), ()]}),
        ('model.name=lenet5,resnet20', {'model.name': ['lenet5', 'resnet20']}),
    ],
)
def test_a_grid_is_read(grid, parsed):
    assert {k: [value for _, value in v] for k, v in read_grid(grid).items()} == parsed


@pytest.mark.parametrize(
    ('grid', 'says'),
    [
        ('', 'is empty'),
        ('seed', "'key=value,value'"),
        ('seed=', "'key=value,value'"),
        ('seed=1;seed=2', 'is given twice'),
        ('seed=1,1', 'a value twice'),
        ('sede=1', "no key 'sede'"),
        ('optimiser.lr=1', "no section 'optimiser'"),
        ('seed.a=1', "no section 'seed'"),
        ('training.batchsize=3', "Did you mean 'batch_size'"),
        ('training.batch_size=many', 'batch_size'),
        ('optimizer.lr=-1', 'optimizer.lr'),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(grid, says):
    with pytest.raises(UserError, match=says):
        make_trials(tiny_config(), grid)


def test_every_combination_is_a_trial():
    config = tiny_config()
    trials = make_trials(config, 'optimizer.lr=1,0.03;seed=0,1,2')
    assert [t.name for t in trials][:4] == [
        'optimizer.lr=1,seed=0',
        'optimizer.lr=1,seed=1',
        'optimizer.lr=1,seed=2',
        'optimizer.lr=0.03,seed=0',
    ]
    assert len({t.name for t in trials}) == 6
    assert [(t.config.optimizer.lr, t.config.seed) for t in trials][1] == (1.0, 1)
    assert config.seed == 0 and config.optimizer.lr == 0.05
    for same in (FrozenConfigDict(config), config.to_dict()):
        found = make_trials(same, 'optimizer.lr=1,0.03;seed=0,1,2')
        assert [t.config.to_dict() for t in found] == [t.config.to_dict() for t in trials]
    depths = make_trials(config, 'model.stage_sizes=(1,1,1),(3,3,3)')
    assert [t.name for t in depths] == ['model.stage_sizes=1-1-1', 'model.stage_sizes=3-3-3']
    # Values with characters that a folder name cannot have get different names.
    odd = make_trials(config, 'preprocess.train=resize(32)|pad(0),resize(32)/pad(0)')
    assert len({t.name for t in odd}) == 2 and not any('/' in t.name for t in odd)


def test_mean_and_deviation_over_seeds():
    def row(lr, seed, top1):
        scores = {'top1': top1, 'loss': 1.0}
        values = {'lr': lr, 'seed': seed}
        return {'values': values, 'error': None, 'validation': scores, 'test': None}

    rows = [row(0.1, 0, 0.5), row(0.1, 1, 0.7), row(0.2, 0, 0.9)]
    first, second = over_seeds(rows, 'top1')
    assert first['values'] == 'lr=0.1' and first['count'] == 2
    assert first['validation'] == {'mean': pytest.approx(0.6), 'std': pytest.approx(0.02**0.5)}
    assert second['validation'] == {'mean': 0.9, 'std': None} and second['test'] is None
    assert over_seeds([{'values': {'lr': 1}, 'error': None}], 'top1') == []


FLAGS = ('--config=configs/digits_lenet5.py', '--config.model.name=tests.studies.dying:Dying',
         '--config.preprocess.train=resize(32)|translate(3)', '--config.training.duration=8 steps',
         '--config.schedule.warmup=1 steps')  # fmt: skip


def run_sweep(workdir, grid, *flags):
    done = run_module('experiments.sweep', *FLAGS, f'--workdir={workdir}', f'--grid={grid}', *flags)
    assert 'Traceback' not in done.stderr + done.stdout, done.stderr
    return done


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    """A sweep whose trials fail in every way: its folder and the output of the command."""
    folder = tmp_path_factory.mktemp('sweep')
    return folder, run_sweep(folder, 'model.how=blind,mistake,raise,kill,fine;seed=1')


def test_trials_are_runs_and_the_best_is_first(swept):
    folder, _ = swept
    result = json.loads((folder / 'sweep.json').read_text())
    best, second, *_ = result['trials']
    assert [best['values']['model.how'], second['values']['model.how']] == ['fine', 'blind']
    assert best['validation']['top1'] > second['validation']['top1']
    assert best['error'] is None and best['test']['count'] == 360
    assert (folder / 'model.how=fine,seed=1' / 'metrics.jsonl').exists()
    assert result['metric'] == 'top1' and [s['count'] for s in result['seeds']] == [1, 1]
    assert [t.row_count for t in sweep_tables(result)] == [5, 2]


def test_a_trial_that_dies_takes_no_other_with_it(swept):
    folder, done = swept
    assert done.returncode == 3, done.stderr
    rows = json.loads((folder / 'sweep.json').read_text())['trials']
    errors = {row['values']['model.how']: row['error'] for row in rows if row['error']}
    assert set(errors) == {'mistake', 'raise', 'kill'}
    assert errors['mistake'] == 'the loss became NaN or infinite in step 3'
    assert errors['raise'].startswith('RuntimeError: boom (dying.py, line ')
    assert errors['kill'].startswith('its process was ended by SIGKILL')
    assert 'boom' in (folder / 'model.how=raise,seed=1' / 'error.txt').read_text()
    for how, error in errors.items():
        assert f'model.how={how},seed=1 failed: {error}' in done.stdout


def test_finished_trials_are_not_run_again(swept, tmp_path):
    folder, _ = swept
    before = json.loads((folder / 'sweep.json').read_text())['trials'][:2]
    records = {p: p.read_bytes() for p in folder.glob('*/metrics.jsonl')}
    done = run_sweep(folder, 'model.how=blind,fine;seed=1', '--format=json')
    assert done.returncode == 0 and done.stderr.count('this run is finished') == 2
    assert json.loads(done.stdout)['trials'] == before
    assert {p: p.read_bytes() for p in records} == records  # with the seconds that it took


def test_all_trials_are_checked_before_the_first_one_runs(tmp_path):
    done = run_sweep(tmp_path / 'sweep', 'model.name=lenet5,lenet6')
    assert done.returncode == 2 and done.stdout == ''
    assert 'model.name=lenet6' in done.stderr and "Did you mean 'lenet5'" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / 'sweep').exists()


def test_what_a_run_would_be_refused_for_is_told_before_the_first_one_runs(tmp_path):
    (tmp_path / 'seed=1').mkdir()
    other = tiny_config(optimizer__lr=0.3, seed=1)
    (tmp_path / 'seed=1' / 'config.json').write_text(to_json(other))
    with pytest.raises(
        UserError, match=r'--grid, seed=1: .*optimizer.lr is 0.3 there and 0.05 here'
    ):
        sweep(tiny_config(), 'seed=0,1', tmp_path)
    with pytest.raises(UserError, match=r'--grid, init_from=nowhere: .*no such file or workdir'):
        sweep(tiny_config(), 'init_from=None,nowhere', tmp_path / 'new')
    with pytest.raises(UserError, match='Not a directory'):
        sweep(tiny_config(), 'seed=0', tmp_path / 'seed=1' / 'config.json' / 'new')
    assert [p.name for p in tmp_path.iterdir()] == ['seed=1']


def test_what_refers_to_a_value_follows_it():
    config = tiny_config()
    config.weight_decay = config.optimizer.get_ref('lr') * 0.01
    config.preprocess.mean = (np.float32(0.5),)
    trials = make_trials(config, 'optimizer.lr=1,0.5;seed=3')
    assert [(t.config.optimizer.lr, t.config.weight_decay) for t in trials] == [
        (1.0, 0.01),
        (0.5, 0.005),
    ]
    assert config.optimizer.lr == 0.05 and config.weight_decay == 0.0005
    fixed = make_trials(config, 'weight_decay=0.1;optimizer.lr=1,2')
    assert [(t.config.weight_decay, t.config.optimizer.lr) for t in fixed] == [(0.1, 1), (0.1, 2)]


@pytest.mark.parametrize(
    ('key', 'text', 'value'),
    [
        ('optimizer.lr', '1', 1.0),
        ('model.norm', 'false', False),
        ('training.best_by', 'None', None),
        ('training.best_by', 'loss', 'loss'),
        ('training.stop_after', "'4 steps'", '4 steps'),
        ('data.name', '1e3', '1e3'),
        ('optimizer', "{'name': 'adam', 'lr': 0.1}", {'name': 'adam', 'lr': 0.1}),
        ('model.stage_sizes', '(1, 2)', (1, 2)),
    ],
)
def test_values_are_set_as_the_command_line_sets_them(key, text, value):
    config = tiny_config()
    config.model.norm, config.data.name = True, 'a'
    (trial,) = make_trials(config, f'{key}={text}')
    found = trial.config
    for name in key.split('.'):
        found = found[name]
    if isinstance(value, dict):
        assert value.items() <= found.to_dict().items()
    else:
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ('moment', 'signum', 'code'),
    split(
        [
            (m, *s)
            for m in ('set-up', 'step')
            for s in ((signal.SIGTERM, 143), (signal.SIGINT, 130))
        ],
        [('step', signal.SIGTERM, 143), ('set-up', signal.SIGINT, 130)],
    ),
)
def test_a_signal_ends_the_sweep_and_its_trial(tmp_path, moment, signum, code):
    began, sweeps = tmp_path / 'began', tmp_path / 'sweep'
    first = f'wait {began}' if moment == 'set-up' else 'long'
    process = Process(
        'experiments.sweep', *FLAGS, '--config.training.duration=1000000 steps', f'--workdir={sweeps}',
        f'--grid=model.how={first},fine',
    )  # fmt: skip
    process.wait_for(began.exists if moment == 'set-up' else lambda: 'images/s' in process.stderr)
    process.send_signal(signum)
    done = process.wait(20)
    assert done.returncode == code and 'Traceback' not in done.stderr, done.stderr
    assert 'trial 2/2' not in done.stderr
    if moment == 'step':
        assert 'its checkpoint is written' in done.stderr
        assert list((sweeps / 'model.how=long' / 'checkpoints').glob('[0-9]*'))
