"""Pretrained weights: each mistake is named, and a new head keeps its initial values."""

import json
from functools import cache

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.golden.generator import state_dict
from tests.models.test_parity import GOLDEN, NAMES
from tests.models.weights.torch_format import Call
from tests.models.weights.torch_format import save as save_torch
from tests.tiers import quick, split
from vision.core.errors import UserError
from vision.models import create_model
from vision.models.base import abstract_variables
from vision.models.weights import pretrained, state_dicts
from vision.models.weights.pretrained import (
    IMAGENET_CLASSES,
    guess_name,
    is_head,
    load_pretrained,
    pretrained_input,
)
from vision.models.weights.torch_names import normalise_keys


def torch_state(name):
    with np.load(GOLDEN / f'{name}.npz') as golden:
        return state_dict(name, json.loads(str(golden['shapes'])))


def fresh_variables(name, **kwargs):
    """Variables with a value that no state dict has: -7 everywhere."""
    return jax.tree.map(lambda s: np.full(s.shape, -7, s.dtype), shapes_of(name, **kwargs))


@cache
def shapes_of(name, num_classes=1000, channels=3, **kwargs):
    model = create_model(name, num_classes=num_classes, **kwargs)
    return abstract_variables(model, (*model.input_shape[:2], channels))


def save(path, state):
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
    return str(path)


@pytest.fixture(scope='module')
def resnet18(tmp_path_factory):
    state = torch_state('resnet18')
    return state, save(tmp_path_factory.mktemp('weights') / 'resnet18.safetensors', state)


