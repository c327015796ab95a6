"""A user-defined source, that of docs/extending.md, in everything that reads a source."""

import csv
import io
import json
import os
import re
import sys
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.conftest import REPO, run_module
from vision import data
from vision.core.errors import UserError
from vision.data import arrays
from vision.data.source import Source, read_each

BLOCKS = re.findall(
    r'^```python\n# (\w+\.py)\n(.*?)^```', (REPO / 'docs/extending.md').read_text(), re.M | re.S
)
COUNTS = {'train': 96, 'validation': 32, 'test': 40}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The files of the document, and a zip file with scans of digits."""
    root = tmp_path_factory.mktemp('own')
    for name, text in BLOCKS:
        (root / name).write_text(text)
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(['file', 'label', 'split'])
    with zipfile.ZipFile(root / 'scans.zip', 'w') as file:
        for split, count in COUNTS.items():
            digits = arrays.digits(split)
            for i in range(count):
                buffer, name = io.BytesIO(), f'{split}/{i}.png'
                Image.fromarray(digits.images[i, ..., 0]).save(buffer, 'PNG')
                file.writestr(name, buffer.getvalue())
                rows.writerow([name, f'digit {digits.labels[i]}', split])
        file.writestr('list.csv', table.getvalue())
    return root


def run(folder, *words):
    done = run_module(*words, cwd=folder, PYTHONPATH=f'{folder}{os.pathsep}{REPO}')
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def trained(folder):
    run(folder, 'experiments.train', '--config=my_config.py', '--workdir=run',
        '--config.training.duration=4 steps', '--config.training.eval_every=4 steps')  # fmt: skip
    return folder / 'run'


def test_it_trains_and_is_normalised_by_its_own_statistics(trained, folder):
    records = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
    assert any('validation/top1' in r for r in records) and any('test/top1' in r for r in records)
    about = json.loads((trained / 'dataset.json').read_text())
    assert about['num_examples'] == COUNTS
    pixels = arrays.digits('train').images[: COUNTS['train']] / 255
    assert about['mean'][0] == pytest.approx(pixels.mean(), abs=0.05)


def test_it_is_evaluated_with_a_report_of_its_images(trained, folder):
    figures = json.loads(run(folder, 'experiments.evaluate', '--workdir=run', '--format=json'))
    assert '"count": 40' in json.dumps(figures)
    assert 'data:image/png;base64,' in (trained / 'report' / 'index.html').read_text()


@pytest.mark.slow
def test_its_preview_counts_and_draws_it(folder):
    run(folder, 'experiments.preview', '--config=my_config.py', '--output=preview')
    summary = json.loads((folder / 'preview' / 'summary.json').read_text())
    assert {split: s['examples'] for split, s in summary['splits'].items()} == COUNTS
    assert summary['splits']['train']['height'] == [8, 8, 8] and not summary['leakage']
    assert (folder / 'preview' / 'inputs.png').stat().st_size > 10_000


@pytest.mark.slow
def test_it_is_searched(trained, folder):
    search = ['experiments.search', '--workdir=run', '--index=scans.index']
    run(folder, *search, '--split=train', 'build')
    (found,) = json.loads(run(folder, *search, '--format=json', '--top_k=3', 'query', 'train:7'))
    assert found['path'] == 'train:7' and found['neighbours'][0]['path'] == 'train:7'
    run(folder, *search, '--output=near.html', 'query', 'test:3')
    assert 'digit ' in (folder / 'near.html').read_text()


@pytest.fixture
def about(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop('my_zip', None)
    return ConfigDict({'source': 'my_zip:ZipSource', 'path': str(folder / 'scans.zip')})


def test_its_keys_are_its_own(about, folder):
    assert data.load(about, 'test').num_examples == COUNTS['test']
    with pytest.raises(UserError, match=r"unknown key of config.data 'pth'. Did you mean 'path'"):
        data.load(ConfigDict({**about, 'pth': 'x'}), 'test')
    with pytest.raises(UserError, match=r'path=3 is not of type str'):
        data.load(ConfigDict({**about, 'path': 3}), 'test')
    with pytest.raises(UserError, match=r'data.path is missing'):
        data.load(ConfigDict({'source': 'my_zip:ZipSource'}), 'test')
    with pytest.raises(UserError, match=r"source 'my_zip:ZipSource': .*No such file.*none.zip"):
        data.load(ConfigDict({**about, 'path': 'none.zip'}), 'test')
    with pytest.raises(
        UserError, match=r"module 'my_zip' has no 'ZipSorce'; did you mean 'ZipSource'\?"
    ):
        data.load(ConfigDict({**about, 'source': 'my_zip:ZipSorce'}), 'test')
    with pytest.raises(UserError, match=r"unknown data.source 'digit'. Did you mean 'digits'"):
        data.load(ConfigDict({'source': 'digit'}), 'test')


def test_what_it_lacks_or_gets_wrong_is_named(about, folder):
    (folder / 'my_wrong.py').write_text(
        'import numpy as np\n'
        'from my_zip import ZipSource\n'
        'from vision.data import Source\n'
        'class Bare:\n'
        '    name, class_names, num_examples = "bare", ("a",), 3\n'
        '    def read(self, ids): return [b""] * len(ids), np.zeros(len(ids), int)\n'
        '    def __init__(self, split): pass\n'
        'class NoRead(Source):\n'
        '    def __init__(self, split): self.name, self.class_names, self.num_examples = "n", ("a",), 3\n'
        'class NoName(Source):\n'
        '    def __init__(self, split): self.num_examples = 3\n'
        'class Pixels(ZipSource):\n'
        '    encoded, image_shape = False, (8, 8, 1)\n'
        'class Short(ZipSource):\n'
        '    def read(self, ids): return [], self.labels[ids]\n'
        'class Several(ZipSource):\n'
        '    multi_label = True\n'
        'class Outside(ZipSource):\n'
        '    def __init__(self, split, path):\n'
        '        super().__init__(split, path)\n'
        '        self.labels = self.labels + 1\n'
    )
    # Each class is opened by name, and its mistake is named in one line.
    for name, why in [
        ('Bare', "Bare has no 'multi_label'; derive it from vision.data.Source"),
        ('NoRead', "NoRead has no method 'read'"),
        ('NoName', "NoName has no 'name'"),
        ('Pixels', r'encoded=False requires uint8 of image_shape=\(8, 8, 1\), but read returns'),
        ('Short', r'read\(\[0\]\) returns 0 images and 1 labels'),
        ('Several', r'a label of shape \(\), but the source has 10 classes and multi_label=True'),
        ('Outside', 'labels go from 1 to 10, but there are 10 classes'),
    ]:
        about.source = f'my_wrong:{name}'
        taken = (
            ConfigDict({'source': about.source}) if name in ('Bare', 'NoRead', 'NoName') else about
        )
        with pytest.raises(UserError, match=why) as error:
            data.load(taken, 'test')
        assert '\n' not in str(error.value)


def test_a_part_of_it_goes_by_its_names(about):
    source = data.load(about, 'test')
    part = source.subset([7, 3])
    assert (
        part.num_examples == 2
        and part.name_of(1) == source.name_of(3) == f'{source.name}, example 3'
    )
    assert part.read([1])[0] == source.read([3])[0]
    np.testing.assert_array_equal(part.labels, source.labels[[7, 3]])
    assert part.subset([1]).read([0])[0] == source.read([3])[0]


def test_labels_that_it_does_not_know_are_read():
    class Counting(Source):
        name, class_names, num_examples = 'counting', ('even', 'odd'), 600

        def read(self, ids):
            if 5 in ids:
                raise OSError('the disk is gone')
            return [b'%d' % i for i in ids], np.array([i % 2 for i in ids])

    source = Counting()
    np.testing.assert_array_equal(source.labels, [0 if i == 5 else i % 2 for i in range(600)])
    assert source.labels.dtype == np.int32 and not source.multi_label
    images, _ = read_each(source, [4, 5, 6])
    assert images[0] == b'4' and images[2] == b'6' and str(images[1]) == 'OSError: the disk is gone'


def test_one_that_is_read_in_order_is_trained_on_and_evaluated(folder):
    """The source has pixels, several labels per image, and chunks of odd sizes."""
    from vision.preprocess.pipeline import eval_batches, train_batches

    class InOrder(Source):
        name, class_names, num_examples = 'in order', ('two', 'three'), 23
        image_shape, encoded, indexed, multi_label = (4, 4, 1), False, False, True

        def stream(self, order=None, part=0, parts=1):
            ids = np.array_split(np.arange(23), parts)[part]
            ids = ids if order is None else np.random.default_rng(order).permutation(ids)
            for chunk in np.array_split(ids, 3):
                images = np.ones((len(chunk), 4, 4, 1), np.uint8) * chunk[:, None, None, None]
                yield chunk, images.astype(np.uint8), np.stack([chunk % 2 == 0, chunk % 3 == 0], 1)

    source = InOrder()
    np.testing.assert_array_equal(source.labels[:, 1], np.arange(23) % 3 == 0)
    with pytest.raises(UserError, match='in order can only be read in order'):
        source.subset([3])
    # Evaluation yields every example once, in order.
    batches = list(eval_batches(source, '', batch_size=8))
    ids, labels, mask = (np.concatenate([b[k] for b in batches]) for k in ('id', 'label', 'mask'))
    np.testing.assert_array_equal(ids, [*range(23), -1])
    np.testing.assert_array_equal(labels[:23], source.labels)
    assert labels.dtype == np.float32 and not labels[23].any() and mask.sum() == 23
    # Two epochs of training have every example twice.
    run = train_batches(source, '', batch_size=5, seed=1)
    first = [next(run) for _ in range(14)]
    for batch in first:
        np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['id'])
        np.testing.assert_array_equal(batch['label'], source.labels[batch['id']])
    epoch = np.concatenate([b['id'] for b in first])[:46].reshape(2, 23)
    np.testing.assert_array_equal(np.sort(epoch), [np.arange(23)] * 2)
    # A resumed run continues with the same batches.
    resumed = train_batches(source, '', batch_size=5, seed=1, start_step=9)
    for batch in first[9:]:
        np.testing.assert_array_equal(next(resumed)['id'], batch['id'])
    # A stream that ends early is an error.
    source.num_examples = 24
    with pytest.raises(UserError, match='in order: only 23 of 24 examples could be read'):
        list(eval_batches(source, '', batch_size=8))
