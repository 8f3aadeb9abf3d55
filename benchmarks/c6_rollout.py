"""C6: attention rollout of a vision transformer, its forward pass included, against the plain forward pass.

The networks are our default ViT (small, patches of 16 px, 224 px) and the base size, with random weights,
queries and keys scaled up, so that attention is not even. The reference reads the weights off timm's
unfused attention.

Run: python benchmarks/c6_rollout.py [--films 4] [--pairs 11] [--threads 2]
"""

import argparse
import sys

import numpy as np
import torch
from pairs import ratios, verdict

from openmed.explain.attention import rollout_with_logits
from openmed.films.images import resize_film
from openmed.models.factory import ModelFactory
from openmed.models.vit import ViT
from openmed.phantoms.phantom import draw

TARGET = 1.10
SIZE_PX = 224
NETWORKS = ("vit_small_patch16_224", "vit_base_patch16_224")


def lively_model(name: str) -> ViT:
    """A vision transformer that attends unevenly."""
    model = ModelFactory.create("vit", timm_name=name).eval()
    with torch.no_grad():
        for block in model.network.blocks:
            block.attn.qkv.weight.mul_(4)
    return model


def unfused_rollout(model: ViT, x: torch.Tensor) -> np.ndarray:
    """Rollout as the paper writes it: the joint attention of all tokens, film by film in float64."""
    kept: list[torch.Tensor] = []
    layers = [block.attn for block in model.network.blocks]
    handles = [
        layer.attn_drop.register_forward_hook(lambda _m, _i, out: kept.append(out)) for layer in layers
    ]
    for layer in layers:
        layer.fused_attn = False
    with torch.inference_mode():
        model(x)
    for layer, handle in zip(layers, handles, strict=True):
        layer.fused_attn = True
        handle.remove()
    tokens = kept[0].shape[-1]
    joint = torch.eye(tokens, dtype=torch.float64).expand(len(x), tokens, tokens)
    for attention in kept:
        joint = (attention.double().mean(dim=1) + torch.eye(tokens)) / 2 @ joint
    patches = joint[:, 0, 1:].numpy()
    lowest, highest = patches.min(axis=1, keepdims=True), patches.max(axis=1, keepdims=True)
    return ((patches - lowest) / (highest - lowest)).reshape(-1, *model.grid)


def compare(name: str, films: np.ndarray, pairs: int) -> bool:
    """Asserts that the maps of one network agree, measures and prints the verdict."""
    model = lively_model(name)
    x = model.prepare(films)
    maps, logits = rollout_with_logits(model, x)
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(x).numpy(), atol=1e-5)
    expected = unfused_rollout(model, x)
    print(f"{name}: maps {maps.shape}, at most {np.abs(maps - expected).max():.1e} apart")
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    assert len(np.unique(expected.round(2))) > 20, "flat maps would agree whatever was computed"

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return model(x)

    # Here theirs / ours is with the map / without it.
    found = ratios(lambda: rollout_with_logits(model, x), forward, pairs)
    return verdict(f"C6-{name.split('_patch')[0]}", found, TARGET, at_least=False)


def main() -> int:
    """Measures both networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--films", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    drawn = [draw(n, 1, pneumonia=bool(n % 2), size_px=SIZE_PX).film for n in range(arguments.films)]
    films = np.stack([resize_film(film, SIZE_PX) for film in drawn])
    passed = [compare(name, films, arguments.pairs) for name in NETWORKS]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
