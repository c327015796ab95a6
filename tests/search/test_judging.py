"""The figures of a search equal brute force by their definitions; trials keep photos apart."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from tests.processes import run_module
from vision.core.errors import UserError
from vision.search import judging, rankings, transformations, truth

ENDINGS = {'rocket': 'jpg'}  # of scikit-image's files that are no PNG
# Answers of up to four queries: few scores, so that many are the same.
ANSWERS = st.lists(
    st.dictionaries(st.integers(0, 4), st.sampled_from([-0.5, 0.1, 0.5, 0.9]), max_size=3),
    min_size=1,
    max_size=4,
)


def precision_of(order):
    """The precision at each right answer of a ranking of truth values."""
    return [sum(order[: i + 1]) / (i + 1) for i, right in enumerate(order) if right]


@given(ANSWERS, st.lists(st.sets(st.integers(0, 4), max_size=2), min_size=4, max_size=4))
def test_micro_average_precision_and_operating_points(answers, references):
    references = references[: len(answers)]
    total = sum(map(len, references))
    pairs = rankings.collect([list(found.items()) for found in answers], references)
    flat = [
        (score, i in some)
        for found, some in zip(answers, references, strict=True)
        for i, score in found.items()
    ]
    scores = sorted({score for score, _ in flat}, reverse=True)
    # The worst of all orders in which equal scores may stand.
    worst = []
    for score in scores:
        same = [right for s, right in flat if s == score]
        worst.append(set(itertools.permutations(same)))
    means = [
        sum(precision_of(list(itertools.chain(*order)))) / total if total else None
        for order in itertools.product(*worst)
    ]
    if total:
        assert rankings.micro_ap(pairs) == pytest.approx(min(means), abs=1e-12)
    else:
        assert rankings.micro_ap(pairs) is None

    # Each score as the threshold.
    best, at = 0.0, None
    for score in scores:
        accepted = [right for s, right in flat if s >= score]
        precision, hits = sum(accepted) / len(accepted), sum(accepted)
        found = rankings.at_threshold(pairs, score)
        assert found == (precision, hits / total if total else None)
        if precision >= 0.9 and total and hits / total > best:
            best, at = hits / total, score
    recall, threshold = rankings.recall_at_precision(pairs, 0.9)
    assert recall == pytest.approx(best)
    assert threshold == at
    # What is found above every mistake.
    wrong = max((s for s, right in flat if not right), default=-np.inf)
    assert rankings.surest_mistake(pairs) == wrong
    if total:
        above = sum(right and s > wrong for s, right in flat)
        assert rankings.found_above(pairs, wrong) == above / total


def test_figures_of_a_known_ranking():
    """Two queries with a reference, one without: 0.9 right, 0.8 wrong, 0.7 right."""
    pairs = rankings.collect([[(0, 0.9)], [(1, 0.7), (0, 0.2)], [(1, 0.8)]], [{0}, {1}, set()])
    assert rankings.micro_ap(pairs) == pytest.approx((1 + 2 / 3) / 2)
    assert rankings.recall_at_precision(pairs) == (0.5, 0.9)
    assert rankings.found_above(pairs, rankings.surest_mistake(pairs)) == 0.5
    only = pairs.of(np.array([False, True, True]))
    assert rankings.micro_ap(only) == pytest.approx(1 / 2)
    assert rankings.micro_ap(pairs.of(np.array([False, False, True]))) is None
    nothing = rankings.collect([[], []], [{0}, set()])
    assert rankings.micro_ap(nothing) == 0 and rankings.recall_at_precision(nothing) == (0, None)
    # All scores the same: no credit for the order.
    same = rankings.collect([[(0, 0.5), (1, 0.5), (2, 0.5)]], [{0}])
    assert rankings.micro_ap(same) == pytest.approx(1 / 3)


def oxford_by_definition(ranking, good, junk, k):
    """Area below precision over recall by trapezoids, and the precision at k, of one query."""
    ranked = [i for i in ranking if i not in junk]
    area, last, hits = 0.0, 1.0, 0
    for rank, image in enumerate(ranked, 1):
        if rank > 1:
            last = hits / (rank - 1)
        if image in good:
            hits += 1
            area += (last + hits / rank) / 2 / len(good)
    depth = max((rank for rank, image in enumerate(ranked, 1) if image in good), default=0)
    depth = min(depth, k)
    return area, sum(image in good for image in ranked[:depth]) / depth if depth else 0.0


@given(st.integers(0, 10**6))
def test_the_protocol_of_oxford_as_it_is_defined(seed):
    rng = np.random.default_rng(seed)
    orders, truths = [], []
    for _ in range(3):
        # Each of 20 images is easy, hard, junk or none; some queries have no easy or hard one.
        kinds = rng.choice(4, 20, p=rng.dirichlet([0.3, 0.3, 0.3, 1]))
        orders.append(rng.permutation(20))
        truths.append(
            {name: np.flatnonzero(kinds == i) for i, name in enumerate(('easy', 'hard', 'junk'))}
        )
    found = rankings.oxford(orders, truths)
    for level, (good, junk) in {
        'easy': (['easy'], ['junk', 'hard']),
        'medium': (['easy', 'hard'], ['junk']),
        'hard': (['hard'], ['junk', 'easy']),
    }.items():
        sets = [[{int(i) for n in names for i in t[n]} for names in (good, junk)] for t in truths]
        asked = [(o.tolist(), *s) for o, s in zip(orders, sets, strict=True) if s[0]]
        assert found[level]['queries'] == len(asked)
        for name, k in (('mp@1', 1), ('mp@5', 5), ('mp@10', 10)):
            rows = [oxford_by_definition(*row, k) for row in asked]
            if not rows:
                assert found[level]['map'] is None and found[level][name] is None
                continue
            assert found[level]['map'] == pytest.approx(np.mean([a for a, _ in rows]))
            assert found[level][name] == pytest.approx(np.mean([p for _, p in rows]))


def test_a_known_query_of_oxford():
    """Junk first, then a relevant image, another, a relevant one."""
    truth_of = [{'easy': [1, 3], 'hard': [], 'junk': [0]}]
    found = rankings.oxford([np.array([0, 1, 2, 3])], truth_of)
    assert found['easy']['map'] == found['medium']['map'] == pytest.approx(19 / 24)
    assert found['easy']['mp@1'] == 1 and found['easy']['mp@5'] == pytest.approx(2 / 3)
    assert found['hard'] == {'map': None, 'mp@1': None, 'mp@5': None, 'mp@10': None, 'queries': 0}


def test_files_of_pairs(tmp_path):
    path = tmp_path / 'truth.csv'
    path.write_text('query_id,reference_id\nQ1,R2\nQ2,\nQ1,R3\n\nQ3, R1\n')
    assert truth.read_pairs(path) == {'Q1': {'R2', 'R3'}, 'Q2': set(), 'Q3': {'R1'}}
    path.write_text('Q1,R2\n')
    assert truth.read_pairs(path) == {'Q1': {'R2'}}
    for text, match in (
        ('Q1,R2,0.5\n', 'line 1'),
        ('Q1\n', 'line 1'),
        ('', 'no pair'),
        ('Q1,\n', 'no pair'),
        ('\xff\xfe', 'cannot be read|line 1'),
    ):
        path.write_bytes(text.encode('latin1'))
        with pytest.raises(UserError, match=match):
            truth.read_pairs(path)
    with pytest.raises(UserError, match='No such file'):
        truth.read_pairs(tmp_path / 'nowhere')


class Harm:
    def __reduce__(self):
        return (print, ('harm',))


def test_files_of_oxford(tmp_path, capsys):
    gnd = [{'bbx': [1.5, 2, 30, 40], 'easy': [0], 'hard': np.array([2]), 'junk': []}, {'easy': [1]}]
    published = {'gnd': gnd, 'imlist': ['a', 'b', 'c'], 'qimlist': ['q', 'r']}
    path = tmp_path / 'gnd.pkl'
    path.write_bytes(pickle.dumps(published, 2))
    read = truth.read_oxford(path)
    assert read.images == ['a', 'b', 'c'] and read.queries == ['q', 'r']
    assert read.truths[0] == {'easy': [0], 'hard': [2], 'junk': []}
    assert read.boxes == [(1.5, 2, 30, 40), None]
    published['gnd'][0]['hard'] = [2]
    path.write_text(json.dumps(published))
    assert truth.read_oxford(path) == read
    for wrong, match in (
        (published | {'imlist': ['a']}, 'does not fit'),
        (published | {'qimlist': ['a']}, '1 queries, 2 answers'),
        ({'gnd': []}, 'not of the form'),
        (published | {'gnd': [{'bbx': [5, 5, 1, 1]}, {}]}, 'bbx'),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=match):
            truth.read_oxford(path)
    for damaged in (pickle.dumps(Harm()), pickle.dumps(published)[:-9], b''):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r'--truth|could run code'):
            truth.read_oxford(path)
    assert 'harm' not in capsys.readouterr().out


def test_names_of_a_truth():
    known = truth.Positions(['/x/a.jpg', '/y/b.png', '/z/b.png'], 'the index')
    assert known['a'] == known['a.jpg'] == known['/x/a.jpg'] == 0 and known['/z/b.png'] == 2
    for name, match in (('b', 'several'), ('c', 'is not in the index')):
        with pytest.raises(UserError, match=match):
            known[name]


@pytest.mark.parametrize('count', [16, 57])
def test_trials_have_no_photo_in_common_and_half_of_the_queries_are_distractors(count):
    tuning, judged = judging.plan(count, seed=3, each=5)
    assert (tuning, judged) == judging.plan(count, seed=3, each=5)
    assert judging.plan(count, seed=4, each=5)[1] != judged
    used = [
        {*trial.collection, *(q.photo for q in trial.queries), *(q.other for q in trial.queries)}
        for trial in (tuning, judged)
    ]
    assert not used[0] & used[1] and max(used[0] | used[1]) < count
    for trial in (tuning, judged):
        for name in transformations.NAMES:
            some = [q for q in trial.queries if q.transformation == name]
            inside = [q for q in some if q.photo in trial.collection]
            assert len({q.photo for q in some}) == len(some) == 2 * len(inside) > 0
        # A screenshot shows no photo of the collection beside the copy, and not the copy twice.
        assert all(q.other not in trial.collection and q.other != q.photo for q in trial.queries)
    with pytest.raises(UserError, match='at least 16'):
        judging.plan(15)


def test_who_knows_everything_and_who_knows_nothing():
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(20)]

    def oracle(collection, queries):
        for number, asked in enumerate(queries.trial.queries):
            assert queries[number].dtype == np.uint8
            found = [i for i, x in enumerate(collection) if x is photos[asked.photo]]
            yield [(i, 1.0) for i in found] + [
                (i, 0.1) for i in range(len(collection)) if not found
            ]

    known = judging.judge_copies(oracle, photos, each=2)
    assert known['queries'] == 27 * 4 and known['collection'] == 7 and known['photos'] == 20
    every = [known, *known['transformations']]
    assert all(row[name] == 1 for row in every for name in ('micro_ap', 'recall@p90', 'found'))
    assert known['threshold'] == known['precision'] == known['recall'] == 1
    blind = judging.judge_copies(lambda _, queries: ([] for _ in queries), photos, each=2)
    assert blind['micro_ap'] == blind['found'] == 0 and blind['threshold'] is None


def test_the_command_judges_copies(workdir):
    done = run_module(
        'experiments.search', f'--workdir={workdir}', '--split=test', 'evaluate', '--copies',
        '--each=1', '--noverify', '--format=json',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['photos'] == 360 and found['queries'] == 2 * 27 and found['collection'] == 135
    assert [row['name'] for row in found['transformations']] == list(transformations.NAMES)
    assert 0 < found['micro_ap'] < 1


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Files of 24 photos: thirds of eight of scikit-image's."""
    root = tmp_path_factory.mktemp('copies')
    names = (
        'astronaut',
        'coffee',
        'chelsea',
        'rocket',
        'camera',
        'coins',
        'motorcycle_left',
        'ihc',
    )
    for name in names:
        image = Image.open(Path(data.__file__).parent / f'{name}.{ENDINGS.get(name, "png")}')
        image = image.convert('RGB')
        for i in range(3):
            left = i * image.width // 3
            image.crop((left, 0, left + image.width // 3, image.height)).save(
                root / f'{name}{i}.png'
            )
    return root


@pytest.mark.slow
def test_verified_copies_of_photos_beat_the_vectors_alone(photos):
    """The command on photos, with the weights that come in a wheel."""
    found = {}
    for flag in ('--verify', '--noverify'):
        done = run_module(
            'experiments.search', 'evaluate', '--copies', photos, '--each=3', flag,
            '--pretrained=efficientnet_lite0', '--format=json',
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[flag] = json.loads(done.stdout)
    assert found['--verify']['photos'] == 24
    assert found['--verify']['micro_ap'] > max(0.6, found['--noverify']['micro_ap'])
    easy = {row['name']: row['found'] for row in found['--verify']['transformations']}
    assert easy['jpeg 30'] == 1 and easy['brightness × 0.5'] >= 0.6


@pytest.mark.slow
def test_given_answers_from_the_command_line(photos, tmp_path):
    """Pairs of DISC's form, and Oxford's protocol with boxes, on an index of the photos."""
    made, model = tmp_path / 'x.index', '--pretrained=efficientnet_lite0'
    done = run_module('experiments.search', 'build', photos, model, f'--index={made}')
    assert done.returncode == 0, done.stderr
    queries = tmp_path / 'queries'
    queries.mkdir()
    for i, name in enumerate(('coffee0', 'rocket1', 'coins2')):
        Image.open(photos / f'{name}.png').save(queries / f'Q{i}.jpg', quality=60)
    pairs = tmp_path / 'pairs.csv'
    pairs.write_text('query_id,reference_id\nQ0,coffee0\nQ1,rocket1\nQ2,\n')
    asked = ('experiments.search', 'evaluate', queries, model, f'--index={made}', '--format=json')
    found = json.loads(run_module(*asked, f'--truth={pairs}').stdout)
    assert found['queries'] == 3 and found['references'] == 24
    assert found['recall@1'] == 1 and 0.5 < found['micro_ap'] < 1  # Q2's photo is there, too
    gnd = {
        'imlist': sorted(p.stem for p in photos.iterdir()),
        'qimlist': ['Q0', 'Q1'],
        'gnd': [{'bbx': [0, 0, 150, 300]}, {}],
    }
    place = gnd['imlist'].index
    gnd['gnd'][0] |= {'easy': [place('coffee0')], 'hard': [place('coffee1')], 'junk': []}
    gnd['gnd'][1] |= {'easy': [place('rocket1')], 'junk': [place('rocket0'), place('rocket2')]}
    (tmp_path / 'gnd.json').write_text(json.dumps(gnd))
    done = run_module(*asked, f'--truth={tmp_path / "gnd.json"}', '--protocol=oxford')
    levels = {row['level']: row for row in json.loads(done.stdout)['levels']}
    assert levels['easy']['mp@1'] == 1 and levels['easy']['queries'] == 2
    assert levels['hard']['queries'] == 1 and 0 < levels['hard']['map'] <= 1
    wrong = run_module(*asked, f'--truth={tmp_path / "nowhere"}')
    assert wrong.returncode == 2 and wrong.stderr.count('\n') == 1


@pytest.mark.slow
def test_flags_that_contradict_each_other(workdir):
    judge = ('experiments.search', f'--workdir={workdir}', '--split=test', 'evaluate')
    for flags, match in (
        (('--copies', '--truth=x'), 'leave out'),
        (('--truth=x',), '--index'),
        (('--copies', '--noverify', '--whiten=999'), '--whiten=999'),
        (('--copies', '--noverify', '--endpoint=logits:gem'), 'no positions'),
    ):
        done = run_module(*judge, *flags)
        assert done.returncode == 2 and match in done.stderr, done.stderr
        assert done.stderr.count('\n') == 1
