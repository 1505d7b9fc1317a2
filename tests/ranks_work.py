"""What several processes do together, for tests/test_ranks.py; each runs `ranks_work.py FOLDER [brief]`.

FOLDER holds a run that was trained, in `runs`; what comes out is written into it by the first."""
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dlmech
from dlmech.batches import Batches
from dlmech.causal import causal, cooperation
from dlmech.model import get_recipe, success_rate, train, train_or_load
from dlmech.probe import PAPER, train_heads
from dlmech.ranks import agreed, alone, gathered, ranks
from dlmech.run import read_tensors, write_csv, write_json, write_tensors
from dlmech.study.controls import start_control
from dlmech.study.dynamics import snapshots
from helpers import blobs, linked_net, small_net, TINY

RUN = dict(TINY, layer=5)


def without_norm(net: nn.Module) -> nn.Module:
    "The same network, with nothing that looks at a whole batch."
    for m in list(net.modules()):
        for name, child in m.named_children():
            if isinstance(child, nn.BatchNorm2d): setattr(m, name, nn.Identity())
    return net


def in_memory() -> dict[str, torch.Tensor]:
    "Fields and top images of a network by all kinds of heads; 47 images in batches of 10."
    net, found = small_net(), {}
    for heads in 'exact', 'ridge':
        m = dlmech.measure(net, blobs(53, 4), blobs(47, 4, 1), heads=heads, batch=10)
        found |= {f'{heads}-{part.number}': part.fields for part in m}
        found |= {f'{heads}-top-{part.number}': part.top['image'] for part in m}
    batches = Batches(blobs(53, 4), 10, shuffle=True)
    heads = train_heads(net.eval(), ['2', '5'], batches, 4, replace(PAPER, epochs=3))
    return found | {f'paper-{p}': heads.weight(p) for p in heads.paths}


def train_and_repair(folder: Path, data) -> dict[str, torch.Tensor]:
    "Phase 1 without BatchNorm and, as a run of its own, with it; a repair."
    net, recipe = without_norm(dlmech.network('vgg6', data.K, d=2)), get_recipe('fast', 'vgg6', data)
    log = train(net, data, replace(recipe, epochs=1, batch=20), torch.device('cpu'))
    assert not [m for m in net.modules() if 'forward' in vars(m)]  # nobody has put another one around it
    found = {f'trained-{k}': v for k, v in net.state_dict().items()}
    net, (x, y) = linked_net()
    m = dlmech.measure(net, (x, y), (x, y), layers=['3', '6'])
    fixed = dlmech.repair(net, dlmech.dilute(net, m, ['3', '6'], epochs=0), (x, y), batch=20)
    train_or_load(dlmech.start(**RUN | dict(seed=1), runs=str(folder/'runs')))
    agreed(lambda: write_csv(folder/'train.csv', log))
    agreed(lambda: write_csv(folder/'repair.csv', fixed.table))
    return found | {f'repaired-{k}': v for k, v in fixed.net.state_dict().items()}


def keep_and_retrain() -> dict[str, torch.Tensor]:
    "Random units kept together, and a network retrained under masks, none of it with BatchNorm in training."
    net, (x, y) = linked_net()
    m = dlmech.measure(net, (x, y), (x, y), layers=['6', '9'])
    kept = cooperation(m['6'], blobs(253, 4), blobs(147, 4, 1), draws=2, images=(253, 147))
    d = dlmech.dilute(net, m, ['6', '9'], (x, y))
    found = {f'retrained-{k}': v for k, v in d.net.state_dict().items()}
    return found | {'cooperation': torch.tensor(kept.to_numpy()), 'retrained-mask': d.masks['8']}


def controls_and_looks(folder: Path) -> dict[str, torch.Tensor]:
    "A control that learns by heart, a network looked at before and after it learned, and a pruned one."
    places = RUN | dict(runs=str(folder/'more'))
    control = start_control('shuffled', shown=20, **places)
    looks = snapshots(dlmech.start(**places | dict(epochs=1)), (0, 1))
    net, (x, y) = linked_net()
    m = dlmech.measure(net, (x, y), (x, y), layers=['3', '6'])
    small, _ = dlmech.prune(net, m, (x, y), keep='1000 ms')  # each rank's clock says something else
    found = {f'control-{k}': v for k, v in read_tensors(control.file('model.safetensors'))[0].items()}
    found |= {f'untrained-{k}': v for k, v in read_tensors(looks[0])[0].items()}
    agreed(lambda: looks[1].stat())
    return found | {f'pruned-{k}': v for k, v in small.state_dict().items()}


