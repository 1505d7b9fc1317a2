"Everything that pip needs stands in settings.ini; this reads it."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']


def lines(key):
    "The lines of a setting."
    return [line.strip() for line in cfg[key].splitlines() if line.strip()]


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    project_urls=dict(line.split(' = ') for line in lines('project_urls')), classifiers=lines('classifiers'),
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={key.removesuffix('_requirements'): cfg[key].split() for key in cfg
                    if key.endswith('_requirements')},
    # the notebooks travel in the wheel as dlmech/notebooks, the trained networks as dlmech/zoo, tables of
    # finished studies as dlmech/results, the report's pages as dlmech/look/templates
    packages=find_packages(include=['dlmech', 'dlmech.*']) + ['dlmech.notebooks'],
    package_dir={'dlmech.notebooks': cfg['nbs_path']},
    package_data={'dlmech': ['py.typed', 'zoo/*', 'zoo/finished/*/*', 'results/*', 'imagenet.txt',
                             'look/templates/*'],
                  'dlmech.notebooks': ['*.ipynb']},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['dlmech=dlmech._modidx:d']},
    zip_safe=False,
)
