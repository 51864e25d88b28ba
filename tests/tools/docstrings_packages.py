"""The pinned PyPI wheels behind the docstrings task: which, under what licence, in which split, how they are read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["PACKAGES", "PERMITTED", "Package", "python_files"]


class Package(NamedTuple):
    """A pinned wheel: the licence is the SPDX expression of its Python files."""

    version: str
    split: str
    sha256: str
    licence: str


# name, version, split, SHA-256 of the wheel, licence
TABLE = """
aiohttp         3.14.5    test       20f085697d7e911f1f73c43ed03fafbed1e7121797e2eb5428efa80398060584 Apache-2.0
arrow           1.4.0     train      749f0769958ebdc79c173ff0b0670d59051a535fa26e8eba02953dc19eb43205 Apache-2.0
astropy         8.0.2     test       000d6998bcf4f097257b3776f29f1dafde0967bf1b091edbad95df564eee4eea BSD-3-Clause
attrs           26.1.0    train      c647aa4a12dfbad9333ca4e71fe62ddc36f4e63b2d260a37a8b83d2f043ac309 MIT
babel           2.18.0    test       e2b422b277c2b9a9630c1d7903c2a00d0830c409c59ac8cae9081c92f1aeba35 BSD-3-Clause
black           26.10.1   train      b5347d760f0c02bb00dd249384cab71c3bf828b4f68d5b401eb116e0390f147d MIT
bokeh           3.10.1    train      d73412b6317f70df0ffe6796956af609617523dfdfbc624d4f7f496cd09e8101 BSD-3-Clause
boltons         26.2.0    validation 41942cbce440211bbcf2487ccdc356964ad674f95a01068b8a0dd7a1d1fed036 BSD-3-Clause
botocore        1.44.5    train      8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921 Apache-2.0
celery          5.7.0     train      18310a9c919f9029e4735367484d93e6a25cdfd30afdc474622cc263d9b35f6e BSD-3-Clause
click           8.5.1     validation 8bb5376d2006950386f8c6427613334a2acadc5f559cb80e638d00b4df957e37 BSD-3-Clause
cryptography    50.0.2    train      630ebfea3bf689d075f82316324ff7433dc447fe6bc1bfc76524b74b4a9567d2 Apache-2.0 OR BSD-3-Clause
dask            2026.8.0  train      ccc0c83a189b0398602435189771d28dad7b5773b6089bb8dce14ae732dd782c BSD-3-Clause
distributed     2026.8.0  train      3bd8882861a2cf497453f28c6b61135fa8ef2bb1d6885ad3b9f27e887e9c0e01 BSD-3-Clause
django          6.1.3     train      a0530e3fdac55d34ccc5893c36f6c57d7a7083064f3d414537e51473648b3290 BSD-3-Clause
flask           3.1.3     train      f4bcbefc124291925f1a26446da31a5178f9483862233b23c0c96a20701f670c BSD-3-Clause
fsspec          2026.9.0  train      8dd6e646e99ea382bd85f97a45e6b526a442d79423a7dc673f1e2756d05fcb5f BSD-3-Clause
geopandas       1.2.0     train      948fd57df4f713697d5cce149333c0e4714965320c9f5ffa411666c577962eba BSD-3-Clause
httpx           0.28.1    train      d909fcccc110f8c7faf814ca82a9a4d816bc5a6dbfea25d6591d6985b8ba59ad BSD-3-Clause
huggingface-hub 2.4.0     train      42ecfd93ede47bdd333daebbf66a32d7bfe2e18752754fe4d2d4f98a0179d801 Apache-2.0
invoke          3.0.3     train      f11327165e5cbb89b2ad1d88d3292b5113332c43b8553b494da435d6ec6f5053 BSD-2-Clause
ipython         9.18.1    train      997ce9140d374531a61069c70c0f9ef299d6dd3559ea0f94b8af589726e3c1d5 BSD-3-Clause
jinja2          3.1.6     train      85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67 BSD-3-Clause
jupyter-client  8.10.0    train      5f73f24f22fa25192cfff6b23c051932a2473a797b05734aff495b392103e14e BSD-3-Clause
keras           3.15.1    train      836460e480930acbd19bb7a17e62f9ecad40e8a9af9a651fc8d0586a96d27e20 Apache-2.0
kornia          0.9.0     train      7a1632fe004a305c94f2b979fc6ab4df26e01f925e74bdb9f8b8a03a1229caaf Apache-2.0
librosa         1.0.0     train      5910a6c0e1b2e494b92758c1615a7acbd0515a2315e138927ba2982f2af88857 ISC
matplotlib      3.11.2    train      df4f7784aca81a94f254c0a2767d592ee25f407e488f5fa7203e51093fb6ca27 PSF-2.0
mne             1.13.2    train      36bbdd9fdc68431309a75e9dc6331b9de085cb6836688ac50b7b89f141a83cc3 BSD-3-Clause
monai           1.6.1     train      dbd3b1dd309e752e0477ed73fde03b92f80ac74bfb8a8c4260f018b5d6ab2b0b Apache-2.0
more-itertools  11.2.1    test       35a7377edd1dd6608dcb2cdf534ded55ea32d49448875ad042cd3f879fb1ded0 MIT
music21         10.5.1    train      dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1 BSD-3-Clause
mypy            2.4.1     validation a20ff6cd2af7a670c64f089bfa5fbcebe8ff3bf896c5e6ac7c9862c7960e4494 MIT
nbconvert       7.17.2    train      6a143c11c00bf831604da4b1be4347d36ea52367057eb920135d69bc2862fed2 BSD-3-Clause
networkx        3.7       test       e3fd2c13a7814cee3746340d8d7f8598a67f16a58bf47fb7f8793fab6efca1b0 BSD-3-Clause
nilearn         0.14.1    train      725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a BSD-3-Clause
nltk            3.10.4    validation 769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51 Apache-2.0
numpy           2.5.5     train      704d819265e5d1064d932968e9ee85fff2103ccc78c05b878c06943ba27b8507 BSD-3-Clause
optax           0.2.8     train      e3ca2d36c99daab1800ae9dbc0545034382d6bc780b24d969e1b0df65fa31cb4 Apache-2.0
pandas          3.1.1     train      028490c8ac2e03e18c9b08b7f3612e149b03570209bcf741d23833a7a5377ab2 BSD-3-Clause
pint            0.26.2    train      c94124cdb19baa1a84bb65c8bb9a620a9636b9b9cd80f32f30ad7ff795ea2eb8 BSD-3-Clause
prompt-toolkit  3.0.53    train      01c0891d7f9237d5e339f7d3e42cdae80b7534abb1c7c0e3352efba6231492f2 BSD-3-Clause
pydantic        2.14.3    train      3f7b347782ab7e4cf4c798496ae3a82787d9f21ec12676a9c564355eeef8daa8 MIT
pygments        2.21.0    train      2363c69b61c4a97c838da3b130dcd6468f4848992b21a82f2a63ec34377137d9 BSD-2-Clause
pymc            6.4.0     train      fa0dd3574b4465662f7aa70e8f1bd02dc2081e05a99ba65fb33c3f3614271f86 Apache-2.0
pymongo         4.20.0    train      c8d695149898ac6bb277ecef7292cf95cdd5f55049f903f9f189031fd07848cd Apache-2.0
pytest          9.2.0     train      07acdcf88ec174f907dc01af70bf52d49b014bbab03faeeade31c96b18c2e588 MIT
redis           8.1.0     validation a4fe1aac3d3b3cc791d4b3d5931c5a956045dc951ee74d1c913ee3ac4d2ee9fb MIT
requests        2.34.2    train      2a0d60c172f83ac6ab31e4554906c0f3b3588d37b5cb939b1c061f4907e278e0 Apache-2.0
rich            15.0.0    train      33bd4ef74232fb73fe9279a257718407f169c09b78a87ad3d296f548e27de0bb MIT
scikit-image    0.26.0    validation 7df650e79031634ac90b11e64a9eedaf5a5e06fcd09bcd03a34be01745744466 BSD-3-Clause
scikit-learn    1.9.1     train      e5d7b18a5b9dca241a74695f3275fa4c895a9dadc72b3d8df5fa9d1083c9b83e BSD-3-Clause
scipy           1.18.1    train      f55fa87b6c612ecd6b058f167c53231b1d14e412efe361d3d6e38b3631c73218 BSD-3-Clause
scrapy          2.19.0    train      44c1ad4b008f1976e946c75b2adce0e448cbfe470c584b1b59469abf270e8013 BSD-3-Clause
seaborn         0.13.2    test       636f8336facf092165e27924f223d3c62ca560b1f2bb5dff7ab7fad265361987 BSD-3-Clause
setuptools      84.2.1    train      ca140b45d5325a9478f880e351484f62fef15f336462e449ca0c03c873d589c2 MIT
spacy           3.8.18    test       3522fcabdf7ce85c9aacfce5360c40c77ba2c932d1f68e2a8471e00f74c1922f MIT
sphinx          9.1.0     train      c84fdd4e782504495fe4f2c0b3413d6c2bf388589bb352d439b2a3bb99991978 BSD-2-Clause
sqlalchemy      2.1.9     train      fcff5267a11d865efaff9ffc37ba3c8eab775bb4f4880a957c13dd7e63df5469 MIT
sqlglot         30.30.0   train      06c4c212a7868c7dcff0fd0fda348dd3c5cbad40137b3083a70ecdfe22921cf9 MIT
statsmodels     0.15.0    validation c6f2bd48915cc9b3b95c3c7f6ac363b6f8aaa38172962ba5f7f6885f0dfe57f2 BSD-3-Clause
sympy           1.14.0    train      e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5 BSD-3-Clause
textual         8.2.8     train      267375fd402dc8d981457212efa71f0e3365fd17bba144ba9bb3ed7563cb374a MIT
toolz           1.2.0     validation 890f820b1cb8152785aaf9386d8707770110809035800985ca65cb24ce1120ef BSD-3-Clause
tornado         6.6.1     validation 1b6ff57cc69b339f8feb9e7b567b0e0eacb16bfaf234159496623ef7a67ba640 Apache-2.0
transformers    5.23.0    train      018e82fd07490ad5bb58414f65e31576033dc7f36bed10c574843f69b90991bf Apache-2.0
trimesh         5.2.0     test       04db2c7ec62afdd7763fb04c82bb5f257ddd984993a19ee83697f475fc58fd29 MIT
trio            0.35.0    train      9a062a029487c1bdbcc1b2543b729a0bde857ce478b1512c84f391f628e0c5c9 MIT OR Apache-2.0
twisted         26.10.0   train      3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8 MIT
werkzeug        3.1.9     test       6392e50c78460ba618e5b21f08a71f59c99ce99cdc6cf6e3dd7e6ccca8754fab BSD-3-Clause
xarray          2026.9.0  train      fe349fa871628b1a0a5217af3fe1283a2862d5485156e6eda354fffb81c3bb7c Apache-2.0
zarr            3.4.2     train      a21530a931ac3123b4a4aa17146d11eb9ace227733650d5efbebbbfe38053428 MIT
"""  # noqa: E501
PACKAGES = {name: Package(*rest) for name, *rest in (line.split(maxsplit=4) for line in TABLE.strip().splitlines())}

PERMITTED = {
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "Apache-2.0",
    "ISC",
    "PSF-2.0",
    "MIT OR Apache-2.0",
    "Apache-2.0 OR BSD-3-Clause",
}

SKIP_FOLDERS = {
    "test", "tests", "testing", "_testing", "benchmarks", "examples", "demo", "conftest",
    "vendor", "_vendor", "vendored", "_vendored", "extern", "_extern", "external", "externals", "ext", "third_party",
    "thirdparty", "array_api_compat", "array_api_extra", "_distutils", "_py", "deprecated",
}  # fmt: skip


def python_files(wheel: Path) -> Iterator[tuple[str, str]]:
    """(path, text) of each Python file that is the package's own code, in order of path."""
    with zipfile.ZipFile(wheel) as archive:
        for path in sorted(archive.namelist()):
            if path.endswith(".py") and not _is_foreign(path):
                yield path, archive.read(path).decode("utf-8", errors="replace")


def _is_foreign(path: str) -> bool:
    """Whether a path is a test, a vendored copy or data rather than the package's own code."""
    *folders, name = path.lower().split("/")
    is_test = name.startswith(("test_", "conftest")) or name.endswith(("_test.py", "_tests.py"))
    return is_test or any(folder in SKIP_FOLDERS or folder.endswith(".data") for folder in folders)
