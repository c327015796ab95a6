"""Packaged ImageNet weights at every door: answers, heat maps, search, demo, export, fine-tuning."""

import jax
import numpy as np
import pytest

from tests.conftest import REPO
from tests.models.weights.test_packages import installed
from vision.prediction import Classifier, demo, explain, feed, stablehlo
from vision.search import display, index, search

NAME = 'efficientnet_lite0'
PHOTOS = REPO / 'docs' / 'photos'
TRUE = {'cat.jpg': ('Egyptian cat', 'tiger cat', 'tabby'), 'coffee.jpg': ('espresso',), 'rocket.jpg': ('missile',)}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def classifier():
    installed(NAME)
    return Classifier.from_pretrained(NAME)


@pytest.fixture(scope='module')
def quick_classifier(classifier):
    quick = Classifier(classifier.run)
    quick.expect(1)
    return quick


def test_few_images_get_the_answers_of_many(classifier, quick_classifier):
    """Programs that are compiled quickly give the same probabilities."""
    answers = list(quick_classifier.classify_files([PHOTOS]))
    for answer in answers:
        assert answer['predictions'][0]['class'] in TRUE[answer['path'].rsplit('/', 1)[-1]]
    photos = sorted(PHOTOS.iterdir())
    np.testing.assert_allclose(quick_classifier(photos), classifier(photos), atol=1e-4)


def test_a_heat_map_lights_up_where_the_cup_is(quick_classifier, tmp_path):
    # The cup fills the middle of the photo, and the corners show the table.
    heat = quick_classifier.explain(PHOTOS / 'coffee.jpg')[0]
    corners = [heat[y, x] for y in (slice(32), slice(-32, None)) for x in (slice(32), slice(-32, None))]  # fmt: skip
    assert heat[64:160, 64:160].mean() > 2 * np.mean([corner.mean() for corner in corners])
    assert explain.explain_files(quick_classifier, feed.files(PHOTOS), tmp_path / 'why.png') == 0


def test_search_and_the_demo(classifier, tmp_path):
    made, failed = search.build(classifier, search.named(classifier.run, PHOTOS))
    made.save(tmp_path / 'index')
    assert not failed and len(made.names) == 3
    opened = index.load(tmp_path / 'index')
    (found,) = search.query(classifier, opened, search.named(classifier.run, PHOTOS / 'cat.jpg'), 2)
    assert found['neighbours'][0]['path'].endswith('cat.jpg')
    assert found['neighbours'][0]['score'] > 0.999 > found['neighbours'][1]['score']
    said = demo.answer(classifier, display.Similar(classifier, opened), str(PHOTOS / 'coffee.jpg'))
    assert 'espresso' in said and 'id="similar"' in said


def test_an_export_gives_the_same_probabilities(classifier, tmp_path):
    about = stablehlo.export(classifier, tmp_path / 'lite0')
    assert about['classes'] == 1000 and about['checked'] == 8
    assert about['input'] == [224, 224, 3] and about['largest_difference'] < 1e-4


def test_fine_tuning_starts_from_them(tmp_path):
    from PIL import Image

    from configs import folder_finetune
    from vision.training import train

    installed(NAME)
    for photo in PHOTOS.iterdir():
        pixels = np.asarray(Image.open(photo).resize((128, 128)))
        for split in ('train', 'val', 'test'):
            folder = tmp_path / 'data' / split / photo.stem
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(pixels[i * 16 : i * 16 + 96, : 96 + 16 * i]).save(folder / f'{i}.png')  # fmt: skip
    config = folder_finetune.get_config('frozen')
    config.data.path = str(tmp_path / 'data')
    config.preprocess.train = config.preprocess.eval = 'decode|resize(64)'
    config.training.batch_size, config.training.duration = 6, '10 steps'
    config.training.log_every, config.schedule.warmup = '10 steps', '0 steps'
    config.evaluation.batch_size, config.optimizer.lr = 6, 0.1
    assert train(config, tmp_path / 'run')['test']['top1'] == 1.0
    classifier = Classifier.from_workdir(tmp_path / 'run')
    pretrained = Classifier.from_pretrained(NAME)
    kept = [c.run.variables['params']['stem_conv']['kernel'] for c in (classifier, pretrained)]
    np.testing.assert_array_equal(*map(jax.device_get, kept))
