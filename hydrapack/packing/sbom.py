"""The package's bill of materials: CycloneDX 1.6 JSON, with the models and adapters in it."""

from __future__ import annotations

import json
import os
import uuid
from datetime import datetime, timezone
from typing import Any

from hydrapack.packing.manifest import ADAPTERS, ManifestContent
from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need
from hydrapack.support.schema import json_text

SBOM = "sbom.cdx.json"


def ml_bom(manifest: ManifestContent) -> str:
    """JSON text; the same manifest gives the same text (``SOURCE_DATE_EPOCH`` sets its date).

    Raises:
        HydrapackError: cyclonedx-python-lib is not installed, or SOURCE_DATE_EPOCH is no number.
    """
    need("cyclonedx")
    from cyclonedx.model import (
        ExternalReference,
        ExternalReferenceType,
        HashAlgorithm,
        HashType,
        Property,
        XsUri,
    )
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseExpression
    from cyclonedx.output.json import JsonV1Dot6

    def component(name: str, kind: Any, digest: str | None, **more: Any) -> Any:
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else []
        return Component(name=name, type=kind, hashes=hashes, bom_ref=more.pop("ref"), **more)

    model = ComponentType.MACHINE_LEARNING_MODEL
    (file,) = (f for f in manifest.files if f.name == ADAPTERS)
    package = component(
        ADAPTERS,
        model,
        file.sha256,
        ref="package",
        properties=[
            Property(name="hydrapack:layout_digest", value=manifest.layout_digest),
            Property(name="hydrapack:parameters", value=str(manifest.storage.parameters)),
        ],
    )
    base = component(
        manifest.base_model.id or "base model",
        model,
        manifest.base_model.weights_sha256,
        ref="base_model",
    )
    adapters = [
        component(
            source.task,
            model,
            source.digest,
            ref=f"adapter:{source.task}",
            version=source.revision,
            external_references=[
                ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(url))
                for url in [source.url]
                if url
            ],
            licenses=[LicenseExpression(source.license)] if source.license else [],
            properties=[
                Property(name="hydrapack:alpha", value=f"{source.alpha:g}"),
                Property(name="hydrapack:rank", value=str(source.rank)),
            ],
        )
        for source in manifest.sources
    ]
    tools = [
        Component(
            name=name, version=version, type=ComponentType.APPLICATION, bom_ref=f"tool:{name}"
        )
        for name, version in sorted(
            {**manifest.tools, "hydrapack": manifest.hydrapack_version}.items()
        )
    ]
    bom = Bom(
        components=[base, *adapters],
        metadata=BomMetaData(component=package, timestamp=_date()),
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, file.sha256),
    )
    bom.metadata.tools.components.update(tools)
    bom.register_dependency(package, [base, *adapters])
    for adapter in adapters:
        bom.register_dependency(adapter, [base])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library numbers what it adds by itself at random nowhere but in its order.
    return json_text(document)


def _date() -> datetime:
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    try:
        return datetime.fromtimestamp(int(text), timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise Invalid(
            f"SOURCE_DATE_EPOCH={text}: must be seconds since 1970, a whole number"
        ) from None
