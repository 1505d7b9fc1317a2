"""Several processes where images do not come out even: the same heads of the same images as one process; and
where each is given other images: a sentence from all of them."""
import json, shutil, sys
from pathlib import Path

import pandas as pd, pytest, torch
from safetensors.torch import load_file

import dlmech
from dlmech.model import train_or_load
from helpers import ENV, run, TOP

pytest.importorskip('accelerate', reason="what joins processes is not here: pip install 'dlmech[ranks]'")

from ranks_work import RUN

WORK = TOP/'tests'/'ranks_parts.py'
WORLDS = 2, 3


@pytest.fixture(scope='module')
def worlds(tmp_path_factory) -> Path:
    "The folder of what 1, 2 and 3 processes found."
    top = tmp_path_factory.mktemp('parts')
    train_or_load(dlmech.start(**RUN, runs=str(top/'1'/'runs')))
    for n in WORLDS: shutil.copytree(top/'1', top/str(n))
    for n in (1, *WORLDS):
        several = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', n] if n > 1 else []
        done = run(sys.executable, *several, WORK, top/str(n), env={**ENV, 'ACCELERATE_USE_CPU': 'true'})
        assert done.returncode == 0, done.stderr
    return top


@pytest.mark.parametrize('world', WORLDS)
def test_exact_heads_are_the_same_to_the_bit_where_a_pass_ends_with_a_short_batch(worlds, world):
    one, several = (load_file(worlds/str(n)/'heads.safetensors') for n in (1, world))
    exact = [k for k in one if k.startswith(('exact', 'some'))]
    assert len(exact) == 8
    assert all(torch.equal(one[k], several[k]) for k in exact)


@pytest.mark.parametrize('world', WORLDS)
def test_heads_of_every_kind_say_the_same_of_how_they_were_found(worlds, world):
    one, several = (json.loads((worlds/str(n)/'about.json').read_text()) for n in (1, world))
    assert one == several
    images = {kind: [about[p]['head_images'] for p in ('3', '5')] for kind, about in one.items()}
    assert images == {'exact-0': [287, 287], 'exact-28000': [47, 70], 'exact-100000': [170, 250],
                      'some': [34, 50], 'paper': [106, 106], 'ridge': [53, 53]}


def test_each_rank_refuses_images_that_are_not_those_of_all(worlds):
    "Sums over other sets for each rank are no sums of one; what only sums lists of batches counts them."
    apart = json.loads((worlds/'2'/'said.json').read_text())['apart']
    given, met = ('DlmechError: the 2 processes ' + what for what in ('were given different', 'have met'))
    counted, dealt = {'repair_on-fewer', 'falls-fewer'}, 'Told: the 2 processes do not have the same images'
    uncounted = {'repair_on-others', 'falls-others'}                # as many images, which nobody looks at
    for call, said in apart.items():
        if call in uncounted: continue
        expected = dealt if call == 'penalty-fewer' else met if call in counted else given
        assert all(one.startswith(expected) for one in said), (call, said)
    assert len(apart) == 16


@pytest.mark.parametrize('world', WORLDS)
def test_images_that_each_rank_varies_by_chance_are_the_same_data(worlds, world):
    varied = json.loads((worlds/str(world)/'said.json').read_text())['varied']
    assert varied == ['Measurement'] * world + ['Diluted'] * world


@pytest.mark.parametrize('world', WORLDS)
def test_tables_of_layers_are_dealt_and_a_run_that_ended_goes_on(worlds, world):
    "The first rank ends before the third row; the rows that are there are not made again."
    one, several = (next((worlds/str(n)/'runs').glob('*/layers.csv')).parent for n in (1, world))
    made = json.loads((worlds/str(world)/'said.json').read_text())['made']
    assert made == {2: [3, 3], 3: [2, 2, 1]}[world]
    assert pd.read_csv(several/'layers.csv').layer.tolist() == [2, 3, 4, 5]
    for name in ['layers.csv', 'probe.csv', *(f'filters-{n}.csv' for n in (2, 3, 4, 5))]:
        pd.testing.assert_frame_equal(*(pd.read_csv(folder/name) for folder in (one, several)), rtol=1e-9)
    fields = [[load_file(folder/f'fields-{n}.safetensors')['fields'] for n in (2, 3, 4, 5)]
              for folder in (one, several)]
    for a, b in zip(*fields): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