def test_a_safetensors_file_fills_every_variable(resnet18):
    state, path = resnet18
    loaded = load_pretrained(path, 'resnet18', fresh_variables('resnet18'))
    kernel = loaded['params']['layer2_0']['shortcut_conv']['kernel']
    np.testing.assert_array_equal(
        kernel, state['layer2.0.downsample.0.weight'].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(loaded['batch_stats']['bn1']['var'], state['bn1.running_var'])
    np.testing.assert_array_equal(loaded['params']['fc']['kernel'], state['fc.weight'].T)
    assert not any((leaf == -7).any() for leaf in jax.tree.leaves(loaded))


def test_a_head_of_other_classes_starts_afresh_and_is_reported(resnet18, caplog):
    _, path = resnet18
    variables = fresh_variables('resnet18', num_classes=5)
    loaded = load_pretrained(path, 'resnet18', variables)
    assert (loaded['params']['fc']['kernel'] == -7).all()
    assert (loaded['params']['fc']['bias'] == -7).all()
    assert not (loaded['params']['conv1']['kernel'] == -7).any()
    assert 'fc' in caplog.text


def test_a_head_of_other_classes_cannot_answer(resnet18, tmp_path):
    state = dict(resnet18[0])
    state['fc.weight'], state['fc.bias'] = state['fc.weight'][:5], state['fc.bias'][:5]
    path = save(tmp_path / 'five.safetensors', state)
    with pytest.raises(UserError, match='classifier has another number of classes'):
        load_pretrained(path, 'resnet18', fresh_variables('resnet18'), new_head=False)


def test_weights_without_a_head_get_a_new_one_and_cannot_answer(resnet18, tmp_path, caplog):
    bare = {key: value for key, value in resnet18[0].items() if not key.startswith('fc')}
    path = save(tmp_path / 'bare.safetensors', bare)
    loaded = load_pretrained(path, 'resnet18', fresh_variables('resnet18'))
    assert (loaded['params']['fc']['kernel'] == -7).all()
    assert not (loaded['params']['conv1']['kernel'] == -7).any()
    assert 'fc' in caplog.text
    with pytest.raises(UserError, match='has no classifier'):
        load_pretrained(path, 'resnet18', fresh_variables('resnet18'), new_head=False)
    del bare['layer1.0.conv1.weight']
    path = save(tmp_path / 'some.safetensors', {**bare, 'fc.bias': resnet18[0]['fc.bias']})
    with pytest.raises(UserError, match=r'missing fc\.weight'):
        load_pretrained(path, 'resnet18', fresh_variables('resnet18'))


def test_missing_surplus_and_misshapen_tensors_are_named_in_one_error(resnet18, tmp_path):
    state = dict(resnet18[0])
    del state['layer1.0.conv1.weight'], state['bn1.running_mean']
    state['layer9.conv.weight'] = np.zeros((1, 1, 1, 1), np.float32)
    state['layer4.1.bn2.bias'] = np.zeros(3, np.float32)
    path = save(tmp_path / 'broken.safetensors', state)
    with pytest.raises(UserError) as error:
        load_pretrained(path, 'resnet18', fresh_variables('resnet18'))
    for says in (
        'missing layer1.0.conv1.weight',
        'missing bn1.running_mean',
        'surplus layer9.conv.weight',
        'misshapen layer4.1.bn2.bias (3,) for layer4_1/bn2/bias (512,)',
    ):
        assert says in str(error.value)
    assert '\n' not in str(error.value)


def test_grey_images_do_not_fit_weights_for_colour(resnet18):
    with pytest.raises(UserError, match=r'misshapen conv1.weight \(64, 3, 7, 7\)') as error:
        load_pretrained(resnet18[1], 'resnet18', fresh_variables('resnet18', channels=1))
    assert str(error.value).count('misshapen') == 1


def test_another_models_weights_are_refused(resnet18):
    with pytest.raises(UserError, match=r'missing layer1\.2\.conv1\.weight'):
        load_pretrained(resnet18[1], 'resnet34', fresh_variables('resnet34'))


def test_auxiliary_heads_may_be_absent_on_either_side(tmp_path, caplog):
    state = torch_state('googlenet')
    path = save(tmp_path / 'googlenet.safetensors', state)
    without = load_pretrained(path, 'googlenet', fresh_variables('googlenet', aux_heads=False))
    assert not any(layer.startswith('aux') for layer in without['params'])
    assert caplog.text == ''
    bare = {key: value for key, value in state.items() if not key.startswith('aux')}
    path = save(tmp_path / 'bare.safetensors', bare)
    loaded = load_pretrained(path, 'googlenet', fresh_variables('googlenet'))
    assert (loaded['params']['aux1']['fc1']['kernel'] == -7).all()
    assert not (loaded['params']['fc']['kernel'] == -7).any()
    assert 'aux1, aux2' in caplog.text
    caplog.clear()
    load_pretrained(path, 'googlenet', fresh_variables('googlenet'), new_head=False)
    assert caplog.text == ''  # they only train
    some = {key: value for key, value in state.items() if key != 'aux1.fc1.weight'}
    path = save(tmp_path / 'some.safetensors', some)
    with pytest.raises(UserError, match=r'missing aux1\.fc1\.weight$'):
        load_pretrained(path, 'googlenet', fresh_variables('googlenet'))


def test_timms_names_and_half_precision_are_read(tmp_path):
    state = {'head.fc.weight': np.ones((3, 2), ml_dtypes.bfloat16)}
    state['pre_logits.fc1.bias'] = np.ones(2, np.float16)
    read = state_dicts.read_state_dict(save(tmp_path / 'vgg.safetensors', state))
    assert set(read) == {'classifier.6.weight', 'classifier.0.bias'}
    assert all(value.dtype == np.float32 for value in read.values())


@pytest.mark.slow
def test_timms_vgg_has_convolutions_for_hidden_layers():
    names = pretrained.torch_names('vgg11')
    state = torch_state('vgg11')
    variables = fresh_variables('vgg11')
    expected, _ = pretrained.convert(state, names, variables, 'torchvision')
    state['classifier.0.weight'] = state['classifier.0.weight'].reshape(4096, 512, 7, 7)
    state['classifier.3.weight'] = state['classifier.3.weight'].reshape(4096, 4096, 1, 1)
    got, _ = pretrained.convert(state, names, variables, 'timm')
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize(
    'source, says',
    [
        ('nowhere/weights.safetensors', 'no such file'),
        ('{tmp}/weights.txt', 'must be a .safetensors or .pth'),
        ('{tmp}/broken.safetensors', 'not a readable .safetensors'),
        ('{tmp}/broken.PTH', 'damaged or not from torch.save'),
        ('{tmp}/pointer.pth', 'Git LFS pointer'),
        ('{tmp}/fp8.safetensors', 'type that is not supported'),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line(tmp_path, source, says):
    for name in ('weights.txt', 'broken.safetensors', 'broken.PTH'):
        (tmp_path / name).write_text('nothing of the kind')
    (tmp_path / 'pointer.pth').write_text('version https://git-lfs.github.com/spec/v1\noid …')
    header = b'{"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}'
    eight_bits = len(header).to_bytes(8, 'little') + header + bytes(2)
    (tmp_path / 'fp8.safetensors').write_bytes(eight_bits)
    with pytest.raises(UserError, match=says) as error:
        load_pretrained(source.format(tmp=tmp_path), 'resnet18', {'params': {}})
    assert '\n' not in str(error.value)


def test_a_model_without_torch_weights_says_which_have_them():
    with pytest.raises(UserError, match=r"for model 'lenet5', only for: alexnet, .*resnet50"):
        load_pretrained('any.safetensors', 'lenet5', {})


@pytest.mark.parametrize('in_a_row', [False, True])
def test_torch_files_are_read_without_torch_and_without_running_them(tmp_path, in_a_row):
    """Tensors of every type and layout. Other saved objects are neither imported nor called."""
    rng = np.random.default_rng(0)
    state = {
        'conv.weight': rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        'last.weight': np.asfortranarray(rng.normal(size=(4, 3)).astype(np.float32)),
        'half': rng.normal(size=3).astype(np.float16),
        'brain': rng.normal(size=3).astype(ml_dtypes.bfloat16),
        'double': rng.normal(size=3),
        'count': np.array(7, np.int64),
    }
    marker = tmp_path / 'marker'
    checkpoint = {
        'epoch': 3,
        'args': Call('argparse', 'Namespace'),
        'run': Call('builtins', 'exec', f"open({str(marker)!r}, 'w')"),
        'made': Call('os', 'mkdir', str(marker)),
        'optimizer': {'state': {0: {'momentum': state['half']}}, 'param_groups': [{'lr': 0.1}]},
        'state_dict': state,
    }
    save_torch(tmp_path / 'weights.pth', checkpoint, in_a_row)
    read = state_dicts.read_state_dict(str(tmp_path / 'weights.pth'))
    assert not marker.exists() and set(read) == set(state)
    for name, values in read.items():
        assert values.dtype == (np.int64 if name == 'count' else np.float32)
        np.testing.assert_array_equal(values, state[name].astype(values.dtype))


@pytest.mark.parametrize(
    ('held', 'says'),
    [
        (Call('my_models', 'Net'), 'no state dict'),
        ({'lr': 0.1}, 'no state dict'),
        ({'net': {'w': np.ones(2)}, 'ema': {'w': np.ones(2)}}, 'net, ema; save one'),
        ({'w': Call('torch._utils', '_rebuild_qtensor', 1)}, 'no state dict'),
    ],
)
def test_a_torch_file_without_a_state_dict_is_one_line(tmp_path, held, says):
    save_torch(tmp_path / 'weights.pth', held)
    with pytest.raises(UserError, match=f'weights.pth holds {says}.*they could run code'):
        state_dicts.read_state_dict(str(tmp_path / 'weights.pth'))


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'model.', 'module._orig_mod.net.'])
def test_a_prefix_that_a_wrapper_puts_before_all_names_is_left_out(tmp_path, resnet18, prefix):
    state = {f'{prefix}{key}': value for key, value in resnet18[0].items()}
    path = save(tmp_path / 'a.safetensors', {**state, 'n_averaged': np.array(3)})
    names = pretrained.torch_names('resnet18')
    found = pretrained.match(state_dicts.read_state_dict(path), names, shapes_of('resnet18'))
    assert not found.problems and not found.fresh


def test_quantised_weights_are_refused(tmp_path, resnet18):
    state = {**resnet18[0], 'conv1.weight': np.ones((64, 3, 7, 7), np.int8)}
    path = save(tmp_path / 'a.safetensors', state)
    with pytest.raises(UserError, match=r'conv1\.weight of type int8$'):
        load_pretrained(path, 'resnet18', fresh_variables('resnet18'))


def test_the_hub_is_asked_for_safetensors(monkeypatch, resnet18):
    asked = []

    def download(repository, filename):
        asked.append((repository, filename))
        return resnet18[1]

    monkeypatch.setattr('huggingface_hub.hf_hub_download', download)
    loaded = load_pretrained('hf:timm/resnet18.tv_in1k', 'resnet18', fresh_variables('resnet18'))
    assert asked == [('timm/resnet18.tv_in1k', 'model.safetensors')]
    assert not (loaded['params']['fc']['bias'] == -7).any()


@pytest.mark.parametrize('error', [OSError('no network\nat all'), ConnectionError('refused')])
def test_a_hub_out_of_reach_is_one_line(monkeypatch, error):
    def download(repository, filename):
        raise error

    monkeypatch.setattr('huggingface_hub.hf_hub_download', download)
    with pytest.raises(
        UserError, match=r'hf:timm/x cannot be downloaded: \w.*\. Without a network'
    ) as raised:
        load_pretrained('hf:timm/x', 'resnet18', {})
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    'source, name',
    [
        ('hf:timm/resnet50.tv_in1k', 'resnet50'),
        ('/weights/resnet18-f37072fd.pth', 'resnet18'),
        ('vgg16_bn.safetensors', 'vgg16_bn'),
        ('hf:timm/convnext_tiny.fb_in1k', 'convnext_tiny'),
        ('sscd_disc_mixup.torchvision.pt', 'sscd_resnet50'),
        ('convnext_tiny_1k_224_ema.pth', 'convnext_tiny'),
        ('vgg11_bn_of_mine.pth', 'vgg11_bn'),
    ],
)
def test_the_model_is_guessed_from_the_sources_name(source, name):
    assert guess_name(source) == name


