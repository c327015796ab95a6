"""The report: a single file that shows all its parts in Chromium and loads nothing else."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from tests.browser import browser, complaints, requests
from tests.task.judged import figures_of, judged, write_workdir
from vision.core.config import default_config, default_eval
from vision.data.source import ArraySource
from vision.evaluation.evals import Evaluation, Predicted
from vision.evaluation.predictions import read_predictions
from vision.evaluation.report import write_report
from vision.evaluation.report.classification import draw_mistakes
from vision.evaluation.run import Run

NASTY = '<script>document.title = "broken"</script>'


def report(folder, k, n, name='test', paths=None):
    """The report of a synthetic run with k classes, one of which has HTML in its name."""
    rng = np.random.default_rng(0)
    names = (NASTY, *(f'class {i}' for i in range(1, k)))
    labels = rng.integers(k - 1, size=n).astype(np.int32)  # the last class has no examples
    scores = rng.normal(size=(n, k))
    scores[np.arange(n), labels] += 3
    images = rng.integers(0, 256, (n, 16, 16, 1), np.uint8)
    p = dataclasses.replace(judged(np.arange(n), labels, scores, names), paths=paths)
    write_workdir(folder, names)
    with open(folder / 'metrics.jsonl', 'w') as file:
        for step in (10, 20, 30):
            file.write(json.dumps({'step': step, 'train/loss': 1 / step, 'train/top1': 0.9}) + '\n')
            record = {'step': step, 'validation/loss': float('nan'), 'validation/top1': 0.8}
            file.write(json.dumps(record) + '\n')
        file.write('{"step": 40, "train/lo')
    run = Run(
        path=folder, config=default_config(), class_names=names, image_shape=(16, 16, 1),
        input_shape=(16, 16, 1), step=30, model=None, task=p.task, variables=None, mesh=None,
    )  # fmt: skip
    figures = {'split': name, 'checkpoint': 30, **figures_of(p, resamples=20), 'corrupt': 0}
    source = ArraySource('made up', names, images, labels)
    evaluations = [Evaluation(name, default_eval(), source, p, figures, {})]
    evaluations += [Evaluation('again', default_eval(), source, p, figures, {})] if k == 10 else []
    return write_report([run], evaluations), p


def column(driver, table, index, rows='tr'):
    script = 'return Array.from(document.querySelectorAll(arguments[0]), r => r.cells[arguments[1]].textContent)'
    return driver.execute_script(script, f'{table} tbody {rows}', index)


def check_it_loads_nothing(driver, page):
    assert requests(driver) == [page.as_uri()]
    assert complaints(driver) == []
    policy = driver.find_element('css selector', 'meta[http-equiv=Content-Security-Policy]')
    assert "default-src 'none'" in policy.get_attribute('content')
    # The content security policy blocks requests.
    driver.execute_script(
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x'}))"
    )
    assert any('Content Security Policy' in line for line in complaints(driver))


def test_ten_classes(tmp_path):
    page, p = report(tmp_path, 10, 300)
    with browser(tmp_path) as driver:
        driver.get(page.as_uri())
        check_it_loads_nothing(driver, page)
        find = lambda css: driver.find_elements('css selector', css)  # noqa: E731
        assert driver.title == f'{tmp_path.name}: evaluation'
        assert len(find('section.evaluation')) == 2  # and a table of both
        figure = find('#eval-test .card .figure')[0].text
        assert figure == f'{100 * p.correct.mean():.2f}%'
        assert len(find('#curves svg polyline')) == 3  # a curve of NaN is not drawn
        assert len(find('#eval-test .mistake img[src^="data:image/png"]')) == 32
        assert len(find('#eval-test svg rect.bar')) > 3
        assert '"seed": 0' in find('#config pre')[0].get_attribute('textContent')
        assert '"jax"' in find('#evaluated_with pre')[0].get_attribute('textContent')
        cells = find('#eval-test .confusion td')
        assert len(cells) == 100
        counts = [int(c.text or 0) for c in cells]
        assert sum(counts) == 300
        assert sum(counts[::11]) == p.correct.sum()
        table = '#eval-test .classes'
        assert column(driver, table, 0) == list(p.class_names)  # shown as text, not run
        recall = find(f'{table} th')[3]
        recall.click()
        falling = [float(t.rstrip('%')) for t in column(driver, table, 3)[:-1]]
        assert falling == sorted(falling, reverse=True)
        assert column(driver, table, 3)[-1] == '–'  # rows without a value stay last
        recall.click()
        assert [float(t.rstrip('%')) for t in column(driver, table, 3)[:-1]] == falling[::-1]
        find(f'{table} th')[0].click()
        assert column(driver, table, 0)[1:4] == ['class 1', 'class 2', 'class 3']
        driver.set_window_size(500, 800)
        assert driver.execute_script('return document.documentElement.scrollWidth') <= 500


@pytest.mark.slow
def test_a_thousand_classes(tmp_path):
    page, _ = report(tmp_path, 1000, 5000)
    assert page.stat().st_size < 3_000_000
    with browser(tmp_path) as driver:
        driver.get(page.as_uri())
        check_it_loads_nothing(driver, page)
        find = lambda css: driver.find_elements('css selector', css)  # noqa: E731
        canvas = find('.confusion canvas')[0]
        colours = driver.execute_script(
            'const c = arguments[0]; const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;'
            'let n = 0; for (let i = 0; i < c.width; i++) n += d[4 * i * (c.width + 1)] < 250; return [c.width, n]',
            canvas,
        )
        assert colours[0] == 250 and colours[1] > 240  # a blue diagonal
        first = [e.text for e in find('.zoom tbody th')]
        assert len(first) == 14
        find('.pairs tbody tr')[5].click()
        row = find('.pairs tbody tr')[5].find_elements('css selector', 'td')
        assert row[0].text in [e.text for e in find('.zoom tbody th')]
        assert row[1].text in [e.get_attribute('title') for e in find('.zoom thead th')]
        driver.execute_script('arguments[0].scrollIntoView({block: "center"})', canvas)
        canvas.click()  # its middle
        assert 'class 500' in [e.text for e in find('.zoom tbody th')]
        find('.filter')[0].send_keys('class 77')
        shown = column(driver, '.classes', 0, 'tr:not([hidden])')
        assert shown == ['class 77', *(f'class {i}' for i in range(770, 780))]


def test_the_predictions_lie_beside_it(tmp_path):
    page, p = report(tmp_path, 10, 50, name='validation')
    assert page == tmp_path / 'report' / 'index.html'
    np.testing.assert_array_equal(read_predictions(tmp_path, 'validation').correct, p.correct)


def test_mistakes_are_named_by_their_paths_below_the_common_folder(tmp_path):
    paths = tuple(f'/data/pets/{"cat" if i % 2 else "<dog>"}/{i}.jpg' for i in range(100))
    page, p = report(tmp_path, 10, 100, paths=paths)
    shown = re.findall('<span class="quiet name">(.*?)</span>', page.read_text())
    worst = np.flatnonzero(~p.correct)[np.argmax(p['loss'][~p.correct])]
    assert shown[0] == paths[worst].removeprefix('/data/pets/').replace('<dog>', '&lt;dog&gt;')
    assert all(name.startswith(('cat/', '&lt;dog&gt;/')) for name in shown)
    page, _ = report(tmp_path, 10, 100)
    assert '<span class="quiet name">example ' in page.read_text()


def test_mistakes_are_drawn_those_with_the_highest_loss_first():
    labels, scores = (
        np.arange(4),
        np.array([[0, 2, 0, 0], [0, 0, 5, 0], [0, 0, 9, 0], [3, 0, 0, 0]]),
    )
    p = judged(labels, labels, scores, 'abcd')
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    predicted = Predicted(ArraySource('made up', tuple('abcd'), images, labels), p, {})
    shown = draw_mistakes(predicted, 2).axes
    assert [axes.get_title() for axes in shown] == ['b → c: 98%', 'd → a: 87%']
    assert [axes.get_images()[0].get_array().max() for axes in shown] == [1, 3]
    right = judged(labels, labels, np.eye(4), 'abcd')
    (nothing,) = draw_mistakes(predicted._replace(predictions=right)).axes
    assert nothing.get_title() == 'no mistakes'


def test_no_mistakes_no_records_no_room(tmp_path, capsys):
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    page, _ = report(run_dir, 2, 1)
    assert '<p class="quiet">There are no mistakes.</p>' in page.read_text()
    shutil.rmtree(run_dir / 'report')
    (run_dir / 'report').write_text('in the way')
    assert report(run_dir, 2, 1)[0] is None
    assert 'no report was written' in capsys.readouterr().err


def test_a_fraction_that_is_none_is_drawn_all_the_same():
    from vision.evaluation.report.charts import Curve, line_chart

    assert 'polyline' in line_chart('x', [Curve('train', 'train', [(1, 2.3), (2, 1.5)])], True)
