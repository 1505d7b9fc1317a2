"""Every public path on a device that is not there (`pretended.py`): what a GPU would refuse is refused, what
comes out is what the CPU says. And networks that are compiled."""
import copy, io
from dataclasses import replace

import pandas as pd, pytest, torch
from PIL import Image

import dlmech, dlmech.measurement, dlmech.model, dlmech.probe
from dlmech.batches import Batches
from dlmech.causal import causal, cooperation
from dlmech.datasets import get_data
from dlmech.look.views import (as_png, causal_view, filter_view, image_view, images_view, silenced_table,
                               silenced_view, uploaded)
from dlmech.measurement import measure_run
from dlmech.model import get_recipe, start, success_rate, train
from dlmech.pace import measure_paces, PACES
from dlmech.probe import FACTS, Heads, heads_of, PAPER
from dlmech.pruning.afcc import afcc_masks, from_scratch, holding, masked, random_afcc
from dlmech.pruning.compact import compact, compare_networks, load_compact, macs, save_compact
from dlmech.pruning.repair import repair_by_labels
from dlmech.pruning.scores import keep_top_n, kept_maps, KERNELS, magnitude_masks, SCORES, split, unit_stats
from dlmech.silence import SWITCH
from helpers import blobs, linked_net
from pretended import Pretended, There


@pytest.fixture(scope='module')
def on_cpu():
    "A network, its images, and what is measured on the CPU."
    net, data = linked_net()
    return net, data, dlmech.measure(net, data, data, heads='ridge')


@pytest.fixture(scope='module')
def on_device(on_cpu):
    "The same there, with the same heads."
    net, data, want = on_cpu
    with Pretended('lazy') as mode:
        there = copy.deepcopy(net).to(mode.device)
        return there, dlmech.measure(there, data, data, heads=heads_in(want))


@pytest.fixture
def device():
    with Pretended('lazy') as mode: yield mode.device


def heads_in(m: dlmech.Measurement) -> Heads:
    "A measurement's heads, to measure with again."
    return heads_of({part.path: part.head for part in m})


def test_the_pretended_device_refuses_what_a_gpu_refuses(device):
    a = torch.ones(3, device=device)
    assert isinstance(a, There)
    assert (a + 1).sum().item() == 6
    assert a[torch.tensor([0, 1])].tolist() == [1, 1]  # indices may lie on the CPU
    with pytest.raises(RuntimeError, match='on the CPU'): a + torch.ones(3)
    with pytest.raises(RuntimeError, match='generator'): a.uniform_(generator=torch.Generator())
    with pytest.raises(TypeError, match='numpy'): a.numpy()


def test_a_measurement_made_there_is_that_of_the_cpu(on_cpu, on_device, device):
    net, data, want = on_cpu
    there, given = on_device
    ridge = dlmech.measure(there, data, data, heads='ridge')
    for m in given, ridge:
        same = [x.layers.drop(columns=list(FACTS)) for x in (m, want)]
        pd.testing.assert_frame_equal(*same)
        assert torch.allclose(m[2].fields, want[2].fields)
    assert type(there[0].weight) is There


def test_a_network_is_brought_there_and_back(on_cpu, device):
    net, data, want = on_cpu
    m = dlmech.measure(net, data, data, heads='ridge', device=device)
    pd.testing.assert_frame_equal(m.layers, want.layers)
    assert net[0].weight.device == torch.device('cpu')


@pytest.mark.parametrize('kind', ['exact', 'paper'])
def test_heads_are_found_there(on_device, device, monkeypatch, kind):
    monkeypatch.setattr(dlmech.measurement, 'PAPER', replace(PAPER, epochs=3))
    monkeypatch.setattr(dlmech.probe, 'GRADIENT', .1)
    there, _ = on_device
    data = blobs(40, 4)
    assert dlmech.measure(there, data, data, heads=kind, layers='6').layers.success_rate[0] > .5


