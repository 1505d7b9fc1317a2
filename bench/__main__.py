"""All benches, one after the other: their tables, with the machine that they were measured on.

    python -m bench [--only null,phases] [--quick] [--out FOLDER]

Prints every table, and writes it as CSV into the folder (default bench/results), beside machine.json and a
page of figures, index.html. Each bench has a process of its own, as a process's peak memory never falls; one
that fails is named, and the rest go on. With --quick everything is so small that the numbers mean nothing.

A table with a column of sizes (`AXES`, three values or more) and columns of costs (`COSTS`) makes a figure on
logarithmic axes, with a line, and its slope, for each of what its texts and other sizes say; else a column
`ratio` makes one. A table may say in `attrs['growth']` itself what is drawn: dict(x=COLUMN, y=[COLUMNS],
by=[COLUMNS]).
"""
import argparse, base64, io, json, multiprocessing, os, platform, sys, time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np, pandas as pd
from jinja2 import Template

from bench import benches, measure

HERE = Path(__file__).parent
Tables = dict[str, pd.DataFrame]
AXES = 'N n K C D d images labels filters layers batch size world ones'.split()
COSTS = 'seconds', 'second', 'peak', 'memory', 'bytes', '_s', '_ms', '_gb', '_mb', 'MiB', 'images_per_second'


# ---- the machine

def cpu() -> tuple[str, str]:
    "The name of the processor, and those of its flags that decide how fast a matrix product is."
    try: text = Path('/proc/cpuinfo').read_text()
    except OSError: return platform.processor() or platform.machine(), ''
    lines = [line.split(':', 1) for line in text.split('\n\n')[0].splitlines() if ':' in line]
    about = {key.strip(): value.strip() for key, value in lines}
    flags = about.get('flags', about.get('Features', '')).split()
    wanted = ('avx', 'fma', 'amx', 'f16c', 'bf16', 'sve', 'asimd')
    return about.get('model name', platform.machine()), ' '.join(f for f in flags if f.startswith(wanted))


def memory() -> float:
    "The machine's memory in GiB."
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30


def machine() -> dict[str, str]:
    "What the tables were measured on, and with."
    import torch

    import dlmech
    name, flags = cpu()
    may = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
    return {'date': time.strftime('%Y-%m-%d %H:%M %z'), 'CPU': name, 'flags': flags,
            'cores': f'{os.cpu_count()}, of which this process may use {may}',
            'memory': f'{memory():.0f} GiB', 'GPU': gpu, 'threads': str(torch.get_num_threads()),
            'load average before': ' '.join(f'{v:.1f}' for v in os.getloadavg()),
            'system': f'{platform.system()} {platform.machine()}',
            'versions': f'dlmech {dlmech.__version__}, torch {torch.__version__}, numpy {np.__version__}, '
                        f'Python {platform.python_version()}'}


# ---- the benches

def apart(name: str, quick: bool) -> Tables:
    "The tables of a bench, measured in a process of its own."
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(measure, name, quick).result()


def run(names: list[str], quick: bool, out: Path, do: Callable[[str, bool], Tables] = apart
        ) -> tuple[Tables, dict[str, str]]:
    "Every table by name, each printed and written as soon as it is there; why benches failed."
    found, failed = {}, {}
    for name in names:
        t = time.perf_counter()
        try: tables = do(name, quick)
        except Exception as e:
            failed[name] = f'{type(e).__name__}: {" ".join(str(e).split())}'
            print(f'\n{name} failed: {failed[name]}', flush=True)
            continue
        print(f'\n{name} ({time.perf_counter() - t:.0f} s)', flush=True)
        for key, table in tables.items():
            key = key if key == name else f'{name}-{key}'
            print(f'\n{key}\n{table.to_string(index=False, float_format="{:.4g}".format)}', flush=True)
            out.mkdir(parents=True, exist_ok=True)
            table.to_csv(out/f'{key}.csv', index=False)
            found[key] = table
    return found, failed


# ---- the page of figures

def growth_of(table: pd.DataFrame) -> dict|None:
    "What is to be drawn against what, on logarithmic axes: x, y and by; None if the table shows no growth."
    if 'growth' in table.attrs: return table.attrs['growth']
    numbers = table.select_dtypes('number')
    x = next((c for c in numbers if c in AXES and numbers[c].nunique() >= 3 and (numbers[c] > 0).all()), None)
    y = [c for c in numbers if c not in AXES and (c.startswith(COSTS) or c.endswith(COSTS))]
    if x is None or not y: return None
    told = [c for c in table.columns if c in AXES or c not in numbers]
    return dict(x=x, y=y, by=[c for c in told if c != x and 1 < table[c].nunique() < len(table)])


