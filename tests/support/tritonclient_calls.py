"""Call a server with tritonclient, and print its answers as JSON, in an interpreter that has tritonclient.

python tritonclient_calls.py TARGET MODULE... imports the modules in this order. With `twofold` among them, our client and our
stubs also call the server.
"""

from __future__ import annotations

import importlib
import json
import sys


def tritonclient_grpc(target):
    """Call every method that Twofold serves, and one that it does not serve."""
    import queue

    import numpy as np
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    def tensor(shape=(2,), strings=("rain in oslo", "play ♫")):
        made = InferInput("text", shape, "BYTES")
        made.set_data_from_numpy(np.array(strings, dtype=np.object_).reshape(shape))
        return made

    def infer(shape=(2,), strings=("rain in oslo", "play ♫"), **more):
        return client.infer("twofold", [tensor(shape, strings)], **more)

    def infer_async():
        answered = queue.Queue()
        client.async_infer("twofold", [tensor()], lambda result, error: answered.put((result, error)))
        result, error = answered.get(timeout=30)
        return str(error) if error else texts(result, "label")

    def error(call, *arguments, **more):
        try:
            call(*arguments, **more)
        except InferenceServerException as refused:
            return [refused.status(), refused.message()]
        return "answered"

    def texts(answer, name):
        return [item.decode() for item in answer.as_numpy(name)]

    with InferenceServerClient(target) as client:
        answer = infer(request_id="seven", priority=1, timeout=60_000_000, parameters={"offset_unit": "utf8"})
        values = infer((2, 1), outputs=[InferRequestedOutput("label")], model_version="a")
        actual = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": [client.is_model_ready("twofold", item) for item in ("", "a", "b")],
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata("twofold", as_json=True),
            "config": client.get_model_config("twofold", as_json=True),
            "answered": [answer.get_response().id, answer.get_response().model_version],
            "label": texts(answer, "label"),
            "label_score": answer.as_numpy("label_score").tolist(),
            "entities": [json.loads(text) for text in texts(answer, "entities")],
            "checkpoint_id": texts(answer, "checkpoint_id"),
            "async": infer_async(),
            "some": {output.name: texts(values, output.name) for output in values.get_response().outputs},
            "unknown_version": error(infer, model_version="b"),
            "wrong_text": error(infer, (1,), (b"\xff",)),
            "unload": error(client.unload_model, "twofold"),
        }
        client.load_model("b")
        actual["loaded"] = texts(infer(), "label")
        actual["index"] = client.get_model_repository_index(as_json=True)
        actual["statistics"] = client.get_inference_statistics("twofold", as_json=True)
        client.load_model("previous")
        actual["back"] = texts(infer(), "label")
    return actual


def twofold(target):
    """Call with our client and with our Open Inference stubs, and check that protobuf uses theirs."""
    import grpc
    from google.protobuf import descriptor_pool
    from twofold import Client
    from twofold.open_inference import open_inference_pb2 as pb
    from twofold.open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

    with Client(target) as client:
        label = client.predict("rain").label
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"rain"]}}
    with grpc.insecure_channel(target) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(
            pb.ModelInferRequest(model_name="twofold", inputs=[tensor])
        )
    theirs = descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
    return {"label": label, "version": answer.model_version, "two_pools": theirs is not pb.ModelInferRequest.DESCRIPTOR}


if __name__ == "__main__":
    server, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    answers = {"tritonclient": tritonclient_grpc(server)}
    if any(module.startswith("twofold") for module in modules):
        answers["twofold"] = twofold(server)
    print(json.dumps(answers))
