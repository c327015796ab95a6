"""Writes the golden outputs of Vision Transformers into `vit/`: torchvision's, timm's, and DINOv2's position embeddings.

Needs torch 2.13.0, torchvision 0.28.0 and timm 1.0.31, and nothing else of this repository.
"""

import json
import math
import sys
from functools import partial
from pathlib import Path

import generator
import numpy as np
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

FOLDER = Path(__file__).parent / 'vit'

# Published models, by our names.
PUBLISHED = {
    'vit_ti16': 'vit_tiny_patch16_224',
    'vit_s16': 'vit_small_patch16_224',
    'vit_b16': 'torchvision:vit_b_16',
    'vit_b32': 'torchvision:vit_b_32',
    'vit_l16': 'torchvision:vit_l_16',
    'deit3_s16': 'deit3_small_patch16_224',
    'deit3_b16': 'deit3_base_patch16_224',
    'dinov2_s14': 'vit_small_patch14_dinov2',
    'dinov2_b14': 'vit_base_patch14_dinov2',
    'dinov2_l14': 'vit_large_patch14_dinov2',
    'dinov2_s14_reg': 'vit_small_patch14_reg4_dinov2',
    'dinov2_b14_reg': 'vit_base_patch14_reg4_dinov2',
    'dinov2_l14_reg': 'vit_large_patch14_reg4_dinov2',
    'clip_b16': 'vit_base_patch16_clip_quickgelu_224',
    'clip_b32': 'vit_base_patch32_clip_quickgelu_224',
    'siglip_b16': 'vit_base_patch16_siglip_224',
}
# The same architectures with two blocks, for quick tests; sizes of images, (height, width).
SMALL = {
    'img_size': 32,
    'patch_size': 8,
    'embed_dim': 48,
    'depth': 2,
    'num_heads': 3,
    'num_classes': 10,
}
SIZES = ((32, 32), (48, 24))
VARIANTS = {
    'vit_s16': {},
    'deit3_s16': {'no_embed_class': True, 'init_values': 1e-6},
    'dinov2_s14': {'init_values': 1e-5},
    'dinov2_s14_reg': {'init_values': 1e-5, 'reg_tokens': 4, 'no_embed_class': True},
    'clip_b16': {
        'pre_norm': True,
        'norm_layer': lambda width, **options: torch.nn.LayerNorm(width, eps=1e-5, **options),
        'act_layer': 'quick_gelu',
    },
    'siglip_b16': {'class_token': False, 'global_pool': 'map'},
}
# Evaluated as they were published, at the published size and at another one.
FULL = {'vit_s16': (224, 160), 'vit_b16': (224, 160)}
# One step of AdamW. A large epsilon keeps the step of a tiny gradient from being a matter of its sign.
ADAMW = {'lr': 0.01, 'eps': 0.1, 'betas': (0.9, 0.999), 'weight_decay': 0.5}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(2)
    for name in sys.argv[1:] or ('shapes', 'small', *FULL):
        if name == 'shapes':
            golden = {ours: np.array(json.dumps(shapes_of(ours))) for ours in PUBLISHED}
        elif name == 'small':
            golden = small()
        else:
            golden = evaluate(partial(published, name), [(s, s) for s in FULL[name]])
        np.savez_compressed(FOLDER / f'{name}.npz', **golden)
        print(name, (FOLDER / f'{name}.npz').stat().st_size, flush=True)


def published(name: str) -> torch.nn.Module:
    theirs = PUBLISHED[name]
    if theirs.startswith('torchvision:'):
        return torchvision.models.get_model(theirs.removeprefix('torchvision:'), weights=None)
    return timm.create_model(theirs, pretrained=False, num_classes=1000, dynamic_img_size=True)


def shapes_of(name: str) -> dict[str, list[int]]:
    with torch.device('meta'):
        return {key: list(value.shape) for key, value in published(name).state_dict().items()}


