"""Parameter and multiply-add counts from the papers and torchvision."""

import dataclasses
import json
from functools import cache

import jax
import pytest

from tests.processes import run_module
from tests.tiers import split
from vision.models import MODELS
from vision.models.base import abstract_variables
from vision.models.summary import count, default_model, summarise

# name: parameters, with auxiliary heads (None: none), GMACs (None: not given)
COUNTS = {
    'lenet5_1998': (60_000, None, None),
    'lenet5': (61_706, None, None),
    'alexnet_2012': (60_965_224, None, 0.724),
    'alexnet': (61_100_840, None, 0.714),
    'vgg11': (132_863_336, None, 7.609),
    'vgg11_bn': (132_868_840, None, 7.609),
    'vgg13': (133_047_848, None, 11.308),
    'vgg13_bn': (133_053_736, None, 11.308),
    'vgg16': (138_357_544, None, 15.470),
    'vgg16_bn': (138_365_992, None, 15.470),
    'vgg19': (143_667_240, None, 19.632),
    'vgg19_bn': (143_678_248, None, 19.632),
    'vgg_a': (132_863_336, None, 7.609),
    'vgg_a_lrn': (132_863_336, None, 7.609),
    'vgg_b': (133_047_848, None, 11.308),
    'vgg_d': (138_357_544, None, 15.470),
    'vgg_e': (143_667_240, None, 19.632),
    'googlenet_2014': (6_998_552, 13_378_280, 1.583),
    'googlenet': (6_624_904, 13_004_888, 1.498),
    'inception_v3': (23_834_568, 27_161_264, 5.713),
    'resnet18': (11_689_512, None, 1.814),
    'resnet34': (21_797_672, None, 3.664),
    'resnet34_b': (21_797_672, None, 3.664),
    'resnet50': (25_557_032, None, 4.089),
    'resnet50_v1': (25_557_032, None, None),
    'resnet101': (44_549_160, None, 7.801),
    'resnet101_v1': (44_549_160, None, None),
    'resnet152': (60_192_808, None, 11.514),
    'resnet152_v1': (60_192_808, None, None),
    'wide_resnet50_2': (68_883_240, None, 11.398),
    'resnext50_32x4d': (25_028_904, None, 4.230),
    'resnet20': (269_722, None, None),
    'resnet32': (464_154, None, None),
    'resnet44': (658_586, None, None),
    'resnet56': (853_018, None, None),
    'resnet110': (1_727_962, None, None),
    'resnet1202': (19_421_274, None, None),
    # torchvision's and timm's counts; B2's multiply-adds are table 2's 1.0 billion.
    'efficientnet_b0': (5_288_548, None, 0.386),
    'efficientnet_b1': (7_794_184, None, 0.687),
    'efficientnet_b2': (9_109_994, None, 0.994),
    'efficientnet_b3': (12_233_232, None, 1.827),
    'efficientnet_b4': (19_341_616, None, 4.394),
    'efficientnet_lite0': (4_652_008, None, None),
    'efficientnet_lite1': (5_416_680, None, None),
    'efficientnet_lite2': (6_092_072, None, None),
    'efficientnet_lite3': (8_197_096, None, None),
    'efficientnet_lite4': (13_006_568, None, None),
    # timm's counts.
    'seresnet50': (28_088_024, None, None),
    'resnet50d': (25_576_264, None, None),
    # ResNet-50, the embedding, and a classifier of its 512 values.
    'sscd_resnet50': (23_508_032 + 2049 * 512 + 513 * 1000, None, None),
    # Kernels, norms and classifier by arithmetic; the paper's 36.5 M and 8.9 M.
    'wide_resnet28_10': (36_479_194, None, None),
    'wide_resnet40_4': (8_949_210, None, None),
    # timm's counts; the multiply-adds of table 1 in billions.
    'convnext_tiny': (28_589_128, None, 4.5),
    'convnext_small': (50_223_688, None, 8.7),
    'convnext_base': (88_591_464, None, 15.4),
    'convnext_large': (197_767_336, None, 34.4),
    # timm's and torchvision's counts, with a head of 1,000 classes where there is none: 1,000 (D + 1).
    'vit_ti16': (5_717_416, None, None),
    'vit_s16': (22_050_664, None, None),
    'vit_b16': (86_567_656, None, 17.564),
    'vit_b32': (88_224_232, None, 4.409),
    'vit_l16': (304_326_632, None, 61.555),
    'deit3_s16': (22_059_496, None, None),
    'deit3_b16': (86_585_320, None, None),
    'dinov2_s14': (22_056_192 + 385_000, None, None),
    'dinov2_b14': (86_579_712 + 769_000, None, None),
    'dinov2_l14': (304_367_616 + 1_025_000, None, None),
    'dinov2_s14_reg': (22_057_344 + 385_000, None, None),
    'dinov2_b14_reg': (86_582_016 + 769_000, None, None),
    'dinov2_l14_reg': (304_370_688 + 1_025_000, None, None),
    'clip_b16': (86_568_424, None, None),
    'clip_b32': (88_225_000, None, None),
    'siglip_b16': (92_884_224 + 769_000, None, None),
}
# The papers print these in millions: VGG table 2; ResNet v2 table 4 (164 and 1001 layers), and 110
# layers as in v1. ResNet-34 with option A lacks the weights and norms of the projections.
MILLIONS = {
    'vgg_c': 134,
    'resnet110_v2': 1.7,
    'resnet164_v2': 1.7,
    'resnet1001_v2': 10.3,
    'resnet50_v2': 25.5,
    'resnet101_v2': 44.5,
    'resnet152_v2': 60.2,
    'resnet34_a': 21.6,
    'resnet34_c': 22.7,
}


