"""One smoke run of every path that a GPU takes, held against the CPU.

    python experiments/gpu.py [--device cpu]

It needs CIFAR-10 and takes minutes; with `--device cpu` the CPU is held against itself. It ends with `all as
on the CPU`, or with what differs.
"""
import argparse, tempfile
from collections.abc import Iterator
from dataclasses import replace

import torch

import dlmech
from dlmech.batches import Batches
from dlmech.causal import causal
from dlmech.datasets import Data
from dlmech.measurement import measure_run
from dlmech.model import start, success_rate
from dlmech.probe import heads_of
from dlmech.pruning.afcc import afcc_masks, Diluted, from_scratch
from dlmech.run import get_device


def of_measuring(data: Data, device: str) -> Iterator[tuple[str, float, float]]:
    "What of a network of the package is measured there, and here."
    net, here = (dlmech.load('vgg6-cifar10') for _ in range(2))
    want = dlmech.measure(here, data.train, data.test, layers=['layers.4', 'layers.5'], heads='ridge')
    heads = heads_of({part.path: part.head for part in want})
    there = dlmech.measure(net, data.train, data.test, heads=heads, device=device)
    net = net.to(get_device(device))
    t, c = (dlmech.measure(n, data.train, data.train, heads=heads) for n in (net, here))
    for name in 'success_rate', 'snr', 'n_clusters', 'noise':
        yield f'measure: {name}', float(there.layers[name].mean()), float(want.layers[name].mean())
    yield 'causal: largest fall', float(causal(t[5]).fall.mean()), float(causal(c[5]).fall.mean())
    small, cut = (dlmech.prune(n, m, data.train, layers=['layers.4'])[0] for n, m in ((net, t), (here, c)))
    places = (small, get_device(device)), (cut, torch.device('cpu'))
    yield 'prune: SR', *(success_rate(n, Batches(data.test, 250, place)) for n, place in places)
    yield 'dilute: masked weights', masked(dlmech.dilute(net, t, [4, 5], data.train, epochs=1)), 0.


def masked(d: Diluted) -> float:
    "The largest weight where a mask is."
    weights = {p: d.net.get_submodule(p).weight.detach().cpu() for p in d.masks}
    return max(float(weights[p][~m.cpu()].abs().max()) for p, m in d.masks.items())


def of_training(device: str) -> Iterator[tuple[str, float, float]]:
    "Phase 1 compiled, then the same under masks: these hold although a graph without them was made before."
    with tempfile.TemporaryDirectory() as folder:
        run = start(arch='vgg6', d=8, layer='all', runs=folder, device=device).averaged_over('train')
        m = measure_run(run)
        d = from_scratch(run, *afcc_masks(m.net, m, [4, 5, 'output']))
        yield 'from scratch: masked weights', masked(d), 0.
        rate = success_rate(d.net, Batches(run.data.test, 250, run.device))
        yield 'from scratch: SR above 0.8', float(rate > .8), 1.


def main() -> None:
    "Says what was compared, and ends with an error if it differs."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda')
    device = parser.parse_args().device
    get_device(device)
    data, differ = dlmech.data('cifar10'), []
    data = replace(data, train=data.train.at(slice(2000)), test=data.test.at(slice(1000)))
    for found in of_measuring(data, device), of_training(device):
        for name, there, here in found:
            same = abs(there - here) <= .02 * max(1, abs(here))
            print(f'{name}: {there:.4f} there, {here:.4f} here' + ' DIFFERS' * (not same), flush=True)
            differ += [name] * (not same)
    if differ: raise SystemExit(f'not as on the CPU: {", ".join(differ)}')
    print(f'all as on the CPU ({torch.cuda.get_device_name() if device != "cpu" else "this is it"})')


if __name__ == '__main__': main()
