"""Training and evaluation on a folder of which a tenth of the images are broken."""

import json
import shutil

import numpy as np
import pytest

from tests.preprocess.conftest import encode
from tests.preprocess.test_pipeline import absurd
from tests.processes import run_module
from tests.training.tiny import tiny_config
from vision.core.config import complete_eval, to_json
from vision.core.errors import UserError
from vision.evaluation.evals import evaluate_entry
from vision.evaluation.run import load_run
from vision.training import train

BREAK = [
    lambda data: data[: len(data) // 2],
    lambda data: b'path,label\na.jpg,cat\n',
    lambda data: b'',
    absurd,
]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Forty images of two classes in each split; four of each split are broken."""
    import skimage.data

    photo, root = skimage.data.chelsea(), tmp_path_factory.mktemp('broken')
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for i in range(40):
            y, x = rng.integers(photo.shape[0] - 48), rng.integers(photo.shape[1] - 64)
            data = encode(photo[y : y + 48, x : x + 64])
            path = root / split / f'class {i % 2}' / f'{i:03}.JPG'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(BREAK[i // 10](data) if i % 10 == 5 else data)
    return root


def config_for(root):
    config = tiny_config()
    config.data.source, config.data.path = 'folder', str(root)
    config.preprocess.train = 'decode(channels=1)|random_resized_crop(32)|flip_lr'
    config.preprocess.eval = 'decode(channels=1)|resize(32)'
    config.training.batch_size, config.schedule.warmup = 20, '0 steps'
    config.training.duration = config.training.eval_every = '2 epochs'
    return config


def test_training_refuses_too_many_and_goes_through_when_they_are_allowed(root, tmp_path):
    config = config_for(root)
    with pytest.raises(UserError, match=r'of 40 could not be read so far.*data\.max_corrupt=0\.01'):
        train(config, tmp_path / 'refused')
    config.data.max_corrupt = 0.1
    results = train(config, tmp_path / 'run')
    assert results['validation']['count'] == results['test']['count'] == 36
    run = load_run(tmp_path / 'run')
    with pytest.raises(UserError, match='--skip_corrupt'):
        evaluate_entry([run], 'test', complete_eval({}))
    scores = evaluate_entry([run], 'test', complete_eval({}), skip_corrupt=True).figures
    assert (scores['count'], scores['corrupt']) == (36, 4)
    assert {key: scores[key] for key in results['test']} == results['test']


def test_images_of_the_test_split_that_cannot_be_read_cost_their_figures_alone(
    root, tmp_path, capsys
):
    """The finished run reports both counts and exits with 3. The advice in its message works."""
    shutil.copytree(root, tmp_path / 'data')
    for split in ('train', 'val'):
        for file in (tmp_path / 'data' / split).rglob('*5.JPG'):
            shutil.copyfile(
                file.with_name('000.JPG' if file.parent.name[-1] == '0' else '001.JPG'), file
            )
    config = config_for(tmp_path / 'data')
    results = train(config, tmp_path / 'run')
    assert (results['test']['count'], results['test']['corrupt']) == (36, 4)
    assert 'corrupt' not in results['validation'] and results['validation']['count'] == 40
    assert '4 of 40 images could not be read' in capsys.readouterr().err
    config.data.max_corrupt = 0.5
    (tmp_path / 'own.py').write_text(
        f'from vision.core.config import from_json\ndef get_config():\n    return from_json({to_json(config)!r})\n'
    )
    again = run_module(
        'experiments.train', f'--config={tmp_path}/own.py', f'--workdir={tmp_path}/run', '--format=json'
    )  # fmt: skip
    assert again.returncode == 3 and json.loads(again.stdout) == results, again.stderr