def test_every_model_is_counted():
    assert set(COUNTS) | set(MILLIONS) == set(MODELS)


summary_of = cache(summarise)  # traced once for all tests of this file
# Very deep networks take a second to a minute to trace. `test_deep_networks_add_blocks` counts them
# from one and two blocks.
DEEP = ('resnet34_b', 'resnet101', 'resnet152', 'resnet50_v1', 'resnet101_v1', 'resnet152_v1', 'resnet32', 'resnet44',
        'resnet56', 'resnet110', 'resnet1202', 'resnet50_v2', 'resnet101_v2', 'resnet152_v2', 'resnet110_v2',
        'resnet164_v2', 'resnet1001_v2')  # fmt: skip


# Larger forms of B0, Lite0 and ConvNeXt-T, and ResNet-50 with another end.
SCALED = [n for n in COUNTS if n.startswith('efficientnet') and not n.endswith('0')]
SCALED += ['convnext_small', 'convnext_base', 'convnext_large', 'sscd_resnet50']
SCALED += [
    n
    for n in COUNTS
    if n.startswith(('vit', 'deit', 'dinov2', 'clip')) and n not in ('vit_b16', 'dinov2_b14_reg')
]


@pytest.mark.parametrize('name', split(COUNTS, [n for n in COUNTS if n not in (*DEEP, *SCALED)]))
def test_counts_are_the_papers(name):
    parameters, with_aux, gmacs = COUNTS[name]
    summary = summary_of(name)
    assert summary.parameters == parameters
    assert summary.parameters_with_aux == (with_aux or parameters)
    if gmacs is not None:
        assert summary.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize('name', split(MILLIONS, [n for n in MILLIONS if n not in DEEP]))
def test_counts_round_to_the_papers(name):
    assert rounded(summary_of(name).parameters, MILLIONS[name]) == MILLIONS[name]


def rounded(parameters, printed):
    return round(parameters / 1e6, 0 if isinstance(printed, int) else 1)


