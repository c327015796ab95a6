"""The demo page in a real browser: an upload gives classes, heat maps and similar images."""

import base64
import csv
import io
import os
import re
import signal
import socket
import sys
import types
import urllib.error
import urllib.request

import numpy as np
import pytest
from jax import monitoring
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.browser import browser as open_browser
from tests.browser import requests
from tests.processes import Process, run_module
from vision.core import access
from vision.core.errors import UserError
from vision.data.source import FileSource
from vision.prediction import Classifier, demo, review
from vision.preprocess.pictures import Picture
from vision.search import display, index, search


@pytest.fixture(scope='module')
def address(workdir, index_file):
    words = (f'--workdir={workdir}', f'--index={index_file}', '--port=0')
    server = Process('experiments.demo', *words)
    server.wait_for(lambda: '\n' in server.stdout)
    assert server.stdout.startswith('http://127.0.0.1:'), server.stderr
    yield server.stdout.strip()
    server.send_signal(signal.SIGINT)
    done = server.wait(20)
    assert done.returncode == 130 and 'Traceback' not in done.stderr


@pytest.fixture
def browser(tmp_path):
    with open_browser(tmp_path / 'browser') as driver:
        driver.implicitly_wait(60)  # the first image waits for compilation
        yield driver


def drop(browser, path):
    browser.find_element('css selector', 'input[type=file]').send_keys(str(path))


@pytest.mark.slow
def test_a_dropped_image_is_answered_and_nothing_comes_from_elsewhere(
    browser, address, digits, tmp_path
):
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'scan.png')
    browser.get(address)
    drop(browser, tmp_path / 'scan.png')
    assert browser.find_element('id', 'run').text and 'digits' in browser.title
    assert '10 classes' in browser.find_element('id', 'known').text
    table = browser.find_element('id', 'classes')
    kept = browser.find_element('css selector', '#answer figure')
    assert kept.text == 'scan.png' and kept.find_element('tag name', 'img').size['width'] == 320
    assert table.text.split()[0] == str(digits.labels[0])
    for part, count in (('heat', 4), ('similar', 8)):
        pictures = browser.find_elements('css selector', f'#{part} img')
        assert len(pictures) == count
        for picture in pictures:
            assert picture.get_attribute('src').startswith('data:')
            assert int(picture.get_attribute('naturalWidth')) > 0
    assert str(tmp_path) not in browser.page_source
    assert not re.search(r'file=/|"/tmp/', browser.page_source)
    urls = requests(browser)
    assert urls and all(url.startswith(address) for url in urls), urls


@pytest.mark.slow
def test_what_is_no_image_and_what_is_too_large_is_refused(browser, address, tmp_path):
    (tmp_path / 'no.png').write_text('no image')
    browser.get(address)
    drop(browser, tmp_path / 'no.png')
    said = browser.find_element('xpath', "//p[contains(., 'cannot be read')]").text
    assert said == 'This file cannot be read: not an image.'
    browser.get(address)
    (tmp_path / 'large.png').write_bytes(bytes(demo.MAX_UPLOAD * 1024 * 1024 + 1))
    drop(browser, tmp_path / 'large.png')
    assert browser.find_element('xpath', "//*[contains(., 'exceed the maximum')]")
    assert not re.search(r'file=/|"/tmp/|Traceback', browser.page_source)


def test_an_error_of_ours_shows_neither_path_nor_traceback(classifier, monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError(f'{tmp_path} is broken')

    monkeypatch.setattr(classifier, 'classify_source', fail)
    said = demo.answer(classifier, None, str(tmp_path / 'x.png'))
    assert str(tmp_path) not in said and 'Traceback' not in said and 'the log' in said


def test_names_of_classes_are_text(classifier, monkeypatch, tmp_path, digits):
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'x.png')
    monkeypatch.setattr(classifier, 'class_names', ('<script>',) * 10)
    said = demo.answer(classifier, None, str(tmp_path / 'x.png'))
    assert '<script>' not in said and '&lt;script&gt;' in said


def test_the_dropped_picture_stays_on_the_page(classifier, digits, tmp_path):
    pixels = np.repeat(np.repeat(digits.images[0, ..., 0], 100, 0), 50, 1)
    Image.fromarray(pixels).save(tmp_path / 'a<b>.jpg')
    said = demo.answer(classifier, None, str(tmp_path / 'a<b>.jpg'))
    picture = re.search(
        '<figure><img src="data:image/jpeg;base64,[^"]+" alt="a&lt;b&gt;.jpg" (.*?)>', said
    )
    assert picture[1].startswith('width="160" height="320"')
    assert '<figcaption>a&lt;b&gt;.jpg</figcaption>' in said


