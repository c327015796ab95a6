"""The server's routes: the answers of `predict` and `query`, and what hostile requests get."""

import io
import json
import os
import re
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision.data.source import BadImage
from vision.preprocess.decode import read
from vision.search import index as index_lib
from vision.search import search
from vision.serving import Batcher, Collection, Service, make_app
from vision.serving.asked import Refused, check_header, read_below

LIMIT = 100_000


def encoded(pixels, kind='PNG'):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def claiming(width, height, data=b''):
    """A PNG that claims a size, with compressed data."""

    def chunk(name, data):
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b'IHDR', head), chunk(b'IDAT', data), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


@pytest.fixture(scope='module')
def root(tmp_path_factory, digits):
    """The allowed folder, in which `link.png` and `out` lead outside."""
    folder = tmp_path_factory.mktemp('served')
    (folder / 'root' / 'a b').mkdir(parents=True)
    for i in range(12):
        (folder / 'root' / f'{i}.png').write_bytes(encoded(digits.images[i, ..., 0]))
    (folder / 'root' / 'a b' / 'ü.png').write_bytes(encoded(digits.images[12, ..., 0]))
    (folder / 'private.png').write_bytes(encoded(digits.images[13, ..., 0]))
    (folder / 'rootless').mkdir()
    (folder / 'rootless' / 'x.png').write_bytes(encoded(digits.images[13, ..., 0]))
    (folder / 'root' / 'link.png').symlink_to(folder / 'private.png')
    (folder / 'root' / 'nowhere.png').symlink_to(folder / 'missing.png')
    (folder / 'root' / 'out').symlink_to(folder)
    (folder / 'root' / 'inside.png').symlink_to('0.png')
    (folder / 'root' / 'loop').symlink_to('loop')
    (folder / 'root' / 'large.png').write_bytes(bytes(LIMIT + 1))
    os.mkfifo(folder / 'root' / 'pipe')
    return folder / 'root'


@pytest.fixture(scope='module')
def service(classifier, index_file):
    service = Service(classifier, Collection(index_file, classifier), max_batch=4)
    service.warm_up()
    yield service
    service.close()


@pytest.fixture(scope='module')
def client(service, root):
    from fastapi.testclient import TestClient

    with TestClient(make_app(service, str(root), LIMIT), 'http://localhost:8000') as client:
        yield client


def upload(client, route, data, name='x.png', **options):
    return client.post(f'/{route}', files={'file': (name, data)}, data=options)


def same_predictions(got, expected):
    assert [p['class'] for p in got] == [p['class'] for p in expected]
    for mine, theirs in zip(got, expected, strict=True):
        assert mine['index'] == theirs['index']
        assert mine['probability'] == pytest.approx(theirs['probability'], abs=1e-6)


def test_answers_are_those_of_predict_embed_and_query(client, classifier, root, index_file):
    paths = [str(root / f'{i}.png') for i in range(3)]
    index = index_lib.load(index_file)
    predicted = list(classifier.classify_files(paths, top_k=3))
    vectors = classifier.embed(paths)
    found = list(search.query(classifier, index, search.named(classifier.run, paths), 4))
    for path, expected, vector, near in zip(paths, predicted, vectors, found, strict=True):
        data = Path(path).read_bytes()
        got = upload(client, 'classify', data, 'mine.png', top_k='3').json()
        assert got['path'] == 'mine.png' and got['error'] is None
        same_predictions(got['predictions'], expected['predictions'])
        got = client.post('/classify', json={'path': os.path.basename(path), 'top_k': 3}).json()
        assert got['path'] == os.path.basename(path)
        same_predictions(got['predictions'], expected['predictions'])
        got = client.post('/embed', json={'path': path}).json()
        assert got['endpoint'] == 'features'
        np.testing.assert_allclose(got['vector'], vector, atol=1e-5)
        got = upload(client, 'search', data, top_k='4').json()['neighbours']
        assert [n['path'] for n in got] == [n['path'] for n in near['neighbours']]
        scores = [n['score'] for n in near['neighbours']]
        assert [n['score'] for n in got] == pytest.approx(scores, abs=2e-6)


def test_a_condition_restricts_what_is_found(client, root):
    got = client.post('/search', json={'path': '0.png', 'where': "class = '3'", 'top_k': 5})
    assert got.status_code == 200 and len(got.json()['neighbours']) == 5
    assert client.post('/classify', json={'path': '0.png', 'where': 'x'}).status_code == 400
    for where in ('klass=1', '1', '(' * 999, 'a' * 1001, "__import__('os')", 'x.y', 3, ['a']):
        answer = client.post('/search', json={'path': '0.png', 'where': where})
        assert answer.status_code == 400 and answer.json()['error'], where