@pytest.mark.parametrize('name', DEEP)
def test_deep_networks_add_blocks(name):
    """Further blocks of a stage are equal, so one and two blocks give the count for any depth."""
    model = default_model(name)[0]
    sizes = model.stage_sizes
    one = parameters_of(model.clone(stage_sizes=(1,) * len(sizes)))
    count = one
    for i, blocks in enumerate(sizes):
        two = tuple(1 + (i == j) for j in range(len(sizes)))
        count += (blocks - 1) * (parameters_of(model.clone(stage_sizes=two)) - one)
    if name in COUNTS:
        assert count == COUNTS[name][0]
    else:
        assert rounded(count, MILLIONS[name]) == MILLIONS[name]


@cache
def parameters_of(model):
    variables = abstract_variables(model, (32, 32, 3))
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def test_option_a_lacks_just_the_projections():
    projections = sum(i * o + 2 * o for i, o in ((64, 128), (128, 256), (256, 512)))
    assert summary_of('resnet34_a').parameters == summary_of('resnet34').parameters - projections


def test_connections_of_lenet_are_counted_by_hand():
    # C1, dense C3, C5, F6: output pixels x input weights; subsampling has no matrix products.
    c3_dense = 10 * 10 * 16 * 25 * 6
    expected = 28 * 28 * 6 * 25 + c3_dense + 120 * 400 + 84 * 120
    assert summary_of('lenet5_1998').macs == expected


@pytest.mark.parametrize(
    'name',
    [
        'resnet50',
        'googlenet',
        'vgg16',
        'alexnet',
        'inception_v3',
        'efficientnet_b0',
        'convnext_tiny',
    ],
)
def test_the_docstring_gives_the_shapes_of_the_stages(name):
    model, _ = default_model(name)
    doc = type(model).__doc__
    for stage, shape in summary_of(name).stages.items():
        if stage.startswith('stage') and name != 'resnet50':
            assert f'| {stage:8} | {", ".join(str(n) for n in shape)}' in doc


def test_input_size_and_channels_change_the_figures():
    small, large = summarise('resnet18', 64, channels=1), summarise('resnet18', 128)
    assert large.macs > 3.9 * (small.macs - 10**6)
    assert large.parameters - small.parameters == 64 * 7 * 7 * 2
    assert small.stages['stage4'] == (2, 2, 512)


@pytest.mark.parametrize(
    ('name', 'size'), [('resnet20', 32), ('resnet50_v2', 32), ('googlenet', 64), ('vgg_a', 224), ('lenet5', 32),
                      pytest.param('siglip_b16', 32, marks=pytest.mark.slow)]
)  # fmt: skip
def test_models_that_are_counted_by_parts_have_the_figures_of_the_whole(name, size):
    model, (_, _, channels) = default_model(name)
    by_parts = count(name, model, (size, size, channels))
    whole = count('a model of my own', model, (size, size, channels))
    assert dataclasses.replace(whole, name=name) == by_parts
    assert list(whole.stages) == list(by_parts.stages)


def test_one_command_prints_one_model_or_all():
    one = run_module('experiments.models', 'resnet20', '--format=json')
    assert one.returncode == 0, one.stderr
    figures = json.loads(one.stdout)
    assert figures['parameters'] == 269_722
    assert figures['stages']['stage3'] == [8, 8, 64]
    table = run_module('experiments.models', 'googlenet', '--input=192')
    assert '13,004,888 with auxiliary heads' in table.stdout
    assert '192 x 192 x 3' in table.stdout


@pytest.mark.slow
def test_the_list_has_every_model():
    listed = run_module('experiments.models', '--format=json')
    assert [row['model'] for row in json.loads(listed.stdout)] == list(MODELS)


@pytest.mark.parametrize(
    'arguments, says',
    [
        (['resnt50'], "Did you mean 'resnet50'"),
        (['vgg16', '--input=31'], '32x32 and larger, not 31x31'),
        (['resnet18', '--format=yaml'], 'yaml'),
        (['resnet18', 'vgg16'], 'give one model'),
    ],
)
def test_mistakes_are_one_line(arguments, says):
    result = run_module('experiments.models', *arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stderr.count('\n') == 1
    assert result.stdout == ''