@pytest.mark.parametrize('name', split(NAMES, ('vgg11_bn', 'resnet50')))
def test_tensors_tell_the_model_where_the_name_does_not(name, monkeypatch):
    with np.load(GOLDEN / f'{name}.npz') as golden:
        shapes = normalise_keys(json.loads(str(golden['shapes'])))
    heads = {
        'classifier.weight',
        'classifier.bias',
        'fc.weight',
        'fc.bias',
        'classifier.6.weight',
        'classifier.6.bias',
    }
    state = {
        key: np.broadcast_to(np.float32(0), (7, *shape[1:]) if key in heads else shape)
        for key, shape in shapes.items()
    }
    monkeypatch.setattr(pretrained, 'read_state_dict', lambda source: state)
    if quick():  # tracing all 18 takes ten seconds
        few = ('vgg11', 'vgg11_bn', 'resnet18', 'resnet34', 'resnet50')
        monkeypatch.setattr(pretrained, 'TORCH_MODELS', few)
    assert guess_name('my_weights.pth') == name
    state['surplus'] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r'my_weights\.pth: neither its name nor .*--model'):
        guess_name('my_weights.pth')


def test_imagenet_classes_come_with_it():
    assert len(IMAGENET_CLASSES) == len(set(IMAGENET_CLASSES)) == 1000
    assert IMAGENET_CLASSES[0] == 'tench'
    assert IMAGENET_CLASSES[207] == 'golden retriever'
    assert IMAGENET_CLASSES[999] == 'toilet tissue'


