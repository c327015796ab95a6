"""Suggestions for misspelt names, and the message for libraries that are not installed."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPO
from vision.core.errors import UserError, nearest, not_installed, unknown
from vision.models.registry import MODELS
from vision.task.base import TASKS
from vision.training.optimizer import OPTIMIZERS

FLAGS = ('workdir', 'config', 'format', 'top_k', 'index', 'pretrained', 'checkpoint')
KEYS = ('model.name', 'optimizer.lr', 'optimizer.name', 'training.duration', 'training.batch_size')


@pytest.mark.parametrize(
    ('known', 'typos'),
    [
        (MODELS, {
            'resnet51': 'resnet50', 'resnet55': 'resnet56', 'resnet100': 'resnet101',
            'rsnet50': 'resnet50', 'ResNet50': 'resnet50', 'alxnet': 'alexnet', 'lenet6': 'lenet5',
            'inception': 'inception_v3', 'efficientnetb0': 'efficientnet_b0',
            'mobilenet': None, 'densenet121': None, 'zebra': None, 'x': None,
        }),
        (OPTIMIZERS, {'adma': 'adam', 'sdg': 'sgd', 'adamww': 'adamw', 'momentum': None}),
        (TASKS, {'clasification': 'classification', 'multi-label': 'multilabel', 'detection': None}),
        (FLAGS, {'wrkdir': 'workdir', 'formt': 'format', 'top-k': 'top_k', 'chekpoint': 'checkpoint',
                 'seed': None, 'verbose': None}),
        (KEYS, {'model.nam': 'model.name', 'optimiser.lr': 'optimizer.lr', 'modle.name': 'model.name',
                'lr': None}),
        (['softmax_cross_entropy'], {'softmax': 'softmax_cross_entropy', 'hinge': None}),
    ],
)  # fmt: skip
def test_a_typo_suggests_the_name_that_is_meant_and_a_far_word_nothing(known, typos):
    assert {typo: nearest(typo, sorted(known)) for typo in typos} == typos


def test_a_misspelt_key_of_any_section_is_found():
    from vision.data import load
    from vision.models import create_model
    from vision.training.schedules import make_schedule
    from vision.training.step import make_update

    def schedule(**keys):
        config = {'name': 'cosine', 'warmup': '0 steps', **keys}
        return make_schedule(config, 0.1, 10, lambda text, key: 0)

    for call, key, meant in [
        (lambda **k: create_model('lenet5', **k), 'nam', 'name'),
        (lambda **k: load({'source': 'digits', **k}, 'train'), 'sorce', 'source'),
        (lambda **k: make_update({'name': 'sam', **k}), 'nme', 'name'),
        (schedule, 'warmpu', 'warmup'),
    ]:
        with pytest.raises(UserError, match=f"'{key}'. Did you mean '{meant}'"):
            call(**{key: 1})


def test_the_known_names_are_listed_where_none_is_meant():
    assert str(unknown('op', 'swirl', ['resize', 'flip'])) == (
        "unknown op 'swirl'. Known: flip, resize."
    )


# Extras.


EXTRAS = tomllib.loads((REPO / 'pyproject.toml').read_text())['project']['optional-dependencies']
CODE = [p for folder in ('vision', 'experiments', 'benchmarks') for p in (REPO / folder).rglob('*.py')]  # fmt: skip
PACKAGES = {'FastAPI': 'fastapi', 'faiss': 'faiss-cpu', 'OpenCV': 'opencv-python-headless'}


def calls(tree: ast.Module):
    """The literal arguments of the calls of `not_installed`; None for others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'not_installed':
            yield [getattr(argument, 'value', None) for argument in node.args]


def test_every_message_of_a_missing_library_has_the_command_that_installs_it():
    found = []
    for path in CODE:
        text = path.read_text()
        if 'not_installed' not in text and 'pip install' not in text:
            continue
        tree = ast.parse(text)
        found += [(path.name, *call[1:]) for call in calls(tree)]
        # No other message spells the command for an extra.
        if path.name != 'errors.py':
            docs = {ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(
                n, ast.Module | ast.FunctionDef | ast.ClassDef)}  # fmt: skip
            texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)} - docs
            assert not [t for t in texts if re.search(r'pip install.*\[', str(t))], path
    assert len(found) >= 9
    for name, library, extra in found:
        required = [re.split('[>=]', entry)[0] for entry in EXTRAS[extra]]
        assert library is None or PACKAGES.get(library, library) in required, name
    assert str(not_installed('search', 'faiss', 'search')).endswith('pip install -e ".[search]"')


@pytest.mark.parametrize(
    ('place', 'library', 'call', 'extra'),
    [
        ('vision.search.kinds', 'faiss', 'faiss', 'search'),
        ('vision.search.fields', 'pyarrow', 'pyarrow', 'search'),
        ('vision.search.descriptions', 'imagehash', 'imagehash', 'search'),
        ('vision.search.local_features', 'cv2', 'opencv', 'search'),
        ('vision.search.milvus', 'pymilvus', '_connect', 'milvus'),
        ('vision.serving.server', 'fastapi', '_uvicorn', 'serve'),
        ('vision.prediction.demo', 'gradio', 'serve', 'demo'),
        ('vision.models.weights.state_dicts', 'safetensors', '_read_safetensors', 'pretrained'),
        ('vision.models.weights.state_dicts', 'huggingface_hub', '_download', 'pretrained'),
    ],
)
def test_a_library_that_is_not_installed_is_named(place, library, call, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)  # importing it raises ImportError
    module = __import__(place, fromlist=['_'])
    arguments = {'_connect': ['milvus:x.db'], '_read_safetensors': [Path('x.safetensors')],
                 '_download': ['hf:a/b', 'x'], 'serve': [None, None, 0]}  # fmt: skip
    with pytest.raises(UserError, match=rf'needs .*, which is not installed.*"\.\[{extra}\]"$'):
        getattr(module, call)(*arguments.get(call, []))
