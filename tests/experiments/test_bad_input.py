"""What a wrong command line gets: exit 2, one line on stderr that says what to do."""

import pytest

from tests.processes import run_module
from tests.task.judged import RANK
from tests.training import tiny

DIGITS = '--config=configs/digits_lenet5.py'


def refuse(module, *args):
    """Runs a command that must be refused, and returns the line that says why."""
    done = run_module(module, *args)
    assert done.returncode == 2, done.stderr + done.stdout
    assert done.stdout == ''
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--config=configs/digits_lenet.py'], 'did you mean configs/digits_lenet5.py'),
        (['--config=digits_lenet5'], 'did you mean configs/digits_lenet5.py?'),
        (['--config=digits_lenet5:big'], 'did you mean configs/digits_lenet5.py:big?'),
        (['--config=configs/mnist_lenet5.py:quik'], "Did you mean 'quick'"),
        (['--config=configs/digits_lenet5.py:big'], 'takes no argument'),
        (['--config', 'configs/digits_lenet.py'], 'did you mean configs/digits_lenet5.py'),
        ([DIGITS, '--config.optimiser.lr=1'], 'did you mean --config.optimizer.lr'),
        ([DIGITS, '--config.optimizer.momentun=1'], "Did you mean 'momentum'"),
        ([DIGITS, '--config.training.batch_size=1e3'], '1e3'),
        ([DIGITS, '--config.model.name=lenet6'], "Did you mean 'lenet5'"),
        ([DIGITS, '--config.model={}'], 'config.model.name'),
        ([DIGITS, '--config.data.source=didgits'], "Did you mean 'digits'"),
        ([DIGITS, '--config.preprocess.train=resize(32)|rotat(3)'], 'rotat'),
        ([DIGITS, '--config.preprocess.eval=resize(16)'], '32x32'),
        ([DIGITS, '--config.preprocess.mean=(0.1,0.2)'], '2 values for 1 channels'),
        ([DIGITS, '--config.preprocess.std=(0.0,)'], 'above 0'),
        ([DIGITS, '--config.training.duration=20'], "write '20 epochs'"),
        ([DIGITS, '--config.training.duration=-2 epochs'], 'negative'),
        ([DIGITS, '--config.schedule.warmup=90 epochs'], 'the whole run has'),
        ([DIGITS, '--config.schedule.name=cosin'], "Did you mean 'cosine'"),
        ([DIGITS, '--config.optimizer.name=sdg'], "Did you mean 'sgd'"),
        ([DIGITS, '--config.optimizer.lr=-1'], 'optimizer.lr'),
        ([DIGITS, '--config.loss.name=hinge'], 'softmax_cross_entropy'),
        ([DIGITS, '--config.loss.smoothing=0.1'], "Did you mean 'label_smoothing'"),
        ([DIGITS, '--config.training.batchsize=3'], "Did you mean 'batch_size'"),
        ([DIGITS, '--config.model.name=resnet20', '--config.model.remat=maybe'], 'bool'),
        ([DIGITS, '--config.model.paddin=2'], "Did you mean 'padding'"),
        ([DIGITS, '--config.data.pth=x'], "Did you mean 'path'"),
        ([DIGITS, '--config.training.batch_size=0'], 'training.batch_size'),
        ([DIGITS, '--config.training.keep=0'], 'training.keep'),
        ([DIGITS, '--config.training.keep=None'], 'training.keep=None'),
        ([DIGITS, '--config.training=None'], 'config.training is missing'),
        ([DIGITS, '--config.model.dtype=None'], 'float32 or bfloat16'),
        ([DIGITS, '--config.optimizer.lr=None'], 'optimizer.lr=None'),
        ([DIGITS, '--config.lr_factors.head=0.1'], 'did you mean --config.lr_factors'),
        ([DIGITS, '--explain=optimiser'], "Did you mean 'optimizer'"),
        ([DIGITS, 'stray'], 'stray'),
        ([DIGITS, '--wrkdir=x'], 'workdir'),
        ([], '--config=… is missing, for example --config=configs/'),
        (['--config=configs/mnist_lenet5.py', '--config.data.source=idx'], 'data.path'),
        (['--config=configs/mnist_lenet5.py', '--config.data.source=idx', '--config.data.path=/no'], '/no'),
    ],
)  # fmt: skip
def test_train(tmp_path, flags, says):
    assert says in refuse('experiments.train', *flags, f'--workdir={tmp_path}/run')
    assert not (tmp_path / 'run').exists()


def test_a_batch_that_the_devices_cannot_share(tmp_path):
    done = run_module(
        'experiments.train', DIGITS, f'--workdir={tmp_path}', '--config.training.batch_size=12',
        devices=8,
    )  # fmt: skip
    assert done.returncode == 2
    assert 'use a multiple of 8' in done.stderr


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    assert 'file' in refuse('experiments.train', DIGITS, f'--workdir={tmp_path}/file/run')


@pytest.mark.parametrize('module', ['experiments.evaluate', 'experiments.predict'])
def test_what_is_no_workdir(tmp_path, module):
    paths = ['x.png'] if module.endswith('predict') else []
    assert 'does not exist' in refuse(module, f'--workdir={tmp_path}/nowhere', *paths)
    assert 'is not a workdir' in refuse(module, f'--workdir={tmp_path}', *paths)
    assert '--workdir' in refuse(module, *paths)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    done = run_module(
        'experiments.train', *tiny.FLAGS, f'--workdir={tmp_path}', '--config.optimizer.lr=1e18',
        '--config.schedule.warmup=20 steps', '--config.training.duration=60 steps',
        '--config.training.checkpoint_every=1 steps',
    )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert 'NaN or infinite in step' in last and 'optimizer.lr' in last
    from vision.core.checkpoints import Checkpoints

    bad = int(last.split('in step ')[1].split('.')[0])
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        assert checkpoints.find('last') == bad - 1
    assert f'step {bad - 1}' in last
