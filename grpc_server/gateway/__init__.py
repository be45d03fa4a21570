"""The REST API beside gRPC, over the same models, requests and work: OpenAI's shapes, health, and the aliases.

- `app.py`: what is at which path
- `body.py`: from bytes to JSON, with every doubt refused
- `fields.py`: from a JSON object to checked values, none of them ignored
- `chat.py`: /v1/chat/completions, from JSON to protobuf
- `completions.py`: /v1/completions, likewise
- `asked.py`: what both are asked
- `models.py`: /v1/models
- `answering.py`: an admitted request: whole, or piece by piece
- `shapes.py`: answers in OpenAI's shapes
- `exchange.py`: a client that leaves, a server that ends, server-sent events
- `errors.py`: OpenAI's error objects
- `admin.py`: the aliases
- `server.py`: uvicorn within the server's event loop
"""

from modelwright.grpc_server.gateway.server import HttpServer

__all__ = ["HttpServer"]
