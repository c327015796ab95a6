"""Folders and lists of images: which files, which split, which class."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from vision.core.errors import UserError
from vision.data.folder import file_list, files, folder

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


def test_adding_files_moves_none(tmp_path):
    many(tmp_path, 100)
    before = {s: set(folder(s, str(tmp_path)).paths) for s in ('train', 'validation', 'test')}
    many(tmp_path, 150, ('cat', 'dog', 'emu'))
    touch(tmp_path, 'cat/aaa.jpg', 'dog/zzz/deep.jpg')
    for split, paths in before.items():
        assert paths <= set(folder(split, str(tmp_path)).paths)


def test_the_split_does_not_depend_on_where_the_folder_is(tmp_path):
    many(tmp_path / 'one', 50)
    many(tmp_path / 'two' / 'elsewhere', 50)
    one = folder('test', str(tmp_path / 'one'))
    two = folder('test', str(tmp_path / 'two' / 'elsewhere'))
    assert names(one, tmp_path / 'one') == names(two, tmp_path / 'two' / 'elsewhere')
    # The hash is fixed: other figures would move the files of everyone's experiments.
    assert names(one, tmp_path / 'one')[:3] == GOLDEN


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
        ([], 'train', 'no folder in it'),
        (['a.jpg'], 'train', 'no folder in it'),
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
    with pytest.raises(UserError, match='no such folder'):
        folder('train', str(tmp_path / 'none'))
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


@pytest.mark.parametrize(
    ('name', 'text', 'why'),
    [
        ('a.csv', '', 'no images'),
        ('a.csv', 'path,label\n', 'no images'),
        ('a.csv', 'file,label\na.jpg,cat\n', "image 1 has no 'path'"),
        ('a.csv', 'path,label\na.jpg,cat\nb.jpg\n', "image 2 has no 'label'"),
        ('a.csv', 'path,label,split\na.jpg,cat,trian\n', "unknown split 'trian'"),
        ('a.csv', 'path,label,split\na.jpg,cat,test\nb.jpg,cat\n', "image 2 has no 'split'"),
        ('a.jsonl', '{"path": "a.jpg", "label": "cat"}\nnonsense\n', 'line 2: not JSON'),
        ('a.jsonl', '[1]\n', 'line 1: expected'),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=why):
        file_list('train', str(tmp_path / name))


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


def test_linked_folders_that_lead_to_each_other_are_walked_once(tmp_path):
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
