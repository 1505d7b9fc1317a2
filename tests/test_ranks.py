"""Several processes: 1, 2 and 3 of them measure the same to the last digits and train alike; one that dies
ends the others; nothing is dealt twice or lost."""
import json, shutil, socket, subprocess, sys
from pathlib import Path

import pandas as pd, pytest, torch
from safetensors.torch import load_file

import dlmech
from dlmech.batches import Batches, check_dealt, EveryNth, Share
from dlmech.datasets import ImageSet
from dlmech.model import train_or_load
from dlmech.ranks import Ranks, ranks
from dlmech.run import DlmechError
from helpers import ENV, KILL_AFTER, linked_net, run, TOP

pytest.importorskip('accelerate', reason="what joins processes is not here: pip install 'dlmech[ranks]'")

from ranks_work import main, RUN

WORK = TOP/'tests'/'ranks_work.py'
ON_CPU = {**ENV, 'ACCELERATE_USE_CPU': 'true'}
# what somebody's own configuration of Accelerate may say; no result hangs on it
OWN_CONFIG = dict(ACCELERATE_MIXED_PRECISION='bf16', ACCELERATE_DYNAMO_BACKEND='INDUCTOR')
NAME = 'vgg6-digits-d2-fast1-seed{}'
LAUNCHERS = {2: ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', WORK],
             3: ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '3', '--num_machines',
                 '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0', WORK]}


@pytest.fixture(scope='module')
def worlds(tmp_path_factory):
    "The folder of what 1, 2 (torchrun) and 3 (accelerate launch) processes did with the same network."
    top = tmp_path_factory.mktemp('worlds')
    train_or_load(dlmech.start(**RUN, runs=str(top/'1'/'runs')))
    for n in LAUNCHERS: shutil.copytree(top/'1', top/str(n))
    main(top/'1')
    for n, launcher in LAUNCHERS.items():
        done = run(sys.executable, *launcher, top/str(n), *['brief'] * (n == 3), env=ON_CPU | OWN_CONFIG)
        assert done.returncode == 0, done.stderr
    return top


def files(folder: Path) -> dict[str, Path]:
    "What a run has made, by its place in the folder."
    return {str(p.relative_to(folder)): p for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    "The largest difference, as a share of the largest number."
    return float((a.double() - b.double()).abs().max() / a.double().abs().max())


@pytest.mark.parametrize('world', LAUNCHERS)
def test_a_run_is_the_same_for_any_number_of_processes(worlds, world):
    one, several = (files(worlds/str(n)/'runs'/NAME.format(0)) for n in (1, world))
    assert set(one) == set(several)
    assert {'fields-4.safetensors', 'layers.csv', 'probe.csv', 'causal-4.csv', 'train/layers.csv',
            'top-4.safetensors', 'train/top-4.safetensors'} <= set(one)
    for name, path in one.items():
        if path.suffix == '.csv':
            a, b = pd.read_csv(path), pd.read_csv(several[name])
            pd.testing.assert_frame_equal(a, b, rtol=1e-9, atol=1e-9)
        if path.suffix == '.safetensors' and path.name.startswith(('fields', 'head', 'top')):
            a, b = load_file(path), load_file(several[name])
            assert max(relative(a[k], b[k]) for k in a) < 1e-12, name
            if not path.name.startswith('fields'): assert all(torch.equal(a[k], b[k]) for k in a), name


@pytest.mark.parametrize('world', LAUNCHERS)
def test_a_measurement_in_memory_is_the_same(worlds, world):
    one, several = (load_file(worlds/str(n)/'found.safetensors') for n in (1, world))
    near = {'exact': 1e-12, 'ridge': 1e-6, 'paper': 1e-5}  # the latter two are float32 heads of other sums
    for kind, most in near.items():
        own = [k for k in one if k.startswith(kind)]
        assert own
        assert max(relative(one[k], several[k]) for k in own if 'top' not in k) < most
        assert all(torch.equal(one[k], several[k]) for k in own if 'top' in k)


def test_training_takes_the_same_steps_but_for_batchnorm(worlds):
    one, two = (pd.read_csv(worlds/str(n)/'train.csv') for n in (1, 2))
    pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-4)
    one, two = (load_file(worlds/str(n)/'found.safetensors') for n in (1, 2))
    steps = [k for k in one if k.startswith('trained')]
    assert max(relative(one[k], two[k]) for k in steps) < 1e-3
    one, two = (load_file(worlds/str(n)/'runs'/NAME.format(1)/'model.safetensors') for n in (1, 2))
    # on CPUs each normalises by its own part
    assert max(relative(one[k], two[k]) for k in one if k.endswith('conv.weight')) > 1e-3
    log = pd.read_csv(worlds/'2'/'runs'/NAME.format(1)/'train.csv')
    assert len(log) == 1