def slope(x: pd.Series, y: pd.Series) -> float:
    "The exponent by which y grows with x."
    return float(np.polyfit(np.log(x.astype(float)), np.log(y.astype(float)), 1)[0])


def growth_figure(table: pd.DataFrame, x: str, y: list[str], by: list[str]):
    "A panel for each y; a line for each value of `by`, with its slope."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(4*len(y), 3.2), layout='constrained')
    for ax, column in zip(np.atleast_1d(fig.subplots(1, len(y))), y):
        for key, rows in table.groupby(by, sort=False) if by else [((), table)]:
            rows = rows.loc[(rows[column] > 0) & (rows[x] > 0)].sort_values(x)
            if rows[x].nunique() < 2: continue
            told = ', '.join(map(str, key)) or column
            ax.plot(rows[x], rows[column], 'o-', ms=3, label=f'{told}: {slope(rows[x], rows[column]):.2f}')
        ax.set(xscale='log', yscale='log', xlabel=x, title=column)
        ax.set_xticks(sizes := sorted(table[x].unique()), [f'{v:g}' for v in sizes], fontsize=8)
        ax.minorticks_off()
        if ax.lines: ax.legend(fontsize=6, frameon=False, title='slope', title_fontsize=6)
    return fig


def ratio_figure(table: pd.DataFrame):
    "A bar for each ratio."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(8, .6 + .25*len(table)), layout='constrained')
    ax, y = fig.subplots(), np.arange(len(table))[::-1]
    ax.barh(y, table['ratio'] - 1, left=1, height=.6)
    ax.axvline(1, color='k', lw=.8)
    texts = table[[c for c in table.columns if not pd.api.types.is_numeric_dtype(table[c])][:2]].astype(str)
    ax.set_yticks(y, texts.agg(', '.join, axis=1).str.slice(0, 70) if len(texts.columns) else y, fontsize=6)
    ax.set(xscale='log', xlabel='ratio')
    return fig


def picture(table: pd.DataFrame) -> str:
    "The figure of a table as PNG in base64, '' if it has none."
    growth = growth_of(table)
    if growth: fig = growth_figure(table, **growth)
    elif 'ratio' in table and len(table) and (table['ratio'] > 0).all(): fig = ratio_figure(table)
    else: return ''
    fig.savefig(png := io.BytesIO(), format='png', dpi=110)
    return base64.b64encode(png.getvalue()).decode()


PAGE = Template('''<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>dlmech: speed</title>
<style>body{font:14px sans-serif;max-width:70em;margin:2em auto}table{border-collapse:collapse;font-size:12px}
td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #ddd}img{max-width:100%}</style>
<h1>How fast dlmech is</h1>
<table>{% for k, v in about.items() %}<tr><th>{{ k }}<td>{{ v }}{% endfor %}</table>
{% for name, why in failed.items() %}<p><b>{{ name }} failed</b>: {{ why }}{% endfor %}
{% for name, table in tables.items() %}<h2>{{ name }}</h2>
{% if pictures[name] %}<img alt="{{ name }}" src="data:image/png;base64,{{ pictures[name] }}">{% endif %}
{{ table.to_html(index=False, border=0, float_format='{:.4g}'.format) | safe }}{% endfor %}
</html>''', autoescape=True)


def page(about: dict, tables: Tables, failed: dict[str, str]) -> str:
    "The page of figures: the machine, and each table with its figure."
    pictures = {name: picture(table) for name, table in tables.items()}
    return PAGE.render(about=about, tables=tables, failed=failed, pictures=pictures)


def main(args: list[str]|None = None, do: Callable[[str, bool], Tables] = apart) -> int:
    "The command: 0, or 1 if a bench failed."
    p = argparse.ArgumentParser('python -m bench', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default='', help=f'some of {", ".join(benches())}')
    p.add_argument('--quick', action='store_true', help='very small, to try the benches themselves')
    p.add_argument('--out', type=Path, default=HERE/'results')
    a = p.parse_args(args)
    names = a.only.split(',') if a.only else benches()
    if wrong := [name for name in names if name not in benches()]:
        p.error(f'--only: there is no {wrong[0]!r}; it may be {", ".join(benches())}')
    about = machine() | {'sizes': 'quick: these numbers mean nothing' if a.quick else 'full'}
    print('\n'.join(f'{k}: {v}' for k, v in about.items()))
    tables, failed = run(names, a.quick, a.out, do)
    about['load average after'] = ' '.join(f'{v:.1f}' for v in os.getloadavg())
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out/'machine.json').write_text(json.dumps(about | {'failed': failed}, indent=1) + '\n')
    (a.out/'index.html').write_text(page(about, tables, failed))
    print(f'\n{len(tables)} tables and their page are in {a.out}'
          + f'; failed: {", ".join(failed)}' * bool(failed))
    return int(bool(failed))


if __name__ == '__main__': sys.exit(main())
