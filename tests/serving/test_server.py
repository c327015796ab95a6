"""The server as a process: signals among requests, large and slow clients, hosts and tokens."""

import contextlib
import http.client
import io
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.processes import Process, run_module
from tests.serving.test_app import claiming, encoded
from vision.core import access
from vision.core.errors import UserError


def form(data, name='x.png'):
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b'\r\n--b--\r\n'


def post(port, body, route='/classify', timeout=30, **headers):
    headers = {'Content-Type': 'multipart/form-data; boundary=b', **headers}
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request('POST', route, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def start(*words, **env):
    server = Process('experiments.serve', *words, '--port=0', **env)
    server.wait_for(lambda: '\n' in server.stdout)
    return server, int(server.stdout.strip().rpartition(':')[2])


@pytest.fixture(scope='module')
def served(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp('root')
    server, port = start(
        f'--workdir={workdir}', f'--root={folder}', '--max_batch=8', '--max_upload=1'
    )
    yield server, port
    server.send_signal(signal.SIGINT)
    done = server.wait(20)
    assert done.returncode == 130 and 'Traceback' not in done.stderr, done.stderr


def raw(port, data, timeout=15):
    """Sends bytes as they are; returns what comes back until the server closes the connection."""
    with socket.create_connection(('127.0.0.1', port), timeout) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        got = b''
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while some := connection.recv(65536):
                got += some
        return got


HEAD = b'POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n'


def endless(port, head, chunk, limit):
    """Sends chunks without end; returns the answer and the bytes that could be sent."""
    sent, got = 0, b''
    with socket.create_connection(('127.0.0.1', port), 15) as connection:
        connection.sendall(head)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < limit:
                connection.sendall(chunk)
                sent += len(chunk)
        with contextlib.suppress(ConnectionResetError):
            while some := connection.recv(65536):
                got += some
    return got, sent


@pytest.mark.slow
def test_uploads_without_an_end_are_not_read(served):
    _, port = served
    data = bytes(65536)
    chunk = b'%x\r\n' % len(data) + data + b'\r\n'
    first = form(b'')[:-9]  # the file has begun
    head = HEAD + b'Transfer-Encoding: chunked\r\n\r\n' + b'%x\r\n' % len(first) + first + b'\r\n'
    got, sent = endless(port, head, chunk, 100_000_000)
    assert got.startswith(b'HTTP/1.1 413') and b'connection: close' in got.lower()
    assert sent < 20_000_000  # what the system's buffers take
    got, sent = endless(port, HEAD + b'Content-Length: 900000000\r\n\r\n', data, 100_000_000)
    assert got.startswith(b'HTTP/1.1 413') and sent < 20_000_000
    # A body that nobody reads.
    for path in (b'/nothing', b'/health', b'/metrics'):
        got, sent = endless(port, head.replace(b'/classify', path), chunk, 100_000_000)
        assert got.startswith((b'HTTP/1.1 404', b'HTTP/1.1 405')) and sent < 20_000_000


@pytest.mark.slow
def test_hostile_requests_leave_the_server_well(served, digits):
    server, port = served
    good = form(encoded(digits.images[0, ..., 0]))
    assert raw(port, b'\x16\x03\x01' + bytes(300)).startswith(b'HTTP/1.1 400')
    assert b' 400 ' in raw(port, b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ' + b'a' * 200_000)
    assert b' 400 ' in raw(port, b'GET /health HTTP/1.1\r\n' + b'a: b\r\n' * 50_000)
    assert b' 400 ' in raw(port, HEAD + b'Content-Length: -1\r\n\r\n')
    assert b' 400 ' in raw(port, HEAD + b'Content-Length: 1\r\nContent-Length: 2\r\n\r\n')
    assert b' 400 ' in raw(
        port, b'GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n'
    )
    for path in (
        '/..%2f..%2fetc/passwd',
        '/%2e%2e/%2e%2e/etc/passwd',
        '//etc/passwd',
        '/classify/../health',
    ):
        assert raw(
            port, f'GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'.encode()
        ).startswith(b'HTTP/1.1 404')
    for data in (claiming(60_000, 60_000), b'', b'GIF89a', b'\xff\xd8\xff' + bytes(9000)):
        assert post(port, form(data))[0] in (415, 422)
    large = io.BytesIO()
    Image.new('L', (7000, 7000)).save(large, 'PNG')  # 49 million pixels are allowed
    assert post(port, form(large.getvalue()))[0] == 200
    assert post(port, good)[0] == 200 and server.stderr.count('\n') == 1, server.stderr


@pytest.mark.slow
def test_who_leaves_in_the_middle_and_who_is_slow(served, digits):
    server, port = served
    good = form(encoded(digits.images[0, ..., 0]))
    head = HEAD + b'Content-Length: %d\r\n\r\n' % len(good)
    for part in (head, head + good[:50], head + good):  # before, within and after the body
        with socket.create_connection(('127.0.0.1', port)) as connection:
            connection.sendall(part)
    slow = [socket.create_connection(('127.0.0.1', port)) for _ in range(300)]
    for i, connection in enumerate(slow):
        connection.sendall(head + good[:20] if i % 2 else HEAD[:30])
    began = time.monotonic()
    assert post(port, good)[0] == 200
    assert time.monotonic() - began < 5
    # Who does not send the head of a request is left after ten seconds.
    slow[0].settimeout(20)
    assert slow[0].recv(100) == b'' and time.monotonic() - began > 5
    for connection in slow:
        connection.close()
    assert post(port, good)[0] == 200 and 'Traceback' not in server.stderr, server.stderr


@pytest.mark.slow
def test_sigterm_answers_what_is_in_hand(workdir, digits):
    server, port = start(f'--workdir={workdir}', '--max_batch=2')
    good = form(encoded(digits.images[0, ..., 0]))
    outcomes, stop = [], threading.Event()

    def client(_):
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
        while not stop.is_set():
            sent = False
            try:
                connection.request(
                    'POST', '/classify', good, {'Content-Type': 'multipart/form-data; boundary=b'}
                )
                sent = True
                answer = connection.getresponse()
                outcomes.append(answer.status)
                answer.read()
            except OSError as e:
                # The server is gone, or has closed the idle connection.
                outcomes.append(type(e).__name__ if sent else 'not sent')
                return

    with ThreadPoolExecutor(16) as clients:
        running = clients.map(client, range(16))
        server.wait_for(lambda: len(outcomes) > 50)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        done = server.wait(20)
        stop.set()
        list(running)
    assert done.returncode == 143 and 'Traceback' not in done.stderr, done.stderr
    assert time.monotonic() - began < 10
    # Requests are answered, or were sent on a connection that was closed before.
    assert outcomes.count(200) > 50 and {x for x in outcomes if isinstance(x, int)} <= {200, 503}
    assert 'TimeoutError' not in outcomes


@pytest.mark.slow
def test_a_request_that_is_in_hand_at_sigterm_is_answered(workdir, digits):
    server, port = start(f'--workdir={workdir}', '--max_batch=1')
    large = io.BytesIO()
    Image.effect_noise((6000, 4000), 50).save(large, 'JPEG')  # decoding takes a while
    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(post, port, form(large.getvalue())) for _ in range(4)]
        time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        assert [a.result()[0] for a in asked] == [200] * 4
    assert server.wait(20).returncode == 143


@pytest.mark.slow
def test_the_second_signal_ends_it_at_once(workdir):
    server, port = start(f'--workdir={workdir}', '--max_batch=1')
    with socket.create_connection(('127.0.0.1', port)) as slow:
        slow.sendall(HEAD + b'Content-Length: 100\r\n\r\n--b')
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        assert server.poll(1) is None  # it waits for the upload
        server.send_signal(signal.SIGTERM)
        assert server.wait(5).returncode == 143


@pytest.mark.slow
def test_other_machines_need_the_token(workdir):
    done = run_module('experiments.serve', f'--workdir={workdir}', '--host=0.0.0.0', '--port=0')
    assert done.returncode == 2 and 'VISION_TOKEN' in done.stderr and done.stdout == ''
    server, port = start(
        f'--workdir={workdir}', '--host=0.0.0.0', '--max_batch=1', VISION_TOKEN='secret'
    )
    with pytest.raises(urllib.error.HTTPError, match='403'):
        urllib.request.urlopen(f'http://127.0.0.1:{port}/health')
    assert 'secret' not in server.stdout + server.stderr
    request = urllib.request.Request(
        f'http://127.0.0.1:{port}/health', headers={'Authorization': 'Bearer secret'}
    )
    assert json.load(urllib.request.urlopen(request))['status'] == 'ready'
    server.send_signal(signal.SIGTERM)
    assert server.wait(20).returncode == 143


def test_who_needs_a_token(monkeypatch):
    local, _ = access.listen('127.0.0.1', 0)
    public, _ = access.listen('0.0.0.0', 0)
    with local, public:
        monkeypatch.delenv(access.TOKEN, raising=False)
        assert access.token_of(local) is None
        assert len(access.token_of(public, invent=True)) > 20
        for value in ('', None):
            if value is not None:
                monkeypatch.setenv(access.TOKEN, value)
            with pytest.raises(UserError, match='VISION_TOKEN'):
                access.token_of(public)
        monkeypatch.setenv(access.TOKEN, 'mine')
        assert access.token_of(local) == access.token_of(public, invent=True) == 'mine'
        monkeypatch.setenv(access.TOKEN, 'a\nb')
        with pytest.raises(UserError, match='printable'):
            access.token_of(local)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('words', 'says'),
    [
        ((), '--workdir=DIR or --pretrained'),
        (('--workdir=x', '--pretrained=y'), '--workdir=DIR or --pretrained'),
        (('--workdir=x', '--model=y'), '--model needs --pretrained'),
        (('--pretrained=x', '--checkpoint=last'), '--checkpoint needs --workdir'),
        (('--workdir=x', '--max_batch=3'), '--max_batch=3 is not a power of two'),
        (('--workdir=x', '--root=/no/such'), '--root=/no/such is not a folder'),
        (('--workdir=/no/such',), '/no/such'),
        (('--workdir=x', 'more'), "unexpected argument 'more'"),
    ],
)
def test_mistakes_are_one_line(words, says):
    done = run_module('experiments.serve', *words)
    assert done.returncode == 2 and says in done.stderr and done.stdout == ''
    assert len(done.stderr.strip().splitlines()) == 1
