"""Folders and lists of images: the files, splits and classes."""

import collections
import json
import os
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from vision.core.errors import UserError
from vision.data.file_list import file_list
from vision.data.folder import SPLITS, files, folder
from vision.data.source import NoSplitError

pytestmark = pytest.mark.smoke


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')


def names(source, root):
    return [path[len(str(root)) + 1 :] for path in source.paths]


def many(root, count=200, classes=('cat', 'dog')):
    touch(root, *(f'{c}/{i:04}.jpg' for c in classes for i in range(count)))


def test_split_folders_are_the_splits(tmp_path):
    for split in ('train', 'val', 'test'):
        touch(tmp_path, f'{split}/cat/{split}1.jpg', f'{split}/dog/{split}2.PNG')
    for split, own in (('train', 'train'), ('validation', 'val'), ('test', 'test')):
        source = folder(split, str(tmp_path))
        assert names(source, tmp_path) == [f'{own}/cat/{own}1.jpg', f'{own}/dog/{own}2.PNG']
        assert source.class_names == ('cat', 'dog')
        np.testing.assert_array_equal(source.labels, [0, 1])
        assert source.labels.dtype == np.int32


def test_without_validation_some_of_train_is_held_out(tmp_path):
    many(tmp_path / 'train')
    many(tmp_path / 'test', 5)
    train, validation = (set(folder(s, str(tmp_path)).paths) for s in ('train', 'validation'))
    assert not train & validation
    assert len(train | validation) == 400
    assert 20 < len(validation) < 60
    assert len(folder('test', str(tmp_path)).paths) == 10


def test_all_images_are_counted_once_if_a_split_folder_is_a_link_to_another(tmp_path):
    touch(tmp_path, 'train/cat/1.jpg', 'val/cat/2.jpg')
    (tmp_path / 'test').symlink_to('val')
    assert names(folder('all', str(tmp_path)), tmp_path) == ['train/cat/1.jpg', 'val/cat/2.jpg']
    assert names(folder('test', str(tmp_path)), tmp_path) == ['test/cat/2.jpg']


def test_without_test_the_validation_folder_serves(tmp_path):
    many(tmp_path / 'train', 3)
    many(tmp_path / 'val', 2)
    assert folder('test', str(tmp_path)).paths == folder('validation', str(tmp_path)).paths


def test_classes_only_are_split_by_a_hash_in_every_class(tmp_path):
    many(tmp_path, 1000)
    sources = {s: folder(s, str(tmp_path)) for s in ('train', 'validation', 'test')}
    paths = [set(s.paths) for s in sources.values()]
    assert sum(map(len, paths)) == len(set().union(*paths)) == 2000
    for split, fraction in (('train', 0.8), ('validation', 0.1), ('test', 0.1)):
        shares = np.bincount(sources[split].labels) / 1000
        np.testing.assert_allclose(shares, fraction, atol=0.04)


