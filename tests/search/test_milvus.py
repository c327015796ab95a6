"""An index in Milvus Lite answers as the index file does."""

import json
import os

import numpy as np
import pytest

from tests.conftest import run_module
from tests.search.test_fields import CONDITIONS, COUNT, SIZE, columns, table, vectors
from vision.core.errors import UserError
from vision.search import fields, index, milvus, search

__all__ = ['columns', 'table', 'vectors']
if not os.environ.get('CI'):
    pytest.importorskip('milvus_lite')
pytestmark = pytest.mark.slow
ABOUT = {'model': 'm', 'preprocessing': 'p', 'endpoint': 'features', 'weights': 'w'}


@pytest.mark.parametrize('kind', index.KINDS)
@pytest.mark.parametrize('metric', index.METRICS)
def test_it_answers_as_a_file_does(table, vectors, tmp_path, kind, metric):
    own = tmp_path / 'own.csv'
    own.write_text('path,score,day\n/photos/0/4.png,.5,2024-05-01\n/photos/1/1.png,2,\n')
    rows = fields.Own(own).join(table)
    uri = f'milvus:{tmp_path}/i.db#photos'
    made = milvus.create(uri, ABOUT, SIZE, metric, kind, fields.Own(own))
    made.add(rows, vectors)
    made = milvus.load(uri)
    assert (made.made_by, made.metric, made.kind, len(made)) == (ABOUT, metric, kind, COUNT)
    exact = index.create(ABOUT, SIZE, metric)
    exact.add(rows, vectors)
    assert made.names == sorted(exact.names)
    np.testing.assert_allclose(made.vectors(), exact.vectors()[np.argsort(exact.names)], rtol=1e-5)
    for where in [*CONDITIONS, 'score > 1', "not day != '2024-05-01'"]:
        for ours, right in zip(
            made.nearest(vectors[:2], 5, where), exact.nearest(vectors[:2], 5, where), strict=True
        ):
            assert [name for name, _ in ours] == [name for name, _ in right], where
            np.testing.assert_allclose(
                [score for _, score in ours], [score for _, score in right], atol=1e-3
            )
    # The fields of the user's own are kept, and a field of another type changes nothing.
    plain = rows.drop_columns(['score', 'day'])
    ((again, _),) = made.with_own([(plain, vectors)])
    ((right, _),) = exact.with_own([(plain, vectors)])
    assert again['score'].to_pylist() == right['score'].to_pylist()
    assert again['day'].cast(fields.date()) == right['day'].cast(fields.date())
    own.write_text('path,new\n/photos/0/4.png,5\n')
    with pytest.raises(UserError, match='the field new is int64, and missing'):
        made.check_fields(fields.Own(own).join(fields.table([])))
    made.nearest(vectors[:1], 1, "class = 'café'")
    assert search.remove(made, ['/photos/1']) == COUNT // 4 == COUNT - len(made)
    with pytest.raises(UserError, match="Did you mean 'class'"):
        made.nearest(vectors[:1], 3, "clas='cat'")
    with pytest.raises(UserError, match=r'there is a collection photos; use `add`'):
        milvus.create(uri, ABOUT, SIZE)
    with pytest.raises(UserError, match='the field new is int64, and missing'):
        made.add(rows.append_column('new', [list(range(COUNT))]), vectors)
    with pytest.raises(UserError, match='there is no index images; create it with `build`'):
        milvus.load(f'milvus:{tmp_path}/i.db')
    made.remove(made.names)
    assert made.vectors().shape == (0, SIZE)
    # A `build` that was killed before it wrote what the collection is.
    made._client.delete('photos_about', ids=[0])
    with pytest.raises(UserError, match='there is no index photos; create it with `build`'):
        milvus.load(uri)
    made = milvus.create(uri, ABOUT, SIZE)
    made.drop()
    with pytest.raises(UserError, match=r'write milvus:FILE\.db'):
        milvus.load('milvus:photos')


def test_the_commands(workdir, digits, tmp_path):
    from PIL import Image

    for i in range(6):
        Image.fromarray(digits.images[i, ..., 0]).save(tmp_path / f'{i}.png')

    def run(*args, expect=0):
        uri = f'--index=milvus:{tmp_path}/i.db'
        done = run_module('experiments.search', f'--workdir={workdir}', uri, '--format=json', *args)
        assert done.returncode == expect, done.stderr
        return json.loads(done.stdout) if not expect else done.stderr

    assert run('build', *(tmp_path / f'{i}.png' for i in range(4)))['images'] == 4
    assert 'use `add`' in run('build', tmp_path, expect=2)
    assert run('add', tmp_path)['new'] == 2
    assert run('replace', tmp_path / '1.png')['images'] == 6
    assert run('remove', tmp_path / '0.png')['images'] == 5
    (found,) = run('query', tmp_path / '5.png', '--top_k=2', '--where=width = 8')
    assert found['neighbours'][0]['path'] == f'{tmp_path}/5.png' and len(found['neighbours']) == 2
    assert run('duplicates') == []
