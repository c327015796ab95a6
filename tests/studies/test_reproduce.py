"""Reproduction of results over seeds: summaries, records and the table."""

import importlib
import json
import shutil

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

from experiments import reproduce as command
from tests.conftest import REPO, run_module
from tests.training.tiny import tiny_config
from vision.core.config import from_json
from vision.core.errors import UserError
from vision.core.workdir import read_records
from vision.evaluation.evals import evaluate_runs, named_entries
from vision.studies import reproduction as lib

ROW = lib.Row('tiny', 'configs/digits_lenet5.py', 'nobody 2026', '1 %')
OTHER = lib.Row('other', 'configs/mnist_lenet5.py', 'nobody 2026', '2 %')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('reproduce')
    lib.reproduce(ROW, tiny_config(), [0, 1], root / 'runs', root / 'results', 'python -m x')
    return root / 'runs', root / 'results'


def test_errors_are_the_runs_own(folders):
    runs, results = folders
    summary = json.loads((results / 'tiny' / 'summary.json').read_text())
    for seed in ('0', '1'):
        records = read_records(runs / 'tiny' / f'seed={seed}')
        top1 = next(r['test/top1'] for r in records if 'test/top1' in r)
        found = summary['seeds'][seed]
        assert found['error'] == pytest.approx(100 * (1 - top1))
        assert found['seconds'] > 0 and found['machine'] and found['commit']
        assert lib.read_records(results / 'tiny', int(seed)) == records
    names = {p.name for p in results.rglob('*') if p.is_file()}
    assert names == {'config.json', 'records.jsonl', 'summary.json'}
    assert from_json((results / 'tiny' / 'config.json').read_text()).optimizer.lr == 0.05
    assert summary['command'] == 'python -m x'


def test_the_table_has_mean_and_deviation_and_says_what_was_not_run(folders, tmp_path):
    measured = lib.table([ROW, OTHER], folders[1])
    errors = [run['error'] for run in measured[0]['summary']['seeds'].values()]
    first, second = map(lib.cells, measured)
    assert first[3] == f'{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f} %'
    assert second[3] == 'not run' and measured[1]['summary'] is None
    lib.write_markdown(measured, tmp_path / 'table.md')
    text = (tmp_path / 'table.md').read_text()
    assert first[3] in text and 'not run' in text and 'python -m x --seeds=2`' in text


def test_a_row_that_is_done_is_read_and_goes_on_with_more_seeds(folders, tmp_path):
    runs, _ = folders
    before = (runs / 'tiny' / 'seed=0' / 'metrics.jsonl').read_bytes()
    summary = lib.reproduce(ROW, tiny_config(), [0, 2], runs, tmp_path, 'x')
    assert (runs / 'tiny' / 'seed=0' / 'metrics.jsonl').read_bytes() == before
    assert list(summary['seeds']) == ['0', '2']


def test_a_row_is_measured_by_its_papers_protocol(folders, tmp_path):
    config = tiny_config()
    config.evals.train = ConfigDict({'split': 'train'})
    row = ROW._replace(evaluation='train')
    summary = lib.reproduce(row, config, [0], folders[0], tmp_path, 'x')
    run = folders[0] / 'tiny' / 'seed=0'
    (expected,) = evaluate_runs([run], named_entries(config, ['train'], ConfigDict()))[1]
    assert summary['seeds']['0']['error'] == 100 * (1 - expected.figures['top1'])
    # The test split is smaller, and its metrics are already recorded.
    assert expected.figures['count'] > 1000
    measured = lib.table([row], tmp_path)
    assert lib.cells(measured[0])[2] == '1 % (train)'
    with pytest.raises(UserError, match="unknown evaluation 'tarin'"):
        lib.reproduce(row._replace(evaluation='tarin'), config, [0], folders[0], tmp_path, 'x')