def test_the_page_names_the_run_and_its_classes(classifier, monkeypatch):
    said = demo._about(classifier)
    assert f'>{classifier.run.path.name}<' in said and f'{classifier.run.step:,}' in said
    assert '10 classes' in said and '0, 1, 2, 3, 4, 5, 6, 7, 8, 9' in said and ' open' in said
    monkeypatch.setattr(classifier, 'class_names', ('<i>',) * 1000)
    said = demo._about(classifier)
    assert '1,000 classes' in said and '<i>' not in said and ' open' not in said


def test_the_first_image_finds_all_compiled(classifier, digits, tmp_path, index_file):
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'x.png')
    fresh, compiled = Classifier(classifier.run), []
    similar = display.Similar(fresh, index.load(index_file))
    demo._warm_up(fresh, similar)

    def listen(event, seconds, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled.append(seconds)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        said = demo.answer(fresh, similar, str(tmp_path / 'x.png'))
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert 'id="similar"' in said and not compiled


def test_only_uploads_are_read(classifier, digits, tmp_path, monkeypatch):
    """In gradio's pull request 11162 a request may name any file of the machine, and any URL."""
    from starlette.testclient import TestClient

    monkeypatch.setenv('GRADIO_TEMP_DIR', '')
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'private.png')
    (tmp_path / 'uploads').mkdir()
    with TestClient(demo._app(classifier, None, str(tmp_path / 'uploads'))) as client:
        image = (tmp_path / 'private.png').read_bytes()
        (mine,) = client.post('/gradio_api/upload', files={'files': ('x.png', image)}).json()

        def said(path, **more):
            data = [{'path': str(path), 'meta': {'_type': 'gradio.FileData'}, **more}]
            call = {'data': data, 'fn_index': 0, 'session_hash': 'x'}
            return client.post('/gradio_api/run/predict', json=call).text

        assert 'id=\\"answer' in said(mine)
        elsewhere = tmp_path / 'uploads' / '..' / 'private.png'
        os.symlink(tmp_path / 'private.png', tmp_path / 'uploads' / 'link.png')
        for path in (
            tmp_path / 'private.png',
            elsewhere,
            tmp_path / 'uploads' / 'link.png',
            __file__,
        ):
            assert 'answer' not in said(path) and 'read' not in said(path), path
        for address in ('http://127.0.0.1:1/x.png', 'https://example.invalid/x.png'):
            assert 'answer' not in said(address) and 'answer' not in said('x', url=address)
    assert len([p for p in (tmp_path / 'uploads').rglob('*.*') if not p.is_symlink()]) <= 1


def test_only_who_has_the_token_is_answered():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    app = Starlette(routes=[Route('/', lambda request: PlainTextResponse('the page'))])
    refusal = PlainTextResponse('no', 403)
    app.add_middleware(access.TokenOnly, token='secret', refusal=refusal, cookie='c')
    for address in ('/', '/?token=', '/?token=Secret', '/?token=%C3%A9'):
        answer = TestClient(app).get(address)
        assert answer.status_code == 403 and 'the page' not in answer.text, address
    client = TestClient(app)
    answer = client.get('/?token=secret')
    assert answer.text == 'the page' and 'HttpOnly' in answer.headers['set-cookie']
    assert client.get('/').text == 'the page'  # by the cookie


def test_hosts():
    listener, host = access.listen('localhost', 0)
    with listener:
        assert host == 'localhost' and access.is_local(listener)
    listener, host = access.listen('0.0.0.0', 0)
    with listener:
        assert host == socket.gethostname() and not access.is_local(listener)
    for host, why in (
        ('no.such.invalid', 'no such host'),
        ('192.0.2.1', 'not an address of this machine'),
    ):
        with pytest.raises(UserError, match=f'--host={host}.*{why}'):
            access.listen(host, 0)
    with pytest.raises(UserError, match='--port=99999: there is no such port'):
        access.listen('127.0.0.1', 99999)