def test_a_repair_is_the_same(worlds):
    one, two = (pd.read_csv(worlds/str(n)/'repair.csv') for n in (1, 2))
    pd.testing.assert_frame_equal(one, two, rtol=1e-9)
    one, two = (load_file(worlds/str(n)/'found.safetensors') for n in (1, 2))
    weights = [k for k in one if k.startswith('repaired')]
    assert len(weights) > 5
    assert max(relative(one[k], two[k]) for k in weights) < 1e-6


def test_controls_looks_and_a_latency_are_made_once_for_all(worlds):
    "The first rank trains a control and takes the time; nobody waits for a lock that another rank holds."
    one, two = (load_file(worlds/str(n)/'found.safetensors') for n in (1, 2))
    for kind in ('control', 'untrained', 'pruned'):
        own = [k for k in one if k.startswith(kind) and one[k].is_floating_point()]
        assert len(own) > 5
        assert max(relative(one[k], two[k]) for k in own) < 1e-6, kind


@pytest.mark.parametrize('world', LAUNCHERS)
def test_units_kept_and_a_retraining_under_masks_are_the_same(worlds, world):
    one, several = (load_file(worlds/str(n)/'found.safetensors') for n in (1, world))
    rates = one['cooperation'][:, 2:]
    assert rates.max() > rates.min()
    assert torch.equal(one['cooperation'], several['cooperation'])
    weights = [k for k in one if k.startswith('retrained') and one[k].is_floating_point()]
    assert max(relative(one[k], several[k]) for k in weights) < 1e-5
    assert (one['retrained-8.weight'] == 0).equal(several['retrained-8.weight'] == 0)
    assert one['retrained-8.weight'][~one['retrained-mask']].eq(0).all()
    assert not torch.allclose(one['retrained-8.weight'], linked_net()[0][8].weight, atol=1e-3)


def test_torchrun_takes_the_command_line(worlds, tmp_path):
    "Two processes measure another layer as one does, and the first one speaks."
    asked = [f'--{k}={",".join(map(str, v)) if isinstance(v, list) else v}' for k, v in RUN.items()]
    for n in '12': shutil.copytree(worlds/'1', tmp_path/n)
    dlmech.measure_run(dlmech.start(**RUN | dict(layer=3), runs=str(tmp_path/'1'/'runs')))
    done = run(sys.executable, *LAUNCHERS[2][:-1], '-m', '--', 'dlmech', 'measure', *asked, '--layer=3',
               '--runs', tmp_path/'2'/'runs', env=ON_CPU)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('next: dlmech report') == 1
    one, two = (pd.read_csv(tmp_path/n/'runs'/NAME.format(0)/'layers.csv') for n in '12')
    assert 3 in one.layer.tolist()
    pd.testing.assert_frame_equal(one, two, rtol=1e-9)


@pytest.mark.parametrize('world', LAUNCHERS)
def test_each_rank_says_what_is_wrong_and_none_is_counted_twice(worlds, world):
    said = json.loads((worlds/str(world)/'said.json').read_text())
    assert said['rank'] == list(range(world))
    assert said['rate'] == said['by_itself'] * world
    assert said['wrong'][0] == 'ZeroDivisionError: division by zero'
    assert set(said['wrong'][1:]) == {'DlmechError: rank 0 ended with ZeroDivisionError: division by zero'}
    assert all(w.startswith(f'Told: the {world} processes do not have the same') for w in said['other'])
    assert sum(said['prepared']) > 47  # images that are there; a prepared loader repeats some


@pytest.mark.parametrize('world', LAUNCHERS)
def test_a_loader_that_was_dealt_already_is_refused_on_every_rank(worlds, world):
    said = json.loads((worlds/str(world)/'said.json').read_text())
    assert set(said['sharded']) == {'sampler', 'prepared', 'heads', 'training', 'unread'}
    for what, sentences in said['sharded'].items():
        assert len(set(sentences)) == 1, what
        assert 'no loader that was dealt already' in sentences[0], (what, sentences)
    assert len(set(said['plain'])) == 1


