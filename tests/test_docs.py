"""README.md and docs/: their commands run, their links lead somewhere, their flags and keys exist.

A page's fences:

    ```bash            each line is a command that runs; `pip install` and `pytest` are left to the reader
    ```bash no-run WHY commands that cannot run here, for one of the reasons in WHY; their flags are checked
    ```console         lines that begin with `$ ` are commands that run, the others are their output
    ```python          a script that runs; one that begins with `# name.py` is a file beside the commands
    ```text, ```       output and drawings
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO, environment, run_module
from tests.tiers import quick, split
from vision.core.config_keys import KEYS, OPEN, declared
from vision.studies import config_help as explain

PAGES = {p.name: p.read_text() for p in (REPO / 'README.md', *sorted((REPO / 'docs').glob('*.md')))}
WHY = {'network', 'data', 'minutes', 'peer', 'server', 'cluster'}
FENCE = re.compile(r'^```(\S*) *([^\n]*)\n(.*?)^```$', re.M | re.S)
WRITE = ('train', 'sweep', 'evaluate')  # into a workdir
FIRST = '--config=configs/digits_lenet5.py --workdir=runs/digits'  # which `digits_run` runs

# In the quick tests runs are shorter, by flags that come after their own.
SHORT = {
    'experiments.train': (
        '--config.training.duration=2 epochs',
        '--config.schedule.warmup=0 steps',
        '--config.training.ema_decay=0',
    ),
    'experiments.sweep': (
        '--config.training.duration=2 steps',
        '--config.training.eval_every=2 steps',
        '--config.training.ema_decay=0',
        '--config.schedule.warmup=0 steps',
        '--config.preprocess.train=',
        '--grid=model.excite=False,True;seed=0',
    ),
}
# Beside the README's, the steps that the quick tests run.
QUICK = (
    '--explain=runs/why.png', 'heat_maps =', '--split=train query docs/digits',
    '--output=runs/digits.stablehlo', 'jax.export',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of a page, or one of its scripts.

    Attributes:
      page: the file's name.
      number: its place among the page's steps.
      words: for `python -m`; empty for a script.
      text: the command, or the script.
    """

    page: str
    number: int
    words: tuple[str, ...]
    text: str

    @property
    def makes(self) -> list[str]:
        """The paths that the command writes and that later steps may read."""
        flags = dict(re.findall(r'--(\w+)=(runs/\S+)', self.text))
        writing = {'output', 'explain'}
        if self.text.startswith(tuple(f'python -m experiments.{c}' for c in WRITE)):
            writing.add('workdir')
        if {'build', 'add'} & set(self.words):
            writing.add('index')
        return [path for flag, path in flags.items() if flag in writing]

    def needs(self, earlier: 'Step') -> bool:
        """True if this step reads what the earlier one writes."""
        return any(path in self.text for path in earlier.makes)


def fences(page):
    """(language, information, text) of each."""
    return FENCE.findall(PAGES[page])


def lines(text):
    """The command lines of a fence: continued ones joined, comments left out."""
    joined = re.sub(r' *\\\n *', ' ', text).splitlines()
    return [line for line in joined if line.strip() and not line.startswith('#')]


def steps(page):
    """The steps of a page, in order."""
    found = []
    for language, information, text in fences(page):
        commands = []
        if language == 'bash' and not information:
            commands = lines(text)
        elif language == 'console':
            commands = [line[2:] for line in lines(text) if line.startswith('$ ')]
        elif language == 'python' and not text.startswith('# '):
            found.append(Step(page, len(found), (), text))
        for command in ' && '.join(commands).split(' && ') if commands else ():
            if command.startswith('python -m ') and not command.endswith(FIRST):
                words = tuple(shlex.split(command)[2:])
                found.append(Step(page, len(found), words, command))
            elif not command.endswith(FIRST):
                assert command.startswith(('pip install ', 'pytest')), f'{page}: {command}'
    return found


STEPS = {page: steps(page) for page in PAGES}
ALL = [step for page in STEPS.values() for step in page]
FAST = [s for s in ALL if s.page == 'README.md' or any(mark in s.text for mark in QUICK)]


