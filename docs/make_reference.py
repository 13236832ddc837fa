"""Makes `jobs.md`, the reference of job files, from `job.proto`: its comments, and its rules.

python docs/make_reference.py
"""

import json
import re
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from thalweg.contract.rules import choice_of, default_of, real_oneofs, rules_of, value_of
from thalweg.v1 import job_pb2

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "jobs.md"
INTRODUCTION = """\
# Jobs

*Generated from `proto/thalweg/v1/job.proto` by `docs/make_reference.py`; change it there.*

A job is a TOML file, a Python dictionary of the same shape, or the message `JobSpec` of the contract. `--set KEY=VALUE` on the
command line, and `client.submit(job, {"key": value})`, override single values: `training.epochs=5`,
`model.layers[0].dense.units=128`, `optimizer.sgd.learning_rate=0.1` (which replaces another optimizer). The server
fills in absent fields, checks everything, and refuses unknown fields and values. The error names the field, the value given and
the values allowed.

For *one of* several fields, give exactly one, as a table of its own settings: `optimizer = { adam = {} }`.
"""
_TYPES = {
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_UINT32: "whole number",
    FieldDescriptor.CPPTYPE_UINT64: "whole number",
    FieldDescriptor.CPPTYPE_INT64: "whole number",
}


def comments() -> dict[str, str]:
    """The comment above each message and field of `job.proto`, by its full name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        includes = [f"-I{ROOT / 'proto'}", f"-I{resources.files('grpc_tools') / '_proto'}"]
        options = [*includes, "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *options, "thalweg/v1/job.proto"]):
            raise SystemExit("protoc refuses job.proto")
        (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    found = {}
    for location in file.source_code_info.location:
        match list(location.path):
            case [4, message]:
                found[f"{file.package}.{file.message_type[message].name}"] = location.leading_comments
            case [4, message, 2, field]:
                inside: DescriptorProto = file.message_type[message]
                found[f"{file.package}.{inside.name}.{inside.field[field].name}"] = location.leading_comments
    return {name: " ".join(text.split()) for name, text in found.items()}


def reference() -> str:
    """The whole page."""
    told = comments()
    sections = [_section(descriptor, told) for descriptor in _messages(job_pb2.JobSpec.DESCRIPTOR, {}).values()]
    return "\n".join([INTRODUCTION, *sections])


def _messages(descriptor: Descriptor, seen: dict[str, Descriptor]) -> dict[str, Descriptor]:
    """A message and those within it, each before those within it."""
    if descriptor.name not in seen:
        seen[descriptor.name] = descriptor
        for field in descriptor.fields:
            of = value_of(field) or field
            if of.message_type:
                _messages(of.message_type, seen)
    return seen


def _section(descriptor: Descriptor, told: dict[str, str]) -> str:
    lines = [f"## {_title(descriptor.name)}", "", told[descriptor.full_name], ""]
    oneofs = real_oneofs(descriptor)
    fields = [field for field in descriptor.fields if field.containing_oneof not in oneofs]
    for oneof in oneofs:
        default = choice_of(oneof).default
        many = "One" if default or choice_of(oneof).required else "At most one"
        lines += [f"{many} of these{f'; `{default}` if none is given' if default else ''}:", ""]
        lines += [f"- `{field.name}`{_link(field)}: {told[field.full_name]}" for field in oneof.fields]
        lines.append("")
    if fields:
        lines += ["| field | type | default | allowed | |", "|---|---|---|---|---|"]
        lines += [_row(field, told) for field in fields]
        lines.append("")
    return "\n".join(lines)


def _title(name: str) -> str:
    return {"JobSpec": "The job"}.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))


def _link(field: FieldDescriptor) -> str:
    if field.message_type is None:
        return ""
    title = _title(field.message_type.name)
    return f" ([{title}](#{title.lower().replace(' ', '-')}))"


def _row(field: FieldDescriptor, told: dict[str, str]) -> str:
    kind = _link(field).strip(" ()").removesuffix(")") + ")" if field.message_type else _TYPES[field.cpp_type]
    kind = "table" if rules_of(field).table else kind
    if inside := value_of(field):
        kind = f"table of {_link(inside).strip(' ()')}) by name"
    elif field.is_repeated:
        kind = f"list of {kind}"
    rules = rules_of(field)
    default = default_of(field)
    shown = "*required*" if rules.required or (rules.min_length and default is None) else ""
    if default not in (None, {}, "{}"):
        shown = f"`{json.dumps(default, ensure_ascii=False)}`"
    return f"| `{field.name}` | {kind} | {shown} | {', '.join(_allowed(field))} | {told[field.full_name]} |"


def _allowed(field: FieldDescriptor) -> Iterator[str]:
    rules = rules_of(field)
    for words, value, given in (
        ("at least", rules.at_least, rules.HasField("at_least")),
        ("above", rules.above, rules.HasField("above")),
        ("at most", rules.at_most, rules.HasField("at_most")),
        ("below", rules.below, rules.HasField("below")),
    ):
        if given:
            yield f"{words} {value:,.15g}"
    if rules.one_of:
        yield ", ".join(f"`{name}`" for name in rules.one_of)
    if rules.entrypoint:
        yield 'an entry point, `{ entrypoint = "MODULE:NAME" }`'
    if rules.pattern:
        yield rules.pattern_words
    if rules.min_length and rules.min_length == rules.max_length:
        yield f"exactly {rules.min_length} items"
    elif rules.min_length or rules.max_length:
        what = "items" if field.is_repeated else "characters"
        least = f"at least {rules.min_length}" if rules.min_length else ""
        most = f"at most {rules.max_length:,}" if rules.max_length else ""
        yield f"{' and '.join(filter(None, (least, most)))} {what}"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
