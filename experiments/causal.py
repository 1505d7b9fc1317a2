"""The causal test and the units kept together, for a network of the zoo: a row for each layer in
dlmech/results, resumed at any point.

    python experiments/causal.py --net vgg6-cifar10 --dataset cifar10 --folder runs/causal-vgg6 [--layers 5 4]

A folder that is not there is measured first (phases 2 and 3). In it every layer's test is kept as
`causal-<layer>.csv`; silencing knows no heads, so with new heads in another folder copy
`causal-<layer>.safetensors` there, and only the tables are made anew.
"""
import argparse, time
from pathlib import Path

import pandas as pd, torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dlmech
from dlmech.arch import VGG
from dlmech.causal import causal, causal_row, cooperation, Silencer
from dlmech.measurement import Measurement
from dlmech.probe import merge_rows
from dlmech.run import read_csv, RESULTS

KEY = ['network', 'heads', 'layer']
TESTS, UNITS, COST = RESULTS/'causal.csv', RESULTS/'causal-units.csv', RESULTS/'causal-cost.csv'


def options() -> argparse.Namespace:
    "What the command line asks for."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--net', default='vgg6-cifar10')
    p.add_argument('--dataset', default='cifar10')
    p.add_argument('--folder', default='', help='of the measurement; made if it is not there')
    p.add_argument('--heads', default='default', help='what its heads are, for the table')
    p.add_argument('--layers', nargs='+', default=None, help='as they are measured; all, the last first')
    p.add_argument('--on', default='train', choices=['train', 'test'], help='images to silence on')
    p.add_argument('--images', type=int, default=1000)
    p.add_argument('--draws', type=int, default=5, help='of units kept together; 0: not asked')
    p.add_argument('--root', default='')
    p.add_argument('--cost', action='store_true', help='only count and time: causal-cost.csv')
    return p.parse_args()


def measurement(args: argparse.Namespace, net, data) -> Measurement:
    "The measurement in the folder, made if it is not there."
    folder = Path(args.folder or f'runs/causal-{args.net}')
    if not (folder/'config.json').exists(): dlmech.measure(net, data.train, data.test).save(folder)
    return dlmech.open(folder, net, data.test)


def there(path: Path, about: dict) -> bool:
    "Whether the table has rows of that network, these heads and that layer."
    return path.exists() and bool((read_csv(path)[KEY] == pd.Series(about)[KEY]).all(axis=1).any())


def cost(network: str, net: VGG, filters: int, images: int = 64) -> None:
    "FLOPs and time of each pair of a filter and an image, by layer, from a few filters."
    x, rows = torch.randn(images, 3, 32, 32).contiguous(memory_format=torch.channels_last), []
    at, groups = torch.arange(images).repeat(filters), torch.arange(filters).repeat_interleave(images)
    for path in net.layer_paths:
        C = next(m.out_channels for m in net.get_submodule(path).modules() if isinstance(m, nn.Conv2d))
        s = Silencer(net, path, x[:4], C)
        s.hear(x)
        target = torch.zeros(s.maps.shape[1:])
        row: dict = dict(network=network, layer=path, filters=C)
        calls: dict = dict(whole=(net.eval(), x), tail=(s.tail, at), used=(s, at, groups, target))
        for name, (call, *given) in calls.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad(): call(*given)
            row[f'{name}_mflop'] = counter.get_total_flops() / 1e6 / len(given[0])
        began = time.process_time()
        s(at, groups, target)
        rows.append(row | dict(microseconds=(time.process_time() - began) / len(at) * 1e6))
    merge_rows(COST, pd.DataFrame(rows).round(2), ['network', 'layer'])


def costs() -> None:
    "Of the two networks of the zoo, and of a VGG-16 as wide as the papers'."
    cost('vgg16 d=16', dlmech.load('vgg16-cifar10-d16'), 4)
    cost('vgg6 d=64', dlmech.load('vgg6-cifar10'), 2)
    cost('vgg16 d=64', dlmech.network('vgg16', 10, d=64), 1)


def main() -> None:
    "All layers, the last first: what is behind it costs least."
    args = options()
    if args.cost: return costs()
    net, data = dlmech.load(args.net), dlmech.data(args.dataset, root=args.root)
    m, images = measurement(args, net, data), getattr(data, args.on)
    on = 'training images' if args.on == 'train' else 'images of the fields'
    for layer in [m[n] for n in args.layers] if args.layers else list(m)[::-1]:
        about = dict(network=args.net, heads=args.heads, layer=layer.number, name=layer.path)
        began = time.time()
        table = causal(layer, images, args.images, on)
        merge_rows(TESTS, pd.DataFrame([about | causal_row(table)]), [*KEY, 'on', 'images'])
        print(f'{layer}: silenced, {time.time() - began:.0f} s', flush=True)
        if args.draws and not there(UNITS, about):
            rows = cooperation(layer, data.train, data.test, args.draws)
            merge_rows(UNITS, rows.assign(**about), [*KEY, 'units', 'draw'])
            print(f'{layer}: units kept together, {time.time() - began:.0f} s', flush=True)


if __name__ == '__main__': main()
