"""The load test tells right answers from lost, refused and swapped ones."""

import http.server
import json
import threading

import pytest

from benchmarks import serve

ANSWERS = [{'a': 0.7, 'b': 0.2}, {'a': 0.6, 'c': 0.3}]


class Faulty(http.server.BaseHTTPRequestHandler):
    """Answers the first photo rightly, the second with the first's answer, or badly."""

    protocol_version = 'HTTP/1.1'
    fault = 'none'

    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        number = int(body.split(b'\r\n\r\n')[1].split(b'\r\n')[0])
        if self.fault == 'lost':
            self.close_connection = True
            return
        status = 503 if self.fault == 'refused' else 200
        said = ANSWERS[0 if self.fault == 'wrong' else number]
        text = json.dumps(
            {'predictions': [{'class': k, 'probability': p} for k, p in said.items()]}
        )
        self.send_response(status)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.mark.parametrize('fault', ['none', 'lost', 'refused', 'wrong'])
def test_faults_are_counted(monkeypatch, fault):
    monkeypatch.setattr(Faulty, 'fault', fault)
    bodies = [serve._body(b'0'), serve._body(b'1')]
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Faulty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        row = serve._measure(server.server_address[1], bodies, ANSWERS, 4, 0.2)
        server.shutdown()
    assert row['requests'] >= 4 and row['clients'] == 4 and 0 < row['p50_ms'] <= row['p99_ms']
    counts = {name: row[name] for name in ('lost', 'refused', 'wrong')}
    assert all((count > 0) == (name == fault) for name, count in counts.items()), counts
    assert (row['rate'] > 0) == (fault in ('none', 'wrong'))