def test_a_finished_run_is_not_measured_by_a_protocol_again(folders, tmp_path, monkeypatch):
    config = tiny_config()
    config.evals.train = ConfigDict({'split': 'train'})
    row = ROW._replace(evaluation='train', metric='top5')
    first = lib.reproduce(row, config, [0], folders[0], tmp_path, 'x')
    assert lib.cells(lib.table([row], tmp_path)[0])[3].endswith('% top-5')
    monkeypatch.delattr(lib, '_by_protocol')
    assert lib.reproduce(row, config, [0], folders[0], tmp_path, 'x') == first


@pytest.mark.parametrize(
    ('row', 'key', 'value', 'says'),
    [
        (ROW, 'optimizer.lr', 1e-4, 'optimizer.lr is 0.05 there and 0.0001 here'),
        (ROW._replace(metric='top5'), 'seed', 3, "None, 'top1'. there and .None, 'top5'. here"),
    ],
)
def test_seeds_of_another_experiment_are_not_taken_together(folders, row, key, value, says):
    runs, results = folders
    before = {p: p.read_bytes() for p in results.rglob('*') if p.is_file()}
    config = tiny_config(**{key.replace('.', '__'): value})
    with pytest.raises(UserError, match=f'another experiment.*{says}.*--results'):
        lib.reproduce(row, config, [2], runs, results, 'x')
    assert {p: p.read_bytes() for p in results.rglob('*') if p.is_file()} == before


def test_a_seed_that_fails_takes_no_other_with_it(folders, tmp_path):
    runs = tmp_path / 'runs'
    shutil.copytree(folders[0] / 'tiny' / 'seed=0', runs / 'tiny' / 'seed=0')
    shutil.copytree(folders[0] / 'tiny' / 'seed=1', runs / 'tiny' / 'seed=7')  # of another seed
    with pytest.raises(UserError, match=r'^tiny, seed 7: .*seed'):
        lib.reproduce(ROW, tiny_config(), [7, 0], runs, tmp_path / 'results', 'x')
    summary = json.loads((tmp_path / 'results' / 'tiny' / 'summary.json').read_text())
    assert list(summary['seeds']) == ['0']


def test_what_the_repository_says_was_measured_is_what_its_records_say(tmp_path):
    rows, results = [lib.Row(*row) for row in command.ROWS], REPO / 'results'
    lib.write_markdown(lib.table(rows, results), tmp_path / 'table.md')
    assert (tmp_path / 'table.md').read_text() == (results / 'table.md').read_text()
    page = (REPO / 'docs' / 'results.md').read_text()
    for row in lib.table(rows, results):
        summary = row['summary']
        if summary is None:
            continue
        assert lib.cells(row)[3] in page, row['name']
        for seed, run in summary['seeds'].items():
            records = lib.read_records(results / row['name'], int(seed))
            (top1,) = [r['test/top1'] for r in records if 'test/top1' in r]
            assert run['error'] == pytest.approx(100 * (1 - top1), abs=1e-4), (row['name'], seed)


def test_another_seed_stands_beside_those_measured_before(folders, tmp_path):
    runs, results = folders
    shutil.copytree(results, tmp_path / 'results')
    summary = lib.reproduce(ROW, tiny_config(), [2], runs, tmp_path / 'results', 'x')
    assert list(summary['seeds']) == ['0', '1', '2']
    before = json.loads((results / 'tiny' / 'summary.json').read_text())['seeds']
    assert {seed: summary['seeds'][seed] for seed in before} == before
    records = [folder / 'tiny' / 'records.jsonl' for folder in (results, tmp_path / 'results')]
    assert records[1].read_text().startswith(records[0].read_text())
    assert lib.read_records(tmp_path / 'results' / 'tiny', 2) == read_records(
        runs / 'tiny' / 'seed=2'
    )