def test_from_another_machine_the_page_needs_its_token(workdir):
    server = Process('experiments.demo', f'--pretrained={workdir}', '--host=0.0.0.0', '--port=0')
    server.wait_for(lambda: '\n' in server.stdout)
    address, _, token = server.stdout.strip().partition('/?token=')
    port = address.rpartition(':')[2]
    assert len(token) > 20 and address == f'http://{socket.gethostname()}:{port}'
    with pytest.raises(urllib.error.HTTPError, match='403'):
        urllib.request.urlopen(f'http://127.0.0.1:{port}/')
    page = urllib.request.urlopen(f'http://127.0.0.1:{port}/?token={token}')
    assert page.status == 200 and token in page.headers['set-cookie']
    server.send_signal(signal.SIGTERM)
    done = server.wait(10)
    assert done.returncode == 143 and 'Traceback' not in done.stderr


def test_a_taken_port_and_an_index_of_another_model_are_one_line(workdir, tmp_path):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_module('experiments.demo', f'--workdir={workdir}', f'--port={port}')
    assert done.returncode == 2 and f'--port={port}' in done.stderr
    about = {'model': 'm', 'preprocessing': 'p', 'endpoint': 'features', 'weights': 'w'}
    made = index.create(about, 4)
    made.add(['a'], np.ones((1, 4), np.float32))
    made.save(tmp_path / 'i')
    done = run_module(
        'experiments.demo', f'--workdir={workdir}', f'--index={tmp_path}/i', '--port=0'
    )
    assert done.returncode == 2 and done.stdout == '' and 'differ in their model' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_gradio_one_line_says_what_to_install(workdir, tmp_path):
    (tmp_path / 'gradio.py').write_text("raise ImportError('not here')")
    done = run_module(
        'experiments.demo', f'--workdir={workdir}', '--port=0', PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 2 and '[demo]' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_list_of_results_is_csv(classifier, digits, tmp_path, index_file):
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'x.png')
    similar = display.Similar(classifier, index.load(index_file))
    said = demo.answer(classifier, similar, str(tmp_path / 'x.png'))
    (link,) = re.findall(r'download="similar.csv" href="data:text/csv;[^,]*base64,([^"]+)"', said)
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(link).decode())))
    source = FileSource('x', (), (str(tmp_path / 'x.png'),), np.array([-1]))
    expected = similar.find(source, 100)
    assert [row['path'] for row in rows] == [n['path'] for n in expected] and len(rows) == 100
    assert [float(row['score']) for row in rows] == [n['score'] for n in expected]


def test_the_part_that_a_neighbour_has_in_common_is_outlined():
    pytest.importorskip('cv2')
    photos = {name: load_sample_image(f'{name}.jpg') for name in ('china', 'flower')}
    similar = display.Similar.__new__(display.Similar)
    similar._matches = True
    similar.picture = lambda neighbour: Picture(photos[neighbour['path']], neighbour['path'])
    found = [{'path': name, 'score': 0.5} for name in photos]
    crop = np.ascontiguousarray(photos['china'][60:300, 200:520])
    (part, pair), (plain, none) = similar.compare(crop, found)
    assert none is None and plain.image is photos['flower'] and plain.mark == ''
    # The thumbnail is a quarter of the photo, which has 427 × 640 pixels.
    assert part.image.shape == (107, 160, 3) and 'matched points' in part.mark
    y, x = np.nonzero((part.image == (255, 140, 0)).all(axis=-1))
    np.testing.assert_allclose([y.min(), y.max(), x.min(), x.max()], [15, 75, 50, 130], atol=3)
    assert pair.image.shape[1] > 640 and pair.caption == 'china'
    said = demo._neighbours(similar, crop, found)
    assert said.count('<img') == 3 and 'id="matched"' in said
    similar._matches = False  # OpenCV is not installed
    assert 'id="matched"' not in demo._neighbours(similar, crop, found)


