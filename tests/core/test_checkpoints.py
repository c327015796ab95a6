"""Checkpoints on disk after kills, full disks, damage and repeated saves."""

import math
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import REPO, command, environment, run_module
from tests.task.judged import RANK
from tests.training import tiny
from vision.core.checkpoints import Checkpoints
from vision.core.errors import UserError
from vision.core.mesh import make_mesh, put_replicated
from vision.core.state import TrainState


def state(step, size=3, ema=False, name='kernel'):
    params = {'layer': {name: jnp.full((size,), float(step))}}
    tree = TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={},
        opt_state=(jax.tree.map(jnp.zeros_like, params),),
        ema_params=jax.tree.map(lambda x: x + 100, params) if ema else None,
        ema_batch_stats={} if ema else None,
        rng=jax.random.key(step),
    )
    return put_replicated(tree, make_mesh())


def save(path, steps, scores=None, keep=2, **kwargs):
    with Checkpoints(path, RANK, keep=keep) as checkpoints:
        for step in steps:
            top1, loss = (scores or {}).get(step, (None, None))
            metrics = None if top1 is None else {'top1': top1, 'loss': loss}
            checkpoints.save(state(step, **kwargs), {'n': step}, metrics)
        checkpoints.wait()


def steps_of(path):
    with Checkpoints(path, RANK, read_only=True) as checkpoints:
        return checkpoints.steps()


def test_what_is_saved_is_read_back(tmp_path):
    save(tmp_path, [7])
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        got, loop = checkpoints.restore(7, state(0))
    assert loop == {'n': 7} and int(got.step) == 7
    np.testing.assert_array_equal(got.params['layer']['kernel'], 7)
    assert (jax.random.key_data(got.rng) == jax.random.key_data(jax.random.key(7))).all()


def test_evaluation_reads_the_moving_average_where_there_is_one(tmp_path):
    save(tmp_path, [7], ema=True)
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        got = checkpoints.restore_variables(7, state(0).variables)
        full, _ = checkpoints.restore(7, state(0, ema=True))
    assert float(got['params']['layer']['kernel'][0]) == 107
    assert float(full.params['layer']['kernel'][0]) == 7


def test_the_last_and_the_best_are_kept(tmp_path):
    scores = {2: (0.5, 1.0), 4: (0.9, 0.2), 6: (0.7, 0.1), 8: (0.9, 0.3), 10: (0.1, 2.0)}
    save(tmp_path, [2, 4, 6, 8, 9, 10, 11], scores)
    assert steps_of(tmp_path) == [4, 10, 11]
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        assert checkpoints.find('best') == 4


@pytest.mark.parametrize('extra', [(), (5,), (5, 7)])
def test_a_save_more_changes_nothing_about_which_is_the_best(tmp_path, extra):
    """A signal or `stop_after` causes such a save; among equal checkpoints the latest is best."""
    scores = {2: (0.9, 0.1), 4: (0.9, 0.1), 6: (0.9, math.nan), 8: (0.9, 0.2)}
    save(tmp_path, sorted([2, 4, 6, 8, 9, *extra]), scores, keep=1)
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        assert checkpoints.find('best') == 4


def test_without_a_score_the_best_is_the_last(tmp_path):
    save(tmp_path, [1, 2])
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        assert checkpoints.find('best') == checkpoints.find('last') == 2


def test_a_half_written_checkpoint_is_ignored_and_cleared_away(tmp_path):
    save(tmp_path, [5])
    folder = tmp_path / 'checkpoints'
    (folder / '10.orbax-checkpoint-tmp').mkdir()
    (folder / '10.orbax-checkpoint-tmp' / 'model').mkdir()
    (folder / '20').mkdir()
    assert steps_of(tmp_path) == [5]
    save(tmp_path, [10])
    assert steps_of(tmp_path) == [5, 10]
    assert not list(folder.glob('*tmp*'))


