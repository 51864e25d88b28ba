"""The file itself, with one date on everything, so that equal decks are equal bytes."""

from __future__ import annotations

import io
import re
import zipfile

DATE = (2026, 1, 1, 0, 0, 0)
APPLICATION = (
    b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n<Properties xmlns="http://schemas.openxmlformats.org/'
    b'officeDocument/2006/extended-properties"><Application>peftbook</Application>'
    b"<PresentationFormat>Widescreen</PresentationFormat></Properties>"
)


def fixed_zip(data: bytes) -> bytes:
    """The same archive with one date on every entry, the workbooks inside charts included."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            body = source.read(name)
            if name.endswith(".xlsx"):
                body = fixed_zip(body)
            if name == "docProps/app.xml" and b"PowerPoint" in body:
                body = APPLICATION
            if name == "docProps/core.xml":
                body = re.sub(rb"(<dcterms:(?:created|modified)[^>]*>)[^<]*", rb"\g<1>" + b"2026-01-01T00:00:00Z", body)
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, body)
    return out.getvalue()
