"""grpcio, one channel for all threads, unary calls of bytes. /debug/echo is no gRPC service, its answer ends without trailers: gRPC says
UNKNOWN of it, but only when its last frame came, and that is what is asked for."""
import urllib.parse

import grpc
import load

url = urllib.parse.urlsplit(load.URL)
# What it makes of a socket's path by itself, `%2Ftmp%2F…`, is no authority to the h2 crate: PROTOCOL_ERROR.
options = [("grpc.max_receive_message_length", -1), ("grpc.default_authority", "localhost")]
channel = grpc.insecure_channel(f"unix:{load.SOCKET}" if load.SOCKET else url.netloc, options=options)
call = channel.unary_unary(url.path)


def ask():
    try:
        call(load.BODY, timeout=30)
    except grpc.RpcError as error:
        if "END_STREAM flag received" not in error.details():
            raise RuntimeError(f"{error.code()} {error.details()}") from None
    return 200, load.BODY


load.threads(lambda: ask)
