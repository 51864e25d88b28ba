"""The rules of Open Packaging and of the schema that PowerPoint repairs or refuses a file for."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections import Counter
from collections.abc import Iterator

from lxml import etree

PACKAGE = "{http://schemas.openxmlformats.org/package/2006/relationships}"
TYPES = "{http://schemas.openxmlformats.org/package/2006/content-types}"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
# Elements whose children we insert ourselves: the order that the schema demands of those we know.
ORDERS = {
    f"{C}scaling": ("logBase", "orientation", "max", "min"),
    f"{C}errBars": ("errDir", "errBarType", "errValType", "noEndCap", "plus", "minus", "val", "spPr"),
    f"{C}ser": (
        *("idx", "order", "tx", "spPr", "invertIfNegative", "marker", "dPt", "dLbls", "trendline", "errBars"),
        *("cat", "val", "xVal", "yVal", "smooth"),
    ),
    f"{A}lvl1pPr": ("lnSpc", "spcBef", "spcAft", "buClr", "buSzPct", "buFont", "buNone", "buChar", "tabLst", "defRPr"),
    f"{A}pPr": ("lnSpc", "spcBef", "spcAft", "buNone", "buChar", "defRPr"),
    f"{A}rPr": ("ln", "noFill", "solidFill", "latin", "ea", "cs", "hlinkClick"),
    f"{P}cSld": ("bg", "spTree", "extLst"),
    f"{P}presentation": (
        *("sldMasterIdLst", "notesMasterIdLst", "handoutMasterIdLst", "sldIdLst", "sldSz", "notesSz"),
        *("defaultTextStyle", "extLst"),
    ),
}
WANTED = {"slide": "slideLayout", "slideLayout": "slideMaster", "slideMaster": "theme", "notesSlide": "notesMaster"}


def faults(data: bytes) -> list[str]:
    """What PowerPoint would repair or refuse in this file, one sentence each; empty where there is nothing."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        parts = {name: archive.read(name) for name in names}
    sentences = [f"{name} is in the archive {count} times." for name, count in Counter(names).items() if count > 1]
    trees = {}
    for name, body in parts.items():
        if name.endswith((".xml", ".rels")):
            try:
                trees[name] = etree.fromstring(body)
            except etree.XMLSyntaxError as error:
                sentences.append(f"{name} is not well formed: {error}.")
    sentences += type_faults(parts, trees["[Content_Types].xml"])
    sentences += relationship_faults(parts, trees)
    for name, tree in trees.items():
        sentences += [f"{name}: {text}" for text in element_faults(tree)]
    return sentences


def type_faults(parts: dict[str, bytes], types: etree._Element) -> Iterator[str]:
    """Parts without a content type, types without a part, and types that are stated twice."""
    overrides = [entry.get("PartName", "").lstrip("/") for entry in types.iter(f"{TYPES}Override")]
    defaults = [entry.get("Extension", "").lower() for entry in types.iter(f"{TYPES}Default")]
    for kind, listed in (("part", overrides), ("extension", defaults)):
        yield from (f"The type of {kind} {name} is stated twice." for name, n in Counter(listed).items() if n > 1)
    yield from (f"{name} has a content type and is missing." for name in overrides if name not in parts)
    for name in parts:
        extension = name.rpartition(".")[2].lower()
        if name != "[Content_Types].xml" and name not in overrides and extension not in defaults:
            yield f"{name} has no content type."


def relationship_faults(parts: dict[str, bytes], trees: dict[str, etree._Element]) -> Iterator[str]:
    """Targets that are missing, ids that are repeated or unknown, parts that nothing reaches or that lack one."""
    reached = {"[Content_Types].xml"}
    for name, tree in trees.items():
        if not name.endswith(".rels"):
            continue
        reached.add(name)
        folder, file = posixpath.split(name)
        owner = posixpath.join(posixpath.dirname(folder), file.removesuffix(".rels"))
        if owner and owner not in parts and name != "_rels/.rels":
            yield f"{name} belongs to no part."
        ids = {}
        kinds = []
        for relation in tree.iter(f"{PACKAGE}Relationship"):
            key, target = relation.get("Id", ""), relation.get("Target", "")
            if key in ids:
                yield f"{name} has two relationships {key}."
            ids[key] = target
            kinds.append(relation.get("Type", "").rpartition("/")[2])
            if relation.get("TargetMode") == "External":
                if not target.startswith("https://"):
                    yield f"{name} leads to {target}, which is no https address."
                continue
            place = posixpath.normpath(posixpath.join(posixpath.dirname(owner), target)).lstrip("/")
            reached.add(place)
            if place not in parts:
                yield f"{name} leads to {target}, which is missing."
        if owner in trees:
            used = {value for element in trees[owner].iter() for key, value in element.attrib.items() if OFFICE in key}
            yield from (f"{owner} uses the relationship {key}, which is missing." for key in used - set(ids))
        wanted = WANTED.get(posixpath.basename(posixpath.dirname(owner)).removesuffix("s"))
        if wanted and kinds.count(wanted) != 1:
            yield f"{owner} leads to {kinds.count(wanted)} parts of kind {wanted}, it needs one."
    yield from (f"Nothing leads to {name}." for name in parts if name not in reached)


def element_faults(tree: etree._Element) -> Iterator[str]:
    """Ids that are repeated or out of range, and children out of the schema's order."""
    shapes = [element.get("id") for element in tree.iter(f"{P}cNvPr")]
    yield from (f"two shapes have the id {key}." for key, count in Counter(shapes).items() if count > 1)
    for tag, low in (("sldId", 256), ("sldMasterId", 2**31), ("sldLayoutId", 2**31)):
        ids = [int(element.get("id", "0")) for element in tree.iter(f"{P}{tag}")]
        yield from (f"{tag} {key} is repeated." for key, count in Counter(ids).items() if count > 1)
        yield from (f"{tag} {key} is below {low}." for key in ids if key < low)
    for element in tree.iter(*ORDERS):
        order = ORDERS[element.tag]
        local = [etree.QName(child).localname for child in element if isinstance(child.tag, str)]
        ranks = [order.index(name) for name in local if name in order]
        if ranks != sorted(ranks):
            yield f"the children of {etree.QName(element).localname} are out of order: {', '.join(local)}."