@pytest.mark.parametrize('world', LAUNCHERS)
def test_what_one_rank_meets_is_said_by_all_and_they_go_on_together(worlds, world):
    told = json.loads((worlds/str(world)/'said.json').read_text())['met_by_one']
    says = {'exact heads': '3: its maps are not all finite', 'ridge heads': '3: its maps are not',
            'label': 'the data has labels from 0 to 9, but the network has 4 outputs',
            'file': 'rank 1: OSError: this disk cannot be read',
            'loader': 'rank 1: OSError: this disk cannot be read'}
    assert set(says) == set(told)
    for what, (sentences, rates) in told.items():
        assert len(set(sentences)) == 1, sentences
        assert sentences[0].startswith('Told: rank '), sentences
        assert says[what] in sentences[0], sentences
        assert len(set(rates)) == 1, what


KILLED = f'''
import os, sys
sys.path.insert(0, {str(TOP/'tests')!r})
import dlmech
from helpers import blobs, small_net
if os.environ['RANK'] == '1': kill_after(2, 'dlmech.filter', 'channels_first')
dlmech.measure(small_net(), blobs(53, 4), blobs(47, 4, 1), batch=10)
'''


def test_a_rank_that_dies_ends_the_others_with_a_sentence():
    "Nobody started them together, so nobody ends them; they would wait an hour for one that is only late."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    common = dict(ON_CPU, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    ranked = [subprocess.Popen([sys.executable, '-c', KILL_AFTER + KILLED], text=True, stderr=subprocess.PIPE,
                               env=dict(common, RANK=str(i), LOCAL_RANK=str(i))) for i in range(2)]
    killed = ranked[1].communicate(timeout=900)[1]     # to start takes as long as it takes
    assert ranked[1].returncode == -9, killed
    said = ranked[0].communicate(timeout=60)[1]        # but then it is a matter of seconds
    assert ranked[0].returncode == 1, said
    assert 'DlmechError: rank 0 of 2: another rank has ended' in said


# ---- one process

def parts(world: int, within: bool, **asked) -> list[Batches]:
    "The batches of each rank of so many."
    made = []
    for rank in range(world):
        images = torch.randint(256, (23, 8, 8, 3), generator=torch.Generator().manual_seed(0))
        own = Batches(ImageSet(images.byte(), torch.arange(23) % 3, list('abc')), 5, **asked)
        own.share = Share(Ranks(rank, world), within)
        made.append(own)
    return made


def by_number(batches: list[Batches]) -> dict[int, torch.Tensor]:
    "Each image as it comes, by its number; an image comes once."
    found = {}
    for own in batches:
        for x, _ in own.at(3):
            assert not set(own.numbers.tolist()) & set(found)
            found |= dict(zip(own.numbers.tolist(), x))
    return found


@pytest.mark.parametrize('within', [False, True])
@pytest.mark.parametrize('world', [2, 3, 7])
def test_every_image_comes_once_and_is_changed_as_in_one_process(world, within):
    asked = dict(shuffle=True, shift=2, flip=True, cutout=3)
    one, several = by_number(parts(1, within, **asked)), by_number(parts(world, within, **asked))
    left_out = 3 if within and world > 3 else 0      # the last batch has 3 images
    if within and world > 5: left_out = 23           # and the others 5
    assert len(one) == 23
    assert len(several) == 23 - left_out
    assert all(torch.equal(one[i], x) for i, x in several.items())


def test_a_batch_says_of_how_many_images_it_is_a_part():
    own = parts(2, True)[1]
    assert [(len(y), own.of) for _, y in own] == [(2, 5)] * 4 + [(1, 3)]
    assert len(own) == 5


def test_batches_of_any_kind_are_dealt():
    whole = [(torch.zeros(n, 1), torch.zeros(n)) for n in (4, 4, 1)]
    own = [EveryNth(whole, Ranks(rank, 2)) for rank in range(2)]
    assert [[len(y) for _, y in part] for part in own] == [[4, 1], [4]]
    assert [part.promised() for part in own] == [(5, 9), (4, 9)]
    check_dealt(3, whole)  # of one process: nothing to add up


def test_one_process_needs_no_accelerate_and_several_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    for key in 'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT': monkeypatch.delenv(key, raising=False)
    assert ranks() == Ranks(0, 1)
    for key in 'RANK', 'MASTER_ADDR', 'MASTER_PORT': monkeypatch.setenv(key, '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(DlmechError, match=r"pip install 'dlmech\[ranks\]'"): ranks()
