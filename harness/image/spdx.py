"""What is inside an image, as an SPDX 2.3 document in JSON.

Licences are not asserted: each package's own copyright file decides. Source: SPDX 2.3, clauses 6,
7 and 11.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from harness.image.packages import Package

_CREATED = "1970-01-01T00:00:00Z"  # the same content gives the same document


def document(name: str, key: str, packages: Iterable[Package], *, distribution: str) -> bytes:
    """The document for an image with a content key; `distribution` is an os-release ID."""
    listed = sorted(packages, key=lambda package: package.name)
    image_id = "SPDXRef-Image"
    described = {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES"}
    contains = {"spdxElementId": image_id, "relationshipType": "CONTAINS"}
    content = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:lcowlab:{name}:{key}",
        "creationInfo": {"created": _CREATED, "creators": ["Tool: lcowlab"]},
        "packages": [
            {
                "SPDXID": image_id,
                "name": name,
                "versionInfo": key,
                "downloadLocation": "NOASSERTION",
                "filesAnalyzed": False,
                "licenseConcluded": "NOASSERTION",
                "licenseDeclared": "NOASSERTION",
                "copyrightText": "NOASSERTION",
            },
            *(_package(package, distribution) for package in listed),
        ],
        "relationships": [
            {**described, "relatedSpdxElement": image_id},
            *({**contains, "relatedSpdxElement": _identifier(package)} for package in listed),
        ],
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def _package(package: Package, distribution: str) -> Mapping[str, object]:
    purl = f"pkg:deb/{distribution}/{package.name}@{package.version}?arch={package.architecture}"
    return {
        "SPDXID": _identifier(package),
        "name": package.name,
        "versionInfo": package.version,
        "packageFileName": package.file_name,
        "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256}],
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl,
            }
        ],
    }


def _identifier(package: Package) -> str:
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", package.name)
