"""The role table, as data: what each role may do. A method without a row is refused to all.

docs/security.md has it as a table for people, and a test walks every method with every role.
"""

from collections.abc import Mapping
from typing import NamedTuple

from thalweg.server.access.principal import Principal, Role, Scope

_NONE, _OWN, _SHARED, _ALL = Scope.NONE, Scope.OWN, Scope.SHARED, Scope.ALL


class Row(NamedTuple):
    """Of one method, what each role may use it on. `stranger` is whether callers without a token may call it.

    `audited` is whether its calls are in the audit log; those of a method that `lasts` also when they begin.
    """

    viewer: Scope = _NONE
    submitter: Scope = _NONE
    fleet: Scope = _NONE
    admin: Scope = _ALL
    worker: Scope = _NONE
    stranger: bool = False
    audited: bool = False
    lasts: bool = False

    def scope(self, role: Role) -> Scope:
        """What a role may use the method on."""
        scope: Scope = getattr(self, role.value)
        return scope

    @property
    def admitted(self) -> list[Role]:
        """The roles that may call the method."""
        return [role for role in Role if self.scope(role) is not _NONE]


# People who look, also at jobs of others: at what goes on, but not at parameters and data.
_LOOKS = Row(viewer=_ALL, submitter=_SHARED)
# What a job consists of: its parameters, its data, its code.
_READS = Row(viewer=_SHARED, submitter=_SHARED, audited=True)
_CHANGES = Row(submitter=_OWN, audited=True)
_KNOWN = Row(viewer=_ALL, submitter=_ALL, fleet=_ALL)

_SERVICES: Mapping[str, Mapping[str, Row]] = {
    "thalweg.v1.TrainingService": {
        "CreateJob": Row(submitter=_ALL, audited=True),
        "GetJob": _LOOKS,
        "ListJobs": _LOOKS,
        "WatchJob": _LOOKS,
        "GetStory": _LOOKS,
        "ListWorkers": _LOOKS,
        "CancelJob": _CHANGES,
        "ResumeJob": _CHANGES,
        "DeleteJob": _CHANGES,
        "ScaleJob": _CHANGES,
        "ShareJob": _CHANGES,
        "KeepJob": _CHANGES,
        "DownloadParameters": _READS,
        "DownloadTrajectory": _READS,
        "DownloadData": Row(viewer=_SHARED, submitter=_SHARED, worker=_OWN, audited=True),
        # Files of the caller's own, and those of jobs that the caller may read.
        "GetUpload": Row(submitter=_SHARED),
        "UploadData": Row(submitter=_SHARED, audited=True),
        "GetServerInfo": _KNOWN,
    },
    "thalweg.v1.AccessService": {
        "CreateToken": Row(audited=True),
        "ListTokens": Row(),
        "RevokeToken": Row(audited=True),
        "GetCaller": _KNOWN,
    },
    "thalweg.v1.ClusterService": {
        # It names the jobs of others.
        "ListFleets": Row(viewer=_ALL),
        "Cordon": Row(audited=True),
        "Uncordon": Row(audited=True),
        "Drain": Row(audited=True),
        "DrainServer": Row(audited=True),
    },
    "thalweg.v1.FleetService": {"Attend": Row(fleet=_ALL, audited=True, lasts=True)},
    # A shard is a part of the server elsewhere, run by those who run fleets.
    "thalweg.v1.ShardService": {"Hold": Row(fleet=_ALL, audited=True, lasts=True)},
    # Served by shards. It proves who they are, and tells nothing else.
    "thalweg.v1.ShardConfirmationService": {"Confirm": Row(_ALL, _ALL, _ALL, _ALL, _ALL, stranger=True)},
    "thalweg.v1.ParameterService": {"Work": Row(worker=_OWN)},
    # Health checks tell nothing but "serving", and those who make them have no token. To watch, which keeps a connection in use
    # for ever, takes one.
    "grpc.health.v1.Health": {
        "Check": Row(_ALL, _ALL, _ALL, _ALL, _ALL, stranger=True),
        "List": _KNOWN,
        "Watch": _KNOWN,
    },
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _KNOWN},
}

_TRAINING = "/thalweg.v1.TrainingService"
# Who may use these sees that a job exists, and may read what it consists of.
SEES = f"{_TRAINING}/GetJob"
READS = f"{_TRAINING}/DownloadParameters"

# By the methods' full names, as gRPC has them.
TABLE: Mapping[str, Row] = {
    f"/{service}/{method}": row for service, methods in _SERVICES.items() for method, row in methods.items()
}
REFUSED = Row(admin=_NONE)


def row(method: str) -> Row:
    """The row of a method. One that has none is refused to all."""
    return TABLE.get(method, REFUSED)


def scope_of(principal: Principal, method: str) -> Scope:
    """What a principal may use a method on."""
    return row(method).scope(principal.role)


def covers(scope: Scope, principal: Principal, *, job: str, owner: str, shared: bool) -> bool:
    """Whether a job is within what a principal may use a method on. A job without an owner is nobody's own."""
    match scope:
        case Scope.NONE:
            return False
        case Scope.OWN | Scope.SHARED:
            own = principal.job == job if principal.role is Role.WORKER else bool(owner) and principal.name == owner
            return own or (scope is Scope.SHARED and shared)
        case Scope.ALL:
            return True