def test_given_heads_follow_wherever_they_lie(on_cpu, on_device, device):
    net, data, want = on_cpu
    here = heads_in(want)
    m = dlmech.measure(net, data, data, heads=here, device=device)
    assert here.weight('6').device == torch.device('cpu')
    back = dlmech.measure(net, data, data, heads=heads_in(on_device[1]))
    for other in m, back: assert other.layers.snr.tolist() == want.layers.snr.tolist()


def test_what_a_measurement_shows_is_shown_from_there(on_cpu, on_device, device, tmp_path):
    (_, data, want), (there, m) = on_cpu, on_device
    assert '<img' in m._repr_html_()
    m[1].card(0)
    m.save(tmp_path/'m')
    again = dlmech.open(tmp_path/'m', model=there, images=data)
    assert torch.equal(again[2].fields, m[2].fields)
    explorer = dlmech.explore(m)
    explorer.flush()
    assert explorer.said.value == ''
    for view in filter_view, images_view, causal_view: assert as_png(view(m, 2, 0))[1:4] == b'PNG'
    pd.testing.assert_frame_equal(causal(m[2]), causal(want[2]), rtol=1e-3)
    assert dlmech.own_head(there, '9', data[0][:4].to(device)).paths == ['9@1x1']


@pytest.mark.parametrize('score', SCORES)
def test_pruning_there_keeps_what_the_cpu_keeps(on_cpu, on_device, score):
    (net, data, want), (there, m) = on_cpu, on_device
    for repair in ('none', 'zero', 'ridge') if score == 'joint field' else ('none',):
        cpu, said = dlmech.prune(net, want, data, score=score, repair=repair)
        with Pretended('lazy') as mode:
            small, table = dlmech.prune(there, m, data, score=score, repair=repair)
            out = small(data[0].to(mode.device)).cpu()
        times = [c for c in table if c.startswith('ms_')]
        assert table.drop(columns=times).equals(said.drop(columns=times))
        assert torch.allclose(out, cpu(data[0]), atol=1e-4)


def test_dilution_there(on_cpu, on_device, device):
    (_, data, _), (there, m) = on_cpu, on_device
    d = dlmech.dilute(there, m, [1, 2], data, epochs=1)
    for path, mask in d.masks.items(): assert (d.net.get_submodule(path).weight[~mask.to(device)] == 0).all()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return start(arch='vgg6', dataset='digits', d=2, epochs=1, layer='all', heads='ridge', labels=[0, 3, 7],
                 runs=str(tmp_path_factory.mktemp('runs')))


def test_a_run_there_from_training_to_a_smaller_network(run, device):
    there = replace(run, device=device)
    m, t = (measure_run(r) for r in (there, there.averaged_over('train')))
    assert type(next(t.net.parameters())) is There
    assert not silenced_table(m, 5, 0, 0, SWITCH[0]).empty
    masks, table = afcc_masks(t.net, t, [4, 5, 'output'])
    d = from_scratch(there, masks, table)
    for path, mask in masks.items(): assert (d.net.get_submodule(path).weight[~mask.to(device)] == 0).all()
    random_afcc(t.net, t, [4, 5])
    batches = Batches(run.data.train, 500, device)
    dlmech.dilute(t.net, t, [4, 5, 'output'], epochs=1, what='all')
    small, _ = dlmech.prune(t.net, t, run.data.train)
    assert success_rate(small, batches) > 0
    stats = unit_stats(t.net, t, [4, 5], batches)
    for score in KERNELS.values(): assert all(keep_top_n(score(s), 5).sum() == 5 for s in stats.values())
    counts = {'layers.4.conv': 50, 'layers.5.conv': 50}
    for everywhere in False, True: masked(t.net, magnitude_masks(t.net, counts, everywhere))
    assert len(compact(d, next(iter(batches))[0][:4], forms=False)[1]) > 0
    front, back = split(t.net, 'layers.5.conv', next(iter(batches))[0][:2])
    assert back(kept_maps(front, batches)[0][0]).shape[1] == 3


# ---- what is compiled: `eager` finds graphs as a GPU's compiler does, and leaves the operations as they are

