"""The comparison of methods that find copies: it goes on where it was, and writes its table."""

import json
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from benchmarks import copies


@pytest.mark.nightly
def test_the_comparison_goes_on_where_it_was(tmp_path, monkeypatch):
    photos = tmp_path / 'photos'
    photos.mkdir()
    for name in ('astronaut', 'coffee', 'chelsea', 'camera'):
        image = Image.open(Path(data.__file__).parent / f'{name}.png').convert('RGB')
        for i in range(8):
            left = i * image.width // 8
            part = image.crop((left, 0, left + image.width // 8, image.height))
            part.save(photos / f'{name}{i}.png')
    monkeypatch.setattr(copies, '_SIZES', (2,))

    # Stop it after a few rows.
    made = copies._drawn_at_random

    def stop(classifier):
        raise KeyboardInterrupt

    monkeypatch.setattr(copies, '_drawn_at_random', stop)
    with pytest.raises(KeyboardInterrupt):
        copies.compare(str(photos), 0, 1, tmp_path / 'out')
    monkeypatch.setattr(copies, '_drawn_at_random', made)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out/work').glob('*.npy')}
    rows = copies.compare(str(photos), 0, 1, tmp_path / 'out')
    assert before and all(p.stat().st_mtime_ns == t for p, t in before.items())
    names = [row['method'] for row in rows]
    assert names[0] == 'duplicates before local features'
    assert 'ResNet-50 drawn at random' in names
    assert all(0 <= row['micro_ap'] <= 1 and len(row['transformations']) == 27 for row in rows)
    for row in rows:
        tuned = not row['method'].endswith('normalized scores')
        assert tuned or row['threshold'] is row['precision'] is row['recall'] is None
    summary = json.loads((tmp_path / 'out/summary.json').read_text())
    assert summary['photos'] == 32 and [row['method'] for row in summary['rows']] == names
    table = (tmp_path / 'out/table.md').read_text()
    assert all(name in table for name in names) and '| jpeg 10 |' in table
    assert (tmp_path / 'out/table.png').stat().st_size > 10_000
