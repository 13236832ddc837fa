"""The role table: each method of each service has a row, and each role may do what its row says and nothing else."""

import importlib
import pkgutil

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import thalweg.v1
from thalweg.server.access import table
from thalweg.server.access.principal import Role, Scope


def services() -> list[ServiceDescriptor]:
    """Every service of the contract, and those of gRPC that servers have besides."""
    names = [module.name for module in pkgutil.iter_modules(thalweg.v1.__path__) if module.name.endswith("_pb2")]
    own = [importlib.import_module(f"thalweg.v1.{name}") for name in names]
    return [service for module in (*own, health_pb2, reflection_pb2) for service in module.DESCRIPTOR.services_by_name.values()]


METHODS = sorted(f"/{service.full_name}/{method.name}" for service in services() for method in service.methods)


def test_each_method_has_a_row_and_each_row_a_method() -> None:
    assert sorted(table.TABLE) == METHODS


def test_a_method_without_a_row_is_refused_to_all() -> None:
    row = table.row("/thalweg.v1.TrainingService/Sell")
    assert {row.scope(role) for role in Role} == {Scope.NONE}
    assert not row.stranger


@pytest.mark.parametrize("method", METHODS)
def test_administrators_may_do_all_and_strangers_only_what_tells_nothing(method: str) -> None:
    assert table.TABLE[method].scope(Role.ADMIN) is Scope.ALL
    assert table.TABLE[method].stranger == method.endswith(("Health/Check", "ShardConfirmationService/Confirm"))
