"""The contract's files: Buf's standard rules, comments on everything, and generated code that belongs to them."""

import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from modelwright.v1 import common_pb2, inference_pb2, model_pb2

PROTOS = Path(__file__).parents[3] / "protos"
FILES = {
    f"modelwright/v1/{name}.proto": module.DESCRIPTOR
    for name, module in (("common", common_pb2), ("inference", inference_pb2), ("model", model_pb2))
}
SERVICES = [service for file in FILES.values() for service in file.services_by_name.values()]
MESSAGES = [message for file in FILES.values() for message in file.message_types_by_name.values()]
ENUMS = [enum for file in FILES.values() for enum in file.enum_types_by_name.values()]


def upper_snake(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def test_every_proto_file_lies_where_its_package_says():
    """The path is the package, so that no file collides with another project's in a descriptor pool."""
    assert {path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto")} == set(FILES)
    assert all(file.name == name and file.package == "modelwright.v1" for name, file in FILES.items())


def test_services_and_methods_are_those_of_the_design():
    """All of them from the first version on, also those that are implemented later."""
    methods = {service.name: [method.name for method in service.methods] for service in SERVICES}
    assert methods == {
        "InferenceService": ["Generate", "GenerateStream", "Chat", "ChatStream", "Score", "Tokenize"],
        "ModelService": ["ListModels", "GetModel", "LoadModel", "UnloadModel", "SetAlias", "WatchModels"],
    }


def test_every_method_has_a_request_and_a_response_of_its_own():
    """Named after it, so that each can grow by itself."""
    types = []
    for service in SERVICES:
        for method in service.methods:
            assert method.input_type.name == f"{method.name}Request"
            assert method.output_type.name == f"{method.name}Response"
            assert not method.client_streaming
            types += [method.input_type.name, method.output_type.name]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.name)
def test_enum_values_have_the_enums_prefix_and_zero_is_unspecified(enum):
    """C++ puts the values of all enums of a package in one namespace."""
    prefix = upper_snake(enum.name)
    assert (enum.values[0].name, enum.values[0].number) == (f"{prefix}_UNSPECIFIED", 0)
    assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_names_are_in_the_cases_that_buf_wants(message):
    """Messages in PascalCase, fields and oneofs in lower_snake_case."""
    assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name)
    names = [field.name for field in message.fields] + [oneof.name.lstrip("_") for oneof in message.oneofs]
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in names)


def test_each_optional_setting_tells_absent_from_zero():
    """A temperature of 0 is a wish; none at all is the server's choice."""
    sampling = common_pb2.Sampling.DESCRIPTOR
    for field in sampling.fields:
        assert field.has_presence or field.is_repeated, field.name
    for service in SERVICES:
        for method in service.methods:
            adapter = method.input_type.fields_by_name.get("adapter")
            assert adapter is None or adapter.has_presence


def test_every_answer_of_a_model_says_who_answered():
    """In the response, or in the first event of a stream."""
    for method in inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods:
        holder = method.output_type
        if method.server_streaming:
            assert [field.name for field in holder.oneofs_by_name["event"].fields] == ["start", "delta", "end"]
            holder = holder.fields_by_name["start"].message_type
        served = holder.fields_by_name["served"]
        assert served.type == FieldDescriptor.TYPE_MESSAGE
        assert served.message_type.full_name == "modelwright.v1.ServedModel"
    assert {field.name for field in common_pb2.ServedModel.DESCRIPTOR.fields} >= {
        "name",
        "version",
        "digest",
        "adapter_digest",
        "alias_generation",
    }


@pytest.mark.parametrize("path", sorted(FILES))
def test_everything_in_the_contract_has_a_comment(path):
    """Services, methods, messages, fields, oneofs, enums and their values."""
    lines = [line.strip() for line in (PROTOS / path).read_text().splitlines()]
    declaration = re.compile(
        r"(message|enum|service|rpc|oneof) \w+|(optional |repeated )?[\w.]+ \w+ = \d+|[A-Z_]+ = \d+"
    )
    bare = [
        line for before, line in itertools.pairwise(lines) if declaration.match(line) and not before.startswith("//")
    ]
    assert bare == []


def test_the_generated_code_takes_the_oldest_and_the_newest_protobuf():
    """It was generated by the oldest supported toolchain; newer output locks out older clients."""
    source = importlib.util.find_spec("modelwright.v1.inference_pb2").origin
    assert "# Protobuf Python Version: 6.31." in Path(source).read_text()
    stubs = importlib.util.find_spec("modelwright.v1.inference_pb2_grpc").origin
    assert "GRPC_GENERATED_VERSION = '1.74.0'" in Path(stubs).read_text()


def test_the_generated_code_holds_what_the_protos_say():
    """Every declared name is there; `protos/generate.py --check` compares the files byte by byte."""
    for path, file in FILES.items():
        text = (PROTOS / path).read_text()
        declared = set(re.findall(r"^(?:message|enum|service) (\w+)", text, re.MULTILINE))
        assert declared == {
            *file.message_types_by_name,
            *file.enum_types_by_name,
            *file.services_by_name,
        }
        fields = sum(len(message.fields) for message in file.message_types_by_name.values())
        assert fields == len(
            re.findall(r"^ +(?:optional |repeated )?[\w.]+ \w+ = \d+(?: \[.*\])?;", text, re.MULTILINE)
        )


def test_the_client_needs_no_more_than_grpc_and_protobuf():
    """A service that only asks installs and imports nothing of what runs models."""
    program = (
        "import sys; from modelwright import AsyncClient, Client; AsyncClient(); Client('127.0.0.1:1').close()\n"
        "heavy = [name for name in sys.modules if name.split('.')[0] in "
        "{'torch', 'transformers', 'attrs', 'attr', 'pluggy', 'sqlalchemy', 'google.rpc'} "
        "or name.startswith('modelwright.core')]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
