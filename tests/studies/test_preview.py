"""The preview reports the faults of a data set and draws the model's input."""

import json
import shutil
import signal
import warnings

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image, ImageFilter

from tests.preprocess.conftest import encode
from tests.processes import Process
from vision.core import fonts
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.data.file_list import file_list
from vision.studies import input_preview as preview_lib
from vision.studies.input_preview import preview, text
from vision.studies.inspect import describe
from vision.studies.survey import survey


def folder_of(root, photos):
    """Returns a config whose data are crops of photos: two classes in three splits below `root`."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 4), ('test', 4)):
        for c in ('cat', 'dog'):
            (root / split / c).mkdir(parents=True)
            for i in range(count):
                photo = photos[rng.integers(5)]
                y, x = rng.integers(100, size=2)
                data = encode(photo[y : y + 60, x : x + 90], 'PNG')
                (root / split / c / f'{i}.png').write_bytes(data)
    config = default_config()
    config.data.source = 'folder'
    config.data.path = str(root)
    config.preprocess.train = 'decode|random_resized_crop(32)|flip_lr'
    config.preprocess.eval = 'decode|resize(32)'
    return config


@pytest.fixture
def config(tmp_path, photos):
    return folder_of(tmp_path / 'data', photos)


@pytest.fixture(scope='module')
def previewed(tmp_path_factory, photos):
    """A folder with leakage and a broken image, the folder of its preview, and the summary."""
    root, out = tmp_path_factory.mktemp('data'), tmp_path_factory.mktemp('out')
    config = folder_of(root, photos)
    shutil.copy(root / 'train/cat/3.png', root / 'test/dog/copy.png')
    (root / 'val/dog/bad.png').write_bytes(b'no image')
    return root, out, preview(config, str(out))


def test_preview_says_what_is_there(previewed):
    root, out, summary = previewed
    assert summary == json.loads((out / 'summary.json').read_text())
    train, test = summary['splits']['train'], summary['splits']['test']
    assert train['examples'] == 24 and train['classes'] == {'cat': 12, 'dog': 12}
    assert test['classes'] == {'cat': 4, 'dog': 5}
    assert train['height'] == [60, 60, 60] and train['width'] == [90, 90, 90]
    images = [imread(p).astype(float) for p in sorted((root / 'train').rglob('*.png'))]
    np.testing.assert_allclose(train['mean'], np.mean(images, (0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(train['std'], np.std(images, (0, 1, 2)), atol=1e-5)
    assert summary['splits']['validation']['unreadable'] == {
        str(root / 'val/dog/bad.png'): 'not an image'
    }
    assert summary['leakage'] == [[str(root / 'train/cat/3.png'), str(root / 'test/dog/copy.png')]]
    words = text(summary)
    assert 'LEAKAGE: images in two splits (1)' in words
    assert 'bad.png: not an image' in words
    assert summary['compared'] == 41 and all(len(pair) == 3 for pair in summary['near'])
    assert all(isinstance(s['outliers'], dict) for s in summary['splits'].values())


def test_pictures_are_drawn(previewed):
    inputs, classes = (imread(previewed[1] / f'{n}.png') for n in ('inputs', 'classes'))
    assert inputs.shape[0] > 600 and inputs.shape[1] > 1000 and inputs[..., :3].std() > 0.05
    assert classes[..., :3].std() > 0.05


def test_the_pictures_before_are_those_after(config):
    """Without augmentation the pictures before and after are the same."""
    from vision import data
    from vision.studies.input_preview import _pairs
    from vision.training.setup import loading_of

    config.preprocess.train = 'decode|resize(160)'
    before, after, labels = _pairs(data.load(config.data, 'train'), loading_of(config))
    np.testing.assert_array_equal(before, after)
    assert len(labels) == len(after) >= 24


@pytest.mark.slow
def test_digits_have_a_preview_too(tmp_path):
    from configs.digits_lenet5 import get_config

    figure = preview_lib.draw_inputs(get_config(), 4)
    assert sum(len(axes.get_images()) for axes in figure.axes) == 8
    summary = preview(get_config(), str(tmp_path))
    assert sum(s['examples'] for s in summary['splits'].values()) == 1797
    assert (tmp_path / 'inputs.png').stat().st_size > 10_000


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_images_of_any_number_of_channels_are_drawn(channels):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    preview_lib._show(axes, np.full((4, 5, channels), 128, np.uint8))
    (drawn,) = axes.get_images()
    assert drawn.get_array().shape == ((4, 5, 3) if channels >= 3 else (4, 5))


def test_preview_of_many_broken_images_and_of_one_split_under_two_names(config, tmp_path):
    root = tmp_path / 'data'
    shutil.rmtree(root / 'test')
    for i in range(3):
        (root / 'train' / 'cat' / f'bad{i}.jpg').write_bytes(b'no image')
    summary = preview(config, str(tmp_path / 'out'))
    assert len(summary['splits']['train']['unreadable']) == 3
    assert summary['leakage'] == []  # val serves as validation and as test
    assert json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert (tmp_path / 'out' / 'inputs.png').exists()


def test_a_file_that_a_list_has_in_two_splits_is_leakage(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
    rows = ['path,label,split', 'a.png,cat,train', 'a.png,cat,val', 'a.png,dog,test']
    (tmp_path / 'a.csv').write_text('\n'.join(rows))
    path = str(tmp_path / 'a.csv')
    sources = {split: file_list(split, path) for split in ('train', 'validation')}
    assert describe(sources)['leakage'] == [[str(tmp_path / 'a.png')] * 2]


def test_all_that_is_wrong_is_listed_at_once(config, tmp_path, photos):
    root, out = tmp_path / 'data', tmp_path / 'out'
    for name in ('train/empty', 'train/also empty', 'val/strange'):
        (root / name).mkdir()
    cats = root / 'train' / 'cat'
    shutil.copy(cats / '3.png', cats / 'again.png')
    shutil.copy(cats / '4.png', root / 'test' / 'dog' / 'leak.png')
    photo = Image.fromarray(photos[2])
    photo.filter(ImageFilter.GaussianBlur(9)).save(cats / 'blurred.png')
    Image.fromarray(photos[2] // 8).save(cats / 'dark.png')
    photo.resize((20, 16)).save(cats / 'tiny.png')
    Image.new('RGB', (90, 60), (9, 90, 9)).save(cats / 'blank.png')
    summary = preview(config, str(out))
    for fault in (
        f'{root}/train/also empty: the class has no images',
        f'{root}/train/empty: the class has no images',
        f'{root}/val/strange: the class has no images',
        f"{root}/val: class 'strange' is not among the classes of train",
        f"{root}/test: class 'empty' has no folder",
    ):
        assert fault in summary['faults'] and fault in text(summary)
    train = summary['splits']['train']
    assert sorted(train['copies'][0]) == [str(cats / '3.png'), str(cats / 'again.png')]
    assert {
        k: [name.rpartition('/')[2] for name in names] for k, names in train['odd'].items()
    } == {kind: [f'{kind}.png'] for kind in ('blank', 'blurred', 'dark', 'tiny')}
    assert summary['leakage'] == [[str(cats / '4.png'), str(root / 'test/dog/leak.png')]]
    page = (out / 'index.html').read_text()
    assert 'train/cat/again.png' in page and page.count('<img') == 2 + 2 + 4 + 2
    assert 'http' not in page.replace('http-equiv', '')


def test_a_list_is_looked_at_as_a_whole(tmp_path, photos):
    Image.fromarray(photos[0]).save(tmp_path / 'a.png')
    rows = ['path,label', 'a.png,cat', ',dog', 'a.png,', 'gone.png,cat']
    (tmp_path / 'list.csv').write_text('\n'.join(rows))
    sources, faults = survey({'source': 'list', 'path': str(tmp_path / 'list.csv')})
    assert [f.partition(': ')[2].partition(';')[0] for f in faults] == [
        "image 2 has no 'path'",
        "image 3 has no 'label'",
    ]
    assert sources['images'].num_examples == 2 and sources['images'].class_names == ('cat',)


def test_without_a_path_nothing_is_listed(config, tmp_path):
    config.data.path = None
    with pytest.raises(
        UserError, match=r'^data.path is not set; set it with --config.data.path=…$'
    ):
        preview(config, str(tmp_path / 'out'))
    assert survey({'source': 'list', 'path': ''}) == ({}, [])


def test_a_folder_that_cannot_be_written_to_is_one_line(config, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'--output=.*file/out: the folder cannot be written to'):
        preview(config, str(tmp_path / 'file' / 'out'))
    with pytest.raises(UserError, match='cannot be written to'):
        preview(config, '/proc/out')


@pytest.mark.parametrize(
    ('name', 'shown'),
    [
        ('größe', 'größe'),
        ('кот', 'кот'),
        ('a\nb', 'a\\nb'),
        ('\udce9', '\\udce9'),
        ('\U0010fffd', '\\U0010fffd'),
    ],
)
def test_names_have_no_boxes(name, shown):
    assert fonts.legible(name, fonts.families_for([name])) == shown


def test_names_of_other_scripts_are_drawn_without_a_missing_glyph(tmp_path):
    names = ['猫', 'ไทย', '$a_b', '\U0001f408']
    summary = {'splits': {'train': {'classes': dict.fromkeys(names, 2)}}}
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # Matplotlib warns of glyphs that are missing
        preview_lib._draw_classes(summary, tmp_path / 'classes.png')
    assert fonts.legible('a long name of a class', length=8) == '…a class'


def test_a_signal_ends_a_preview_at_once(tmp_path):
    process = Process(
        'experiments.preview', '--config=configs/digits_lenet5.py', f'--output={tmp_path}/out'
    )
    process.wait_for((tmp_path / 'out').exists)
    process.send_signal(signal.SIGINT)
    done = process.wait(10)
    assert done.returncode == 130 and done.stderr == ''