@pytest.mark.parametrize('route', ['classify', 'search'])
def test_many_clients_get_their_own_answers_and_bad_images_fail_alone(
    client, classifier, service, digits, route
):
    good = [encoded(digits.images[i, ..., 0]) for i in range(24)]
    images = [good[i] if i % 5 else good[i][: len(good[i]) // 2] for i in range(24)]
    alone = [upload(client, route, x).json() for x in images]

    def ask(i):
        return i, upload(client, route, images[i], f'{i}.png')

    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(ask, [i for i in range(24) for _ in range(2)]))
    for i, answer in answers:
        got = answer.json()
        if i % 5 == 0:
            assert answer.status_code == 422 and 'truncated' in got['error']
            continue
        assert got['path'] == f'{i}.png'
        if route == 'classify':
            same_predictions(got['predictions'], alone[i]['predictions'])
        else:
            names = [n['path'] for n in got['neighbours']]
            assert names == [n['path'] for n in alone[i]['neighbours']]


def test_what_is_no_image_and_what_is_broken(client, digits):
    good = encoded(digits.images[0, ..., 0])
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n'
    frames = io.BytesIO()
    first, second = (Image.fromarray(digits.images[i, ..., 0]) for i in (0, 1))
    first.save(frames, 'GIF', save_all=True, append_images=[second])
    assert upload(client, 'classify', frames.getvalue()).status_code == 200
    for data, status in (
        (b'', 415), (b'no image', 415), (eps, 415), (b'PK\x03\x04' + bytes(900), 415),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 415),
        (good[: len(good) // 2], 422),
    ):  # fmt: skip
        answer = upload(client, 'classify', data)
        assert answer.status_code == status and answer.json()['error'], (data[:20], answer.text)


def test_a_pixel_bomb_costs_nothing(client):
    bomb = claiming(8000, 8000, zlib.compress(bytes(8001 * 8000)))  # 64 million pixels
    assert len(bomb) < LIMIT
    for data in (claiming(60_000, 60_000), claiming(2**31 - 1, 2**31 - 1), bomb):
        began = time.monotonic()
        answer = upload(client, 'classify', data)
        assert answer.status_code == 422 and 'million' in answer.json()['error']
        assert time.monotonic() - began < 1
    assert 'strip' in upload(client, 'classify', claiming(20_000, 2)).json()['error']


def test_what_is_too_large_is_not_read(client, root):
    answer = upload(client, 'classify', bytes(LIMIT + 1))
    assert answer.status_code == 413 and f'{LIMIT:,}' in answer.json()['error']
    answer = client.post('/classify', content=b'{"path": "' + b'a' * 70_000 + b'"}',
                         headers={'content-type': 'application/json'})  # fmt: skip
    assert answer.status_code == 413
    assert client.post('/classify', json={'path': 'large.png'}).status_code == 413


@pytest.mark.parametrize(
    ('value', 'status'),
    [(1, 200), ('5', 200), (1000, 200), (0, 400), (-1, 400), (10**9, 400), (1001, 400), ('', 400),
     (2.0, 400), (True, 400), (None, 400), ('1e3', 400), ('NaN', 400), ('٣', 400), ([1], 400)],
)  # fmt: skip
def test_top_k(client, root, value, status):
    if isinstance(value, str):
        data = (root / '0.png').read_bytes()
        assert upload(client, 'search', data, top_k=value).status_code == status
        return
    answer = client.post('/search', json={'path': '0.png', 'top_k': value})
    assert answer.status_code == status


def test_bodies_that_are_no_requests(client, root):
    def post(body, kind):
        answer = client.post('/classify', content=body, headers={'content-type': kind})
        assert 'Traceback' not in answer.text and answer.json()['error']
        return answer.status_code

    file = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    )
    form = 'multipart/form-data; boundary='
    assert post(file, form + 'x') == 415
    for body, kind in (
        (file, form + 'y'), (file, form), (file, 'multipart/form-data'), (b'', form + 'x'),
        (file[:60], form + 'x'), (file.replace(b'name="file"', b'name="f"'), form + 'x'),
        (file.replace(b'; filename="a"', b''), form + 'x'), (file[:-6] + file, form + 'x'),
        (file.replace(b'name="file"; ', b''), form + 'x'), (bytes(500), form + 'x' * 200),
    ):  # fmt: skip
        assert post(body, kind) in (400, 415), (body, kind)
    for body in (b'', b'{', b'[]', b'1', b'{"path": 1}', b'{}', b'[' * 60_000, b'\xff\xfe', b'{"path": "a", "x": 1}',
                 b'{"path": "0.png", "top_k": NaN}', b'{"path": "0.png", "top_k": Infinity}',
                 b'{"path": "0.png", "top_k": ' + b'9' * 9000 + b'}'):  # fmt: skip
        assert post(body, 'application/json') == 400, body[:60]
    for kind in ('', 'image/png', 'text/plain', 'application/x-www-form-urlencoded'):
        assert post(b'x', kind) == 415, kind
    assert client.get('/classify').status_code == 405
    for route in ('/health', '/metrics'):
        assert client.head(route).status_code == 200 and client.post(route).status_code == 405
    assert client.post('/nothing').status_code == 404 and client.get('/docs').status_code == 404


def test_paths_stay_below_the_root(client, root):
    def status(path):
        kind = {'content-type': 'application/json'}
        return client.post(
            '/classify', content=json.dumps({'path': path}), headers=kind
        ).status_code

    for path in (
        '0.png',
        './0.png',
        'a b/ü.png',
        str(root / '0.png'),
        'inside.png',
        'a b/../1.png',
    ):
        assert status(path) == 200, path
    for path in (
        '../private.png', 'link.png', 'out/private.png', 'out', '/etc/passwd', '..', '../rootless/x.png',
        str(root) + 'less/x.png', 'a b/../../private.png', 'nowhere.png', '/', '../' * 40 + 'etc/passwd',
        '/proc/self/environ', str(root.parent / 'missing'),
    ):  # fmt: skip
        assert status(path) == 403, path
    for path in (
        'missing.png', '', '.', 'a b', 'pipe', 'loop', 'loop/x', '0.png/x', 'x' * 5000, 'a\0b', '\ud800',
        '%2e%2e/private.png', '..%2fprivate.png', '~/x', 'file:///etc/passwd', '\\..\\private.png', '\udcff',
    ):  # fmt: skip
        assert status(path) == 404, path
    with pytest.raises(Refused) as refused:
        read_below(None, '0.png', LIMIT)
    assert refused.value.status == 403


def test_a_full_queue_is_503(classifier, digits):
    from fastapi.testclient import TestClient

    service, go = Service(classifier, max_batch=1, max_queue=2), threading.Event()
    service.batcher.close()
    service.batcher = Batcher(lambda image: go.wait(10), lambda images: [], max_queue=2)
    with TestClient(make_app(service), 'http://localhost') as client:
        for _ in range(2):
            service.submit(b'')
        answer = upload(client, 'classify', encoded(digits.images[0, ..., 0]))
        assert answer.status_code == 503 and int(answer.headers['retry-after']) >= 1
        assert upload(client, 'search', b'').status_code == 404  # there is no index
        go.set()
        service.close()
        assert upload(client, 'classify', b'x').status_code == 503  # after the end


def test_files_in_hand_count_like_uploads(classifier, root):
    """A file is in memory until it is answered, so the sum over all requests has a limit, too."""
    from fastapi.testclient import TestClient

    (root / 'full').write_bytes(bytes(LIMIT))
    service, go, answer = Service(classifier, max_batch=1), threading.Event(), np.ones((2, 1))
    service.batcher.close()
    service.batcher = Batcher(lambda image: go.wait(30) and answer, lambda images: images)
    fit = 16 * (LIMIT + 65536) // (LIMIT + len(json.dumps({'path': 'full'})))
    with (
        TestClient(make_app(service, str(root), LIMIT), 'http://localhost') as client,
        ThreadPoolExecutor(fit + 5) as clients,
    ):
        asked = [
            clients.submit(client.post, '/embed', json={'path': 'full'}) for _ in range(fit + 5)
        ]
        done = as_completed(asked)
        for _ in range(5):
            refused = next(done).result()
            assert refused.status_code == 503 and 'large' in refused.json()['error']
        go.set()
        assert [one.result().status_code for one in done] == [200] * fit
        assert client.post('/embed', json={'path': 'full'}).status_code == 200
    service.close()


def test_the_token_and_the_name_of_this_machine(service, root):
    from fastapi.testclient import TestClient

    open_app, closed = make_app(service, str(root)), make_app(service, str(root), token='secret')
    assert TestClient(open_app, 'http://attacker.example').get('/health').status_code == 400
    for base in ('http://127.0.0.1:8000', 'http://[::1]:8000', 'http://localhost'):
        assert TestClient(open_app, base).get('/health').json()['status'] == 'ready', base
    client = TestClient(closed, 'http://any.example')
    for value in (None, 'secret', 'Bearer', 'Bearer Secret', 'Basic secret', 'Bearer secret x'):
        headers = {'authorization': value} if value else {}
        for route in ('/health', '/metrics', '/nothing'):
            answer = client.get(route, headers=headers)
            assert answer.status_code == 403 and answer.json()['error'], (value, route)
        assert client.post('/classify', json={'path': '0.png'}, headers=headers).status_code == 403
    right = {'authorization': 'Bearer secret'}
    assert client.post('/classify', json={'path': '0.png'}, headers=right).status_code == 200


def test_metrics(client):
    def figures():
        text = client.get('/metrics').text
        lines = [line for line in text.splitlines() if not line.startswith('#')]
        assert all(re.fullmatch(r'\w+(\{[^}]*\})? [\d.]+', line) for line in lines), text
        return {k: float(v) for k, v in (line.rsplit(' ', 1) for line in lines)}

    before = figures()
    client.post('/classify', json={'path': '0.png'})
    client.post('/classify', json={'path': 'no.png'})
    client.get('/some/other')
    after = figures()

    def more(name):
        return after[name] - before.get(name, 0)

    assert more('vision_requests_total{route="/classify",status="200"}') == 1
    assert more('vision_requests_total{route="/classify",status="404"}') == 1
    assert more('vision_requests_total{route="other",status="404"}') == 1
    assert more('vision_request_seconds_count{route="/classify"}') == 2
    assert more('vision_request_seconds_bucket{route="/classify",le="+Inf"}') == 2
    assert more('vision_batch_size_count') == 1 and after['vision_queue_length'] == 0


def test_a_new_version_of_the_index_is_taken_up(classifier, index_file, digits, tmp_path, caplog):
    made = index_lib.load(index_file)
    made.save(tmp_path / 'i')
    collection = Collection(tmp_path / 'i', classifier)
    vector = classifier.embed(digits.images[:1])[0]
    first = collection.nearest(vector, 1)[0]['path']
    changed = index_lib.load(tmp_path / 'i')
    changed.remove({first})
    changed.save(tmp_path / 'i')
    second = collection.nearest(vector, 1)[0]['path']
    assert second != first and len(collection) == len(made) - 1
    # The index of another model is refused once, and the old one stays.
    other = index_lib.create({**made.made_by, 'weights': 'other'}, len(vector))
    other.add(['a'], vector[None])
    other.save(tmp_path / 'i')
    for _ in range(3):
        assert collection.nearest(vector, 1)[0]['path'] == second
    assert caplog.text.count('the old index is kept') == 1
    (tmp_path / 'i').unlink()
    assert collection.nearest(vector, 1)[0]['path'] == second


def test_asking_for_folders_leaks_no_descriptors(tmp_path):
    before = len(os.listdir('/dev/fd'))
    for _ in range(20):
        with pytest.raises(Refused, match='no such file'):
            read_below(str(tmp_path), '.', LIMIT)
    assert len(os.listdir('/dev/fd')) <= before + 1


def test_a_pixel_bomb_in_an_icon_costs_nothing():
    """Pillow decodes an icon when it opens it."""

    def icon(image):
        place = struct.pack('<BBBBHHII', 0, 0, 0, 0, 1, 32, len(image), 22)
        return b'\0\0\1\0\1\0' + place + image

    def bmp(width, height):
        return icon(struct.pack('<IiiHHIIiiII', 40, width, 2 * height, 1, 32, *[0] * 6))

    small = icon(encoded(np.zeros((50, 30, 4), np.uint8)))
    check_header(small, 1500)
    bombs = icon(claiming(60_000, 60_000)), bmp(60_000, 60_000), bmp(-60_000, -60_000), small
    for data in bombs:
        with pytest.raises(Refused, match='claims') as refused:
            check_header(data, 1499)
        assert refused.value.status == 422
    nested = struct.pack('>4sI', b'ic09', 8 + 57) + claiming(60_000, 60_000)
    icns = b'icns' + struct.pack('>I', 8 + len(nested)) + nested
    for data in (icns, b'BLP1' + bytes(200)):
        with pytest.raises(Refused) as refused:
            check_header(data, 1500)
        assert refused.value.status in (415, 422)
    for data in (icns, *bombs[:3], icon(struct.pack('<IHHHH', 12, 60_000, 60_000, 1, 8))):
        with pytest.raises(BadImage, match='claims'):
            read(data)


def test_damaged_metadata_hide_no_size():
    """The decoder reads a PNG without a damaged text chunk, so this is what must be checked."""
    data = encoded(np.zeros((30, 50, 3), np.uint8))
    text = b'tEXt' + b'Comment\0x'
    chunk = struct.pack('>I', len(text) - 4) + text + b'bad!'
    damaged = data[:33] + chunk + data[33:]
    check_header(damaged, 1500)
    with pytest.raises(Refused) as refused:
        check_header(damaged, 1499)
    assert refused.value.status == 422
