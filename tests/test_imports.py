"""TensorFlow is only imported where tf.data is used, and imports between packages go one way."""

import ast
import os
import subprocess
import sys

import pytest

from tests.conftest import REPO, environment

MODULES = sorted(
    '.'.join(p.relative_to(REPO).with_suffix('').parts).removesuffix('.__init__')
    for package in ('vision', 'benchmarks')
    for p in (REPO / package).rglob('*.py')
)


@pytest.fixture(scope='module')
def no_tensorflow(tmp_path_factory):
    """A folder for the front of the path; importing TensorFlow from it raises an error."""
    folder = tmp_path_factory.mktemp('no_tensorflow')
    for name in ('tensorflow', 'tensorflow_datasets'):
        (folder / f'{name}.py').write_text(f"raise ImportError('{name} is not installed here')")
    return folder


def run(folder, code, *args):
    done = subprocess.run(
        [sys.executable, '-c', 'import sys\n' + code, *args],
        cwd=REPO,
        env=environment(PYTHONPATH=f'{folder}{os.pathsep}{REPO}'),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_stand_in_raises(no_tensorflow):
    run(no_tensorflow, 'try: import tensorflow\nexcept ImportError: pass\nelse: sys.exit(1)')


def test_every_module_is_imported_without_tensorflow(no_tensorflow):
    assert len(MODULES) > 30
    run(no_tensorflow, f'import importlib\nfor name in {MODULES!r}: importlib.import_module(name)')


def test_training_on_arrays_and_classifying_a_few_files_need_no_tensorflow(no_tensorflow, tmp_path):
    """Training on digits, evaluation, and prediction for arrays and image files."""
    code = """
import numpy as np
from tests.training.tiny import tiny_config
from vision.training import train
from vision.prediction import Classifier
from vision.core.config import complete_eval
from vision.evaluation.evals import evaluate_entry
from vision.evaluation.run import load_run
from vision.data import arrays

results = train(tiny_config(training__eval_every='24 steps'), sys.argv[1])
evaluation = evaluate_entry([load_run(sys.argv[1])], 'test', complete_eval({}))
assert evaluation.figures['top1'] == results['test']['top1']
test = arrays.digits('test')
probabilities = Classifier.from_workdir(sys.argv[1])(test.images)
assert probabilities.shape == (360, 10)
assert (probabilities.argmax(1) == test.labels).mean() == results['test']['top1']
assert not any(m.split('.')[0].startswith('tensorflow') for m in sys.modules)
ops = {m.split('.')[-1] for m in sys.modules if m.startswith('vision.preprocess.ops.')}
assert ops == {'registry', 'resampling', 'crops'}, ops
(answer,) = Classifier.from_workdir(sys.argv[1]).classify_files('docs/digits/three.png')
assert answer['predictions'], answer['error']
from tests.prediction.fuzz import photo_classifier
photos = list(photo_classifier().classify_files(['docs/photos', 'no.jpg']))
assert [bool(a['predictions']) for a in photos] == [True] * 3 + [False], photos
assert not any(m.split('.')[0].startswith('tensorflow') for m in sys.modules)
"""
    run(no_tensorflow, code, str(tmp_path))


@pytest.mark.slow
def test_what_a_gpu_is_measured_by_needs_no_tensorflow(no_tensorflow):
    code = """
from benchmarks import gpu, loop, throughput
throughput._SECONDS = 0.0
for mode in ('train', 'infer'):
    throughput.measure(mode, 'lenet5', 'bfloat16', 28, 1, 4)
assert loop.epoch_speed('lenet5', 'float32', 28, 1, 8, 40)['rate'] > 0
assert not any(m.split('.')[0].startswith('tensorflow') for m in sys.modules)
"""
    run(no_tensorflow, code)


def test_imports_go_one_way():
    """Packages import only from packages below them.

    experiments, benchmarks → serving → search; studies, search → prediction, training → evaluation
    → task, models → preprocess → data → core.
    """
    may = {'core': set(), 'data': {'core'}, 'preprocess': {'core', 'data'}}
    may['models'] = may['task'] = {*may['preprocess'], 'preprocess'}
    may['evaluation'] = {*may['models'], 'models', 'task'}
    may['training'] = may['prediction'] = {*may['evaluation'], 'evaluation'}
    may['studies'] = may['search'] = {*may['training'], 'training', 'prediction'}
    may['serving'] = {*may['search'], 'search'}
    above = {'benchmarks', 'configs', 'experiments', 'tests'}
    wrong = []
    for path in (REPO / 'vision').rglob('*.py'):
        room = path.relative_to(REPO / 'vision').parts[0]
        for parts in imports(path):
            inside = parts[0] == 'vision' and len(parts) > 1 and parts[1] in may
            if parts[0] in above or (inside and room in may and parts[1] not in {room, *may[room]}):
                wrong.append((f'{room}/{path.name}', '.'.join(parts)))
    for path in (REPO / 'benchmarks').rglob('*.py'):
        above_benchmarks = above - {'benchmarks'}
        found = [parts for parts in imports(path) if parts[0] in above_benchmarks]
        wrong += [(f'benchmarks/{path.name}', '.'.join(parts)) for parts in found]
    assert wrong == []


def imports(path):
    """Returns the modules that a file imports, each as a list of names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split('.')
        elif isinstance(node, ast.Import):
            yield from (alias.name.split('.') for alias in node.names)
