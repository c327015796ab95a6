"""Writes the golden outputs: runs models of torch in float64 on weights drawn by `generator.py`.

Needs torch 2.14.1 and torchvision 0.29.1 (from EfficientNet on: 2.13.0, 0.28.0,
efficientnet_lite_pytorch 0.1.0, timm 1.0.31; EfficientNet-Lite0: 2.14.1, 0.29.1), and nothing else of
this repository.
"""

import json
import sys
from pathlib import Path

import generator
import numpy as np
import torch
import torchvision

HERE = Path(__file__).parent

# Evaluated at the paper's size (EfficientNets, slow in float64, at a smaller one) and at an odd one.
EVALUATION = {
    **{name: (224, 193) for name in ('alexnet', 'googlenet')},
    **{f'vgg{n}{bn}': (224, 193) for n in (11, 13, 16, 19) for bn in ('', '_bn')},
    **{f'resnet{n}': (224, 193) for n in (18, 34, 50, 101, 152)},
    **{name: (224, 193) for name in ('wide_resnet50_2', 'resnext50_32x4d')},
    'inception_v3': (299, 213),
    **{f'efficientnet_{kind}{n}': (96, 65) for kind in ('b', 'lite') for n in range(5)},
    'convnext_tiny': (96, 65),
    'seresnet50': (96, 65),
    'resnet50d': (96, 65),
}
# Inception's auxiliary head needs 299 px. In small images of EfficientNet-Lite0, whose step is timm's,
# single ReLU6 that rounding switches show in the gradient.
TRAINING = {'alexnet': 95, 'vgg11_bn': 64, 'googlenet': 96, 'inception_v3': 299, 'resnet18': 64,
            'efficientnet_b0': 64, 'efficientnet_lite0': 224}  # fmt: skip


def main(names: list[str]) -> None:
    torch.set_num_threads(2)
    for name in names or EVALUATION:
        golden = evaluate(name)
        if name in TRAINING:
            golden |= train(name)
        np.savez_compressed(HERE / f'{name}.npz', **golden)
        print(name, (HERE / f'{name}.npz').stat().st_size, flush=True)


def build(name: str, size: int = 224, train: bool = False) -> torch.nn.Module:
    kwargs = {}
    if name in ('googlenet', 'inception_v3'):
        kwargs = {'init_weights': False, 'aux_logits': True}
    if 'lite' in name and train:
        import timm

        model = timm.create_model(f'tf_{name}', pretrained=False)
    elif 'lite' in name:
        import efficientnet_lite_pytorch

        # Its padding is made for one size.
        make = efficientnet_lite_pytorch.EfficientNet.from_name
        model = make(name.replace('_', '-'), image_size=size, drop_connect_rate=0.0)
    elif name in ('seresnet50', 'resnet50d'):
        import timm

        model = timm.create_model(name, pretrained=False)
    else:
        model = getattr(torchvision.models, name)(weights=None, **kwargs)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = generator.state_dict(name, shapes)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return model.double()


def read_images(size: int, batch: int) -> torch.Tensor:
    return torch.from_numpy(generator.images(size, batch)).permute(0, 3, 1, 2).double()


def evaluate(name: str) -> dict[str, np.ndarray]:
    model = build(name).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    golden = {'shapes': np.array(json.dumps(shapes))}
    for size in EVALUATION[name]:
        model = build(name, size).eval()
        with torch.no_grad():
            logits = model(read_images(size, 2)).numpy()
        assert np.isfinite(logits).all()
        # A network that answers the same to every image would test nothing.
        assert np.abs(logits[0] - logits[1]).max() > 0.1 * np.abs(logits).max()
        golden[f'logits_{size}'] = logits.astype(np.float32)
    return golden


def train(name: str) -> dict[str, np.ndarray]:
    model = build(name, TRAINING[name], train=True).train()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = read_images(TRAINING[name], len(generator.LABELS))
    out = model(images)
    logits, *aux = out if isinstance(out, tuple) else (out,)
    aux = [a for a in aux if a is not None]
    labels = torch.from_numpy(generator.LABELS)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    for a in aux:
        loss = loss + generator.AUX_WEIGHT * torch.nn.functional.cross_entropy(a, labels)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=generator.LEARNING_RATE).step()
    golden = {'train_size': np.array(TRAINING[name]), 'train_logits': logits.detach().numpy()}
    if 'lite' in name:  # other names than those of the evaluated model
        golden['train_shapes'] = np.array(json.dumps(shapes))
    # torchvision lists GoogLeNet's heads from the last to the first.
    for i, a in enumerate(reversed(aux)):
        golden[f'train_aux_{i}'] = a.detach().numpy()
    changes = [
        (value - before[key]).numpy()
        for key, value in model.state_dict().items()
        if not key.endswith('num_batches_tracked')
    ]
    golden['changes'] = np.concatenate([generator.sample(change) for change in changes])
    golden['norms'] = np.array([np.linalg.norm(change) for change in changes])
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in golden.items()}


if __name__ == '__main__':
    main(sys.argv[1:])
