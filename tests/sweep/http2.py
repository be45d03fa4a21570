"""As much of HTTP/2 as it takes to say what no client would: https://www.rfc-editor.org/rfc/rfc9113#section-4."""

import socket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 4, 6, 7, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, payload=b"", *, flags=0, stream=0, length=None):
    """A frame; `length` may lie about the payload's."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(path, *, stream=1, flags=END_HEADERS, **more):
    """The headers of a call, every field a literal."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())
    return frame(HEADERS, block, flags=flags, stream=stream)


def _text(value):
    data = value.encode("latin-1")
    assert len(data) < 127, "longer texts have longer lengths"
    return bytes([len(data)]) + data


def message(data, *, flag=0, length=None):
    """A gRPC message: whether it is compressed, its length, its bytes."""
    return bytes([flag]) + (len(data) if length is None else length).to_bytes(4, "big") + data


def talk(address, *parts, seconds=5.0, until=b"grpc-status"):
    """Send bytes on a connection of their own; gives what came back until `until`, the end, or a short silence."""
    host, port = address.rsplit(":", 1)
    answer = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            connection.settimeout(0.5 if until is None else seconds)
            while until is None or until not in answer:
                data = connection.recv(65536)
                if not data:
                    break
                answer += data
        except (TimeoutError, ConnectionError):
            pass
    return answer


def status(answer):
    """The number of the gRPC status in what came back; None where there is none."""
    _, name, rest = answer.partition(b"grpc-status")
    return int(rest[1 : 1 + rest[0]]) if name else None


# What a client begins with.
HELLO = PREFACE + frame(SETTINGS)
