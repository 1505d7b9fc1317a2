"""What the head adds: exact heads beside the papers' recipe, and the SNR against the weight decay.

    python experiments/heads.py --net vgg6-cifar10 --layers 5 4 3 --images 20000 [--root DATA] [--out TABLE]

The maps of a network that ships are kept once (training images shifted and flipped at random, each image
once; test images as they are), and every head is found on them: the minimum from zero and from a random
start, the papers' 200 epochs of SGD from two seeds (on the same maps, so without new shifts every epoch), and
the minimum for other weight decays. Each head is a row of the table, written when it is there; the same
command goes on from there.
"""
import argparse, time
from pathlib import Path

import numpy as np, pandas as pd, torch, torch.nn.functional as F

import dlmech
from dlmech.batches import Batches
from dlmech.datasets import get_data
from dlmech.filter import fields
from dlmech.model import train_epoch
from dlmech.null import measure_fields
from dlmech.probe import (cached_maps, centred, head_optimizer, Heads, Maps, merge_rows, PAPER, solve_head,
                          WEIGHT_DECAY)
from dlmech.run import progress, read_csv, read_tensors, RESULTS, write_tensors

KEYS = 'net', 'layer', 'images', 'heads', 'start', 'weight_decay'
DECAYS = 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4


def write_maps(path: Path, maps: Maps) -> None:
    "Maps as a file."
    write_tensors(path, dict(x=maps.x[:maps.n], y=maps.y[:maps.n]), layer=maps.path, unit=maps.unit,
                  shape=' '.join(map(str, maps.shape)))


def read_maps(path: Path) -> Maps:
    "Maps from a file."
    tensors, about = read_tensors(path)
    maps = Maps(about['layer'], 0, torch.zeros(1, *map(int, about['shape'].split())))
    maps.x, maps.y, maps.n, maps.unit = tensors['x'], tensors['y'], len(tensors['y']), float(about['unit'])
    return maps


