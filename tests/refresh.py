"""Make what is made: run notebooks so that they are committed with their outputs, fold, clean, export, and
write README.md from nbs/index.ipynb.

    python tests/refresh.py                 the README alone
    python tests/refresh.py 03_filter …     run these notebooks first (all: every one but those that need data
                                            fetched before)
"""
import base64, io, subprocess, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from PIL import Image, ImageChops, ImageStat

TOP = Path(__file__).resolve().parent.parent
NBS = TOP/'nbs'


def readme() -> str:
    "README.md as nbs/index.ipynb says it: hidden cells dropped, pictures by their place in the repository."
    nb = nbformat.read(NBS/'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
    for i, c in enumerate(nb.cells):  # of a cell that begins with echo: false only what it says is kept
        if c.source.startswith('#| echo: false'):
            nb.cells[i] = nbformat.v4.new_markdown_cell(c.outputs[0].data['text/markdown'])
    nb.metadata['language_info'] = {'name': 'python'}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = text.replace('](images/', '](nbs/images/').strip()
    return f'<!-- made from nbs/index.ipynb by tests/refresh.py -->\n\n{text}\n'


def smaller(png: str) -> str:
    """A picture (PNG in base64) with a palette, if that makes it smaller: 48 colours do for curves,
    photographs and fields get 256."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    for colours in 48, 256:
        small = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        if max(ImageStat.Stat(ImageChops.difference(picture, small.convert('RGB'))).mean) < 1.5: break
    small.save(out := io.BytesIO(), 'png', optimize=True)
    return min(png, base64.b64encode(out.getvalue()).decode(), key=len)


def execute(name: str):
    "Runs a notebook where JupyterLab would; progress bars are not kept, and pictures get a palette."
    from nbclient import NotebookClient
    path = NBS/f'{name}.ipynb'
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=3600, store_widget_state=False,  # half a megabyte for sliders without a kernel
                   resources={'metadata': {'path': NBS}}).execute()
    for c in nb.cells:
        if c.cell_type == 'code':
            c.outputs = [o for o in c.outputs if o.get('name') != 'stderr' and o.get('data') != {}]
            for o in c.outputs:
                if 'image/png' in o.get('data', {}): o.data['image/png'] = smaller(o.data['image/png'])
    nbformat.write(nb, path)


PHASES = '01_model', '02_probe', '03_filter', '03_measure'  # an answer first, then how it works


def fold(nb: nbformat.NotebookNode):
    """Folds, for JupyterLab, what a reader of the answer need not see: the exported source, and what computes
    the answer of a notebook with parameters. Parameters and demos stay open."""
    given = ['parameters' in c.metadata.get('tags', []) for c in nb.cells]
    told = not any(given)
    for c, parameters in zip(nb.cells, given):
        told = told or c.source.startswith('# How it works')
        hidden = c.source.startswith('#|') or not told and not parameters
        c.metadata.pop('jupyter', None)
        if c.cell_type == 'code' and hidden: c.metadata['jupyter'] = {'source_hidden': True}


if __name__ == '__main__':
    names = sys.argv[1:]
    if names == ['all']:
        names = [p.stem for p in sorted(NBS.glob('*.ipynb')) if 'skip_exec: true' not in p.read_text()]
    for name in names:
        print(name, flush=True)
        execute(name)
    for name in PHASES:
        fold(nb := nbformat.read(NBS/f'{name}.ipynb', 4))
        nbformat.write(nb, NBS/f'{name}.ipynb')
    for tool in ('nbdev_clean', 'nbdev_export'): subprocess.run([tool], cwd=TOP, check=True)
    (TOP/'README.md').write_text(readme())
