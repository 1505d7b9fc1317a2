"""What several processes find when the images do not come out even, and what they say of different images,
for tests/test_ranks_parts.py; each runs `ranks_parts.py FOLDER`, and the first writes into it."""
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd, torch
from torch.utils.data import Dataset

import dlmech
from dlmech import measurement
from dlmech.batches import Batches
from dlmech.causal import cooperation, measure_causal, measure_falls
from dlmech.datasets import ImageSet
from dlmech.probe import exact_heads, Heads, joined, PAPER, ridge_heads, train_heads
from dlmech.pruning.repair import repair_on
from dlmech.ranks import agreed, gathered, ranks
from dlmech.run import write_json, write_tensors
from helpers import blobs, linked_net, small_net
from ranks_work import RUN, sentence

PATHS = ['3', '5']


def uneven(n: int = 41) -> Batches:
    "So many images in batches of 25, another order in every pass, each time augmented anew."
    x, y = blobs(n, 4)
    images = ((x / 8 + .5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).contiguous()
    return Batches(ImageSet(images, y, list('abcd')), 25, shuffle=True, shift=2, flip=True)


def found_heads() -> dict[str, Heads]:
    "Heads of all kinds; of the exact ones some for as many images as a part of the second pass has."
    net, plain = small_net().eval(), Batches(blobs(53, 4), 10)
    exact = {f'exact-{bound}': joined(exact_heads(net, PATHS, uneven(), 4, 7, bound))
             for bound in (0, 28_000, 100_000)}
    some = joined(exact_heads(net, PATHS, list(plain), 4, bound=20_000))    # any batches, not dealt by number
    paper = train_heads(net, PATHS, Batches(blobs(53, 4), 10, shuffle=True), 4, replace(PAPER, epochs=2))
    return exact | dict(some=some, paper=paper, ridge=joined(ridge_heads(net, PATHS, plain, plain, 4)))


def calls_on(data: tuple, all_: tuple) -> dict[str, Callable]:
    "What sums over images of several processes, on these."
    net, _ = linked_net()
    m = dlmech.measure(net, all_, all_, layers=['3', '6'], quiet=True)
    d, asked = dlmech.dilute(net, m, ['3', '6'], epochs=0), dict(layers=['6'], batch=20)
    own, whole = Batches(data, 20), Batches(all_, 20)
    return dict(repair=lambda: dlmech.repair(net, d, data, images=50),
                repair_on=lambda: repair_on(net, d, list(own), list(whole)),
                causal=lambda: measure_causal(m['6'], data, 40),
                falls=lambda: measure_falls(net, '6', list(own), 4, 12),
                units=lambda: cooperation(m['6'], data, all_, 1, (60, 60)),
                exact=lambda: dlmech.measure(net, data, all_, **asked),
                ridge=lambda: dlmech.measure(net, data, all_, heads='ridge', **asked),
                penalty=lambda: list(ridge_heads(net, ['6'], whole, own, 4)))


def given_apart() -> dict[str, list[str]]:
    "What each rank says when each is given images of its own: as many of the same labels, or fewer."
    r, (x, y) = ranks(), linked_net()[1]
    part = slice(40 * r.rank, 40 * r.rank + 40)                      # labels are 0, 1, 2, 3, 0, …
    others, fewer = (x[part], y[part]), (x[:100 + 8*r.rank], y[:100 + 8*r.rank])
    return {f'{call}-{name}': gathered(sentence(f)) for name, data in dict(others=others, fewer=fewer).items()
            for call, f in calls_on(data, (x, y)).items()}


class Wavering(Dataset):
    "Images that are others each time, as users vary them."
    def __init__(self, x: torch.Tensor, y: torch.Tensor): self.x, self.y = x, y
    def __len__(self) -> int: return len(self.y)
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.x[i] + .01 * torch.randn(3, 16, 16), int(self.y[i])


def varied_by_chance() -> list[str]:
    "What each rank says of the same images, which each varies in its own way."
    net, data = linked_net()
    torch.manual_seed(ranks().rank)
    said = sentence(lambda: type(dlmech.measure(net, Wavering(*data), data, layers=['3', '6'])).__name__)
    m = dlmech.measure(net, data, data, layers=['3', '6'])
    d = dlmech.dilute(net, m, ['3', '6'], epochs=0)
    return gathered(said) + gathered(sentence(lambda: type(dlmech.repair(net, d, Wavering(*data))).__name__))


def measured_in_two(folder: Path) -> list[int]:
    "Of how many layers each rank makes tables, in a run that ends before its third row and then goes on."
    run, made = dlmech.start(**RUN, runs=str(folder/'runs')), []
    table, merge = measurement.measure_layer, measurement.merge_rows
    def ends(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
        if path.exists() and len(pd.read_csv(path)) == 2: raise ZeroDivisionError
        return merge(path, rows)
    measurement.measure_layer = lambda *args: (made.append(1), table(*args))[1]
    measurement.merge_rows = ends
    assert 'ZeroDivisionError' in sentence(lambda: dlmech.measure_run(run, [2, 3, 4, 5]))
    measurement.merge_rows = merge
    dlmech.measure_run(run, [2, 3, 4, 5])
    return gathered(len(made))


def main(folder: Path):
    "All of it."
    heads = found_heads()
    weights = {f'{kind}/{p}': h.weight(p) for kind, h in heads.items() for p in PATHS}
    agreed(lambda: write_tensors(folder/'heads.safetensors', weights))
    agreed(lambda: write_json(folder/'about.json', {kind: h.about for kind, h in heads.items()}))
    made = measured_in_two(folder)
    if not ranks().several: return
    told = dict(made=made, apart=given_apart(), varied=varied_by_chance())
    agreed(lambda: write_json(folder/'said.json', told))


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
