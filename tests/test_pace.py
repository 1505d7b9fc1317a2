"The pace of a training: measured where it pays, kept in the run's folder, and never more than rounding."
import pandas as pd, pytest, torch

import dlmech.model as model
from dlmech.arch import get_model
from dlmech.batches import Batches
from dlmech.datasets import get_data
from dlmech.model import (get_recipe, LONG, pace_of, ship, start, success_rate, train,
                          train_or_load, zoo_weights)
from dlmech.pace import best_pace, measure_paces, Pace, PACES, training_flops, USUAL
from dlmech.run import ParameterError, read_json

CPU = torch.device('cpu')


def table(**speeds):
    "Made-up speeds of two paces."
    return pd.DataFrame([dict(channels_last=True, number='float32', compiled=None, threads=0, pace='a',
                              images_per_second=speeds['a']),
                         dict(channels_last=False, number='bfloat16', compiled=None, threads=1, pace='b',
                              images_per_second=speeds['b'])])


def test_the_fastest_is_chosen_and_a_hair_is_no_reason():
    assert best_pace(table(a=100, b=150)) == Pace(False, 'bfloat16', None, 1)
    assert best_pace(table(a=100, b=104)) == Pace(True, 'float32', None, 0)
    assert best_pace(table(a=150, b=100)) == Pace(True, 'float32', None, 0)


def test_measuring_leaves_the_network_as_it_was():
    net = get_model('vgg6', 10, d=2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    t = measure_paces(net, 4, 32, 10, CPU, PACES, repeats=1)
    assert len(t) >= 4
    assert (t.images_per_second > 0).all()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_flops_are_those_of_the_arithmetic():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*4*4, 7), torch.nn.Linear(7, 5))
    forward, backward = 2 * (48*7 + 7*5), 2 * (48*7 + 2 * 7*5)  # no gradient for the images themselves
    assert training_flops(net, 4, 5) == forward + backward


def test_a_short_training_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(model, 'measure_paces', None)
    run = start(arch='vgg6', d=2, epochs=1, labels='0,1', runs=str(tmp_path))
    r = get_recipe('fast', 'vgg6', run.data, 1)
    assert pace_of(run, get_model('vgg6', 2, d=2), r) == USUAL
    assert not run.file('pace.json').exists()


def test_a_long_one_is_measured_once_and_goes_on_at_that_pace(tmp_path, monkeypatch, caplog):
    asked = []
    def speeds(*args):
        asked.append(args)
        return table(a=100, b=150)
    monkeypatch.setattr(model, 'measure_paces', speeds)
    run = start(arch='vgg6', d=2, epochs=1, labels='0,1', runs=str(tmp_path))
    r, net = get_recipe('fast', 'vgg6', run.data, 1), get_model('vgg6', 2, d=2)
    monkeypatch.setattr(model, 'LONG', 1.)
    with caplog.at_level('INFO', 'dlmech'): first = pace_of(run, net, r)
    assert 'chosen: contiguous, bfloat16, 1 threads' in caplog.text
    assert pace_of(run, net, r) == first == Pace(**read_json(run.file('pace.json')))
    assert len(asked) == 1
    assert LONG > 1e13


@pytest.mark.parametrize('pace', [Pace(number='bfloat16'), Pace(channels_last=False, threads=1)], ids=str)
@pytest.mark.parametrize('recipe', ['fast', 'brief'])
def test_the_short_recipes_learn_at_every_pace(recipe, pace):
    data = get_data('digits', labels=[0, 1, 7])
    net = get_model('vgg6', 3, d=4)
    train(net, data, get_recipe(recipe, 'vgg6', data, epochs=3), CPU, pace=pace)
    assert success_rate(net, Batches(data.test)) > .8
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_the_average_is_what_is_kept(tmp_path):
    data = get_data('digits', labels=[0, 1, 7])
    r, net = get_recipe('brief', 'vgg6', data, epochs=2), get_model('vgg6', 3, d=4)
    log = train(net, data, r, CPU, folder=tmp_path, keep=[1, 2])
    kept = model.read_tensors(tmp_path/'epoch-2.safetensors')[0]
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
    steps = model.read_tensors(tmp_path/'checkpoint.safetensors')[0]
    assert not torch.equal(steps['net/net.layers.1.conv.weight'], kept['layers.1.conv.weight'])
    assert success_rate(net, Batches(data.valid)) == log.valid_success_rate.iloc[-1]


def test_large_weights_lie_beside_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(model, 'ZOO', tmp_path)
    monkeypatch.setattr(model, 'SMALL', 100)
    run = start(arch='vgg6', d=2, epochs=1, labels='0,1', runs=str(tmp_path/'runs'))
    stated = ship(run, train_or_load(run), 'a CPU', tmp_path, hours=.5)
    name = run.path.name
    assert zoo_weights(name) == tmp_path/'large'/f'{name}.safetensors'
    assert model.zoo().loc[name, 'sha256'] == stated['sha256']
    assert model.zoo().aim.isna()[name]
    monkeypatch.setitem(model.AIMS, ('vgg6', 'digits', 2), .9)
    assert model.zoo().aim[name] == .9
    net = model.load(name)
    assert success_rate(net, Batches(run.data.test)) == stated['test_success_rate']
    (tmp_path/'large'/f'{name}.safetensors').unlink()
    with pytest.raises(ParameterError, match='come with a checkout only'): model.load(name)


def test_a_network_that_cannot_be_compiled_here_trains_as_it_is(monkeypatch, caplog):
    def failing(f):
        def forward(*args): raise RuntimeError('no C++ compiler')
        return forward
    monkeypatch.setattr(torch, 'compile', failing)
    paces = [Pace(number='float32'), Pace(number='float32', compiled=True)]
    net = get_model('vgg6', 10, d=2)
    with caplog.at_level('INFO', 'dlmech'): t = measure_paces(net, 4, 32, 10, CPU, paces, 1)
    assert best_pace(t) == paces[0]
    assert len(t) == 1
    assert 'no C++ compiler' in caplog.text


def test_a_very_long_training_tries_what_compiling_gains(tmp_path, monkeypatch):
    asked = []
    def speeds(net, batch, size, K, device, paces=PACES):
        asked.append(paces)
        t = table(a=100, b=150)
        return t.assign(compiled=[p.compiled for p in paces]) if len(paces) == 2 else t
    monkeypatch.setattr(model, 'measure_paces', speeds)
    monkeypatch.setattr(model, 'LONG', 1.)
    monkeypatch.setattr('dlmech.pace.COMPILED', 0.)
    run = start(arch='vgg6', d=2, epochs=1, labels='0,1', runs=str(tmp_path))
    r, net = get_recipe('fast', 'vgg6', run.data, 1), get_model('vgg6', 2, d=2)
    assert pace_of(run, net, r).compiled
    assert [p.compiled for p in asked[1]] == [None, True]