def test_opencv_that_cannot_be_imported(classifier, tmp_path, monkeypatch, index_file):
    (tmp_path / 'cv2.py').write_text("raise ImportError('libGL.so.1: cannot open shared object')")
    monkeypatch.delitem(sys.modules, 'cv2', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    opened = index.load(index_file)
    similar = display.Similar(classifier, opened)
    found = [{'path': opened.names[0], 'score': 1.0}]
    ((_, pair),) = similar.compare(np.zeros((8, 8, 3), np.uint8), found)
    assert pair is None


class Duplicates:
    """A collection with two groups, one of whose names is neither HTML nor UTF-8."""

    groups = (('a', 'b\udcff<i>', 'c'), ('d', 'e'))

    def picture(self, found):
        return Picture(np.zeros((4, 4, 3), np.uint8), found['path'])

    def duplicates(self):
        return [
            [{'path': path, 'score': 1.0, 'keep': path in 'ad'} for path in group]
            for group in self.groups
        ]


def test_what_is_a_copy_of_no_kept_image_is_kept_by_default(monkeypatch):
    group = {
        'path': 'half',
        'neighbours': [{'path': name, 'score': 0.9} for name in ('photo', 'other half')],
        'delete': [{'delete': 'photo', 'keep': 'half'}],
    }
    monkeypatch.setattr('vision.search.duplicates.find_duplicates', lambda *_: [group])
    similar = display.Similar.__new__(display.Similar)
    similar._index, similar._classifier = None, types.SimpleNamespace(run=None)
    assert review.Review(similar).best(0) == ['0', '2']


def test_decisions_about_duplicates_are_listed_and_nothing_else():
    reviewed = review.Review(Duplicates())
    shown = reviewed.pictures(0)
    assert shown.count('<img') == 3 and '&lt;i&gt;' in shown and '\udcff' not in shown
    assert [value for _, value in reviewed.choices(0)] == ['0', '1', '2']
    assert reviewed.pictures(2) == '' and reviewed.choices(2) == []
    assert '1 of 2' in reviewed.head(0) and 'last of 2' in reviewed.head(2)
    assert reviewed.list({}) == '' and reviewed.best(0) == ['0'] and reviewed.best(2) == []
    (link,) = re.findall('base64,([^"]+)"', reviewed.list({1: [1]}))
    rows = list(csv.reader(io.StringIO(base64.b64decode(link).decode())))
    assert rows == [['group', 'path', 'decision'], ['2', 'd', 'delete'], ['2', 'e', 'keep']]
    said = reviewed.list({0: [0, 2], 1: []})
    assert '&lt;i&gt;' in said and said.count('delete') >= 3


@pytest.mark.slow
@pytest.mark.parametrize('width', [1280, 390])
def test_duplicates_in_a_browser(browser, classifier, digits, tmp_path, width):
    """Matched parts, groups side by side, keep and skip, and the list, all within the window."""
    for i in range(4):
        image = Image.fromarray(digits.images[i, ..., 0]).resize((64, 64))
        image.save(tmp_path / f'{i}.png')
        image.save(tmp_path / f'{i} copy.bmp')
    photo = load_sample_image('china.jpg')
    Image.fromarray(photo).save(tmp_path / 'photo.jpg')
    made, _ = search.build(classifier, search.named(classifier.run, sorted(tmp_path.glob('*.*'))))
    made.save(tmp_path / 'i')
    words = (f'--workdir={classifier.run.path}', f'--index={tmp_path}/i', '--port=0')
    server = Process('experiments.demo', *words)
    try:
        server.wait_for(lambda: '\n' in server.stdout)
        # Chromium's own windows are no narrower than 500 pixels.
        size = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width < 500}
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        browser.get(server.stdout.strip())
        Image.fromarray(photo[20:-20, 30:-30]).save(tmp_path / 'crop.jpg')
        drop(browser, tmp_path / 'crop.jpg')
        (matched,) = browser.find_elements('css selector', '#matched img')
        assert 200 < matched.size['width'] < width
        assert browser.execute_script('return document.documentElement.scrollWidth') <= width
        tabs = browser.find_elements('xpath', "//button[@role='tab' and contains(., 'Duplicates')]")
        next(tab for tab in tabs if tab.is_displayed()).click()
        browser.find_element('id', 'find').click()
        count = int(re.search('1 of ([0-9]+)', wait_for(browser, 'Group 1 of'))[1])
        assert count >= 4 and len(browser.find_elements('css selector', '#group img')) >= 2
        browser.find_element('id', 'done').click()
        wait_for(browser, 'Group 2 of')
        browser.find_element('id', 'skip').click()
        wait_for(browser, 'Group 3 of')
        link = browser.find_element('css selector', 'a[download="duplicates.csv"]')
        (table,) = (t for t in browser.find_elements('css selector', '.list') if t.is_displayed())
        assert table.text.count('keep') == 1 and table.text.count('delete') >= 1
        assert link.is_displayed()
        assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20).returncode == 143


def wait_for(browser, text):
    return browser.find_element('xpath', f"//p[contains(., '{text}')]").text
