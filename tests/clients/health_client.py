"""What gRPC's own health client finds, one JSON line each. tests/tests/grpc_health.rs drives it by stdin.

A line of stdin is a command: `check NAME`, `watch NAME` (which goes on in the background), or nothing, which ends it.
The whole server is the name `-`.
"""

import json
import sys
import threading

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

STATUS = health_pb2.HealthCheckResponse.ServingStatus.Name
PRINTING = threading.Lock()


def say(**what):
    with PRINTING:
        print(json.dumps(what), flush=True)


def request(name):
    return health_pb2.HealthCheckRequest(service="" if name == "-" else name)


def check(stub, name):
    try:
        say(check=name, status=STATUS(stub.Check(request(name), timeout=10).status))
    except grpc.RpcError as error:
        say(check=name, error=error.code().name)


def watch(stub, name):
    try:
        for response in stub.Watch(request(name)):
            say(watch=name, status=STATUS(response.status))
        say(watch=name, ended=True)
    except grpc.RpcError as error:
        say(watch=name, error=error.code().name)


def main():
    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for line in sys.stdin:
            command, _, name = line.strip().partition(" ")
            if command == "check":
                check(stub, name)
            elif command == "watch":
                threading.Thread(target=watch, args=(stub, name), daemon=True).start()
            else:
                break


if __name__ == "__main__":
    main()
