"""grpcio with one channel for all threads, and unary calls of bytes.

/debug/echo is not a gRPC service, and its answer ends without trailers: gRPC reports UNKNOWN, but only when the last
frame has come, and that is what this program checks.
"""
import urllib.parse

import grpc
import load

url = urllib.parse.urlsplit(load.URL)
# The authority that grpcio makes of a socket's path, `%2Ftmp%2F…`, is invalid for the h2 crate: PROTOCOL_ERROR.
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