@pytest.fixture
def compiled(monkeypatch):
    torch._dynamo.reset()
    eager = lambda f, device, asked=None: torch.compile(f, backend='eager')
    monkeypatch.setattr(dlmech.model, 'compiled', eager)
    yield lambda net: torch.compile(net, backend='eager')
    torch._dynamo.reset()


def test_masks_hold_after_another_network_of_the_kind_was_compiled(compiled):
    data = get_data('digits')
    recipe = get_recipe('fast', 'vgg6', data, epochs=1)
    train(dlmech.network('vgg6', 10, d=2), data, recipe, torch.device('cpu'))  # its graph knows of no masks
    net, g = dlmech.network('vgg6', 10, d=2, seed=1), torch.Generator().manual_seed(0)
    masks, trained = {'layers.4.conv': torch.rand(16, 8, 3, 3, generator=g) > .5}, []
    for anew in False, True:
        if anew: torch._dynamo.reset()  # as if nothing had been compiled before
        d = masked(net, masks)
        with holding(d.net, d.masks): train(d.net, data, recipe, torch.device('cpu'))
        trained.append(d.net)
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in trained)))


@pytest.mark.parametrize('how', ['wrapped', 'in place'])
def test_a_compiled_network_is_measured_as_it_is(compiled, how):
    net, (x, y) = linked_net()
    want = dlmech.measure(net, (x, y), (x, y))
    own = linked_net()[0]
    if how == 'in place': own.compile(backend='eager')
    given = own if how == 'in place' else compiled(own)
    with torch.no_grad():
        for n in 120, 1, 40: given(x[:n])  # a graph for every size, made without hooks
    m = dlmech.measure(given, (x, y), (x, y))
    assert m.layers.snr.tolist() == want.layers.snr.tolist()
    table, expected = causal(m[1]), causal(want[1])
    assert table.fall.tolist() == pytest.approx(expected.fall.tolist())


def test_what_else_looks_at_a_network_looks_there(on_cpu, on_device, device, tmp_path):
    "Repair, cooperation of units, compact forms, an image of the user's, the report."
    (net, data, want), (there, m) = on_cpu, on_device
    assert dlmech.prune(there, m, data, repair='label means')[1].kept.min() >= 1
    g = torch.Generator().manual_seed(0)
    masks = {'4': torch.rand(12, 8, 3, 3, generator=g) > .3}
    fixed, known = (dlmech.repair(n, masked(n, masks), data) for n in (there, net))
    assert torch.allclose(fixed.net[4].weight.cpu(), known.net[4].weight, atol=1e-4)
    d = masked(there, masks)
    by_labels = repair_by_labels(there, d, unit_stats(there, m, ['3'], Batches(data, 50, device)))
    assert (by_labels.net[4].weight[~masks['4'].to(device)] == 0).all()
    pd.testing.assert_frame_equal(cooperation(m[2], data, data, 1), cooperation(want[2], data, data, 1))
    x = data[0][:4].to(device)
    small = compact(d, x)[0]
    save_compact(tmp_path/'c.safetensors', small)
    assert torch.allclose(load_compact(tmp_path/'c.safetensors', net)(data[0][:4]), small(x).cpu(), atol=1e-4)
    assert compare_networks(there, d, small, x, (1,), 1).size
    assert macs(there, x[:1]) == macs(net, data[0][:1])
    assert dlmech.report(m, tmp_path/'report').exists()


def test_a_run_there_by_every_recipe(run, device, tmp_path):
    "Muon with a moving average, heads of every kind, masks of fields, images of the user's own."
    data, net = run.data, dlmech.network('vgg6', 3, d=2).to(device)
    train(net, data, get_recipe('brief', 'vgg6', data, epochs=1), device)
    assert measure_paces(net, 4, 32, 3, device, PACES[:1], 1).shape[0] == 1
    m = measure_run(replace(run, device=device))
    out = io.BytesIO()
    Image.new('RGB', (20, 20)).save(out, 'png')
    picture, said = uploaded(m, 'a.png', out.getvalue())
    for image in 0, picture: assert as_png(image_view(m, 5, 0, image))[1:4] == b'PNG'
    assert as_png(silenced_view(m, 5, 0, 0))[1:4] == b'PNG'
    assert said