class Unreadable(TensorDataset):
    "Images of which the second process cannot read one, say because its disk is another."
    def __getitem__(self, i):
        if i == 15 and ranks().rank == 1: raise OSError('this disk cannot be read')
        return super().__getitem__(i)


def sentence(f: Callable) -> str:
    "What `f` ends with."
    try: return str(f())
    except Exception as e: return f'{type(e).__name__}: {e}'


def said() -> dict[str, list]:
    "What each rank says of things that go wrong, and how many images a prepared loader gives."
    from accelerate import Accelerator
    net, r, by_itself = small_net(), ranks(), []
    if r.first:
        with alone(): by_itself.append(success_rate(net, Batches(blobs(47, 4), 10)))
    loader = Accelerator().prepare(DataLoader(TensorDataset(*blobs(47, 4)), batch_size=10))
    images = TensorDataset(*blobs(47, 4))
    shards = {'sampler': DataLoader(images, 10, sampler=DistributedSampler(images)), 'prepared': loader}
    asked = {name: lambda shard=shard: dlmech.measure(net, blobs(53, 4), shard)
             for name, shard in shards.items()}
    asked |= {'heads': lambda: dlmech.measure(net, shards['sampler'], blobs(53, 4)),
              'training': lambda: Batches(loader).dealt(within=True),
              'unread': lambda: success_rate(net, shards['sampler'])}
    sharded = {name: gathered(sentence(f)) for name, f in asked.items()}
    plain = dlmech.measure(net, blobs(53, 4), DataLoader(images, 10, shuffle=True))[1].fields
    wrong = sentence(lambda: agreed(lambda: 1 / 0))
    other = sentence(lambda: success_rate(net, Batches(blobs(40 + 10*r.rank, 4), 10)))
    rate = success_rate(net, Batches(blobs(47, 4), 10))
    return dict(rank=gathered(r.rank), by_itself=by_itself, rate=gathered(rate), wrong=gathered(wrong),
                other=gathered(other), sharded=sharded, plain=gathered(plain.sum().item()),
                prepared=gathered(sum(len(y) for _, y in loader)))


def met_by_one() -> dict[str, list]:
    "What each rank says of an image that only one of them meets; and whether they are in step after each."
    net, (x, y), test = small_net(), blobs(53, 4), blobs(47, 4, 1)
    lost, unlike = x.clone(), y.clone()
    lost[15], unlike[15] = torch.nan, 9   # in the second batch
    asked = {f'{heads} heads': lambda heads=heads: dlmech.measure(net, (lost, y), test, heads=heads, batch=10)
             for heads in ('exact', 'ridge')}
    asked['label'] = lambda: dlmech.measure(net, test, (x, unlike), batch=10)
    asked['file'] = lambda: success_rate(net, Batches(Unreadable(x, y), 10))
    asked['loader'] = lambda: success_rate(net, DataLoader(Unreadable(x, y), 10))
    return {what: [gathered(sentence(f)), gathered(success_rate(net, Batches(test, 10)))]
            for what, f in asked.items()}


def main(folder: Path, brief: bool = False):
    "All of it, or of several processes the measurements alone."
    run = dlmech.start(**RUN, runs=str(folder/'runs'))
    causal(dlmech.measure_run(run, [4, 5])[4], n=60)
    few = dlmech.data('digits', labels=[0, 3, 7])
    on_train = dlmech.start(**RUN, images='train', runs=str(folder/'runs'))
    assert len(Batches(on_train.images, 250)) > 3  # as phase 3 takes them: a batch at least for each process
    dlmech.measure_run(on_train, [4, 5])
    found = in_memory() | keep_and_retrain() | ({} if brief else train_and_repair(folder, few))
    found |= {} if brief else controls_and_looks(folder)
    if ranks().several:
        every = said() | dict(met_by_one=met_by_one())
        agreed(lambda: write_json(folder/'said.json', every))
    agreed(lambda: write_tensors(folder/'found.safetensors', found))


if __name__ == '__main__': main(Path(sys.argv[1]), 'brief' in sys.argv)