@pytest.mark.parametrize(('rules', 'size'), [(1, 200), (2, 200), (2, 42), (2, 100)])
def test_adding_a_tenth_moves_few_files_and_none_under_the_old_rules(tmp_path, rules, size):
    many(tmp_path, size, 'abcd')
    before = splits_of(tmp_path, rules=rules)
    many(tmp_path, size * 11 // 10, 'abcd')
    touch(tmp_path, 'a/aaa.jpg', 'b/zzz/deep.jpg')
    after = splits_of(tmp_path, rules=rules)
    moved = sum(after[path] != split for path, split in before.items())
    assert moved <= (0.03 * 4 * size if rules == 2 else 0)


def splits_of(root, **keys):
    """Returns the split of each file."""
    found = {}
    for split in SPLITS:
        try:
            source = folder(split, str(root), **keys)
        except NoSplitError:
            continue
        assert not found.keys() & set(names(source, root))
        found |= dict.fromkeys(names(source, root), split)
    return found


def counts(root, **keys):
    """Counts the images of each class in train, validation and test."""
    found = collections.defaultdict(lambda: [0, 0, 0])
    for path, split in splits_of(root, **keys).items():
        found[path.split('/')[0]][SPLITS.index(split)] += 1
    return dict(found)


@pytest.mark.parametrize(
    ('keys', 'shares'),
    [
        ({}, (0.8, 0.1, 0.1)),
        ({'validation': '20%', 'test': '15%'}, (0.65, 0.2, 0.15)),
        ({'validation': 0.25, 'test': '0.3'}, (0.45, 0.25, 0.3)),
        ({'validation': 30, 'test': '31'}, (1 - 61 / 148, 30 / 148, 31 / 148)),
        ({'validation': 0}, (0.9, 0, 0.1)),
        ({'fold': '2/5'}, (0.7, 0.1, 0.2)),
    ],
)
def test_each_class_has_its_share_within_one_example(tmp_path, keys, shares):
    sizes = {'a': 42, 'b': 42, 'c': 17, 'd': 40, 'e': 7}
    for name, size in sizes.items():
        many(tmp_path, size, [name])
    found = counts(tmp_path, **keys)
    for name, size in sizes.items():
        np.testing.assert_allclose(found[name], np.multiply(shares, size), atol=1.0001)
        assert all(n for n, share in zip(found[name], shares, strict=True) if share)


def test_folds_are_disjoint_and_together_all_images(tmp_path):
    many(tmp_path, 23, 'abc')
    tested = [names(folder('test', str(tmp_path), fold=f'{k}/4'), tmp_path) for k in range(1, 5)]
    assert sorted(path for fold in tested for path in fold) == [
        f'{c}/{i:04}.jpg' for c in 'abc' for i in range(23)
    ]
    for k in range(1, 5):
        assert len(splits_of(tmp_path, fold=f'{k}/4')) == 69


@pytest.mark.parametrize('size', [1, 2, 3, 4])
def test_a_small_class_keeps_an_image_for_train_and_is_named_where_it_lacks_one(
    tmp_path, caplog, size
):
    for k in range(8):
        many(tmp_path, size, [f'small {k}'])
    many(tmp_path, 40, ['large'])
    found = counts(tmp_path)
    np.testing.assert_allclose(found['large'], [32, 4, 4], atol=1)
    for k in range(8):
        train, validation, test = found[f'small {k}']
        assert train >= 1 and abs(train - 0.8 * size) <= 1
        for count, split in ((validation, 'validation'), (test, 'test')):
            told = 'no image in this split' in caplog.text and f'{tmp_path}:{split}' in caplog.text
            assert count or told
    assert "'small 0'" in caplog.text and 'large' not in caplog.text.replace(str(tmp_path), '')


@pytest.mark.parametrize(
    ('keys', 'why'),
    [
        ({'test': '100%'}, "data.test='100%' must be a share"),
        ({'test': -1}, 'data.test=-1 must be'),
        ({'validation': 'some'}, "data.validation='some' must be"),
        ({'validation': '60%', 'test': '40%'}, 'leave none of 20 images'),
        ({'test': 20}, 'must be less than the number of images, 20'),
        ({'fold': '0/5'}, "data.fold='0/5'"),
        ({'fold': '5'}, "data.fold='5'"),
        ({'fold': '1/5', 'test': '10%'}, 'give either data.fold or data.test'),
        ({'fold': '1/5', 'rules': 1}, 'data.rules=1'),
    ],
)
def test_shares_that_make_no_sense(tmp_path, keys, why):
    many(tmp_path, 10)
    with pytest.raises(UserError, match=why):
        folder('train', str(tmp_path), **keys)


def test_shares_of_splits_that_are_there_are_refused_and_others_taken_from_train(tmp_path):
    many(tmp_path / 'train', 40)
    many(tmp_path / 'val', 4)
    with pytest.raises(UserError, match='has the folder val; leave it out'):
        folder('train', str(tmp_path), validation='10%')
    found = [len(folder(s, str(tmp_path), test='25%').paths) for s in SPLITS]
    assert found[0] + found[2] == 80 and found[1] == 8 and abs(found[2] - 20) <= 2
    with pytest.raises(NoSplitError, match=r'data\.validation=0'):
        folder('validation', str(tmp_path / 'train'), validation=0)


@pytest.mark.parametrize('splits', [(), ('train',), ('train', 'val'), ('train', 'valid', 'test')])
def test_all_has_the_images_of_every_split_once(tmp_path, splits):
    for part in splits or ('',):
        many(tmp_path / part, 11)
    paths = folder('all', str(tmp_path)).paths
    every = {path for split in SPLITS for path in folder(split, str(tmp_path)).paths}
    assert len(paths) == 22 * max(1, len(splits)) and set(paths) == every
    # Classes with too few images for a validation split, and shares that leave a split out.
    touch(tmp_path / 'few', 'cat/a.jpg', 'dog/b.jpg')
    source = folder('all', str(tmp_path / 'few'), validation=0)
    assert names(source, tmp_path / 'few') == ['cat/a.jpg', 'dog/b.jpg']
    assert source.labels.tolist() == [0, 1]


def test_only_a_train_folder_is_split(tmp_path):
    many(tmp_path / 'train', 20)
    found = [len(folder(s, str(tmp_path)).paths) for s in SPLITS]
    assert sum(found) == 40
    np.testing.assert_allclose(found, [32, 4, 4], atol=2)


def test_both_val_and_valid_and_what_is_no_split_are_told(tmp_path, caplog):
    touch(tmp_path, *(f'{s}/cat/a.jpg' for s in ('train', 'valid', 'val', 'test', 'more')))
    assert names(folder('validation', str(tmp_path)), tmp_path) == ['val/cat/a.jpg']
    assert 'has val and valid: val is the validation split' in caplog.text
    assert "folders beside the splits are skipped: 'more'" in caplog.text


def test_training_and_testing_are_splits(tmp_path):
    touch(tmp_path, *(f'{s}/{c}/a.jpg' for s in ('Training', 'Testing') for c in ('cat', 'dog')))
    source = folder('test', str(tmp_path))
    assert source.class_names == ('cat', 'dog')
    assert names(source, tmp_path) == ['Testing/cat/a.jpg', 'Testing/dog/a.jpg']
    (tmp_path / 'a.csv').write_text('path,label,split\na.jpg,cat,training\nb.jpg,cat,TESTING')
    assert names(file_list('test', str(tmp_path / 'a.csv')), tmp_path) == ['b.jpg']


def test_classes_are_in_one_natural_order_in_folders_and_lists(tmp_path):
    classes = [*map(str, range(11)), '１２', 'class2', 'class10', 'class10b', 'dog']
    many(tmp_path / 'photos', 10, classes)
    rows = [f'{c}/{i}.jpg,{c}' for c in reversed(classes) for i in range(10)]
    (tmp_path / 'list.csv').write_text('\n'.join(['path,label', *rows]))
    assert folder('train', str(tmp_path / 'photos')).class_names == tuple(classes)
    assert file_list('train', str(tmp_path / 'list.csv')).class_names == tuple(classes)
    old = folder('train', str(tmp_path / 'photos'), rules=1)
    assert old.class_names == tuple(sorted(classes))
    assert file_list('train', str(tmp_path / 'list.csv'), rules=1).class_names[:3] == (
        '0',
        '1',
        '2',
    )


@pytest.mark.parametrize('count', [(30, 30), (30, 3)])
def test_a_file_that_a_list_has_twice_is_in_one_split(tmp_path, count):
    rows = [
        f'{"./" if c == "dog" else ""}{i}.jpg,{c}'
        for c, n in zip(('cat', 'dog'), count, strict=True)
        for i in range(n)
    ]
    (tmp_path / 'list.csv').write_text('\n'.join(['path,label', *rows]))
    found = [set(file_list(split, str(tmp_path / 'list.csv')).paths) for split in SPLITS]
    assert len(set().union(*found)) == sum(map(len, found)) == 30


def test_lists_with_many_sets_of_labels_have_all_splits_and_each_class_in_train(tmp_path):
    rng = np.random.default_rng(0)
    cells = ['|'.join(f'c{k}' for k in np.flatnonzero(row)) for row in rng.random((200, 9)) < 0.3]
    (tmp_path / 'l.csv').write_text(
        '\n'.join(
            ['path,label', 'rare.jpg,rare|c1', *(f'{i}.jpg,{c}' for i, c in enumerate(cells))]
        )
    )
    found = [file_list(split, str(tmp_path / 'l.csv')) for split in SPLITS]
    np.testing.assert_allclose([s.num_examples for s in found], [160, 20, 20], atol=3)
    assert found[0].labels.any(0).all()


def test_a_list_with_many_classes_takes_seconds(tmp_path):
    rows = (f'images/{i}.jpg,class {i % 5000}' for i in range(40_000))
    (tmp_path / 'list.csv').write_text('\n'.join(['path,label', *rows]))
    begin = time.process_time()
    assert file_list('train', str(tmp_path / 'list.csv')).num_examples == 30_000
    assert time.process_time() - begin < 2.5


@pytest.mark.parametrize('name', ['a.csv', 'a.jsonl'])
def test_names_that_no_file_or_class_can_have(tmp_path, name):
    for row in ({'path': 'a\0.jpg', 'label': 'cat'}, {'path': '\ud800.jpg', 'label': 'cat'},
                {'path': 'a.jpg', 'label': 'caf\udce9'}):  # fmt: skip
        (tmp_path / 'a.jsonl').write_text(json.dumps(row))
        with pytest.raises(UserError, match='image 1'):
            file_list('train', str(tmp_path / 'a.jsonl'))


def test_a_class_folder_whose_name_is_not_utf8_is_one_line(tmp_path):
    touch(tmp_path, *(f'dog/{i}.jpg' for i in range(9)))
    os.makedirs(os.fsencode(tmp_path) + b'/caf\xe9')
    with pytest.raises(UserError, match=r"class folder b'caf.xe9' is not valid UTF-8; rename it"):
        folder('train', str(tmp_path))


def test_files_whose_names_are_not_utf8_are_read(tmp_path):
    for i in range(20):
        touch(tmp_path, f'dog/{i}.jpg')
        with open(os.fsencode(tmp_path) + b'/dog/caf\xe9%d.jpg' % i, 'wb') as file:
            file.write(b'x')
    assert sum(len(folder(split, str(tmp_path)).paths) for split in SPLITS) == 40


ENDINGS = ['jpg', 'JPEG', 'jfif', 'jpe', 'png', 'apng', 'gif', 'bmp', 'dib', 'webp', 'avif', 'tif', 'tiff', 'jp2', 'j2k', 'jpx', 'tga', 'mpo', 'ico', 'psd', 'ppm', 'pgm', 'pbm', 'pnm', 'pfm', 'qoi', 'sgi', 'pcx', 'dds', 'xbm']  # fmt: skip


def test_every_format_is_read_from_folders_and_patterns_and_the_rest_is_told(tmp_path, caplog):
    touch(
        tmp_path, *(f'train/a/x.{ending}' for ending in ENDINGS), 'train/a/notes.txt', 'train/a/b'
    )
    touch(tmp_path, 'train/a/movie.mpg', 'train/a/page.eps', 'train/a/.x.jpg')
    expected = sorted(f'train/a/x.{ending}' for ending in ENDINGS)
    assert sorted(splits_of(tmp_path)) == expected
    assert sorted(names(files([str(tmp_path)]), tmp_path)) == expected
    assert sorted(names(files([str(tmp_path / '**/*')]), tmp_path)) == expected
    told = [record.message for record in caplog.records if 'are skipped' in record.message]
    assert '5 files are skipped' in told[0] and '1 .txt' in told[0] and '1 hidden' in told[0]
    assert len({*told}) == len(told)


def test_heic_is_read_where_its_plug_in_is_installed(tmp_path, monkeypatch, caplog):
    touch(tmp_path, 'x.heic', 'y.jpg')
    assert names(files([str(tmp_path)]), tmp_path) == ['y.jpg']
    assert '(1 .heic); to read .heic: pip install pillow-heif' in caplog.text

    def register():
        monkeypatch.setitem(Image.EXTENSION, '.heic', 'HEIF')
        monkeypatch.setitem(Image.OPEN, 'HEIF', (None, None))

    monkeypatch.setitem(
        sys.modules, 'pillow_heif', types.SimpleNamespace(register_heif_opener=register)
    )
    assert names(files([str(tmp_path)]), tmp_path) == ['x.heic', 'y.jpg']


def test_images_beside_the_class_folders_and_pipes_are_passed_over_and_told(tmp_path, caplog):
    touch(tmp_path, 'loose.jpg', *(f'cat/{i}.jpg' for i in range(9)))
    os.mkfifo(tmp_path / 'cat/pipe.jpg')
    assert len(splits_of(tmp_path)) == 9
    assert '1 images are skipped, because they are not in a class folder' in caplog.text
    assert '1 no file' in caplog.text


def test_linked_folders_that_lead_to_each_other_are_walked_once(tmp_path):
    touch(tmp_path, 'a/1.jpg', 'b/2.jpg')
    os.symlink(tmp_path / 'b', tmp_path / 'a/to b')
    os.symlink(tmp_path / 'a', tmp_path / 'b/to a')
    assert names(files([str(tmp_path)]), tmp_path) == ['a/1.jpg', 'b/2.jpg']
    assert names(files([str(tmp_path / 'a')]), tmp_path) == ['a/1.jpg', 'a/to b/2.jpg']


def test_a_train_folder_that_is_taken_for_a_class_is_told(tmp_path, caplog):
    touch(tmp_path, 'train/cat/1.jpg', 'train/dog/2.jpg', 'test1/3.jpg', '.5/4.jpg')
    assert folder('train', str(tmp_path)).class_names == ('test1', 'train')
    assert 'train is treated as a class' in caplog.text and '1 hidden folder' in caplog.text


def test_links_that_lead_to_themselves_are_no_folders(tmp_path):
    touch(tmp_path, 'a/1.jpg', 'b/2.jpg')
    for link in ('loop', 'a/loop', 'a/loop.jpg'):
        os.symlink(tmp_path / link, tmp_path / link)
    assert names(files([str(tmp_path)]), tmp_path) == ['a/1.jpg', 'a/loop.jpg', 'b/2.jpg']
    assert folder('train', str(tmp_path)).class_names == ('a', 'b')


def test_a_folder_that_was_listed_long_ago_is_listed_again_when_it_changed(tmp_path):
    many(tmp_path, 20)
    for name in (tmp_path, tmp_path / 'cat', tmp_path / 'dog'):
        os.utime(name, (1, 1))
    assert len(splits_of(tmp_path)) == 40
    touch(tmp_path, 'cat/deeper/new.jpg')
    assert len(splits_of(tmp_path)) == 41


def test_the_split_does_not_depend_on_where_the_folder_is(tmp_path):
    many(tmp_path / 'one', 50)
    many(tmp_path / 'two' / 'elsewhere', 50)
    one = folder('test', str(tmp_path / 'one'))
    two = folder('test', str(tmp_path / 'two' / 'elsewhere'))
    assert names(one, tmp_path / 'one') == names(two, tmp_path / 'two' / 'elsewhere')
    # The hash must not change: other counts would move files between the splits of existing runs.
    assert names(one, tmp_path / 'one')[:3] == GOLDEN
    old = folder('test', str(tmp_path / 'one'), rules=1)
    assert names(old, tmp_path / 'one')[:3] == ['cat/0012.jpg', 'cat/0019.jpg', 'cat/0026.jpg']


GOLDEN = ['cat/0012.jpg', 'cat/0019.jpg', 'cat/0026.jpg']


def test_only_images_count_whatever_their_names(tmp_path):
    touch(
        tmp_path / 'train',
        'two words/my photo.JPG',
        'two words/nested/deeper/ünïcödé ✓.jpeg',
        'two words/.hidden.jpg',
        'two words/notes.txt',
        'two words/.git/x.jpg',
        'two words/Thumbs.db',
        '犬/一.WebP',
        '.hidden class/x.jpg',
    )
    touch(tmp_path / 'val', 'two words/a.bmp', '犬/b.gif')
    source = folder('train', str(tmp_path))
    assert source.class_names == ('two words', '犬')
    assert names(source, tmp_path) == [
        'train/two words/my photo.JPG',
        'train/two words/nested/deeper/ünïcödé ✓.jpeg',
        'train/犬/一.WebP',
    ]


@pytest.mark.parametrize(
    ('made', 'split', 'why'),
    [
        ([], 'train', 'has no subfolders'),
        (['a.jpg'], 'train', 'has no subfolders'),
        (['cat/a.jpg', 'dog/notes.txt'], 'train', 'dog: the class has no images'),
        (['train/cat/a.jpg', 'val/cat/a.jpg', 'val/cow/a.jpg'], 'validation', "class 'cow' is not"),
        (['train/cat/a.jpg', 'train/dog/a.jpg', 'val/cat/a.jpg'], 'validation', "'dog' has no folder"),
        (['val/cat/a.jpg', 'test/cat/a.jpg'], 'train', 'no folder train'),
        (['cat/a.jpg'], 'validate', "Did you mean 'validation'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_said(tmp_path, made, split, why):
    touch(tmp_path, *made)
    with pytest.raises(UserError, match=why):
        folder(split, str(tmp_path))


def test_missing_folder_and_empty_split(tmp_path):
    with pytest.raises(UserError, match=r'no such folder$'):
        folder('train', str(tmp_path / 'none'))
    with pytest.raises(UserError, match=rf'no such folder; did you mean {tmp_path}\?$'):
        folder('train', f'{tmp_path}s/')
    touch(tmp_path, 'cat/a.jpg')
    in_split = [s for s in ('train', 'validation', 'test') if _opens(s, tmp_path)]
    assert len(in_split) == 1


def _opens(split, root):
    try:
        return bool(folder(split, str(root)).num_examples)
    except UserError as e:
        assert 'no examples' in str(e)
        return False


def test_csv_and_json_lines(tmp_path):
    rows = [(f'images/{i} é.jpg', ['cat', 'dog'][i % 2]) for i in range(300)]
    (tmp_path / 'a.csv').write_text(
        'path,label\n' + ''.join(f'"{p}",{c}\n' for p, c in rows), encoding='utf-8'
    )
    (tmp_path / 'a.jsonl').write_text(
        '\n'.join(json.dumps({'path': p, 'label': c}) for p, c in rows) + '\n'
    )
    for split in ('train', 'validation', 'test'):
        one, two = (file_list(split, str(tmp_path / f'a.{e}')) for e in ('csv', 'jsonl'))
        assert one.paths == two.paths and one.class_names == two.class_names == ('cat', 'dog')
        np.testing.assert_array_equal(one.labels, two.labels)
        for path, label in zip(one.paths, one.labels, strict=True):
            number = int(path.split('/')[-1].split()[0])
            assert label == number % 2
    assert one.paths[0].startswith(str(tmp_path / 'images'))


def test_list_with_its_own_splits_and_numeric_labels(tmp_path):
    lines = ['path,label,split', 'a.jpg,10,train', 'b.jpg,9,val', 'c.jpg,9,train', 'd.jpg,10,test']
    (tmp_path / 'a.csv').write_text('\n'.join(lines))
    source = file_list('train', str(tmp_path / 'a.csv'))
    assert source.class_names == ('9', '10')
    assert names(source, tmp_path) == ['a.jpg', 'c.jpg']
    np.testing.assert_array_equal(source.labels, [1, 0])
    assert names(file_list('validation', str(tmp_path / 'a.csv')), tmp_path) == ['b.jpg']
    every = file_list('all', str(tmp_path / 'a.csv'))
    assert names(every, tmp_path) == ['a.jpg', 'c.jpg', 'b.jpg', 'd.jpg']
    assert every.labels.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ('name', 'text', 'why'),
    [
        ('a.csv', '', 'no images'),
        ('a.csv', 'path,label\n', 'no images'),
        ('a.csv', 'file,label\na.jpg,cat\n', "image 1 has no 'path'"),
        ('a.csv', 'path;label\na.jpg;cat\n', "image 1 has no 'path'.*, not 'path;label'$"),
        ('a.csv', 'path,label,label\na.jpg,cat,dog\n', 'path,label,label names a column twice'),
        ('a.csv', 'path,label\nhttps://x.org/a.jpg,cat\n', 'image 1 is a URL'),
        ('a.jsonl', '{"path": "a.jpg", "label": NaN}', 'label of image 1 is nan'),
        ('a.csv', 'path,label\na.jpg,cat\nb.jpg\n', "image 2 has no 'label'"),
        ('a.csv', 'path,label,split\na.jpg,cat,trian\n', "unknown split 'trian'"),
        ('a.csv', 'path,label,split\na.jpg,cat,test\nb.jpg,cat\n', "image 2 has no 'split'"),
        ('a.jsonl', '{"path": "a.jpg", "label": "cat"}\nnonsense\n', 'line 2: not JSON'),
        ('a.jsonl', '[1]\n', 'line 1: expected'),
        ('a.jsonl', '[' * 100_000, 'line 1: not JSON'),
        ('a.jsonl', '{"path": "a.jpg", "label": ["cat"]}', "label of image 1 is \\['cat'\\]"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=why):
        file_list('train', str(tmp_path / name))


def test_columns_that_are_not_read_may_have_one_name(tmp_path):
    (tmp_path / 'a.csv').write_text('path,label,note,note\na.jpg,cat,1,2\n')
    assert names(file_list('all', str(tmp_path / 'a.csv')), tmp_path) == ['a.jpg']


def test_classes_that_look_the_same_are_told(tmp_path, caplog):
    (tmp_path / 'a.csv').write_text('path,label\na.jpg,cat\nb.jpg,cat \nc.jpg,Cat\n')
    touch(tmp_path / 'names', 'caf\u00e9/a.jpg', 'cafe\u0301/b.jpg', 'cafe/c.jpg')
    assert file_list('all', str(tmp_path / 'a.csv')).class_names == ('Cat', 'cat', 'cat ')
    assert len(folder('all', str(tmp_path / 'names')).class_names) == 3
    told = [line for line in caplog.text.splitlines() if 'are different classes' in line]
    assert len(told) == 2 and "'cat' and 'cat '" in told[0] and "'caf\\xe9'" in told[1]


def test_folders_that_systems_add_are_no_classes_and_have_no_images(tmp_path, caplog):
    touch(tmp_path, 'cat/a.jpg', 'cat/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg', '__MACOSX/cat/._a.jpg')
    (tmp_path / 'lost+found').mkdir()
    assert names(folder('all', str(tmp_path)), tmp_path) == ['cat/a.jpg']
    assert names(files([str(tmp_path)]), tmp_path) == ['cat/a.jpg']
    told = [line for line in caplog.text.splitlines() if 'files and folders are skipped' in line]
    assert '1 folder __MACOSX' in told[0] and '1 folder lost+found' in told[0]
    assert '1 folder @eaDir' in caplog.text
    # A pattern reads them only if it names them.
    assert names(files([str(tmp_path / '**/*.jpg')]), tmp_path) == ['cat/a.jpg']
    thumbnails = files([str(tmp_path / '**/@eaDir/*/*.jpg')])
    assert names(thumbnails, tmp_path) == ['cat/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg']


def test_files_folders_and_patterns_to_predict(tmp_path):
    touch(tmp_path, 'd/b.jpg', 'd/sub/a.PNG', 'd/notes.txt', 'z.jpg', 'y.jpg', 'odd.dat')
    given = [str(tmp_path / p) for p in ('odd.dat', 'd', '*.jpg', 'missing.jpg')]
    source = files(given)
    assert names(source, tmp_path) == [
        'odd.dat', 'd/b.jpg', 'd/sub/a.PNG', 'y.jpg', 'z.jpg', 'missing.jpg',
    ]  # fmt: skip
    assert (source.labels == -1).all()


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    touch(tmp_path, 'a[1].jpg', 'a1.jpg')
    assert names(files([str(tmp_path / 'a[1].jpg')]), tmp_path) == ['a[1].jpg']


def test_the_folders_that_a_pattern_begins_with_are_taken_by_their_names(tmp_path, monkeypatch):
    touch(tmp_path, 'run[1]/deep/x.jpg', 'run1/deep/y.jpg')
    assert names(files([str(tmp_path / 'run[1]/*/*.jpg')]), tmp_path) == ['run[1]/deep/x.jpg']
    assert names(files([str(tmp_path / 'run[0-9]/*/*.jpg')]), tmp_path) == ['run1/deep/y.jpg']
    monkeypatch.chdir(tmp_path)
    assert files(['run[1]/**/*.jpg']).paths == ('run[1]/deep/x.jpg',)


@pytest.mark.parametrize('given', [[], ['empty'], ['*.jpg']])
def test_nothing_to_predict_is_a_mistake(tmp_path, given):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no images'):
        files([str(tmp_path / p) for p in given])


def test_ten_thousand_files_open_in_seconds(tmp_path):
    Image.new('RGB', (1, 1)).save(tmp_path / 'one.png')
    data = (tmp_path / 'one.png').read_bytes()
    for c in range(10):
        (tmp_path / 'images' / f'{c}').mkdir(parents=True)
        for i in range(1000):
            (tmp_path / 'images' / f'{c}' / f'{i}.png').write_bytes(data)
    begin = time.perf_counter()
    source = folder('train', str(tmp_path / 'images'))
    assert time.perf_counter() - begin < 3
    assert 7800 < source.num_examples < 8200


def test_links_that_lead_back_are_passed_over_and_others_followed(tmp_path):
    touch(tmp_path, *(f'photos/{c}/{i}.jpg' for c in 'ab' for i in range(30)), 'elsewhere/x/30.jpg')
    os.symlink(tmp_path / 'photos', tmp_path / 'photos/a/again')
    os.symlink(tmp_path / 'photos/a', tmp_path / 'photos/a/me')
    os.symlink(tmp_path / 'photos', tmp_path / 'photos/loop')
    os.symlink(tmp_path / 'elsewhere', tmp_path / 'photos/b/more')
    root = tmp_path / 'photos'
    found = []
    for split in ('train', 'validation', 'test'):
        found += names(folder(split, str(root)), root)
    expected = [f'{c}/{i}.jpg' for c in 'ab' for i in range(30)] + ['b/more/x/30.jpg']
    assert sorted(found) == sorted(expected)


def test_labels_and_endings_that_others_have(tmp_path):
    (tmp_path / 'a.csv').write_text('path,label\n' + '\n'.join(f'{i}.ppm,x²' for i in range(40)))
    assert file_list('train', str(tmp_path / 'a.csv')).class_names == ('x²',)
    (tmp_path / 'b.csv').write_text('path,label\n' + '\n'.join(f'{i}.ppm,²' for i in range(40)))
    assert file_list('train', str(tmp_path / 'b.csv')).class_names == ('²',)
    touch(tmp_path / 'signs', *(f'train/a/{i}.{e}' for i, e in enumerate(('ppm', 'PGM', 'jfif'))))
    assert folder('train', str(tmp_path / 'signs')).num_examples


def test_a_list_with_several_names_in_a_cell_is_multi_label(tmp_path):
    rows = ['a.jpg,dog | cat,train', 'b.jpg,,train', 'c.jpg,cat,train', 'd.jpg,10|9|cat|cat,test']
    (tmp_path / 'list.csv').write_text('\n'.join(['path,label,split', *rows]))
    train, test = (file_list(split, str(tmp_path / 'list.csv')) for split in ('train', 'test'))
    assert train.class_names == test.class_names == ('9', '10', 'cat', 'dog')
    assert train.multi_label and train.labels.dtype == np.float32
    np.testing.assert_array_equal(train.labels, [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(test.labels, [[1, 1, 1, 0]])


def test_an_empty_cell_is_a_mistake_where_each_image_has_one_label(tmp_path):
    (tmp_path / 'list.csv').write_text('path,label,split\na.jpg,dog,train\nb.jpg,,train')
    with pytest.raises(UserError, match="image 2 has no 'label'"):
        file_list('train', str(tmp_path / 'list.csv'))


def test_linked_folders_that_lead_to_each_other_are_walked_once_at_any_depth(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name / 'deep').mkdir(parents=True)
        (tmp_path / name / 'deep' / f'{name}.png').touch()
    (tmp_path / 'a' / 'to b').symlink_to(tmp_path / 'b')
    (tmp_path / 'b' / 'deep' / 'to a').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'again').symlink_to(tmp_path / 'a' / 'deep')
    found = [os.path.relpath(p, tmp_path) for p in files([str(tmp_path)]).paths]
    assert found == ['a/deep/a.png', 'b/deep/b.png']
    one = [os.path.relpath(p, tmp_path) for p in files([str(tmp_path / 'a')]).paths]
    assert one == ['a/deep/a.png', 'a/to b/deep/b.png']


def test_a_file_in_place_of_a_folder_is_named_as_such(tmp_path):
    (tmp_path / 'cat.png').write_bytes(b'')
    with pytest.raises(UserError, match='is a file; name the folder above the class folders'):
        folder('train', str(tmp_path / 'cat.png'))
