"""Files at URLs that are not those that a job has learned from. Pure."""

from thalweg.contract.text import visible
from thalweg.v1 import job_pb2

# Files that a message names.
_MAX_NAMED = 3
_MAX_URL = 300


def difference(then: job_pb2.Preprocessing, now: job_pb2.Preprocessing) -> str:
    """How the files that a worker found differ from those that the job has learned from, for people; empty if they do not."""
    if then.fingerprint == now.fingerprint:
        return ""
    before, after = ({file.url: file for file in found.files} for found in (then, now))
    changes = [_change(url, before.get(url), after.get(url)) for url in sorted(before.keys() | after.keys())]
    told = [change for change in changes if change]
    if not before or not after or not told:
        told = ["other sizes, ETags or times of modification"]
    more = f"; and {len(told) - _MAX_NAMED:,} more" if len(told) > _MAX_NAMED else ""
    copies = " (copies on nodes need equal times of modification)" if any(url.startswith("file:") for url in after) else ""
    return (
        f"the data's files are not those that the job has learned from: {'; '.join(told[:_MAX_NAMED])}{more}. "
        f"Restore them{copies} and resume the job, or submit it again"
    )


def _change(url: str, before: job_pb2.DataFile | None, after: job_pb2.DataFile | None) -> str:
    """What has happened to a file; empty if nothing has."""
    name = visible(url, _MAX_URL)
    if after is None:
        return f"{name} is gone"
    if before is None:
        return f"{name} is new"
    if before.size != after.size:
        return f"{name} has {after.size:,} bytes, and had {before.size:,}"
    return "" if before.state == after.state else f"{name} has another ETag or time of modification"
