"""One smoke run of every path that a GPU takes, held against the CPU.

    python experiments/gpu.py [--device cpu] [--out gpu.csv] [--quick]

It needs CIFAR-10 and takes minutes; with `--device cpu` the CPU is held against itself, with `--quick` on
made-up images and with ridge heads, in seconds. What is compared is written to `--out` as it comes; stopped,
the same command goes on after the part that is there whole. It ends with `all as on the CPU`, or with what
differs.
"""
import argparse, tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd, torch

import dlmech
from dlmech.batches import Batches
from dlmech.causal import causal
from dlmech.datasets import Data, ImageSet
from dlmech.measurement import measure_run
from dlmech.model import start, success_rate
from dlmech.probe import heads_of
from dlmech.pruning.afcc import afcc_masks, Diluted, from_scratch
from dlmech.run import get_device, read_csv, write_csv


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


def of_training(device: str, quick: bool = False) -> Iterator[tuple[str, float, float]]:
    "Phase 1 compiled, then the same under masks: these hold although a graph without them was made before."
    with tempfile.TemporaryDirectory() as folder:
        asked = dict(epochs=1, heads='ridge') if quick else {}
        run = start(arch='vgg6', d=8, layer='all', runs=folder, device=device, **asked)
        run = run.averaged_over('train')
        m = measure_run(run)
        d = from_scratch(run, *afcc_masks(m.net, m, [4, 5, 'output']))
        yield 'from scratch: masked weights', masked(d), 0.
        rate = success_rate(d.net, Batches(run.data.test, 250, run.device))
        if not quick: yield 'from scratch: SR above 0.8', float(rate > .8), 1.


def images(quick: bool) -> Data:
    "A part of CIFAR-10, or noise in its place."
    if not quick:
        data = dlmech.data('cifar10')
        return replace(data, train=data.train.at(slice(2000)), test=data.test.at(slice(1000)))
    g = torch.Generator().manual_seed(0)
    noise = lambda: torch.randint(256, (40, 32, 32, 3), generator=g, dtype=torch.uint8)
    made = [ImageSet(noise(), torch.arange(40) % 10, list('0123456789')) for _ in range(3)]
    return Data(*made, name='noise')


def compare(name: str, rows: Callable[[], Iterator], device: str, out: Path) -> None:
    "Puts what a part compares into `out` as it comes; a part that is there whole is left as it is."
    table = read_csv(out) if out.exists() else pd.DataFrame(columns=['part', 'device', 'what'])
    of_part = (table.part == name) & (table.device == device)
    if (table.what[of_part] == 'whole').any(): return
    done = table[~of_part].to_dict('records')
    for what, there, here in with_end(rows()):
        same = abs(there - here) <= .02 * max(1, abs(here))
        done.append(dict(part=name, device=device, what=what, there=there, here=here, same=same))
        write_csv(out, pd.DataFrame(done))
        print(f'{what}: {there:.4f} there, {here:.4f} here' + ' DIFFERS' * (not same), flush=True)


def with_end(rows: Iterator) -> Iterator[tuple[str, float, float]]:
    "What a part compares, and that it is whole."
    yield from rows
    yield 'whole', 1., 1.


def main() -> None:
    "Says what was compared, and ends with an error if it differs."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--out', type=Path, default=Path('gpu.csv'))
    parser.add_argument('--quick', action='store_true')
    asked = parser.parse_args()
    get_device(asked.device)
    parts = dict(measuring=lambda: of_measuring(images(asked.quick), asked.device),
                 training=lambda: of_training(asked.device, asked.quick))
    for name, rows in parts.items(): compare(name, rows, asked.device, asked.out)
    table = read_csv(asked.out)
    differ = table.what[(table.device == asked.device) & ~table.same.astype(bool)]
    if len(differ): raise SystemExit(f'not as on the CPU: {", ".join(differ)}')
    print(f'all as on the CPU ({torch.cuda.get_device_name() if asked.device != "cpu" else "this is it"})')


if __name__ == '__main__': main()
