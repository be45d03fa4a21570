"""Server reflection: tools learn of services and messages from the server itself."""

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from modelwright.grpc_server.network.listening import Address

OURS = {"modelwright.v1.InferenceService", "modelwright.v1.ModelService"}
ALWAYS = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
METHODS = ["/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"]


def test_a_tool_calls_a_method_that_it_knows_from_the_server_alone(shared_server, connect):
    """Services, methods and messages are fetched over the channel, and a request is made of them."""
    channel = connect(shared_server)._channel
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == OURS | ALWAYS
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName("modelwright.v1.InferenceService")
    method = service.methods_by_name["Generate"]
    request = message_factory.GetMessageClass(method.input_type)(model="math", prompt="hi")
    call = channel.unary_unary(
        f"/{service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    assert call(request, timeout=10).text == "math@1:hi"


@pytest.mark.parametrize("service", METHODS)
def test_both_names_of_the_protocol_are_answered(shared_server, connect, service):
    """Newer tools ask for v1, older ones for v1alpha."""
    call = connect(shared_server)._channel.stream_stream(
        f"{service}ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="modelwright.v1.ModelService"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="modelwright.v1.Nothing"),
        reflection_pb2.ServerReflectionRequest(),
    ]
    found, missing, empty = call(iter(requests), timeout=10)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in found.file_descriptor_response.file_descriptor_proto
    ]
    assert {file.name for file in files} >= {"modelwright/v1/model.proto", "google/protobuf/timestamp.proto"}
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert empty.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@pytest.mark.parametrize("service", METHODS)
def test_bytes_that_are_no_request_are_an_invalid_argument(shared_server, connect, service):
    """As everywhere."""
    call = connect(shared_server)._channel.stream_stream(f"{service}ServerReflectionInfo")
    with pytest.raises(grpc.RpcError, match="the bytes are not a valid message") as caught:
        list(call(iter([b"\x0a\x02\xff\xfe"]), timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_reflection_needs_the_token_and_tells_each_port_what_it_has(shelf, serve, connect):
    """A server does not describe itself to callers without a token."""
    shelf.add("math")
    running = serve("math", token="secret", admin=Address(host="127.0.0.1", port=0))
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    stub = reflection_pb2_grpc.ServerReflectionStub(connect(running)._channel)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.ServerReflectionInfo(iter(requests), timeout=10))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    shown = [("authorization", "Bearer secret")]
    for target, services in ((None, OURS), (running.bound.admin, OURS - {"modelwright.v1.InferenceService"})):
        stub = reflection_pb2_grpc.ServerReflectionStub(connect(running, target)._channel)
        (answer,) = stub.ServerReflectionInfo(iter(requests), timeout=10, metadata=shown)
        assert {service.name for service in answer.list_services_response.service} == services | ALWAYS