def test_what_is_fed_is_what_the_weights_were_trained_with():
    assert pretrained_input('resnet50').crop == 224
    assert pretrained_input('inception_v3').crop == 299
    assert pretrained_input('googlenet').mean == (0.5, 0.5, 0.5)


def test_timms_weights_on_the_hub_say_what_they_are_fed(monkeypatch, tmp_path):
    """`config.json` as in timm/resnet50.a1_in1k and timm/inception_v3.gluon_in1k."""
    config = {
        'input_size': [3, 224, 224],
        'test_input_size': [3, 288, 288],
        'crop_pct': 0.95,
        'test_crop_pct': 1.0,
        'interpolation': 'bicubic',
        'mean': [0.485, 0.456, 0.406],
        'std': [0.229, 0.224, 0.225],
    }
    file = tmp_path / 'config.json'
    monkeypatch.setattr('huggingface_hub.hf_hub_download', lambda repository, filename: file)
    file.write_text(json.dumps({'pretrained_cfg': config}))
    fed = pretrained_input('resnet50', 'hf:timm/resnet50.a1_in1k')
    assert (fed.resize, fed.crop, fed.method) == (288, 288, 'bicubic')
    del config['test_input_size'], config['test_crop_pct']
    config |= {'input_size': [3, 299, 299], 'crop_pct': 0.875}
    file.write_text(json.dumps({'pretrained_cfg': config}))
    fed = pretrained_input('inception_v3', 'hf:timm/inception_v3.gluon_in1k')
    assert (fed.resize, fed.crop, fed.mean) == (341, 299, (0.485, 0.456, 0.406))
    file.write_text('{}')
    assert pretrained_input('resnet50', 'hf:someone/resnet50') == pretrained_input('resnet50')


@pytest.mark.parametrize(
    'name', ['lenet5', 'alexnet', 'vgg11', 'googlenet', 'resnet18', 'resnet20']
)
def test_the_head_is_what_depends_on_the_number_of_classes(name):
    few, many = (fresh_variables_shapes(name, n) for n in (3, 4))
    for path, shape in few.items():
        if is_head(path):
            continue
        assert many[path] == shape
    assert any(is_head(path) and many[path] != shape for path, shape in few.items())


def fresh_variables_shapes(name, num_classes):
    from flax.traverse_util import flatten_dict

    params = shapes_of(name, num_classes, create_model(name).input_shape[-1])['params']
    return {path: leaf.shape for path, leaf in flatten_dict(params).items()}


def test_weights_that_cannot_be_opened_are_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, 'Permission denied')

    (tmp_path / 'a.pth').touch()
    monkeypatch.setattr(type(tmp_path), 'open', refuse)
    with pytest.raises(UserError, match=r'a\.pth cannot be read: Permission denied'):
        state_dicts.read_state_dict(str(tmp_path / 'a.pth'))