@pytest.mark.parametrize('damage', ['flipped', 'cut'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_offered(tmp_path, damage):
    save(tmp_path, [3, 5], {3: (0.5, 1.0), 5: (0.6, 1.0)})
    folder = tmp_path / 'checkpoints' / '5'
    files = [p for p in folder.rglob('*') if p.is_file() and p.stat().st_size]
    assert len(files) > 8
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
            if damage == 'flipped'
            else whole[:middle]
        )
        with (
            pytest.raises(
                UserError, match=r'5 is damaged \(.*(step 3|to use the other checkpoints)'
            ),
            Checkpoints(tmp_path, RANK, read_only=True) as checkpoints,
        ):
            checkpoints.restore(checkpoints.find('last'), state(0))
        path.write_bytes(whole)
    # A checkpoint of a version without checksums: only the damage that libraries notice is found.
    (folder / 'checksums.json').unlink()
    (folder / 'model' / '_METADATA').write_bytes(b'{')
    with (
        Checkpoints(tmp_path, RANK, read_only=True) as checkpoints,
        pytest.raises(UserError, match=r'5 is damaged \(.*step 3'),
    ):
        checkpoints.restore_variables(5, state(0).variables)


def test_what_a_kill_left_of_the_checksums_is_no_part_of_a_checkpoint(tmp_path):
    save(tmp_path, [3])
    sums = tmp_path / 'checkpoints' / '3' / 'checksums.json'
    sums.rename(sums.with_name('checksums.json.tmp'))
    with Checkpoints(tmp_path, RANK) as checkpoints:
        checkpoints.wait()  # writes the checksums
        assert sums.exists() and checkpoints.restore(3, state(0))[1] == {'n': 3}


def test_a_step_that_is_there_already_is_not_lost_in_silence(tmp_path):
    save(tmp_path, [5])
    with Checkpoints(tmp_path, RANK) as checkpoints, pytest.raises(RuntimeError, match='step 5'):
        checkpoints.save(state(5), {})


@pytest.mark.parametrize(
    ('other', 'says'),
    [
        ({'size': 4}, r'float32\[3\] there and float32\[4\] here'),
        (
            {'name': 'weight'},
            'params/layer/weight is missing there; params/layer/kernel is surplus',
        ),
    ],
)
def test_another_models_checkpoint_is_refused_by_name(tmp_path, other, says):
    save(tmp_path, [5])
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        with pytest.raises(UserError, match=says):
            checkpoints.restore(5, state(0, **other))
        with pytest.raises(UserError, match='of another model'):
            checkpoints.restore_variables(5, state(0, **other).variables)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match='no checkpoints'):
        Checkpoints(tmp_path, RANK, read_only=True)
    save(tmp_path, [5])
    with (
        Checkpoints(tmp_path, RANK, read_only=True) as checkpoints,
        pytest.raises(UserError, match='best, last or one of 5'),
    ):
        checkpoints.find('6')


def run_with_files_up_to(kib, *flags):
    """Trains under a limit on the size of files."""
    limited = f'ulimit -f {kib}; exec "$@"'
    return subprocess.run(
        ['bash', '-c', limited, 'bash', *command('experiments.train', *flags)],
        env={**environment(), 'JAX_COMPILATION_CACHE_DIR': ''},
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_disk_that_is_full_stops_the_run_and_the_last_checkpoint_restores(tmp_path):
    """A limit on the file size stands in for a full disk: writing fails in the same place."""
    flags = (
        '--config=configs/digits_lenet5.py', '--config.training.checkpoint_every=20 steps',
        '--config.preprocess.train=resize(32)|translate(3)',
        '--config.schedule.warmup=5 steps', '--config.training.duration=60 steps',
        f'--workdir={tmp_path}',
    )  # fmt: skip
    first = run_module('experiments.train', *flags, '--config.training.stop_after=20 steps')
    assert first.returncode == 0, first.stderr
    full = run_with_files_up_to(48, *flags)
    assert full.returncode == 2, full.stderr
    assert 'Traceback' not in full.stderr
    told = full.stderr.splitlines()[-1]
    assert told.startswith('error: ') and 'checkpoint could not be written' in told
    assert steps_of(tmp_path) == [20]
    assert run_module('experiments.train', *flags).returncode == 0


def test_no_room_for_anything_is_one_line(tmp_path):
    done = run_with_files_up_to(0, *tiny.FLAGS, f'--workdir={tmp_path}')
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    assert 'free some disk space' in done.stderr.splitlines()[-1]
