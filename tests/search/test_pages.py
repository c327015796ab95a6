"""Pages of neighbours and duplicates: titles, and marks of pairs with different classes."""

import io
import os
import re
import types

import numpy as np
import pytest
from PIL import Image

from vision.prediction import formats
from vision.search import display


@pytest.fixture
def run():
    """The attributes of a run that names are looked up in."""
    return types.SimpleNamespace(class_names=('cat', 'dog'), path=None)


@pytest.fixture
def root(tmp_path):
    for name in ('cat/x.png', 'dog/x.png', 'dog/sub/y.png', 'a<b>.png'):
        path = tmp_path / 'data' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 9, np.uint8)).save(path)
    return tmp_path / 'data'


def found(root, head, *others):
    neighbours = [{'path': str(root / other), 'score': 0.99} for other in others]
    return {'path': str(root / head), 'neighbours': neighbours}


def test_a_copy_in_another_class_is_seen_as_one(run, root, tmp_path):
    results = [
        found(root, 'cat/x.png', 'dog/x.png', 'cat/x.png'),
        found(root, 'dog/x.png', 'dog/sub/y.png'),
    ]
    display.write_results(
        run, results, 'cosine', str(tmp_path / 'page.html'), title='Nearly the same'
    )
    page = (tmp_path / 'page.html').read_text()
    assert '<h1>Nearly the same</h1>' in page and '<title>Nearly the same</title>' in page
    assert re.findall('<h2>(.*?)</h2>', page) == ['cat/x.png', 'dog/x.png']
    assert page.count('another class: dog') == 1 == page.count('class="marked"')
    captions = re.findall('<figcaption>(.*?)</figcaption>', page)
    assert captions[1].endswith('dog/x.png: 0.990') and captions[2] == 'cat/x.png: 0.990'
    assert captions[4] == 'dog/sub/y.png: 0.990'
    assert f'Paths are relative to {root}.' in page
    assert 'Images of another class or folder are marked in orange (1).' in page
    titles = [axes.get_title() for axes in display.draw_neighbours(run, results).axes]
    assert titles[:2] == ['cat/x.png', 'another class: dog\ndog/x.png: 0.990']
    display.write_results(run, results, 'cosine', tmp_path / 'figure.png')
    assert Image.open(tmp_path / 'figure.png').size[0] > 300


def test_folders_that_are_no_classes_are_told_apart_as_folders(root, tmp_path):
    run = types.SimpleNamespace(class_names=('tench', 'goldfish'), path=None)
    results = [found(root, 'cat/x.png', 'dog/x.png', 'cat/x.png')]
    display.write_results(run, results, 'cosine', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    assert page.count('another folder') == 1 and 'another class' not in page.replace(
        'another class or', ''
    )


def test_the_table_has_short_paths_in_columns(root):
    results = [found(root, 'cat/x.png', *['dog/x.png', 'dog/sub/y.png'] * 5)] * 3
    file = io.StringIO()
    formats.write_neighbours(results, file, display.root_of(results))
    title, *lines = file.getvalue().splitlines()
    assert title == f'Paths are relative to {root}' and len({len(line) for line in lines}) == 1
    assert len(lines[0]) < 80 and 'cat/x.png' in lines[3] and 'dog/x.png' in lines[3]
    # Names of splits have no folder, so a query stays as it was given.
    results = [{'path': 'docs/three.png', 'neighbours': [{'path': 'train:2', 'score': 1.0}]}]
    formats.write_neighbours(results, file, display.root_of(results))
    assert file.getvalue().count('relative') == 1 and 'docs/three.png' in file.getvalue()


def test_an_example_of_a_split_is_in_no_folder(run, root, monkeypatch):
    (root / 'sub').mkdir()
    monkeypatch.chdir(root / 'sub')
    show = display.Pictures(run, ['test:0'], [str(root / 'dog/x.png'), str(root / 'z.png')])
    assert show.root == str(root)
    show.label = lambda name: ''
    assert show.mark('test:0', str(root / 'dog/x.png')) == ''


def test_a_query_that_is_not_below_the_root_has_its_whole_path(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = io.StringIO()
    results = [{**found(root, '', 'dog/x.png'), 'path': name} for name in ('q.png', 'test:1')]
    formats.write_neighbours(results, file, str(root))
    assert f' {tmp_path}/q.png ' in file.getvalue() and ' test:1 ' in file.getvalue()


def test_an_image_from_elsewhere_neither_hides_the_root_nor_is_marked(run, root, tmp_path):
    show = display.Pictures(
        run, ['/elsewhere/q.png'], [str(root / n) for n in ('cat/x.png', 'dog/x.png')]
    )
    assert show.root == str(root)
    assert show.title(str(root / 'dog/x.png')) == 'dog/x.png'
    assert show.name('/elsewhere/q.png') == '/elsewhere/q.png'
    assert show.mark('/elsewhere/q.png', str(root / 'dog/x.png')) == ''
    assert show.mark('/elsewhere/cat/q.png', str(root / 'dog/x.png')) == 'another class: dog'


def test_names_are_text_and_what_is_left_out_is_told(run, root, tmp_path):
    results = [found(root, 'a<b>.png', 'cat/x.png')] * 3
    display.write_results(run, results, 'euclidean', tmp_path / 'page.html', limit=2)
    page = (tmp_path / 'page.html').read_text()
    assert 'a&lt;b&gt;.png' in page and '<b>.png' not in page
    assert 'The first 2 of 3 images are shown.' in page and page.count('<section>') == 2


def test_relative_names_are_below_the_root_too(run, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    show = display.Pictures(run, ['cat/x.png'], [str(root / 'dog' / 'x.png')])
    assert show.root == os.getcwd() and show.name('cat/x.png') == 'cat/x.png'
    assert show.mark('cat/x.png', str(root / 'dog/x.png')) == 'another class: dog'


def test_what_is_not_there_has_a_place_of_its_own(run, root, tmp_path):
    results = [found(root, 'cat/gone.png', 'dog/x.png') | {'error': 'no such file'}]
    display.write_results(run, results, 'cosine', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    assert page.count('>no picture<') == 1 and page.count('<img') == 1
    assert '<figcaption>no such file</figcaption>' in page
