"""The project works without `vision/models/cpu` and the two lines that import it."""

import re
import shutil

import pytest

from tests.processes import REPO, Process

MARK = 'F401 - fast forms for CPUs: see vision/models/cpu'

PROBE = """
import importlib.util
import sys

import jax
import jax.numpy as jnp

import vision
from vision.models import create_model

assert vision.__file__.startswith(sys.argv[1]), vision.__file__
assert importlib.util.find_spec('vision.models.cpu') is None
model = create_model('resnet20', num_classes=10, stage_sizes=(1, 1, 1))
images = jnp.ones((2, 32, 32, 3))
shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
variables = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
forward = lambda variables, images: model.apply(variables, images, train=False)[0]
program = jax.make_jaxpr(forward)(variables, images)
assert str(program).count('conv_general_dilated[') == 7, program
logits = jax.jit(forward)(variables, images)
assert logits.shape == (2, 10) and bool(jnp.isfinite(logits).all())
"""


def test_two_lines_outside_the_folder_import_it():
    lines = [
        line
        for path in (REPO / 'vision').rglob('*.py')
        if 'models/cpu' not in str(path)
        for line in path.read_text().splitlines()
        if re.match(r'\s*(import|from) .*models.*\bcpu\b', line)
    ]
    assert len(lines) == 2 and all(line.endswith(MARK) for line in lines), lines


@pytest.mark.slow
def test_the_fast_forms_can_be_deleted(tmp_path):
    for name in ('vision', 'configs', 'experiments'):
        ignore = shutil.ignore_patterns('__pycache__', 'results')
        shutil.copytree(REPO / name, tmp_path / name, ignore=ignore)
    shutil.rmtree(tmp_path / 'vision' / 'models' / 'cpu')
    removed = 0
    for path in tmp_path.rglob('*.py'):
        text, count = re.subn(f'^.*{re.escape(MARK)}\\n', '', path.read_text(), flags=re.M)
        if count:
            path.write_text(text)
            removed += count
    assert removed == 2
    (tmp_path / 'probe.py').write_text(PROBE)
    # A fork cannot change this variable, so each command starts its own interpreter in the copy.
    options = {'cwd': tmp_path, 'PYTHONPATH': str(tmp_path), 'PYTHONNOUSERSITE': '1'}
    training = Process(
        'experiments.train',
        '--config=configs/digits_lenet5.py',
        f'--workdir={tmp_path}/run',
        '--config.training.duration=20 steps',
        '--config.schedule.warmup=2 steps',
        '--config.preprocess.train=resize(32)',  # augmentation takes seconds to compile
        **options,
    )
    probe = Process('probe', tmp_path, **options)
    for process in (training, probe):
        done = process.wait()
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run' / 'metrics.jsonl').exists()