class Clone:
    """A clone as its user has it after the README's first command, and with a page's files."""

    def __init__(self, root: Path, run: Path, page: str):
        for name in ('configs', 'docs', 'results'):
            (root / name).symlink_to(REPO / name)
        (root / 'runs').mkdir()
        (root / 'runs' / 'digits').symlink_to(run)
        for language, _, text in fences(page):
            if language == 'python' and (name := re.match(r'# (\w+\.py)\n', text)):
                (root / name[1]).write_text(text)
        self.root, self._done = root, {}

    def run(self, step: Step) -> str:
        """Runs a step and what it needs, each once; returns what the step printed."""
        if step not in self._done:
            for earlier in STEPS[step.page][: step.number]:
                if step.needs(earlier):
                    self.run(earlier)
            words = step.words
            if not words:
                name = f'step{step.number}'
                (self.root / f'{name}.py').write_text(step.text)
                words = (name,)
            elif quick() and not {'--dry_run'} & set(words) and '--explain=' not in step.text:
                words += SHORT.get(words[0], ())
                if words[0] == 'experiments.train' and 'preprocess.train' not in step.text:
                    words += ('--config.preprocess.train=resize(32)',)
            path = f'{self.root}{os.pathsep}{REPO}'
            done = run_module(*words, cwd=self.root, PYTHONPATH=path)
            assert done.returncode == 0, f'{step.text}\n{done.stderr}'
            self._done[step] = done.stdout
        return self._done[step]


@pytest.fixture(scope='module')
def clone(tmp_path_factory, digits_run):
    """A function from a page to its clone."""
    return functools.cache(
        lambda page: Clone(tmp_path_factory.mktemp(page.partition('.')[0]), digits_run, page)
    )


@pytest.mark.parametrize(
    'step', [pytest.param(*p.values, marks=p.marks, id=f'{p.values[0].page}-{p.values[0].number}') for p in split(ALL, FAST)]
)  # fmt: skip
def test_each_step_runs(clone, step):
    printed = clone(step.page).run(step)
    if 'runs/superclass' in step.text:
        assert 'superclass' in printed


def test_the_first_command_reaches_what_it_should(digits_run):
    records = [json.loads(line) for line in (digits_run / 'metrics.jsonl').read_text().splitlines()]
    assert next(r['test/top1'] for r in records if 'test/top1' in r) >= 0.975


@pytest.mark.slow
def test_a_paper_in_an_afternoon_has_its_table_and_its_picture(clone):
    (step,) = (s for s in STEPS['extending.md'] if '--output=runs/paper.png' in s.text)
    clone(step.page).run(step)
    runs = clone(step.page).root / 'runs'
    paper = json.loads((runs / 'paper' / 'sweep.json').read_text())
    assert [row['count'] for row in paper['seeds']] == ([1, 1] if quick() else [2, 2])
    assert (runs / 'paper.png').read_bytes().startswith(b'\x89PNG')


def test_the_two_commands_come_first():
    shell = [text.strip() for language, _, text in fences('README.md') if language == 'bash']
    assert shell[0] == f'pip install -e . && python -m experiments.train {FIRST}'
    assert shell[1] == 'pip install -e ".[test]" && pytest -n 2'
    assert shell[1] in (REPO / '.ci' / 'run').read_text()


def test_the_readme_is_short():
    """160 lines of 100 characters; the first command alone, which stays on one line, is longer."""
    text = PAGES['README.md'].splitlines()
    assert len(text) <= 160
    assert [line for line in text if len(line) > 100 and not line.endswith(FIRST)] == []


def test_every_page_is_there_and_every_fence_is_of_a_known_kind():
    assert {'guide.md', 'configs.md', 'extending.md', 'image_search.md', 'evaluation.md', 'models.md',
            'results.md', 'performance.md', 'scaling.md', 'faq.md'} <= set(PAGES)  # fmt: skip
    assert len(STEPS['README.md']) >= 6 and len(ALL) >= 35
    for page in PAGES:
        for language, information, text in fences(page):
            if language.startswith('{'):  # a directive of Sphinx
                continue
            assert language in ('bash', 'console', 'python', 'text', ''), (page, language, text)
            if information:
                mark, _, why = information.partition(' ')
                assert (language, mark) == ('bash', 'no-run') and why in WHY, (page, information)
        assert PAGES[page].count('\n```') % 2 == 0, page


def test_every_command_is_documented():
    named = set(re.findall(r'experiments\.(\w+)', ' '.join(PAGES.values())))
    files = {p.stem for p in (REPO / 'experiments').glob('*.py')} - {'__init__', 'benchmark'}
    assert files <= named, files - named


# Links.