class Shuffled:
    "Batches of cached maps, in a new order every epoch."
    def __init__(self, maps: Maps, batch: int, seed: int):
        self.maps, self.batch, self.seed = maps, batch, seed
    def __len__(self) -> int: return -(-self.maps.n // self.batch)
    def at(self, epoch: int):
        order = torch.randperm(self.maps.n, generator=torch.Generator().manual_seed(1000*self.seed + epoch))
        for i in order.split(self.batch): yield self.maps.x[i].float() * self.maps.unit, self.maps.y[i]


def by_sgd(maps: Maps, K: int, seed: int) -> tuple[torch.Tensor, dict]:
    "The papers' recipe on cached maps."
    heads, batches = Heads({'a': maps.shape}, K, seed), Shuffled(maps, PAPER.batch, seed)
    opt = head_optimizer(heads, PAPER)
    def loss_of(x, y):
        loss = F.cross_entropy(x @ heads.weights[0].flatten(1).T, y)
        return loss, dict(loss=loss.detach()), 1
    factor = lambda epoch, i: PAPER.decay ** (epoch - 1)
    with progress(total=PAPER.epochs * len(batches), desc='sgd') as bar:
        for epoch in range(1, PAPER.epochs+1): train_epoch(loss_of, opt, batches, epoch, factor, bar, 'sgd')
    return centred(heads.weight('a')), dict(evaluations=PAPER.epochs)


def by_minimum(maps: Maps, K: int, start: int, decay: float) -> tuple[torch.Tensor, dict]:
    "The minimum, from zero (start 0) or from weights drawn by chance."
    begin = torch.randn(K, *maps.shape, generator=torch.Generator().manual_seed(start)) if start else None
    heads = solve_head(maps, K, begin, decay)
    about = heads.about[maps.path]
    found = dict(evaluations=about['head_evaluations'], gradient=about['head_gradient'])
    return heads.weight(maps.path), found


def same_clusters(one: pd.DataFrame, other: pd.DataFrame) -> float:
    "The share of filters with the same clusters in two tables of filters."
    return float(np.mean((one.labels == other.labels) & (one.sizes == other.sizes)))


class Layer:
    "A layer's maps of training and test images, and what a head on it finds."
    def __init__(self, train: Maps, test: Maps, K: int):
        self.train, self.test, self.K = train, test, K
        one = F.one_hot(test.y[:test.n], K).double()                                              # (N, K)
        sums = sum(one[i].T @ test.x[i].double() for i in torch.arange(test.n).split(1000))
        self.means = (sums * test.unit / one.sum(0)[:, None]).reshape(K, *test.shape)
        self.exact: tuple[torch.Tensor, pd.DataFrame]|None = None
    def found(self, weight: torch.Tensor) -> tuple[torch.Tensor, pd.DataFrame, dict]:
        "Fields, the table of filters, and the layer's numbers."
        M = fields(self.means, weight)
        filters, row = measure_fields([(slice(0, len(M)), M)], torch.zeros(M.shape[:2]))
        W = weight.flatten(1)
        right = sum(int(((x @ W.T).argmax(1) == self.test.y[part]).sum())
                    for x, part in self.test.converted(self.K, torch.float32))
        kept = {name: row[name] for name in ('n_clusters', 'noise', 'snr')}
        return M, filters, dict(success_rate=right / self.test.n, **kept, filters=len(filters),
                                cluster_size=filters.n_labels.sum() / filters.n_clusters.sum())
    def beside_exact(self, M: torch.Tensor, filters: pd.DataFrame) -> dict:
        "How far its fields and clusters are from those of the minimum from zero."
        if self.exact is None:
            M0 = fields(self.means, by_minimum(self.train, self.K, 0, WEIGHT_DECAY)[0])
            self.exact = M0, self.found_filters(M0)
        M0, filters0 = self.exact
        return dict(field_difference=float((M - M0).abs().max() / M0.abs().max()),
                    same_clusters=same_clusters(filters0, filters))
    def found_filters(self, M: torch.Tensor) -> pd.DataFrame:
        "The table of filters of these fields."
        return measure_fields([(slice(0, len(M)), M)], torch.zeros(M.shape[:2]))[0]


def jobs(decays: bool) -> list[tuple[str, int, float]]:
    "The heads of a layer: kind, start and weight decay."
    same = [(kind, start, WEIGHT_DECAY) for kind in ('exact', 'paper') for start in (0, 1)]
    return same + [('exact', 0, d) for d in DECAYS if decays and d != WEIGHT_DECAY]


def fill(layer: Layer, named: dict, out: Path, decays: bool, kinds: list[str]) -> None:
    "The rows of a layer that the table has not."
    for kind, start, decay in jobs(decays):
        if kind not in kinds: continue
        key = named | dict(heads=kind, start=start, weight_decay=decay)
        if out.exists() and len(read_csv(out).merge(pd.DataFrame([key]), on=list(KEYS))): continue
        began = time.process_time()
        weight, about = (by_sgd(layer.train, layer.K, start) if kind == 'paper'
                         else by_minimum(layer.train, layer.K, start, decay))
        seconds = time.process_time() - began
        M, filters, row = layer.found(weight)
        if (kind, start, decay) == ('exact', 0, WEIGHT_DECAY): layer.exact = M, filters
        row = key | row | layer.beside_exact(M, filters) | about | dict(cpu_seconds=round(seconds, 1))
        merge_rows(out, pd.DataFrame([row]), KEYS)
        print(row, flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--net', default='vgg6-cifar10')
    p.add_argument('--layers', type=int, nargs='+', default=[5, 4, 3])
    p.add_argument('--decays', type=int, nargs='*', default=[5, 4], help='layers with other decays too')
    p.add_argument('--images', type=int, default=20_000)
    p.add_argument('--first', type=int, default=0, help='take only so many of the images; 0: all')
    p.add_argument('--heads', nargs='+', choices=['exact', 'paper'], default=['exact', 'paper'])
    p.add_argument('--root', default='')
    p.add_argument('--cache', default='maps', help='a folder for the maps, which take the longest')
    p.add_argument('--out', default=str(RESULTS/'heads.csv'))
    args = p.parse_args()
    net, data = dlmech.load(args.net), get_data('cifar10', root=args.root)
    kinds = dict(train=Batches(data.train, 500, shuffle=True, shift=4, flip=data.flip, seed=1),
                 test=Batches(data.test, 500))
    name = f'{args.net}-{args.images}'
    files = {(kind, n): Path(args.cache)/f'{name}-{kind}-{n}.safetensors'
             for kind in kinds for n in args.layers}
    for kind, batches in kinds.items():
        room = {f'layers.{n}': args.images if kind == 'train' else len(data.test) for n in args.layers
                if not files[kind, n].exists()}
        for p, maps in cached_maps(net, room, batches).items() if room else ():
            write_maps(files[kind, int(p.split('.')[1])], maps)
    for n in args.layers:
        train, test = (read_maps(files[kind, n]) for kind in kinds)
        if args.first: train.n = args.first
        layer = Layer(train, test, data.K)
        named = dict(net=args.net, layer=n, images=layer.train.n)
        fill(layer, named, Path(args.out), n in args.decays, args.heads)


if __name__ == '__main__': main()