def small() -> dict[str, np.ndarray]:
    golden = {}
    for name, options in VARIANTS.items():
        make = partial(VisionTransformer, **SMALL, **options, dynamic_img_size=True)
        found = evaluate(make, SIZES, authors=name == 'dinov2_s14')
        golden |= {f'{name}/{key}': value for key, value in found.items()}
    theirs = {'image_size': 32, 'patch_size': 8, 'num_layers': 2, 'num_heads': 3, 'hidden_dim': 48}
    make = partial(torchvision.models.VisionTransformer, **theirs, mlp_dim=192, num_classes=10)
    found = evaluate(make, ((32, 32), (48, 48)))
    golden |= {f'vit_b16/{key}': value for key, value in found.items()}
    return golden | {f'adamw/{key}': value for key, value in train().items()}


def evaluate(make, sizes, authors: bool = False) -> dict[str, np.ndarray]:
    """Logits and features at several sizes; `authors`: with DINOv2's own position embeddings."""
    golden = {}
    for size in sizes:
        model = drawn(make())
        if 'shapes' not in golden:
            shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
            golden['shapes'] = np.array(json.dumps(shapes))
        if authors:
            model._pos_embed = lambda x, model=model: authors_positions(model, x)
        elif isinstance(model, torchvision.models.VisionTransformer):
            model = resized(model, size[0])
        images = torch.from_numpy(generator.images(max(size), 2)[:, : size[0], : size[1]])
        features = []
        head = model.heads if hasattr(model, 'heads') else model.head
        head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))  # noqa: B023
        with torch.no_grad():
            logits = model.eval()(images.permute(0, 3, 1, 2).double()).numpy()
        assert np.abs(logits[0] - logits[1]).max() > 0.1 * np.abs(logits).max()
        title = '{}x{}'.format(*size)
        golden[f'logits_{title}'] = logits.astype(np.float32)
        golden[f'features_{title}'] = features[0].numpy().astype(np.float32)
    return golden


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64 with the generator's weights."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = generator.state_dict('vit', shapes)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return model.double()


def resized(model: torch.nn.Module, size: int) -> torch.nn.Module:
    """torchvision's model for images of another size."""
    state = interpolate_embeddings(size, model.patch_size, model.state_dict())
    model.image_size = size
    positions = state['encoder.pos_embedding']
    model.encoder.pos_embedding = torch.nn.Parameter(positions)
    return model


def authors_positions(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`prepare_tokens_with_masks` of DINOv2's DinoVisionTransformer, with its interpolation offset of 0.1."""
    batch, height, width, channels = x.shape
    positions = model.pos_embed
    side = math.isqrt(positions.shape[1] - 1)
    x = torch.cat([model.cls_token.expand(batch, -1, -1), x.flatten(1, 2)], dim=1)
    if (height, width) != (side, side):
        grid = positions[:, 1:].reshape(1, side, side, channels).permute(0, 3, 1, 2)
        factors = (height + 0.1) / side, (width + 0.1) / side
        grid = torch.nn.functional.interpolate(
            grid, scale_factor=factors, mode='bicubic', antialias=False
        )
        assert grid.shape[-2:] == (height, width)
        positions = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    return x + positions


def train() -> dict[str, np.ndarray]:
    """A step of AdamW, whose weight decay is for kernels alone."""
    model = drawn(VisionTransformer(**SMALL, **VARIANTS['dinov2_s14_reg'])).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.from_numpy(generator.images(32, 4)).permute(0, 3, 1, 2).double()
    logits = model(images)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    kernels = [p for n, p in model.named_parameters() if p.ndim > 1 and n.endswith('.weight')]
    others = [p for n, p in model.named_parameters() if not (p.ndim > 1 and n.endswith('.weight'))]
    groups = [{'params': kernels}, {'params': others, 'weight_decay': 0.0}]
    torch.optim.AdamW(groups, **ADAMW).step()
    changes = [(value - before[key]).numpy() for key, value in model.state_dict().items()]
    golden = {
        'logits': logits.detach().numpy(),
        'changes': np.concatenate([generator.sample(change) for change in changes]),
        'norms': np.array([np.linalg.norm(change) for change in changes]),
    }
    return {key: value.astype(np.float32) for key, value in golden.items()}


if __name__ == '__main__':
    main()
