"""Asks with grpcio. All threads share one channel and make unary calls with raw bytes.

/debug/echo is not a gRPC service, and its answer ends without trailers. So gRPC reports UNKNOWN, but only when the last
frame of the answer has come. This program takes that error for an answer and every other error for a loss.
"""
import urllib.parse

import grpc
import load

url = urllib.parse.urlsplit(load.URL)
# For a unix socket, grpcio would send its path as the authority, `%2Ftmp%2F…`. The h2 crate refuses that with
# PROTOCOL_ERROR, so the authority is set here.
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
