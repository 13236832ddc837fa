"""Reads what a server tells over HTTP, as Prometheus and others do."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from thalweg.contract.endpoint import Address

_SECONDS = 20.0


class Page(NamedTuple):
    """A page, or why there is none."""

    status: int
    text: str


def page(address: Address | None, path: str, token: str = "", method: str = "GET", ca: Path | None = None) -> Page:
    """What is found at a path, by HTTPS if the file of an authority is given."""
    tls = ssl.create_default_context(cafile=ca) if ca else None
    request = urllib.request.Request(f"http{'s' if tls else ''}://{address}{path}", method=method)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS, context=tls) as response:
            return Page(response.status, response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Page(error.code, error.read().decode())


def metrics(address: Address | None) -> dict[str, float]:
    """The value of each series, by its name with its labels, as in `thalweg_jobs{state=queued}`."""
    found = page(address, "/metrics")
    assert found.status == 200, found
    values = {}
    for family in text_string_to_metric_families(found.text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return values
