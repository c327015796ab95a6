"""CSV reads back as it was written, with any reader; tables do not break paths."""

import csv
import io
import re

import pandas
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table

from tests.tiers import examples
from vision.core.errors import UserError
from vision.core.text import print_table, read_rows, write_row

TEXT = st.text(st.characters(exclude_characters='\0', exclude_categories=('Cs',)), max_size=8)


def written(*rows):
    file = io.TextIOWrapper(io.BytesIO(), 'utf-8', newline='')
    for row in rows:
        write_row(row, file)
    file.flush()
    return file.buffer.getvalue()


@examples(60)
@given(TEXT, TEXT)
@example('a\rb.png', '"')
@example('a\r\nb', '\n')
@example("'", '"",\r"')
@example('\ufeff', '\x85\u2028\x1a')
@example(' a ', '#')
def test_any_text_comes_back(path, name):
    data = written(('path', 'class'), (path, name), ('end', ''))
    expected = [[path, name], ['end', '']]
    text = data.decode()
    assert list(csv.reader(io.StringIO(text, newline='')))[1:] == expected
    rows = read_rows(io.StringIO(text, newline=''), 'list.csv')
    assert [list(row.values()) for row in rows] == expected
    frame = pandas.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    assert frame.to_numpy().tolist() == expected


def test_what_the_encoding_lacks_is_escaped_and_takes_no_row_with_it():
    assert read_rows(written(('path',), ('\udcff\r.png',)).decode().splitlines(True), 'x') == [
        {'path': '\\udcff\r.png'}
    ]
    file = io.TextIOWrapper(io.BytesIO(), 'ascii')
    write_row(['größe'], file)
    file.flush()
    assert file.buffer.getvalue() == b'gr\\xf6\\xdfe\n'


def test_what_csv_cannot_hold_is_refused():
    with pytest.raises(UserError, match='NUL'):
        write_row(['a\0b'], io.StringIO())
    with pytest.raises(UserError, match=r'list.csv, line \d'):
        read_rows(io.StringIO('path,label\na.png,cat\n"b.png,dog'), 'list.csv')


@pytest.mark.parametrize('terminal', [True, False])
def test_paths_are_whole_on_a_narrow_terminal_and_all_text_in_a_pipe(terminal, monkeypatch):
    path = '/a folder/' + 'x' * 90 + '.png'
    table = Table(title=f'{path}: [step] 3', caption=f'{path} failed')
    table.add_column('image', no_wrap=True)
    table.add_column('why')
    reason = 'a reason of many words, which may well be wrapped ' * 3
    table.add_row(path, reason)
    file = io.StringIO()
    monkeypatch.setattr(file, 'isatty', lambda: terminal, raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    print_table(table, file)
    lines = re.sub(r'\x1b\[\d*m', '', file.getvalue()).splitlines()
    assert lines[0] == f'{path}: [step] 3' and lines[-1] == f'{path} failed'
    assert sum(path in line for line in lines) == 3
    if terminal:
        assert max(map(len, lines)) < 130
    else:
        assert any(path in line and reason in line for line in lines)