def test_records_of_a_seed_are_replaced_and_no_other_line_changes(tmp_path, monkeypatch):
    kept = '{"seed": 3, "step":1.50,  "by": "hand"}\n'
    (tmp_path / 'records.jsonl').write_text(kept)
    lib.write_records(tmp_path, 10, [{'step': 1}, {'step': 2, 'loss': 0.1}])
    lib.write_records(tmp_path, 1, [{'step': 1}])
    after = '{"seed": 10, "step": 1}\n{"seed": 10, "step": 2, "loss": 0.1}\n'
    text = '{"seed": 1, "step": 1}\n' + kept + after
    assert (tmp_path / 'records.jsonl').read_text() == text
    assert lib.read_records(tmp_path, 10) == [{'step': 1}, {'step': 2, 'loss': 0.1}]
    assert lib.read_records(tmp_path, 2) == []

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr('os.replace', killed)
        lib.write_records(tmp_path, 1, [{'step': 5}])
    assert (tmp_path / 'records.jsonl').read_text() == text
    lib.write_records(tmp_path, 1, [])
    assert (tmp_path / 'records.jsonl').read_text() == kept + after


def test_a_row_of_the_repository_is_one_file_of_records():
    for path in (REPO / 'results').rglob('*'):
        assert not set(',=') & set(path.name)
        assert path.suffix != '.jsonl' or path.name == 'records.jsonl'
    for path in (REPO / 'results').glob('*/records.jsonl'):
        lines = path.read_text().splitlines()
        assert all(isinstance(json.loads(line)['seed'], int) for line in lines), path


@pytest.mark.parametrize(
    ('words', 'seeds'), [(['3'], [0, 1, 2]), (['3', '4'], [3, 4]), (['3', ''], [3])]
)
def test_seeds_are_how_many_or_which(words, seeds):
    assert command._seeds(words) == seeds
    # The command in the table uses the same form.
    assert command._seeds(lib._seeds({'seeds': dict.fromkeys(map(str, seeds))}).split(',')) == seeds


def test_a_run_in_pieces_took_the_time_of_all_of_them():
    records = [{'seconds': 3.0}, {}, {'seconds': 5.0}, {'seconds': 1.0}, {'seconds': 2.0}]
    assert lib._seconds(records) == 7.0
    assert lib._seconds([]) == 0.0


def test_data_that_is_not_there_is_refused_and_nothing_written(tmp_path):
    config = tiny_config()
    config.data = {'source': 'idx', 'path': str(tmp_path), 'cache': 'none', 'max_corrupt': 0.01}
    with pytest.raises(UserError, match='train-images'):
        lib.reproduce(ROW, config, [0], tmp_path / 'runs', tmp_path / 'results', 'x')
    assert not (tmp_path / 'results').exists()


@pytest.mark.parametrize('row', command.ROWS, ids=lambda row: row[0])
def test_every_row_names_a_config_and_its_evaluation(row):
    row = lib.Row(*row)
    file, _, argument = row.config.partition(':')
    module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
    config = module.get_config(*([argument] if argument else []))
    assert row.evaluation is None or row.evaluation in config.evals


def test_names_are_unique():
    names = [row[0] for row in command.ROWS]
    assert len(set(names)) == len(names)


def test_the_type_to_compute_in_is_in_the_config_and_in_the_command():
    flags.FLAGS.mark_as_parsed()
    row = lib.Row(*command.ROWS[0])
    assert 'dtype' not in command._config(row).model
    with flagsaver.flagsaver(dtype='bfloat16'):
        assert command._config(row).model.dtype == 'bfloat16'
        assert command._command(row).endswith(' --dtype=bfloat16')


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['mnist-lenet'], "unknown row 'mnist-lenet'"),
        (['digits-lenet5', '--seeds=one'], 'whole numbers'),
        (['digits-lenet5', '--seeds='], 'whole numbers'),
        (['digits-lenet5', '--seeds=00'], '--seeds=1 is seed 0'),
        ([], 'no such folder'),
        (['mnist-lenet5', '--mnist=nowhere', '--seeds=1'], 'mnist-lenet5, seed 0: data.path='),
    ],
)
def test_a_mistake_is_one_line(words, says, tmp_path):
    done = run_module(
        'experiments.reproduce', *words, f'--workdir={tmp_path}/w', f'--results={tmp_path}/r'
    )
    assert done.returncode == 2
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_without_a_row_the_table_says_what_there_is(tmp_path):
    done = run_module('experiments.reproduce', f'--results={tmp_path}', '--format=json')
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == len(command.ROWS)
    assert all(row['summary'] is None for row in json.loads(done.stdout))