def without_code(text):
    return re.sub(r'`[^`]*`', '', FENCE.sub('', text))


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', FENCE.sub('', text), re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    here = REPO if page == 'README.md' else REPO / 'docs'
    broken = []
    for link in re.findall(r'\]\(([^)\s]+)\)', without_code(PAGES[page])):
        if link.startswith(('http://', 'https://')):
            continue
        path, _, anchor = link.partition('#')
        target = here / path if path else here / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


# Flags, keys, configs, messages.


@functools.cache
def flags():
    """The flags of each command, by its module."""
    code = """
import importlib, json, sys
from absl import flags
known = {}
for name in sys.argv[1:]:
    before = set(flags.FLAGS)
    importlib.import_module(name)
    known[name] = sorted(set(flags.FLAGS) - before)
    for flag in known[name]:
        delattr(flags.FLAGS, flag)
print(json.dumps(known))
"""
    names = [f'experiments.{p.stem}' for p in sorted((REPO / 'experiments').glob('[a-z]*.py'))]
    done = subprocess.run(
        [sys.executable, '-c', code, *names, 'benchmarks.__main__'],
        cwd=REPO, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    known = json.loads(done.stdout)
    return known | {'benchmarks': known['benchmarks.__main__']}


def snippets(text):
    """Command lines and the code within sentences."""
    for _, _, block in FENCE.findall(text):
        yield from lines(block)
    for code in re.findall(r'`([^`]+)`', FENCE.sub('', text)):
        yield ' '.join(code.split())


@pytest.mark.parametrize('page', PAGES)
def test_flags_exist(page):
    anywhere = {flag for names in flags().values() for flag in names}
    wrong = []
    for code in snippets(PAGES[page]):
        command = re.search(r'python -m ([\w.]+)(.*)', code)
        if command is None and not code.startswith('--'):
            continue
        known = anywhere if command is None else flags().get(command[1], anywhere)
        # Pytest's own, and XLA's.
        known = {*known, *(f'no{flag}' for flag in known), 'help', 'slow', 'nightly'}
        for flag in re.findall(r'(?<![\w-])--(\w+)', code if command is None else command[2]):
            if flag not in known and not flag.startswith('xla_'):
                wrong.append(f'--{flag}: {code}')
    assert wrong == []


@functools.cache
def arguments(section):
    """The arguments of all that a section of the config may name."""
    if section == 'model':
        from vision.models import MODELS, create_model

        entries = [entry.load() for entry in MODELS.values()] + [create_model]
    elif section in explain._REGISTRIES:
        module, registry, _ = explain._REGISTRIES[section]
        known = getattr(importlib.import_module(module), registry)
        entries = [explain.find(section, name, known) for name in known]
    else:
        return set()
    return {name for entry in entries for name in inspect.signature(entry).parameters}


@pytest.mark.parametrize('page', PAGES)
def test_keys_of_configs_exist(page):
    text, wrong = PAGES[page], []
    own = set(
        re.findall(r'\w+', ' '.join(block for kind, _, block in fences(page) if kind == 'python'))
    )
    keys = set(re.findall(r'--config\.([a-z][a-z0-9_.]*\w)', text))
    sections = '|'.join({key.section for key in KEYS if key.section})
    keys |= set(re.findall(rf'`((?:{sections})\.[a-z0-9_]+)\b', text))
    for key in keys - {'a.b'}:
        section, _, leaf = key.rpartition('.')
        known = section in OPEN and (leaf in arguments(section) or leaf in own)
        if leaf not in declared(section) and not known:
            wrong.append(key)
    assert wrong == []


def test_configs_exist():
    named = set(re.findall(r'\bconfigs/(\w+)\.py(?::([\w-]+))?', ' '.join(PAGES.values())))
    for name, argument in sorted(named - {('NAME', '')}):
        config = importlib.import_module(f'configs.{name}')
        config.get_config(*([argument] if argument else []))


def test_messages_in_the_faq_are_those_of_the_code():
    """A heading has messages as the code has them, `…` in place of values."""
    text = []
    for path in (REPO / 'vision').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else '…' for p in node.values]
                text.append(''.join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text.append(node.value)
    text = '\n'.join(text)
    headings = re.findall(r'^### (.*)$', PAGES['faq.md'], re.M)
    assert len(headings) >= 20
    parts = [p for h in headings for m in re.findall(r'`([^`]+)`', h) for p in m.split('…')]
    # `errors.unknown` puts its first word before the text.
    missing = [p for p in parts if p.strip().removeprefix('unknown ') not in text]
    assert missing == []
